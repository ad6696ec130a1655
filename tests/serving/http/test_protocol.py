"""Connections that never become a request, that never end one, and whose answers nobody reads."""

import asyncio
import contextlib
import json
import socket

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.http import protocol
from serving.http.connection_limits import Connections
from serving.http.protocol import HEADER_SECONDS, MAX_HEADER_BYTES, WRITE_SECONDS
from tests.serving.http.fake_transport import FakeConnection, FakeLoop, FakeTransport, Timer, hello, settle

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LAST_GET = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
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


def talk(*pieces: bytes, app: ASGIApp = hello, seconds: float = 0.0) -> FakeConnection:
    """Sends pieces one after the other, and then lets time pass."""

    async def conversation() -> FakeConnection:
        connection = FakeConnection(app)
        await connection.send(*pieces)
        await connection.loop.advance(seconds)
        return connection

    return asyncio.run(conversation())


def error_of(answer: bytes) -> tuple[int, str]:
    """Status and code of an error, which must have the shape of all errors."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status, _, lines = head.decode().partition("\r\n")
    error = json.loads(body)["error"]
    assert set(error) == {"code", "message", "field", "request_id"}
    assert f"x-request-id: {error['request_id']}" in lines
    assert "connection: close" in lines
    return int(status.split()[1]), error["code"]


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


def test_a_connection_without_a_request_is_kept_for_as_long_as_the_setting_says() -> None:
    async def conversation() -> tuple[bool, bool]:
        connection = FakeConnection(connections=Connections(10, keep_alive_seconds=75.0))
        await connection.send(GET)
        await connection.loop.advance(74.0)
        await connection.send(GET)
        await connection.loop.advance(74.0)
        kept = not connection.closed
        await connection.loop.advance(1.0)
        return kept, connection.closed

    assert asyncio.run(conversation()) == (True, True)


@pytest.mark.parametrize(
    ("head", "rest"),
    [
        (GET, (b"\r\n",)),  # allowed between requests, but no request
        (GET[:-2] + b"Content-Length: 9\r\n\r\n", ()),
        (GET[:-2] + b"Content-Length: 9\r\n\r\n", (b"a", b"b")),
        (CHUNKED, (b"1\r\na\r\n", b"1\r\nb")),
    ],
)
def test_an_answered_connection_that_does_not_go_on_is_closed(head: bytes, rest: tuple[bytes, ...]) -> None:
    connection = talk(head, *rest, seconds=75.0)
    assert connection.closed
    assert connection.received.count(b"HTTP/1.1 ") == 1  # another answer would be taken for that of the next request


def test_a_connection_that_is_kept_holds_no_body_that_its_application_left() -> None:
    body = bytes(1000)
    connection = talk(GET[:-2] + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert connection.received.endswith(b"hi") and not connection.closed
    assert len(connection.protocol.cycle.body) == 0


def test_after_the_rest_of_a_body_that_nobody_waited_for_the_connection_is_kept_as_ever() -> None:
    async def conversation() -> FakeConnection:
        connection = FakeConnection()
        await connection.send(GET[:-2] + b"Content-Length: 2\r\n\r\n", b"a", b"b" + GET)
        await connection.loop.advance(HEADER_SECONDS + 1)
        await connection.send(GET)
        return connection

    connection = asyncio.run(conversation())
    assert connection.received.count(b"HTTP/1.1 200 ") == 3
    assert not connection.closed


async def hold(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers when the body is there."""
    while (await receive()).get("more_body"):
        pass
    await hello(scope, receive, send)


def test_silent_connections_make_room_and_those_with_a_request_stay() -> None:
    async def crowd() -> tuple[list[FakeConnection], list[FakeConnection]]:
        loop, connections = FakeLoop(), Connections(3)
        busy = FakeConnection(hold, connections, loop)
        await busy.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\na")
        silent = [FakeConnection(hello, connections, loop) for _ in range(20)]
        await settle()
        asking = FakeConnection(hello, connections, loop)
        await asking.send(GET)
        await busy.send(b"b")
        return [busy, asking], silent

    served, silent = asyncio.run(crowd())
    assert [connection.received.endswith(b"hi") for connection in served] == [True, True]
    assert [connection.closed for connection in silent] == [True] * 19 + [False]


