"""What strangers can make the server log is bounded."""

import io
import logging
from collections.abc import Callable

import pytest

from serving.http.log_limit import ENTRIES, MOST_CHARACTERS, WINDOW_SECONDS, LogLimit
from tests.waiting import GivenClock


@pytest.fixture
def clock() -> GivenClock:
    return GivenClock()


@pytest.fixture
def log(clock: GivenClock) -> Callable[[], str]:
    """What a logger called `limited` wrote since the last call."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(LogLimit(clock))
    logger = logging.Logger("limited")  # not one of the process
    logger.addHandler(handler)
    write.logger = logger

    def read() -> str:
        text = stream.getvalue()
        stream.seek(0)
        stream.truncate()
        return text

    return read


class _Write:
    """One place in the code that logs."""

    logger: logging.Logger

    def __call__(self, message: str, *arguments: object, error: BaseException | None = None) -> None:
        self.logger.error(message, *arguments, exc_info=error)


write = _Write()


def test_a_flood_leaves_some_entries_and_then_their_number(log: Callable[[], str], clock: GivenClock) -> None:
    for index in range(1000):
        write("number %d", index)
    assert log().splitlines() == [f"number {index}" for index in range(ENTRIES)]
    clock.advance(WINDOW_SECONDS)
    write("again")
    assert log() == f"again ({1000 - ENTRIES} more like this were left out)\n"
    write("and again")
    assert log() == "and again\n"


def test_a_flood_of_one_hides_no_other(log: Callable[[], str]) -> None:
    for _ in range(1000):
        write("flood")
    log()
    write.logger.warning("another")
    assert log() == "another\n"


def test_a_long_entry_is_shortened_in_the_middle(log: Callable[[], str]) -> None:
    write("begin %s end", "a" * 100_000)
    text = log()
    assert len(text) < MOST_CHARACTERS + 100
    assert text.startswith("begin aaa") and text.endswith("aaa end\n")


def test_a_long_traceback_is_shortened_too(log: Callable[[], str]) -> None:
    try:
        raise OSError("name " + "a" * 100_000)
    except OSError as error:
        write("it failed", error=error)
    text = log()
    assert len(text) < MOST_CHARACTERS + 200
    assert text.startswith("it failed\nTraceback (most recent call last):\n")
