"""The access log: one line of JSON for each request, whatever reads it."""

import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from serving.http.access_log import MOST_CHARACTERS, AccessLog
from serving.http.guard import Exchange
from tests.waiting import PATIENCE_SECONDS


class Reader:
    """An access log that writes into a pipe, and what reads it."""

    def __init__(self, most_waiting: int = 100) -> None:
        self.read_end, self.write_end = os.pipe()
        self.log = AccessLog(self.write_end, most_waiting, now=lambda: 1_700_000_000.25)

    def lines(self) -> list[dict[str, Any]]:
        """All lines, once the log has ended."""
        with ThreadPoolExecutor(1) as threads, os.fdopen(self.read_end, "rb") as pipe:
            content = threads.submit(pipe.read)
            self.log.close(PATIENCE_SECONDS)
            os.close(self.write_end)
            text = content.result(PATIENCE_SECONDS).decode("ascii")
        return [json.loads(line) for line in text.splitlines()]


def exchange(path: str = "/v1/classify", **attributes: Any) -> Exchange:
    """A request that was answered."""

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        raise AssertionError

    found = Exchange({"method": "POST", "path": path, "headers": [], "client": ("192.0.2.1", 9)}, receive, send)
    for name, value in attributes.items():
        setattr(found, name, value)
    return found


def test_a_line_says_who_asked_what_and_what_became_of_it() -> None:
    reader = Reader()
    asked = exchange(
        request_id="r1", trace_id="ab" * 16, status=200, model="tiny", body_bytes=10, sent_bytes=20,
        phases={"queue": 0.0000004, "decode": 0.25},
    )  # fmt: skip
    reader.log.end(asked, "/v1/classify", 0.5)
    assert reader.lines() == [
        {
            "time": "2023-11-14T22:13:20.250+00:00",
            "request_id": "r1",
            "trace_id": "ab" * 16,
            "client": "192.0.2.1",
            "method": "POST",
            "route": "/v1/classify",
            "path": "/v1/classify",
            "status": 200,
            "error": None,
            "seconds": 0.5,
            "received_bytes": 10,
            "sent_bytes": 20,
            "model": "tiny",
            "phases": {"queue": 0.0, "decode": 0.25},
        }
    ]


def test_what_a_client_sends_is_cut_and_cannot_end_a_line_or_reach_a_terminal() -> None:
    reader = Reader()
    reader.log.end(exchange("/" + "a" * 100_000), "unmatched", 0.1)
    reader.log.end(exchange('/\n{"status": 200}\x1b[31m\x7f\x9b\ud800é"'), "unmatched", 0.1)
    long, odd = reader.lines()
    assert long["path"] == "/" + "a" * (MOST_CHARACTERS - 1) + "..."
    assert odd["path"] == '/\n{"status": 200}\x1b[31m\x7f\x9b\ud800é"'


def test_control_characters_are_escaped_in_the_bytes(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        log = AccessLog(file.fileno())
        log.end(exchange("/\x1b\x7f\x9b"), "unmatched", 0.1)
        log.close(PATIENCE_SECONDS)
    (line,) = (tmp_path / "log").read_bytes().splitlines()
    assert all(0x20 <= byte < 0x7F for byte in line)


def test_nobody_waits_for_a_pipe_that_is_not_read_and_what_is_lost_is_told() -> None:
    reader = Reader(most_waiting=50)
    long = exchange("/" + "a" * MOST_CHARACTERS)
    for _ in range(1000):  # a pipe takes some 150 of these lines
        reader.log.end(long, "unmatched", 0.1)
    lines = reader.lines()
    lost = sum(line.get("lost_lines", 0) for line in lines)
    assert lost > 0
    assert sum("path" in line for line in lines) + lost == 1000


def test_a_log_that_cannot_be_written_is_said_and_harms_no_request(caplog: pytest.LogCaptureFixture) -> None:
    reader = Reader()
    os.close(reader.read_end)
    with caplog.at_level(logging.ERROR, "convmae_serving"):
        reader.log.end(exchange(), "/v1/classify", 0.1)
        reader.log.close(PATIENCE_SECONDS)
    os.close(reader.write_end)
    assert "the access log cannot be written (Broken pipe)" in caplog.text


def test_what_could_not_be_written_is_told_once_it_can(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    log = AccessLog(write_end)
    log._waiting.append({"time": 0.0})  # as `end` leaves it, without the thread
    log._write_waiting()
    with (tmp_path / "log").open("wb") as file:
        os.dup2(file.fileno(), write_end)  # there is room again
    log.end(exchange(), "/v1/classify", 0.1)
    log.close(PATIENCE_SECONDS)
    os.close(write_end)
    first, second = (json.loads(line) for line in (tmp_path / "log").read_bytes().splitlines())
    assert (first["path"], second["lost_lines"]) == ("/v1/classify", 1)
