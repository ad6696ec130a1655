"""SIGTERM under load, on a real server (row 42)."""

import asyncio
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from serving.http.draining import REFUSING_SECONDS, SIGNALS, Drain
from serving.http.guard import Guard
from serving.metrics import Metrics
from serving.settings import Settings
from tests.serving.http.fake_transport import settle
from tests.serving.running_server import RunningServer, post, post_head, read_response, run_server
from tests.serving.sample_images import jpeg
from tests.waiting import PATIENCE_SECONDS, GivenClock, wait_until

REFUSALS = ("ConnectionRefusedError", "ConnectionResetError", "ConnectionError")
REFUSED = "no connection: ConnectionRefusedError"
NEVER = "3600"  # seconds that no test lasts


class Client(threading.Thread):
    """Posts one request after another on new connections, and notes how each ended, until there is no server."""

    def __init__(self, server: RunningServer, photo: bytes) -> None:
        super().__init__(daemon=True)
        self.server = server
        self.request = post("/v1/classify", photo, "Connection: close")
        self.signalled = threading.Event()
        self.before: list[str] = []  # how requests ended whose connections were made before the signal
        self.after: list[str] = []

    def run(self) -> None:
        while self.after[-1:] != [REFUSED]:
            try:
                connection = self.server.connect()
            except OSError as error:
                self.outcomes.append(f"no connection: {type(error).__name__}")
                continue
            with connection:
                outcomes = self.outcomes
                try:
                    connection.sendall(self.request)
                    outcomes.append(str(read_response(connection).status))
                except OSError as error:
                    outcomes.append(f"no answer: {type(error).__name__}")

    @property
    def outcomes(self) -> list[str]:
        """Where the outcome of a connection that is made now belongs."""
        return self.after if self.signalled.is_set() else self.before


def begin_request(connection: socket.socket, body_bytes: int) -> None:
    """Announces a body and returns once the server asks for it: from then on the request is in flight."""
    connection.sendall(post_head("/v1/classify", f"Content-Length: {body_bytes}", "Expect: 100-continue"))
    assert read_response(connection).status == 100


@pytest.fixture
def own_server(bundle: Path, tmp_path: Path) -> Iterator[RunningServer]:
    with run_server(tmp_path, {"CONVMAE_BUNDLE": str(bundle), "CONVMAE_THREADS": "2"}) as running:
        yield running


def test_sigterm_under_load_answers_what_was_accepted_refuses_the_rest_and_frees_the_port(
    own_server: RunningServer,
) -> None:
    clients = [Client(own_server, jpeg(1600, 1200)) for _ in range(8)]
    for client in clients:
        client.start()
    wait_until(lambda: all(len(client.before) >= 2 for client in clients))
    for client in clients:
        client.signalled.set()
    own_server.process.send_signal(signal.SIGTERM)
    assert own_server.process.wait(timeout=PATIENCE_SECONDS) == 0
    for client in clients:
        client.join(timeout=PATIENCE_SECONDS)  # a request that hangs ends as a TimeoutError

    before = {outcome for client in clients for outcome in client.before}
    after = {outcome for client in clients for outcome in client.after}
    # 503: connected before the signal, and read after it.
    assert "200" in before and before <= {"200", "503"}
    # 200: connected in the instant before the signal. A reset is a refusal too: the kernel's, of a connection made in
    # the instant before the port was closed.
    assert after <= {"200", "503", *(f"no {what}: {kind}" for what in ("connection", "answer") for kind in REFUSALS)}
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", own_server.port))


def test_while_a_request_is_in_flight_new_ones_are_refused_and_it_is_answered(own_server: RunningServer) -> None:
    photo = jpeg()
    with own_server.connect() as idle, own_server.connect() as used, own_server.connect() as slow:
        used.sendall(post("/v1/classify", photo))
        assert read_response(used).status == 200
        begin_request(slow, len(photo))
        own_server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: own_server.request("/readyz").status == 503)
        ready = own_server.request("/readyz")
        refused = own_server.request("/v1/classify", photo)
        alive = own_server.request("/livez")
        alive_for_kserve = own_server.request("/v2/health/live")
        slow.sendall(photo)
        answer = read_response(slow)
        # Connections without a request do not keep the server from ending.
        assert own_server.process.wait(timeout=PATIENCE_SECONDS) == 0
        assert idle.recv(1) == b""

    assert (ready.status, ready.code) == (503, "not_ready")
    assert (refused.status, refused.code, refused.headers["connection"]) == (503, "draining", "close")
    assert refused.headers["retry-after"] == "1"
    assert (alive.status, alive_for_kserve.status) == (200, 200)
    assert answer.status == 200


