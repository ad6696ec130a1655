"""Requests that never come whole, that are none, and what is answered to those that are."""

import asyncio
import json

import pytest
from starlette.types import Receive, Scope, Send

from serving.http import protocol
from serving.http.guard import WHOLE_BODY
from serving.http.protocol import HEADER_SECONDS, MAX_HEADER_BYTES
from tests.serving.http.fake_transport import (
    CHUNKED,
    GET,
    LAST_GET,
    FakeConnection,
    error_of,
    hello,
    talk,
)

TRAILERS = b"".join(b"X-Trailer-%d: %s\r\n" % (index, b"a" * 1000) for index in range(MAX_HEADER_BYTES // 1500))


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


@pytest.mark.parametrize("pieces", [(), (b"GET / HTT",), (b"GET / HTTP/1.1\r\nHost: x\r\n", b"X-Slow: 1\r\n")])
def test_headers_that_do_not_come_in_time_are_408(pieces: tuple[bytes, ...]) -> None:
    assert talk(*pieces, seconds=HEADER_SECONDS - 0.1).received == b""
    connection = talk(*pieces, seconds=HEADER_SECONDS)
    assert connection.closed
    assert error_of(connection.received) == (408, "header_timeout")


def test_a_header_a_second_does_not_buy_more_time() -> None:
    async def conversation() -> bytes:
        connection = FakeConnection()
        await connection.send(b"GET / HTTP/1.1\r\n")
        for index in range(int(HEADER_SECONDS)):
            await connection.send(b"X-Slow-%d: 1\r\n" % index)
            await connection.loop.advance(1.0)
        return connection.received

    assert error_of(asyncio.run(conversation())) == (408, "header_timeout")


def test_the_second_request_of_a_connection_has_its_own_time() -> None:
    async def conversation() -> bytes:
        connection = FakeConnection()
        for _ in range(4):
            await connection.send(GET)
            await connection.loop.advance(HEADER_SECONDS - 1)
        await connection.send(b"GET / HT")
        await connection.loop.advance(HEADER_SECONDS)
        return connection.received

    answer = asyncio.run(conversation())
    assert answer.count(b"HTTP/1.1 200 ") == 4
    assert answer.count(b"HTTP/1.1 408 ") == 1


def test_endless_trailers_after_an_answer_end_the_connection_without_another_answer() -> None:
    connection = talk(CHUNKED + b"0\r\n", TRAILERS, TRAILERS)
    assert connection.closed
    assert connection.received.count(b"HTTP/1.1 ") == connection.received.count(b"HTTP/1.1 200 ") == 1


def test_endless_trailers_before_an_answer_are_431_and_the_application_hears_of_it() -> None:
    answer = talk(CHUNKED + b"0\r\n", TRAILERS, TRAILERS, app=listen).received
    assert error_of(answer) == (431, "headers_too_large")  # and nothing after it


@pytest.mark.parametrize(
    "rest", [(b"0\r\n", TRAILERS, TRAILERS), (b"no chunk\r\n",), (b"0\r\n\r\n", b"no request\r\n")]
)
def test_an_answer_that_has_begun_is_broken_off_and_holds_no_error(rest: tuple[bytes, ...]) -> None:
    connection = talk(CHUNKED, *rest, app=begin)
    answer = connection.received
    assert connection.closed
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\nhi")


def test_few_trailers_do_no_harm() -> None:
    answer = talk(CHUNKED + b"0\r\n", TRAILERS, b"\r\n", b"GET / HTTP/1.0\r\n\r\n").received
    assert answer.count(b"HTTP/1.1 200 ") == 2


def test_the_body_of_one_request_does_not_count_as_headers_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_HEADER_BYTES", 1000)
    post = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\n" + bytes(20_000)
    answer = talk(post + b"GET / HTTP/1.0\r\n", b"Host: x\r\n\r\n").received  # the first piece in one read
    assert answer.count(b"HTTP/1.1 200 ") == 2


@pytest.mark.parametrize(
    "pieces",
    [
        (GET.replace(b"x", b"a" * MAX_HEADER_BYTES),),
        (b"GET /" + b"a" * MAX_HEADER_BYTES + b" HTTP/1.1\r\n\r\n",),
        (GET[:-2] + b"a:b\r\n" * 13_000 + b"\r\n",),
        (GET[:-2] + b"X: " + b"a" * (MAX_HEADER_BYTES - 10), b"a" * 20 + b"\r\n\r\n"),  # ends in its second read
    ],
)
def test_a_head_that_is_too_large_is_431_also_where_it_ends_at_once(pieces: tuple[bytes, ...]) -> None:
    connection = talk(*pieces)
    assert connection.closed
    assert error_of(connection.received) == (431, "headers_too_large")


@pytest.mark.parametrize(
    "line",
    [b"CONNECT h:443", b"CONNECT /livez", b"CONNECT http://h/", b"GET http://", b"GET ftp://h/", b"GET http://u@h/"],
)
def test_what_asks_for_something_else_than_a_path_of_this_server_is_400(line: bytes) -> None:
    connection = talk(line + b" HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
    assert connection.closed
    assert error_of(connection.received) == (400, "invalid_target")


@pytest.mark.parametrize(
    "request_line",
    [
        b"get / HTTP/1.1",
        b"HELLO / HTTP/1.1",
        b"GET /",
        b"GET /\r\nHost: x",
        b"GET / HTTP/2.0",
        b"GET / HTTP/3.0",
        b"GET livez HTTP/1.1",
        b"GET /\xe9 HTTP/1.1",
        b"GET /a\0b HTTP/1.1",
        b"PRI * HTTP/2.0\r\n\r\nSM",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"EHLO client.example",
        bytes(40),
    ],
)
def test_what_is_no_request_is_400(request_line: bytes) -> None:
    connection = talk(request_line + b"\r\n\r\n")
    assert connection.closed
    assert error_of(connection.received) == (400, "invalid_http")


@pytest.mark.parametrize(
    ("target", "host", "path", "query"),
    [
        (b"http://h", b"h", "/", b""),
        (b"http://h?a=b", b"h", "/", b"a=b"),
        (b"HTTP://h:80/livez", b"h:80", "/livez", b""),
        (b"https://[::1]/a%20b?c", b"[::1]", "/a b", b"c"),
    ],
)
def test_a_whole_url_asks_for_its_path_at_its_host(target: bytes, host: bytes, path: str, query: bytes) -> None:
    scopes: list[Scope] = []

    async def note(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await hello(scope, receive, send)

    assert talk(b"GET " + target + b" HTTP/1.1\r\nHost: other\r\n\r\n", app=note).received.endswith(b"hi")
    assert (scopes[0]["path"], scopes[0]["query_string"]) == (path, query)
    assert [value for name, value in scopes[0]["headers"] if name == b"host"] == [host]


OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"


@pytest.mark.parametrize("size", [3, 1000])  # of the pieces that it comes in
def test_the_offer_of_another_protocol_is_ignored_and_the_request_answered(size: int) -> None:
    seen: list[tuple[bytes, list[bytes]]] = []

    async def note(scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        seen.append((body, [name for name, _ in scope["headers"]]))
        await hello(scope, receive, send)

    plain = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
    offering = b"POST / HTTP/1.1\r\nHost: x\r\n" + OFFER + b"Content-Length: 5\r\n\r\nhello"
    socket_offer = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, upgrade\r\nUpgrade: websocket\r\n\r\n"
    stream = offering + offering + socket_offer + plain
    connection = talk(*(stream[at : at + size] for at in range(0, len(stream), size)), app=note)
    assert connection.received.count(b"HTTP/1.1 200 ") == 4
    assert not connection.closed
    assert [body for body, _ in seen] == [b"hello", b"hello", b"", b"hello"]
    assert all(b"upgrade" not in names and b"http2-settings" not in names for _, names in seen)


def test_answers_on_one_connection_come_whole_and_in_order() -> None:
    kept = b" / HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = talk(b"GET" + kept + b"HEAD" + kept, b"HEAD" + kept, LAST_GET).received
    assert [part.rpartition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 200 OK")[1:]] == [
        b"hi",
        b"",
        b"",
        b"hi",
    ]


@pytest.mark.parametrize(("pieces", "whole"), [((b"ab",), True), ((b"a", b"b"), False), ((b"", b"ab"), False)])
def test_an_application_sees_whether_the_whole_body_is_there_when_it_begins(
    pieces: tuple[bytes, ...], whole: bool
) -> None:
    seen = []

    async def look(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(WHOLE_BODY in scope)
        await hello(scope, receive, send)

    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"
    talk(head + pieces[0], *pieces[1:], app=look)
    assert seen == [whole]


def test_a_client_that_waits_for_consent_gets_it_before_it_sends_its_body() -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    answer = talk(head, b"ab", app=consent).received
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")
    assert answer.endswith(b"hi")


@pytest.mark.parametrize(
    "pieces", [(), (b"hello\r\n\r\n",), (GET.replace(b"x", b"a" * MAX_HEADER_BYTES),), (GET, b"?")]
)
def test_a_refusal_that_no_application_sees_is_noted_once(pieces: tuple[bytes, ...]) -> None:
    connection = talk(*pieces, seconds=HEADER_SECONDS)
    answer = connection.received[connection.received.rindex(b"HTTP/1.1 4") :]
    status, code = error_of(answer)
    body = answer.partition(b"\r\n\r\n")[2]
    request_id = json.loads(body)["error"]["request_id"]
    assert status in (400, 408, 431)
    assert connection.refusals == [(code, request_id, ("192.0.2.1", 40_000), len(body))]


def test_what_an_application_keeps_a_record_of_is_not_noted_again() -> None:
    connection = talk(CHUNKED + b"?", app=listen)
    assert error_of(connection.received) == (400, "invalid_http")
    assert connection.refusals == []
    assert talk(GET).refusals == []


@pytest.mark.parametrize("chunks", [1, 2, 5000])
def test_a_large_body_is_waited_for_before_more_is_read_and_comes_whole(chunks: int) -> None:
    body = bytes(range(256)) * 1000
    size = -(-len(body) // chunks)
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    pieces = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    received, reads = [], []
    connection: FakeConnection

    async def keep(scope: Scope, receive: Receive, send: Send) -> None:
        reads.append(connection.transport.reads)
        more = True
        while more:
            message = await receive()
            received.append(message["body"])
            more = message["more_body"]
        await hello(scope, receive, send)

    async def conversation() -> None:
        nonlocal connection
        connection = FakeConnection(keep)
        await connection.send(CHUNKED + pieces, b"0\r\n\r\n")  # paused while the end is yet to come
        await connection.send(CHUNKED + pieces + b"0\r\n\r\n")  # one read has it all
        reads.append(connection.transport.reads)

    asyncio.run(conversation())
    assert b"".join(received) == body + body
    assert reads == [False, True, True]
