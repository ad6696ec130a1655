"""Clients of a soak: good ones at a constant rate, bad ones, and slow ones, over raw connections in one event loop.

A client of a kind does one thing from connecting to its end and says what came of it: the status, `503 planned` where
the server asked to come back later, `gone` where it was the client that left, or the name of an error.
"""

import asyncio
import itertools
import socket
import struct
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

GOOD: Final = "good"
PLANNED: Final = "503 planned"
GONE: Final = "gone"
CLASSIFY: Final = "/v1/classify"
FEATURES: Final = "/v1/features?levels=e1,e2,e3,e4,pooled&dtype=f32"
PIECES: Final = 20  # that a slow client sends or reads its bytes in
PIECE_SECONDS: Final = 0.3
SILENT_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 60.0  # for a whole answer, after which the server is taken to hang
OVERSIZE_BYTES: Final = 2_000_000_000
LIMIT_BYTES: Final = 1 << 16
SMALL_BUFFER_BYTES: Final = 4096

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class Target:
    """The server, and what clients of all kinds have in common."""

    port: int  # on 127.0.0.1
    photo: bytes
    sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep

    @asynccontextmanager
    async def connection(self, buffer_bytes: int | None = None) -> AsyncIterator[Streams]:
        """A connection of its own, of which this side holds about so many unread bytes."""
        endpoint = socket.socket()
        if buffer_bytes is not None:
            endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        endpoint.setblocking(False)
        await asyncio.get_running_loop().sock_connect(endpoint, ("127.0.0.1", self.port))
        reader, writer = await asyncio.open_connection(sock=endpoint, limit=buffer_bytes or LIMIT_BYTES)
        try:
            yield reader, writer
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def ask(self, sent: bytes) -> str:
        """What comes of sending these bytes."""
        async with self.connection() as (reader, writer):
            writer.write(sent)
            with suppress(OSError):  # an answer may come before all is sent
                await writer.drain()
            return (await read_answer(reader)).outcome


@dataclass(frozen=True)
class Answer:
    """The head of an HTTP answer."""

    status: int
    headers: dict[str, str]  # names in lower case

    @property
    def outcome(self) -> str:
        """The status, as it is counted."""
        return PLANNED if self.status == 503 and "retry-after" in self.headers else str(self.status)

    @property
    def length(self) -> int:
        """Bytes of its body."""
        return int(self.headers.get("content-length", 0))

    @property
    def stays(self) -> bool:
        """Whether the connection may be used again."""
        return self.headers.get("connection", "").lower() != "close"


