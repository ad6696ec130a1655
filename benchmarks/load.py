"""A load generator: clients that each send the same request again as soon as the last answer is there.

Raw HTTP/1.1 over kept connections, one thread and one selector for all of them, so that it takes as little as possible
of the cores that the server needs. Run as `python -m benchmarks.load`, it reads a plan as JSON from its input and
writes the latencies as JSON to its output; `run_load` does that.
"""

import contextlib
import json
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from convmae_deploy.errors import ConvMAEError

ROOT: Final = Path(__file__).parents[1]
LENGTH: Final = b"content-length: "
RECEIVE_BYTES: Final = 1 << 16  # at once; a much larger buffer costs three system calls each time
SILENCE_SECONDS: Final = 30.0  # without one byte from the server, after which it is taken to hang


@dataclass(frozen=True)
class Plan:
    """What to send, where, and for how long."""

    port: int  # the server listens there, on 127.0.0.1
    path: str
    body: str  # file with the request's body
    clients: int
    seconds: float
    requests: int = 0  # end after this many answers instead, when not 0


@dataclass(frozen=True)
class Load:
    """How it went."""

    seconds: float  # from the first request to the last answer
    latencies: list[float]  # seconds, of every answered request
    failures: int  # answers with another status than 200

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.latencies) / self.seconds

    def percentile(self, percent: float) -> float:
        """Latency in seconds below which `percent` of the answers are."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


class _Client:
    """One client of a plan, on a connection that is kept."""

    def __init__(self, plan: Plan) -> None:
        self.socket = socket.create_connection(("127.0.0.1", plan.port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        body = Path(plan.body).read_bytes()
        head = f"POST {plan.path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        self.request = head.encode() + body
        self.started = 0.0
        self._response = b""

    def send(self) -> None:
        self.started = time.perf_counter()
        self._response = b""
        self.socket.sendall(self.request)

    def receive(self) -> int | None:
        """Reads what is there; the status when the answer is complete."""
        data = self.socket.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionError("the server closed the connection")
        self._response += data
        head, separator, body = self._response.partition(b"\r\n\r\n")
        if not separator:
            return None
        at = head.index(LENGTH) + len(LENGTH)
        if len(body) < int(head[at:].split(b"\r\n", 1)[0]):
            return None
        return int(head[9:12])


def run_load(plan: Plan) -> Load:
    """Runs a plan in a process of its own.

    Raises:
        ConvMAEError: the server stopped answering, or closed a connection.
    """
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.load"],
        input=json.dumps(asdict(plan)),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    if finished.returncode != 0:
        reason = (finished.stderr.strip().splitlines() or ["it says nothing"])[-1].removeprefix("error: ")
        raise ConvMAEError(f"the load generator failed: {reason}")
    return Load(**json.loads(finished.stdout))


def generate(plan: Plan) -> Load:
    """Runs a plan in this process.

    Raises:
        ConvMAEError: the server sends nothing for `SILENCE_SECONDS` although clients wait.
        OSError: a connection fails.
    """
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(plan.clients):
            clients.append(_Client(plan))
            stack.enter_context(clients[-1].socket)
        return _drive(clients, plan)


@contextlib.contextmanager
def connected(plan: Plan) -> Iterator[Callable[[], float]]:
    """One client in this process: a call sends the request and returns the seconds until its answer was read.

    Raises:
        ConvMAEError: an answer has another status than 200.
    """
    client = _Client(plan)

    def request() -> float:
        client.send()
        while (status := client.receive()) is None:
            pass
        seconds = time.perf_counter() - client.started
        if status != 200:
            raise ConvMAEError(f"expected the status 200, the server answered {status}; look into its log")
        return seconds

    with client.socket:
        yield request


def _drive(clients: list[_Client], plan: Plan) -> Load:
    """Has every client send, and send again once its answer is there, until the plan is over."""
    selector = selectors.DefaultSelector()
    for client in clients:
        selector.register(client.socket, selectors.EVENT_READ, client)
    latencies: list[float] = []
    failures = 0
    begun = time.perf_counter()
    for client in clients:
        client.send()
    waiting = len(clients)
    while waiting:
        ready = selector.select(SILENCE_SECONDS)
        if not ready:
            raise ConvMAEError(
                f"expected answers, the server sent nothing for {SILENCE_SECONDS:g} s while {waiting} clients waited; "
                "look into its log"
            )
        for key, _ in ready:
            client = key.data
            status = client.receive()
            if status is None:
                continue
            now = time.perf_counter()
            latencies.append(now - client.started)
            failures += status != 200
            over = len(latencies) + waiting > plan.requests if plan.requests else now - begun >= plan.seconds
            if over:
                waiting -= 1
            else:
                client.send()
    return Load(time.perf_counter() - begun, latencies, failures)


if __name__ == "__main__":
    try:
        print(json.dumps(asdict(generate(Plan(**json.load(sys.stdin))))))
    except (ConvMAEError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(1)
