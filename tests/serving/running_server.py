"""A real server in a process of its own, as a user starts it, and raw connections to it."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.waiting import PATIENCE_SECONDS, wait_until

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Response:
    """An HTTP answer."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of an error."""
        return str(self.json()["error"]["code"])


@dataclass(frozen=True)
class RunningServer:
    """A server that answers on `port`."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def pending_jobs(self) -> int:
        """Requests that are queued or running, as /metrics says."""
        match = re.search(rb"^convmae_pending_jobs (\d+)", self.request("/metrics").body, re.MULTILINE)
        assert match is not None
        return int(match[1])

    def request(
        self, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None, method: str | None = None
    ) -> Response:
        """One request on a connection of its own."""
        request = urllib.request.Request(self.url + path, data=body, headers=dict(headers or {}), method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as response:
                return Response(response.status, _lower(response.headers.items()), response.read())
        except urllib.error.HTTPError as error:
            with error:
                return Response(error.code, _lower(error.headers.items()), error.read())

    def connect(self) -> socket.socket:
        """A raw connection."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal and waits for the end; returns the exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout=PATIENCE_SECONDS)


@contextlib.contextmanager
def run_server(
    folder: Path,
    settings: Mapping[str, str],
    command: Sequence[str] = ("-m", "serving"),
    cwd: Path = ROOT,
    under: Sequence[str] = (),
) -> Iterator[RunningServer]:
    """Starts a server on a free port, waits until it is ready, and ends it in any case.

    Args:
        folder: where its log goes.
        settings: environment variables; the caller's own settings do not reach the server.
        command: arguments of Python.
        cwd: the folder it is started in.
        under: the command of a program that starts it.
    """
    port = free_port() if "bentoml" in command else 0  # which BentoML does not take
    own = {"CONVMAE_DEVICE": "cpu", "CONVMAE_PORT": str(port)}
    with tempfile.NamedTemporaryFile("wb", prefix="server-", suffix=".log", dir=folder, delete=False) as output:
        process = subprocess.Popen(
            [*under, sys.executable, *command],
            cwd=cwd,
            env=caller_environment() | own | dict(settings),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield _ready_server(process, port, Path(output.name))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=PATIENCE_SECONDS)


def caller_environment() -> dict[str, str]:
    """The environment of the tests without the settings of a server that whoever runs them may have set."""
    return {name: value for name, value in os.environ.items() if name not in caller_settings()}


def caller_settings() -> list[str]:
    """Names of the environment variables that are settings of a server."""
    return [name for name in os.environ if name.startswith("CONVMAE_") and name != "CONVMAE_DATA"]


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def read_response(connection: socket.socket) -> Response:
    """Reads one response with a Content-Length from a raw connection.

    Raises:
        ConnectionError: the connection ends first.
    """
    received = b""
    while b"\r\n\r\n" not in received:
        received += _receive(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = _lower(line.split(": ", 1) for line in lines[1:])
    while len(body) < int(headers.get("content-length", 0)):
        body += _receive(connection)
    match = re.match(r"HTTP/1\.1 (\d{3})", lines[0])
    assert match is not None, lines[0]
    return Response(int(match[1]), headers, body)


def post_head(path: str, *headers: str) -> bytes:
    """The head of a POST request."""
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def post(path: str, body: bytes, *headers: str) -> bytes:
    """A whole POST request."""
    return post_head(path, f"Content-Length: {len(body)}", *headers) + body


def _receive(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise ConnectionError("the connection ended before the response did")
    return data


def _lower(items: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in items}


def _ready_server(process: "subprocess.Popen[bytes]", port: int, log: Path) -> RunningServer:
    """The server, once it is ready; with port 0 it has said by then which one it took."""
    found: list[RunningServer] = []

    def ready() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended before it was ready:\n{log.read_text()}")
        said = re.search(r"^ConvMAE server on http://127\.0\.0\.1:(\d+) ", log.read_text(), re.MULTILINE)
        taken = int(said[1]) if said else port
        if taken:
            server = RunningServer(process, taken, log)
            with contextlib.suppress(OSError):
                if server.request("/readyz").status == 200:
                    found.append(server)
        return bool(found)

    wait_until(ready)
    return found[0]
