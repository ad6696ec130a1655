"""What a target of the search is, and what every reader must keep to, whatever it is given."""

import random
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Check = Callable[[bytes], None]
MutateBytes = Callable[[bytes, int], bytes]  # (data, most bytes) -> changed data, as libFuzzer changes it
Mutator = Callable[[bytes, int, random.Random, MutateBytes], bytes]  # (data, most bytes, dice, MutateBytes)

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class Violation(Exception):
    """A reader that did not raise what it must not raise, and yet broke a promise."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A reader of bytes from strangers.

    Attributes:
        reader: its name, for people.
        seeds: makes the files that the search begins with: small, valid, one of each kind. name -> content.
        prepare: imports the reader and gives the check: it takes any bytes, returns where the reader keeps its
            promises (reading them, or refusing them with its own error), and lets every other exception through.
        tokens: words of the format, which the search inserts.
        mutate: changes an input so that it stays well-formed on the outside; None: bytes are changed anywhere.
        max_bytes: the longest input tried.
    """

    reader: str
    seeds: Callable[[], Mapping[str, bytes]]
    prepare: Callable[[], Check]
    tokens: tuple[bytes, ...] = ()
    mutate: Mutator | None = None
    max_bytes: int = 8192


def require(promise: bool, what: str) -> None:
    """Raises Violation unless a promise holds."""
    if not promise:
        raise Violation(what)


def require_sentence(error: Exception, *, quotes_input: bool = False) -> None:
    """Raises Violation unless the error is for people: one printable line that holds nothing of Python's insides.

    Args:
        error: of a reader.
        quotes_input: whether it may repeat what stands in the input, which programs escape when they print it.
    """
    message = str(error)
    if not message or _ADDRESS.search(message) or not (quotes_input or message.isprintable()):
        raise Violation(f"the message of an error must be one printable line; it is {message!a}") from error


def without_warnings(check: Check) -> Check:
    """The same check, for which a warning breaks a promise: it is global to the process, and for nobody to see."""

    def observed(data: bytes) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.simplefilter("ignore", DeprecationWarning)  # for programmers; Python itself does not show it
            check(data)
        if caught:
            raise Violation(f"{caught[0].category.__name__}: {caught[0].message}")

    return observed
