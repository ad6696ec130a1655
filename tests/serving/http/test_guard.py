"""The outermost layer alone, around an application of a few lines."""

import asyncio
import gc
import json
import logging
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from serving.errors import ApiError
from serving.http.guard import EXCHANGE, WHOLE_BODY, Exchange, Guard
from serving.http.keys import FREE_KEYS, SECONDS_A_KEY
from serving.metrics import Metrics
from serving.settings import Settings
from tests.serving.http.fake_transport import settle
from tests.waiting import GivenClock

LIMITS = SimpleNamespace(body_bytes=20_000_000, body_seconds=10.0)
KEY = "correct horse battery staple"
WRONG_KEY = "incorrect horse battery staple"


class Conversation:
    """One request whose body arrives when the test says so."""

    def __init__(self, guard: Guard, length: int) -> None:
        self.incoming: asyncio.Queue[Message] = asyncio.Queue()
        self.status = 0
        scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-length", b"%d" % length)]}
        self.task = asyncio.create_task(guard(scope, self.incoming.get, self._note))

    async def _note(self, message: Message) -> None:
        self.status = message.get("status", self.status)

    async def send(self, size: int, more: bool = True) -> None:
        """Sends a part of the body, and lets the server work on it."""
        self.incoming.put_nowait({"type": "http.request", "body": bytes(size), "more_body": more})
        await settle()


def test_a_refused_body_makes_room_for_others_at_once() -> None:
    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        body = await guard.read_body(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"%d" % len(body)})

    async def talk() -> None:
        first, second = Conversation(guard, 1_500_000), Conversation(guard, 1_500_000)
        await first.send(1_000_000)
        await second.send(1_000_000)
        assert second.status == 503 and not second.task.done()  # its client is still sending
        assert guard.buffered_bytes == 1_000_000
        await first.send(500_000, more=False)
        assert first.status == 200
        await second.send(500_000, more=False)
        await asyncio.gather(first.task, second.task)
        assert guard.buffered_bytes == 0

    settings = Settings(bundle=(Path("none"),), threads=1, max_buffered_bytes=1_600_000)
    guard = Guard(application, settings, Metrics(), lambda _: LIMITS)
    asyncio.run(talk())