def message(method: str, path: str, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    """A whole request; with `length`, its head says that many bytes in place of the body's own."""
    count = f"Content-Length: {len(body) if length is None else length}"
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", count, *headers, "", ""]).encode() + body


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """Reads one answer.

    Raises:
        ConnectionError: the server closed the connection first.
        TimeoutError: it took longer than `ANSWER_SECONDS`.
    """
    async with asyncio.timeout(ANSWER_SECONDS):
        try:
            answer = await read_head(reader)
            await reader.readexactly(answer.length)
        except asyncio.IncompleteReadError as error:
            raise ConnectionResetError(f"the server closed the connection after {len(error.partial)} bytes") from None
    return answer


async def read_head(reader: asyncio.StreamReader) -> Answer:
    """Reads an answer up to its body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
    return Answer(int(head[0].split()[1]), headers)


# ------------------------------------------------------------------------------------------------------------ bad, slow


def huge_png() -> bytes:
    """A few bytes that claim to be 60 000 x 60 000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


async def upload_slowly(target: Target) -> str:
    """A photo in pieces, over some seconds, without a pause that is long."""
    sent = message("POST", CLASSIFY, target.photo)
    async with target.connection() as (reader, writer):
        for piece in pieces(sent):
            writer.write(piece)
            await writer.drain()
            await target.sleep(PIECE_SECONDS)
        return (await read_answer(reader)).outcome


async def stop_uploading(target: Target) -> str:
    """Half of a photo and then nothing, until the server gives up."""
    return await target.ask(message("POST", CLASSIFY, target.photo[: len(target.photo) // 2], length=len(target.photo)))


async def read_slowly(target: Target) -> str:
    """A large answer in pieces, over some seconds."""
    async with target.connection(SMALL_BUFFER_BYTES) as (reader, writer):
        writer.write(message("POST", FEATURES, target.photo, "Accept: application/octet-stream"))
        await writer.drain()
        answer = await read_head(reader)
        left, step = answer.length, max(1, answer.length // PIECES)
        while left > 0:
            await target.sleep(PIECE_SECONDS)
            left -= len(await reader.readexactly(min(step, left)))
        return answer.outcome


async def leave_at_once(target: Target) -> str:
    """A whole request, and gone before its answer."""
    async with target.connection() as (_, writer):
        writer.write(message("POST", CLASSIFY, target.photo))
        await writer.drain()
    return GONE


async def leave_in_the_head(target: Target) -> str:
    """Half of a request's head, and gone."""
    async with target.connection() as (_, writer):
        writer.write(message("POST", CLASSIFY)[:20])
        await writer.drain()
    return GONE


async def say_nothing(target: Target) -> str:
    """A connection without a request, for a while."""
    async with target.connection():
        await target.sleep(SILENT_SECONDS)
    return GONE


def pieces(content: bytes) -> Iterable[bytes]:
    """`content` in about `PIECES` parts."""
    step = max(1, len(content) // PIECES)
    return (content[at : at + step] for at in range(0, len(content), step))


def asking(make: Callable[[Target], bytes]) -> Callable[[Target], Awaitable[str]]:
    """A client that sends what `make` gives and reads the answer."""

    async def act(target: Target) -> str:
        return await target.ask(make(target))

    return act


@dataclass(frozen=True)
class Kind:
    """A kind of client."""

    name: str
    expected: str  # what comes of it
    act: Callable[[Target], Awaitable[str]]
    pause: float  # seconds from one to the next


def posting(body: bytes | None = None, path: str = CLASSIFY, *headers: str) -> Callable[[Target], Awaitable[str]]:
    """A client that posts `body`, by default the photo, and reads the answer."""
    return asking(lambda target: message("POST", path, target.photo if body is None else body, *headers))


JSON: Final = "Content-Type: application/json"
BAD: Final = tuple(
    Kind(name, expected, act, 0.5)
    for name, expected, act in (
        (
            "half a JPEG",
            "400",
            asking(lambda target: message("POST", CLASSIFY, target.photo[: len(target.photo) // 2])),
        ),
        ("a text", "400", posting(b"no photo " * 100)),
        ("no body", "400", posting(b"")),
        ("broken JSON", "400", posting(b'{"inputs": ', CLASSIFY, JSON)),
        ("a URL", "400", posting(b'{"inputs": "http://localhost/a.jpg"}', CLASSIFY, JSON)),
        ("a wrong path", "404", posting(path="/v1/nothing")),
        ("a wrong parameter", "422", posting(path=f"{CLASSIFY}?top_k=-1")),
        ("an unknown model", "404", posting(path=f"{CLASSIFY}?model=none")),
        ("a huge PNG", "413", posting(huge_png())),
        ("a huge body", "413", asking(lambda target: message("POST", CLASSIFY, target.photo, length=OVERSIZE_BYTES))),
        ("no HTTP", "400", asking(lambda target: b"\x16\x03\x01 hello\r\n\r\n")),
    )
)
SLOW: Final = (
    Kind("slow upload", "200", upload_slowly, 1.0),
    Kind("stopped upload", "408", stop_uploading, 1.0),
    Kind("slow reader", "200", read_slowly, 1.0),
    Kind("gone before the answer", GONE, leave_at_once, 0.5),
    Kind("gone in the head", GONE, leave_in_the_head, 0.5),
    Kind("silent", GONE, say_nothing, 1.0),
)


# --------------------------------------------------------------------------------------------------------- all together


@dataclass
class Outcomes:
    """What came of all clients, by kind, and how long good ones waited from the moment that they were due."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    latencies: list[float] = field(default_factory=list)  # seconds

    def add(self, kind: str, outcome: str) -> None:
        """One more."""
        self.counts.setdefault(kind, Counter())[outcome] += 1


async def outcome_of(act: Awaitable[str]) -> str:
    """What came of a client, also where its connection failed."""
    try:
        return await act
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        return type(error).__name__


async def repeat(kind: Kind, target: Target, outcomes: Outcomes) -> None:
    """Clients of one kind one after the other, until cancelled."""
    while True:
        outcomes.add(kind.name, await outcome_of(kind.act(target)))
        await target.sleep(kind.pause)


class GoodClients:
    """Requests at a constant rate, whatever becomes of those before them, over connections that are kept.

    Args:
        target: whom to ask.
        outcomes: where to count.
    """

    def __init__(self, target: Target, outcomes: Outcomes) -> None:
        self._target = target
        self._outcomes = outcomes
        self._request = message("POST", CLASSIFY, target.photo)
        self._idle: list[Streams] = []

    async def run(self, rate: float, seconds: float) -> None:
        """Sends `rate` requests a second for so long, and waits for the last answers."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        async with asyncio.TaskGroup() as group:
            for due in itertools.takewhile(lambda at: at < seconds, (index / rate for index in itertools.count())):
                await self._target.sleep(max(0.0, started + due - loop.time()))
                group.create_task(self._one(started + due))
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()

    async def _one(self, due: float) -> None:
        self._outcomes.add(GOOD, await outcome_of(self._ask()))
        self._outcomes.latencies.append(asyncio.get_running_loop().time() - due)

    async def _ask(self) -> str:
        while self._idle:
            streams = self._idle.pop()
            with suppress(ConnectionError):  # the server may have closed it meanwhile: another one then
                return await self._exchange(*streams)
        return await self._exchange(*await asyncio.open_connection("127.0.0.1", self._target.port))

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        stays = False
        try:
            writer.write(self._request)
            await writer.drain()
            answer = await read_answer(reader)
            stays = answer.stays
        finally:
            if stays:
                self._idle.append((reader, writer))
            else:
                writer.close()
        return answer.outcome