def test_until_the_balancer_has_heard_of_it_requests_are_answered_and_then_refused(monkeypatch: Any) -> None:
    handlers: dict[int, Any] = {number: lambda *_: passed_on.append(True) for number in SIGNALS}
    monkeypatch.setattr(signal, "getsignal", handlers.get)
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    passed_on: list[bool] = []
    slept: list[float] = []
    seen: list[tuple[int, int]] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask() -> tuple[int, dict[bytes, bytes]]:
        answer: list[Message] = []

        async def note(message: Message) -> None:
            answer.append(message)

        async def receive() -> Message:
            return {"type": "http.request"}

        scope: Scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": []}
        await guard(scope, receive, note)
        return answer[0]["status"], dict(answer[0]["headers"])

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        status, headers = await ask()
        assert headers[b"connection"] == b"close"
        seen.append((status, len(passed_on)))

    async def end() -> None:
        drain = Drain(guard, 30.0, 5.0, GivenClock(), sleep)
        assert (await ask())[1].get(b"connection") is None
        assert drain.remaining() == 30.0
        handlers[signal.SIGTERM](signal.SIGTERM, None)
        assert (guard.draining, drain.remaining()) == (True, 35.0)
        await settle()

    settings = Settings(bundle=(Path("none"),), threads=1)
    guard = Guard(application, settings, Metrics(), lambda _: SimpleNamespace(body_bytes=1, body_seconds=1.0))
    asyncio.run(end())
    assert slept == [5.0, REFUSING_SECONDS]
    assert seen == [(200, 0), (503, 0)]
    assert passed_on == [True]


@pytest.mark.slow
def test_of_clients_that_leave_while_the_server_still_answers_no_request_fails(bundle: Path, tmp_path: Path) -> None:
    settings = {"CONVMAE_BUNDLE": str(bundle), "CONVMAE_DRAIN_SECONDS": NEVER}
    photo = jpeg()
    with (
        run_server(tmp_path, settings) as server,
        server.connect() as kept,
        ThreadPoolExecutor(4) as clients,
    ):
        kept.sendall(post("/v1/classify", photo))
        assert "connection" not in read_response(kept).headers
        answers = [clients.submit(server.request, "/v1/classify", photo) for _ in range(40)]
        answers[3].result(PATIENCE_SECONDS)
        server.process.send_signal(signal.SIGTERM)
        assert {answer.result(PATIENCE_SECONDS).status for answer in answers} == {200}
        wait_until(lambda: server.request("/readyz").status == 503)
        kept.sendall(post("/v1/classify", photo))
        answer = read_response(kept)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert kept.recv(1) == b""
        assert server.request("/livez").status == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=PATIENCE_SECONDS) == 0


@pytest.mark.slow
def test_a_second_signal_ends_the_server_although_a_request_is_in_flight(bundle: Path, tmp_path: Path) -> None:
    settings = {"CONVMAE_BUNDLE": str(bundle), "CONVMAE_SHUTDOWN_SECONDS": NEVER}
    with run_server(tmp_path, settings) as own_server, own_server.connect() as slow:
        begin_request(slow, 1000)
        own_server.process.send_signal(signal.SIGINT)
        wait_until(lambda: own_server.request("/readyz").status == 503)
        assert own_server.process.poll() is None
        own_server.process.send_signal(signal.SIGINT)
        own_server.process.wait(timeout=PATIENCE_SECONDS)


STUCK = """
import sys, threading
import serving.__main__, serving.api.inference
serving.api.inference.Inference.do = lambda *arguments: threading.Event().wait()
sys.exit(serving.__main__.main())
"""


@pytest.mark.slow
def test_a_job_that_nothing_can_stop_does_not_keep_the_server_from_ending(bundle: Path, tmp_path: Path) -> None:
    settings = {"CONVMAE_BUNDLE": str(bundle), "CONVMAE_SHUTDOWN_SECONDS": "1", "CONVMAE_THREADS": "1"}
    with run_server(tmp_path, settings, command=("-c", STUCK)) as own_server, own_server.connect() as waiting:
        waiting.sendall(post("/v1/classify", jpeg()))
        wait_until(lambda: own_server.pending_jobs() == 1)
        assert own_server.stop() == 0
