"""Connections that never become a request, that never end one, and whose answers nobody reads."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from serving import protocol
from serving.guard import MAX_HEADER_BYTES

LONG = 8_000_000  # bytes of an answer, more than the kernel holds
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
TRAILERS = b"".join(b"X-Trailer-%d: %s\r\n" % (index, b"a" * 1000) for index in range(MAX_HEADER_BYTES // 1500))


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


async def listen(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the body before it answers."""
    while (message := await receive()).get("more_body"):
        pass
    assert message["type"] == "http.disconnect"
    await hello(scope, receive, send)


async def begin(scope: Scope, receive: Receive, send: Send) -> None:
    """Begins an answer and ends it when the client has gone."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"20")]})
    await send({"type": "http.response.body", "body": b"hi", "more_body": True})
    while (await receive())["type"] != "http.disconnect":
        pass


async def consent(scope: Scope, receive: Receive, send: Send) -> None:
    """Asks for the body, then answers."""
    assert (await receive())["body"] == b"ab"
    await hello(scope, receive, send)


async def long(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % LONG)]})
    await send({"type": "http.response.body", "body": bytes(LONG)})


class Recorder(asyncio.Transport):
    """Keeps what is written, one entry for each packet."""

    def __init__(self) -> None:
        super().__init__()
        self.packets: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        self.packets.append(data)

    def writelines(self, list_of_data: Any) -> None:
        self.packets.append(b"".join(list_of_data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


@contextlib.asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[tuple[uvicorn.Server, Any]]:
    """A server and its address."""
    config = uvicorn.Config(app, http=protocol.LimitedProtocol, log_config=None, lifespan="off", ws="none")
    config.load()
    server = uvicorn.Server(config)
    loop = asyncio.get_running_loop()
    made: Any = lambda: protocol.LimitedProtocol(config, server.server_state, {})  # noqa: E731
    listening = await loop.create_server(made, "127.0.0.1", 0)
    try:
        yield server, listening.sockets[0].getsockname()
    finally:
        listening.close()


async def talk(*pieces: bytes, app: ASGIApp = hello) -> bytes:
    """Sends pieces to a server with a tenth of a second between them; returns all that comes back."""
    async with serving(app) as (_, address):
        reader, writer = await asyncio.open_connection(*address)
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.1)
        answer = await asyncio.wait_for(reader.read(), 3)
        writer.close()
        return answer


async def read_slowly(request: bytes, bytes_at_once: int, seconds: float) -> tuple[int, int]:
    """Reads an answer in steps of 0.02 s; the bytes that came, and the server's connections after `seconds`."""
    async with serving(long) as (server, address):
        loop = asyncio.get_running_loop()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            client.setblocking(False)
            await loop.sock_connect(client, address)
            await loop.sock_sendall(client, request)
            received, deadline = 0, time.monotonic() + seconds
            while time.monotonic() < deadline and received < LONG:
                await asyncio.sleep(0.02)
                if bytes_at_once:
                    received += len(await loop.sock_recv(client, bytes_at_once))
            return received, len(server.server_state.connections)


@pytest.mark.parametrize("pieces", [(), (b"GET / HTT",), (b"GET / HTTP/1.1\r\nHost: x\r\n", b"X-Slow: 1\r\n")])
def test_headers_that_do_not_come_in_time_are_408(monkeypatch: pytest.MonkeyPatch, pieces: tuple[bytes, ...]) -> None:
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.3)
    head, _, body = asyncio.run(talk(*pieces)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert json.loads(body)["error"]["code"] == "header_timeout"


def test_the_second_request_of_a_connection_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.3)
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = asyncio.run(talk(request, request, request, request, b"GET / HT"))
    assert answer.count(b"HTTP/1.1 200 ") == 4
    assert answer.count(b"HTTP/1.1 408 ") == 1


def test_endless_trailers_after_an_answer_end_the_connection_without_another_answer() -> None:
    answer = asyncio.run(talk(CHUNKED + b"0\r\n", TRAILERS, TRAILERS))
    assert answer.count(b"HTTP/1.1 ") == answer.count(b"HTTP/1.1 200 ") == 1


def test_endless_trailers_before_an_answer_are_431_and_the_application_hears_of_it() -> None:
    head, _, body = asyncio.run(talk(CHUNKED + b"0\r\n", TRAILERS, TRAILERS, app=listen)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert json.loads(body)["error"]["code"] == "headers_too_large"  # and nothing after it


@pytest.mark.parametrize(
    "rest", [(b"0\r\n", TRAILERS, TRAILERS), (b"no chunk\r\n",), (b"0\r\n\r\n", b"no request\r\n")]
)
def test_an_answer_that_has_begun_is_broken_off_and_holds_no_error(rest: tuple[bytes, ...]) -> None:
    answer = asyncio.run(talk(CHUNKED, *rest, app=begin))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\nhi")


def test_few_trailers_do_no_harm() -> None:
    answer = asyncio.run(talk(CHUNKED + b"0\r\n", TRAILERS, b"\r\n", b"GET / HTTP/1.0\r\n\r\n"))
    assert answer.count(b"HTTP/1.1 200 ") == 2


def test_the_body_of_one_request_does_not_count_as_headers_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_HEADER_BYTES", 1000)
    post = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\n" + bytes(20_000)
    answer = asyncio.run(talk(post + b"GET / HTTP/1.0\r\n", b"Host: x\r\n\r\n"))  # the first piece in one read
    assert answer.count(b"HTTP/1.1 200 ") == 2


@pytest.mark.parametrize("header", [b"Connection: close", b"Connection: keep-alive"])
def test_an_answer_that_nobody_reads_is_thrown_away(monkeypatch: pytest.MonkeyPatch, header: bytes) -> None:
    monkeypatch.setattr(protocol, "WRITE_SECONDS", 0.3)
    request = b"GET / HTTP/1.1\r\nHost: x\r\n" + header + b"\r\n\r\n"
    assert asyncio.run(read_slowly(request, 0, 1.0)) == (0, 0)


def test_an_answer_that_is_read_slowly_arrives_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "WRITE_SECONDS", 0.3)
    request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    expected = LONG + len(b"HTTP/1.1 200 OK\r\ncontent-length: 8000000\r\nconnection: close\r\n\r\n")
    received, _ = asyncio.run(read_slowly(request, 300_000, 10.0))
    assert LONG <= received <= expected


def test_the_head_of_an_answer_and_the_start_of_its_body_are_one_packet() -> None:
    recorder = Recorder()
    writer = protocol.AnswerWriter(recorder)
    interim, head = b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"
    for _ in range(2):
        for data in (interim, head, b"body", b"more"):
            writer.write(data)
        writer.end()
    assert recorder.packets == 2 * [interim, head + b"body", b"more"]


def test_an_answer_without_a_body_is_sent_when_it_ends_or_the_connection_does() -> None:
    recorder = Recorder()
    writer = protocol.AnswerWriter(recorder)
    for end in (writer.end, writer.close):
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        end()
    assert recorder.packets == 2 * [b"HTTP/1.1 204 No Content\r\n\r\n"]
    assert writer.is_closing()


def test_answers_on_one_connection_come_whole_and_in_order() -> None:
    kept = b" / HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = asyncio.run(talk(b"GET" + kept + b"HEAD" + kept, b"HEAD" + kept, last))
    assert [part.rpartition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 200 OK")[1:]] == [
        b"hi",
        b"",
        b"",
        b"hi",
    ]


def test_a_client_that_waits_for_consent_gets_it_before_it_sends_its_body() -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    answer = asyncio.run(talk(head, b"ab", app=consent))
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")
    assert answer.endswith(b"hi")