@pytest.mark.parametrize(
    ("sizes", "still_held"),
    [
        ((3_000_000, 3_000_000, 3_000_000), [0]),
        ((7_000_000, 1_000_000, 1_000_000), [2_000_000]),  # the burst is over before its last request is
        ((2_000_000, 2_000_000, 2_000_000), []),  # no burst
    ],
)
def test_what_a_burst_of_bodies_took_is_given_back_after_it(
    sizes: tuple[int, ...], still_held: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await guard.read_body(scope)
        await answers.get()  # in the order in which the requests came

    async def bursts(count: int) -> None:
        for _ in range(count):
            for size in sizes:
                await Conversation(guard, size).send(size, more=False)
            for _ in sizes:
                answers.put_nowait(None)
                await settle()

    trimmed: list[int] = []
    answers: asyncio.Queue[None] = asyncio.Queue()
    guard = Guard(application, Settings(bundle=(Path("none"),), threads=1), Metrics(), lambda _: LIMITS)
    monkeypatch.setattr("serving.http.guard.trim_heap", lambda: trimmed.append(guard.buffered_bytes))
    asyncio.run(bursts(2))
    assert trimmed == still_held * 2


@pytest.mark.parametrize("error", [None, ApiError(503, "overloaded", "busy")])
def test_nothing_of_a_request_stays_until_python_looks_for_cycles(error: ApiError | None) -> None:
    exchanges: list[weakref.ref[Exchange]] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        exchanges.append(weakref.ref(scope[EXCHANGE]))
        if error is not None:
            raise error
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask(scope: Scope) -> None:
        async def receive() -> Message:
            return {"type": "http.request"}

        async def send(message: Message) -> None:
            pass

        await guard(scope, receive, send)

    guard = Guard(application, Settings(bundle=(Path("none"),), threads=1), Metrics(), lambda _: LIMITS)
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    gc.disable()
    try:
        asyncio.run(ask(scope))
        if error is not None:
            error.__traceback__ = None  # which this test holds
        assert [exchange() for exchange in exchanges] == [None]
    finally:
        gc.enable()


class GivenLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock a test moves."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def time(self) -> float:
        return self.now


def slow_body(pieces: int, size: int, seconds: float, **settings: Any) -> int:
    """The status of the answer to a body that comes in pieces of a size, one after so many seconds; 0: none yet."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        body = await guard.read_body(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"%d" % len(body)})

    async def talk() -> int:
        one = Conversation(guard, pieces * size)
        for index in range(pieces):
            loop.now += seconds
            await settle()
            await one.send(size, more=index < pieces - 1)
            if one.status:
                break
        status = one.status
        one.incoming.put_nowait({"type": "http.disconnect"})
        one.task.cancel()
        await asyncio.gather(one.task, return_exceptions=True)
        return status

    given = Settings(bundle=(Path("none"),), threads=1, **settings)
    guard = Guard(application, given, Metrics(), lambda _: LIMITS)
    loop = GivenLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(talk())


@pytest.mark.parametrize(
    ("pieces", "size", "seconds", "status"),
    [
        (115, 20_000, 0.1, 200),  # 2.3 MB of a phone at 200 kB/s: 11.5 s
        (1000, 2_000, 0.1, 200),  # 20 kB/s: 100 s
        (300, 6_000, 1.0, 200),  # a little more than the least
        (30, 4_000, 1.0, 408),  # a little less
        (1000, 1, 1.0, 408),
        (3, 100, 3.0, 200),  # in time, whatever its rate
        (3, 100, 6.0, 408),
    ],
)
def test_a_body_may_take_as_long_as_it_comes_at_the_least_rate(
    pieces: int, size: int, seconds: float, status: int
) -> None:
    assert slow_body(pieces, size, seconds) == status


def test_the_least_rate_is_a_setting() -> None:
    assert slow_body(30, 4_000, 1.0, min_bytes_per_second=3_000) == 200
    assert slow_body(300, 6_000, 1.0, min_bytes_per_second=10_000) == 408


def test_a_body_that_is_there_costs_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float | None] = []
    timeout = asyncio.timeout

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await guard.read_body(scope)

    async def receive() -> Message:
        return {"type": "http.request", "body": bytes(5_000_000), "more_body": False}

    async def send(message: Message) -> None:
        raise AssertionError(message)

    def note(seconds: float | None) -> asyncio.Timeout:
        limits.append(seconds)
        return timeout(seconds)

    monkeypatch.setattr(asyncio, "timeout", note)
    guard = Guard(application, Settings(bundle=(Path("none"),), threads=1), Metrics(), lambda _: LIMITS)
    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-length", b"5000000")]}
    asyncio.run(guard({**scope, WHOLE_BODY: True}, receive, send))
    asyncio.run(guard(scope, receive, send))
    assert limits == [None, LIMITS.body_seconds]


def test_a_body_that_came_fast_and_then_stops_gets_no_more_time_than_any_other() -> None:
    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await guard.read_body(scope)

    async def talk() -> int:
        one = Conversation(guard, 10_000_000)
        await one.send(5_000_000)
        loop.now += LIMITS.body_seconds
        await settle()
        one.incoming.put_nowait({"type": "http.disconnect"})
        await one.task
        return one.status

    guard = Guard(application, Settings(bundle=(Path("none"),), threads=1), Metrics(), lambda _: LIMITS)
    loop = GivenLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        assert runner.run(talk()) == 408


class Locked:
    """A guard with a key around an application that answers 200, and a clock that stands still."""

    def __init__(self, **settings: Any) -> None:
        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        self.clock = GivenClock()
        self.metrics = Metrics()
        given = Settings(bundle=(Path("none"),), threads=1, **({"api_key": KEY} | settings))
        self.guard = Guard(application, given, self.metrics, lambda _: LIMITS, self.clock)

    def ask(self, *headers: tuple[bytes, bytes], address: str = "192.0.2.1") -> tuple[int, dict[bytes, bytes], bytes]:
        """Status, headers and body of the answer to a GET."""
        answer: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            answer.append(message)

        scope = {
            "type": "http",
            "method": "GET",
            "path": "/v1/models",
            "headers": list(headers),
            "client": (address, 1),
            "server": ("127.0.0.1", 3000),
        }
        asyncio.run(self.guard(scope, receive, send))
        return answer[0]["status"], dict(answer[0]["headers"]), answer[1]["body"]


def wrong(locked: Locked, address: str = "192.0.2.1") -> int:
    """The status of a request with a wrong key."""
    return locked.ask((b"x-api-key", WRONG_KEY.encode()), address=address)[0]


def test_after_some_wrong_keys_the_next_are_429_until_time_has_passed() -> None:
    locked = Locked()
    assert [wrong(locked) for _ in range(FREE_KEYS + 2)] == [401] * FREE_KEYS + [429] * 2
    status, headers, body = locked.ask((b"authorization", b"Bearer " + WRONG_KEY.encode()))
    assert (status, headers[b"retry-after"], headers[b"connection"]) == (429, b"%d" % SECONDS_A_KEY, b"close")
    assert json.loads(body)["error"]["code"] == "too_many_wrong_keys"
    locked.clock.advance(SECONDS_A_KEY)
    assert [wrong(locked) for _ in range(2)] == [401, 429]


def test_a_right_key_from_the_same_address_always_works() -> None:
    locked = Locked()
    for _ in range(100):
        wrong(locked)
    assert locked.ask((b"x-api-key", KEY.encode()))[0] == 200
    assert locked.ask((b"authorization", b"Bearer " + KEY.encode()))[0] == 200
    assert wrong(locked) == 429


def test_other_addresses_have_wrong_keys_of_their_own_and_no_key_is_no_wrong_key() -> None:
    locked = Locked()
    for _ in range(100):
        wrong(locked)
        assert locked.ask(address="192.0.2.2")[0] == 401
        assert locked.ask((b"authorization", b"Basic abc"), (b"x-api-key", b""), address="192.0.2.2")[0] == 401
    assert wrong(locked, "192.0.2.2") == 401


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"bearer  " + KEY.encode() + b" ")],
        [(b"x-api-key", KEY.encode()), (b"authorization", b"Bearer of-a-proxy")],
        [(b"x-api-key", b"of-a-proxy"), (b"authorization", b"Bearer " + KEY.encode())],
    ],
)
def test_the_key_may_be_in_either_header_whatever_the_other_holds(headers: list[tuple[bytes, bytes]]) -> None:
    assert Locked().ask(*headers)[0] == 200


def test_wrong_keys_are_counted_and_the_log_has_their_address_and_never_a_key(caplog: pytest.LogCaptureFixture) -> None:
    locked = Locked()
    with caplog.at_level(logging.WARNING, "convmae_serving"):
        for _ in range(3):
            wrong(locked)
        locked.ask((b"x-api-key", KEY.encode()))
    assert b"\nconvmae_wrong_keys_total 3.0\n" in locked.metrics.page()[0]
    assert caplog.text.count("192.0.2.1") == 3
    assert WRONG_KEY not in caplog.text and KEY not in caplog.text


def test_a_length_with_thousands_of_zeros_is_a_length_like_any_other() -> None:
    locked = Locked(api_key=None)
    assert locked.ask((b"content-length", b"0" * 5000))[0] == 200
    assert locked.ask((b"content-length", b"0" * 5000 + b"99999999999"))[0] == 413
    assert locked.ask((b"content-length", b"9" * 5000))[0] == 413


def test_a_name_that_is_not_ours_is_refused_before_anything_else_is_looked_at() -> None:
    status, _, body = Locked(api_key=None).ask((b"host", b"evil.example"), (b"content-length", b"9" * 20))
    assert (status, json.loads(body)["error"]["code"]) == (421, "misdirected_request")


def test_a_client_that_waits_to_be_asked_for_its_body_is_let_go_when_it_is_refused() -> None:
    waiting = ((b"content-length", b"5"), (b"content-encoding", b"gzip"), (b"expect", b"100-continue"))
    status, headers, _ = Locked(api_key=None).ask(*waiting)
    assert (status, headers[b"connection"]) == (415, b"close")
    status, headers, _ = Locked(api_key=None).ask(*waiting[:2])
    assert (status, headers.get(b"connection")) == (415, None)


def test_what_the_protocol_refused_is_counted_and_observed_like_a_request() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.seen: list[tuple[Any, ...]] = []

        def begin(self, exchange: Exchange) -> None:
            self.seen.append((exchange.request_id,))

        def end(self, exchange: Exchange, route: str, seconds: float) -> None:
            client, path = exchange.scope["client"], exchange.scope["path"]
            self.seen.append((client, route, path, exchange.status, exchange.error_code, exchange.sent_bytes, seconds))

        def close(self, seconds: float) -> None:
            pass

    locked, recorder = Locked(), Recorder()
    locked.guard.observers = [recorder]
    locked.guard.note_refusal(ApiError(431, "headers_too_large", "too many"), "id1", ("192.0.2.1", 9), 7)
    assert recorder.seen == [("id1",), (("192.0.2.1", 9), "unmatched", "", 431, "headers_too_large", 7, 0.0)]
    page = locked.metrics.page()[0].decode()
    assert 'convmae_requests_total{method="OTHER",route="unmatched",status="431"} 1.0' in page
    assert 'convmae_errors_total{code="headers_too_large"} 1.0' in page
