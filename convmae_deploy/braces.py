"""Patterns such as "data-{000..146}.tar", which stand for many names."""

import math
import re

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import shortened

MAX_NAMES = 1_000_000  # that a pattern may stand for: a digit too many must not fill the memory
_BRACES = re.compile(r"{([^{}]*)}")
_NUMBERS = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?")
_MAX_DIGITS = 100  # of a pattern's longest number
_LETTERS = re.compile(r"[A-Za-z]\.\.[A-Za-z](?:\.\.-?\d+)?")


def check_count(pattern: str) -> None:
    """Refuses patterns that stand for too many names, without making one of them.

    Raises:
        ConvMAEError: it stands for more than `MAX_NAMES`.
    """
    too_long = re.search(rf"\d{{{_MAX_DIGITS}}}", pattern) is not None
    if too_long or sum(map(_count, pattern.split("::"))) > MAX_NAMES:
        raise ConvMAEError(
            f"a pattern may name at most {MAX_NAMES} shards; {shortened(pattern)} names more, check its numbers"
        )


def _count(pattern: str) -> int:
    """How many names the braces of a pattern stand for, from the innermost outwards."""
    counts: list[int] = []  # one for each pair of braces seen, which is replaced by its place here between zero bytes

    def product(text: str) -> int:
        return math.prod(counts[int(place)] for place in re.findall("\0(\\d+)\0", text))

    def count(braces: re.Match[str]) -> str:
        numbers = _NUMBERS.fullmatch(braces[1])
        if numbers:
            first, last, step = int(numbers[1]), int(numbers[2]), int(numbers[3] or 1) or 1
            counts.append(abs(last - first) // step + 1)
        elif _LETTERS.fullmatch(braces[1]):
            counts.append(52)  # at most
        else:
            counts.append(sum(product(choice) for choice in braces[1].split(",")))
        return f"\0{len(counts) - 1}\0"

    found = 1
    while found:
        pattern, found = _BRACES.subn(count, pattern)
    return product(pattern)
