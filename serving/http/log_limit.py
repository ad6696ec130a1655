"""What a stranger can make this server write into its log is bounded: the length of an entry, and how many come.

An entry that repeats what a client sent, or a failure that a client can bring about again and again, would else fill
the disk. Entries are counted by the place in the code that writes them, so that a flood of one hides no other.
"""

import logging
import time
from collections.abc import Callable
from typing import Final

MOST_CHARACTERS: Final = 4000  # in a message, and in a traceback
ENTRIES: Final = 20  # for one place in the code, in each window
WINDOW_SECONDS: Final = 60.0

_plain = logging.Formatter()


class LogLimit(logging.Filter):
    """To be put on a handler, where it sees the entries of every logger.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._windows: dict[tuple[str, int], tuple[float, int]] = {}  # by place: its start, entries since

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the entry is written; shortens it if it is."""
        left_out = self._count(record)
        if left_out is None:
            return False
        message = _shortened(record.getMessage())
        record.msg = message + (f" ({left_out} more like this were left out)" if left_out else "")
        record.args = None
        if record.exc_info and not record.exc_text:
            record.exc_text = _plain.formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = _shortened(record.exc_text)
        return True

    def _count(self, record: logging.LogRecord) -> int | None:
        """Entries of this place that were left out before this one; None when this one is left out as well."""
        place = (record.pathname, record.lineno)
        now = self._clock()
        start, entries = self._windows.get(place, (now, 0))
        left_out = 0
        if now - start >= WINDOW_SECONDS:
            left_out = max(0, entries - ENTRIES)
            start, entries = now, 0
        self._windows[place] = (start, entries + 1)
        return None if entries >= ENTRIES else left_out


def limit_log(logger: logging.Logger) -> None:
    """Puts a limit on all handlers that a logger has by now."""
    for handler in logger.handlers:
        handler.addFilter(LogLimit())


def _shortened(text: str) -> str:
    """The beginning and the end of a text that is too long."""
    if len(text) <= MOST_CHARACTERS:
        return text
    half = MOST_CHARACTERS // 2
    return f"{text[:half]} [{len(text) - 2 * half} characters left out] {text[-half:]}"
