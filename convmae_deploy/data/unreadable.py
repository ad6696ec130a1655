"""Files that cannot be decoded: which, and why. They are left out of their batch, and never without a word."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Self

from convmae_deploy.printing import printable

MAX_REASON = 300  # characters


class Unreadable(NamedTuple):
    """What a dataset gives in place of a sample."""

    file: str
    reason: str

    @classmethod
    def because(cls, file: Path | str, error: Exception) -> Self:
        """A file and what its decoder said."""
        return cls(printable(file), printable(error)[:MAX_REASON])


class UnreadableCount(int):
    """How many files of a micro-batch could not be decoded; where they are known, which ones."""

    files: tuple[Unreadable, ...] = ()

    @classmethod
    def of(cls, files: Iterable[Unreadable]) -> Self:
        """The number of these files."""
        files = tuple(files)
        count = cls(len(files))
        count.files = files
        return count