def test_a_connection_beyond_those_with_requests_is_503() -> None:
    async def crowd() -> tuple[bytes, bool]:
        loop, connections = FakeLoop(), Connections(2)
        for _ in range(2):
            await FakeConnection(hold, connections, loop).send(b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\n")
        late = FakeConnection(hello, connections, loop)
        return late.received, late.closed

    answer, closed = asyncio.run(crowd())
    assert error_of(answer) == (503, "too_many_connections")
    assert b"\r\nretry-after: 1\r\n" in answer
    assert closed


def unread(*unsent: int, keep: bool) -> FakeTransport:
    """An answer of which so many bytes are not sent, one number for each time that this is looked at."""

    async def conversation() -> FakeTransport:
        connection = FakeConnection()
        connection.transport.unsent = unsent[0]
        await connection.send(GET if keep else LAST_GET)
        if keep:
            connection.protocol.pause_writing()
        for left in unsent[1:]:
            connection.transport.unsent = left
            await connection.loop.advance(WRITE_SECONDS)
        return connection.transport

    return asyncio.run(conversation())


@pytest.mark.parametrize("keep", [True, False])
def test_an_answer_that_nobody_reads_is_thrown_away(keep: bool) -> None:
    assert unread(500_000, 500_000, keep=keep).aborted
    assert unread(500_000, 400_000, 400_000, keep=keep).aborted


@pytest.mark.parametrize("keep", [True, False])
def test_an_answer_that_is_read_slowly_is_sent_to_its_end_and_one_more_slowly_is_not(keep: bool) -> None:
    assert not unread(260_000, 200_000, 140_000, 80_000, 0, keep=keep).aborted  # 6 kB/s, over 10 s each
    assert unread(260_000, 220_000, keep=keep).aborted  # 4 kB/s


def read_late(requests: int) -> tuple[list[int], bytes]:
    """How many answers there are: as their client reads nothing, and after it has read each."""

    async def conversation() -> tuple[list[int], bytes]:
        connection = FakeConnection()
        connection.transport.high_water = 100
        counts = []
        connection.transport.unsent = 1000  # of the first answer
        await connection.send(requests * GET)
        for _ in range(requests):
            counts.append(connection.received.count(b"HTTP/1.1 200 "))
            connection.protocol.resume_writing()
            await settle()
        connection.transport.unsent = 0
        return counts, connection.received

    return asyncio.run(conversation())


def test_the_next_request_waits_until_the_answer_before_it_is_read() -> None:
    counts, received = read_late(3)
    assert counts == [1, 2, 3]
    assert received.count(b"HTTP/1.1 200 ") == 3


def test_of_many_answers_that_are_not_read_the_slowest_goes_and_the_others_stay() -> None:
    async def crowd() -> list[bool]:
        loop = FakeLoop()
        connections = Connections(10, most_unread_bytes=2500, least_bytes_per_second=1, clock=loop.time)
        clients = []
        for size in (1000, 1000, 1000):
            clients.append(FakeConnection(hello, connections, loop))
            clients[-1].transport.high_water = 100
            clients[-1].transport.unsent = size
            await clients[-1].send(GET)
            await loop.advance(1.0)
            clients[0].transport.unsent = 900  # the second has read nothing
        return [client.transport.aborted for client in clients]

    assert asyncio.run(crowd()) == [False, True, False]


@pytest.mark.parametrize("sent", [b"", GET[:9], GET])
def test_a_connection_that_breaks_leaves_no_timer_that_would_keep_it_in_memory(sent: bytes) -> None:
    async def conversation() -> list[Timer]:
        connection = FakeConnection()
        await connection.send(sent)
        assert connection.loop.waiting()
        with socket.socket() as closed:
            connection.transport.socket = closed
        connection.protocol.connection_lost(ConnectionResetError())
        return connection.loop.waiting()

    assert asyncio.run(conversation()) == []


def test_bytes_that_the_kernel_has_not_got_rid_of_are_not_sent_yet() -> None:
    async def fill() -> tuple[int, int]:
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
            with accepted:
                accepted.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        accepted.send(bytes(100_000))
                connection = FakeConnection()
                connection.transport.socket = accepted
                connection.transport.unsent = 7
                return connection.protocol._bytes_to_send(), 7

    known, in_transport = asyncio.run(fill())
    assert known > in_transport


def test_the_head_of_an_answer_and_the_start_of_its_body_are_one_packet() -> None:
    recorder = FakeTransport()
    writer = protocol.ResponseTransport(recorder)
    interim, head = b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"
    for _ in range(2):
        for data in (interim, head, b"body", b"more"):
            writer.write(data)
        writer.end()
    assert recorder.packets == 2 * [interim, head + b"body", b"more"]


def test_an_answer_without_a_body_is_sent_when_it_ends_or_the_connection_does() -> None:
    recorder = FakeTransport()
    writer = protocol.ResponseTransport(recorder)
    for end in (writer.end, writer.close):
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        end()
    assert recorder.packets == 2 * [b"HTTP/1.1 204 No Content\r\n\r\n"]
    assert writer.is_closing()


def test_answers_on_one_connection_come_whole_and_in_order() -> None:
    kept = b" / HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = talk(b"GET" + kept + b"HEAD" + kept, b"HEAD" + kept, LAST_GET).received
    assert [part.rpartition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 200 OK")[1:]] == [
        b"hi",
        b"",
        b"",
        b"hi",
    ]


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
