"""Which connections are kept, for how long, and which make room for others."""

import asyncio

import pytest
from starlette.types import Receive, Scope, Send

from serving.http.connection_limits import Connections
from serving.http.protocol import HEADER_SECONDS
from tests.serving.http.fake_transport import (
    CHUNKED,
    GET,
    FakeConnection,
    FakeLoop,
    error_of,
    hello,
    settle,
    talk,
)


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
