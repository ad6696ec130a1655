"""The access log: one line of JSON for each request, written by a thread of its own.

A pipe or a disk that is slow holds up that thread and no request. What waits to be written is bounded; what does not
fit is counted, and the next line says how many are missing.
"""

import datetime
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from serving.http.guard import Exchange

logger = logging.getLogger("convmae_serving")

MOST_WAITING: Final = 10_000  # lines
GATHER_SECONDS: Final = 0.1  # so that a busy server wakes the thread ten times a second and not for every request
MOST_CHARACTERS: Final = 200  # of what a client sent


def cut(text: str) -> str:
    """What a client sent, at no more than its allowed length."""
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."


class AccessLog:
    """Lines about requests.

    Args:
        descriptor: of the file that they are written to.
        most_waiting: lines that may wait to be written.
        now: seconds since 1970.
    """

    def __init__(self, descriptor: int, most_waiting: int = MOST_WAITING, now: Callable[[], float] = time.time) -> None:
        self._descriptor = descriptor
        self._most_waiting = most_waiting
        self._now = now
        self._waiting: deque[Mapping[str, Any]] = deque()  # filled by the event loop, emptied by the thread
        self._lost = 0  # lines that found no room, ever
        self._told = 0  # of these, how many a line has told of
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, exchange: Exchange) -> None:
        """Nothing is written before the end."""

    def end(self, exchange: Exchange, route: str, seconds: float) -> None:
        """Takes the line of a request; to be called from one thread."""
        if len(self._waiting) >= self._most_waiting:
            self._lost += 1
            return
        scope = exchange.scope
        client = scope.get("client")
        entry = {
            "time": self._now(),
            "request_id": exchange.request_id,
            "trace_id": exchange.trace_id,
            "client": client[0] if client else None,
            "method": cut(scope["method"]),
            "route": route,
            "path": cut(scope["path"]),
            "status": exchange.status,
            "error": exchange.error_code,
            "seconds": round(seconds, 6),
            "received_bytes": exchange.body_bytes,
            "sent_bytes": exchange.sent_bytes,
            "model": exchange.model,
            "phases": {name: round(value, 6) for name, value in dict(exchange.phases).items()},
        }
        self._waiting.append(entry)
        if self._thread is None:  # with the first line: a process may fork before
            self._thread = threading.Thread(target=self._work, name="access-log", daemon=True)
            self._thread.start()
        if not self._wake.is_set():
            self._wake.set()

    def close(self, seconds: float) -> None:
        """Writes what waits, in so many seconds at most, and ends the thread."""
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(seconds)

    def _work(self) -> None:
        while True:
            self._wake.wait()
            closing = self._closing.wait(GATHER_SECONDS)
            self._wake.clear()
            self._write_waiting()
            if closing:
                return

    def _write_waiting(self) -> None:
        lines = []
        while self._waiting:
            lines.append(_line(self._waiting.popleft()))
        entries, lost = len(lines), self._lost - self._told
        if lost:
            lines.append(_line({"time": self._now(), "lost_lines": lost}))
            self._told += lost
        content = memoryview("".join(lines).encode())
        try:
            while content:
                content = content[os.write(self._descriptor, content) :]
        except OSError as error:
            self._told -= entries + lost  # the next line that can be written tells of them
            logger.error("the access log cannot be written (%s); up to %d lines are lost", error.strerror, entries)


def _line(entry: Mapping[str, Any]) -> str:
    """In ASCII, so that nothing a client sent reaches a terminal as a control character."""
    moment = datetime.datetime.fromtimestamp(entry["time"], datetime.UTC).isoformat(timespec="milliseconds")
    return json.dumps({**entry, "time": moment}).replace("\x7f", "\\u007f") + "\n"
