"""Answers that nobody reads, or slowly, and how they are handed to the kernel."""

import asyncio
import contextlib
import socket

import pytest

from serving.http import protocol
from serving.http.connection_limits import Connections
from serving.http.protocol import WRITE_SECONDS
from tests.serving.http.fake_transport import (
    GET,
    LAST_GET,
    FakeConnection,
    FakeLoop,
    FakeTransport,
    Timer,
    hello,
    settle,
)


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
