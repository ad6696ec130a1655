"""A connection of the server's protocol without a network: a test says what comes, and moves the clock."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from serving.http.connection_limits import Connections
from serving.http.protocol import CONNECTIONS, NOTE_REFUSAL, LimitedProtocol

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LAST_GET = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
TURNS = 30  # of the event loop, in which all is done that a test set going


async def settle() -> None:
    """Lets the event loop do what it has to do."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that answers `hi` and reads nothing."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


class Timer:
    """A stand-in for `asyncio.TimerHandle`."""

    def __init__(self, due: float, callback: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self.due = due
        self.cancelled = False
        self._callback = callback
        self._arguments = arguments

    def cancel(self) -> None:
        self.cancelled = True

    def run(self) -> None:
        self.cancelled = True
        self._callback(*self._arguments)


class FakeLoop:
    """The running event loop, but with a clock that stands still."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._now = 0.0
        self._timers: list[Timer] = []

    def call_later(self, seconds: float, callback: Callable[..., object], *arguments: Any) -> Timer:
        self._timers.append(Timer(self._now + seconds, callback, arguments))
        return self._timers[-1]

    def create_task(self, coroutine: Any, **options: Any) -> "asyncio.Task[None]":
        return self._loop.create_task(coroutine, **options)

    def call_soon(self, callback: Callable[..., object], *arguments: Any) -> object:
        return self._loop.call_soon(callback, *arguments)

    def time(self) -> float:
        return self._now

    def waiting(self) -> list[Timer]:
        """Timers that have neither run nor been cancelled."""
        return [timer for timer in self._timers if not timer.cancelled]

    async def advance(self, seconds: float) -> None:
        """Lets time pass, from one timer that is due to the next."""
        end = self._now + seconds
        while due := [timer for timer in self.waiting() if timer.due <= end]:
            timer = min(due, key=lambda timer: timer.due)
            self._now = timer.due
            timer.run()
            await settle()
        self._now = end


class FakeSocket:
    """What the protocol asks of a socket."""

    def getpeername(self) -> tuple[str, int]:
        return "192.0.2.1", 40_000

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 3000

    def fileno(self) -> int:
        raise OSError("a socket that is none")


class FakeTransport(asyncio.Transport):
    """Keeps what is written, one entry for each packet."""

    def __init__(self, on_close: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.packets: list[bytes] = []
        self.closed = False
        self.aborted = False
        self.unsent = 0  # bytes that the client has not read
        self.reads = True  # False: what comes has to wait
        self.high_water = 10**9  # of those, from which on the protocol is told
        self.protocol: Any = None
        self.socket: Any = FakeSocket()
        self._on_close = on_close

    def write(self, data: Any) -> None:
        self.packets.append(bytes(data))
        if self.unsent > self.high_water:
            self.protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        if not self.closed and not self.unsent:  # else it is closed once that is sent
            self._on_close()
        self.closed = True

    def abort(self) -> None:
        self.aborted = self.closed = True
        self._on_close()

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.socket if name == "socket" else default

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True


class FakeConnection:
    """A client's connection. To be made inside a running event loop.

    Args:
        app: the application behind the protocol.
        connections: those of the server, with their limits.
        loop: the clock, where several connections share one.
    """

    def __init__(
        self, app: ASGIApp = hello, connections: Connections | None = None, loop: FakeLoop | None = None
    ) -> None:
        self.refusals: list[tuple[str, str, tuple[str, int] | None, int]] = []  # code, request id, client, bytes
        self.loop = FakeLoop() if loop is None else loop
        config = uvicorn.Config(app, http=LimitedProtocol, log_config=None, lifespan="off", ws="none")
        config.load()
        state = {
            CONNECTIONS: Connections() if connections is None else connections,
            NOTE_REFUSAL: lambda error, *rest: self.refusals.append((error.code, *rest)),
        }
        protocol: Any = LimitedProtocol(config, ServerState(), state, self.loop)
        self.protocol = protocol
        self.transport = FakeTransport(lambda: self.loop.call_soon(protocol.connection_lost, None))
        self.transport.protocol = protocol
        self.protocol.connection_made(self.transport)

    async def send(self, *pieces: bytes) -> None:
        """Sends each piece on its own and lets the server work on it; what comes after the end is lost."""
        for piece in pieces:
            if not self.closed:
                self.protocol.data_received(piece)
            await settle()

    @property
    def received(self) -> bytes:
        """All that the server has sent."""
        return b"".join(self.transport.packets)

    @property
    def closed(self) -> bool:
        """Whether the server has ended the connection."""
        return self.transport.closed


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
