"""The readers keep their promises on what a search begins with, on variations of it, and on what searches found."""

import random

import pytest

from tests.fuzz.past_finds import PAST_FINDS, PastFind
from tests.fuzz.target import Target, without_warnings
from tests.fuzz.targets import TARGETS

VARIATIONS = 3  # of each seed


def flip_bytes(data: bytes, most: int, dice: random.Random) -> bytes:
    """Changes a byte in thirty, and now and then cuts off the end."""
    changed = bytearray(data[:most])
    for _ in range(1 + len(changed) // 30):
        if changed:
            changed[dice.randrange(len(changed))] = dice.choice((0, 1, 127, 255, dice.randrange(256)))
    return bytes(changed[: dice.choice((most, len(changed) * 3 // 4))])


@pytest.mark.parametrize("name", TARGETS)
def test_a_reader_keeps_its_promises_on_seeds_and_on_variations_of_them(name: str) -> None:
    target, dice = TARGETS[name], random.Random(0)
    check = without_warnings(target.prepare())
    seeds = target.seeds()
    assert all(len(seed) <= target.max_bytes for seed in seeds.values())
    for seed in seeds.values():
        check(seed)
        for _ in range(VARIATIONS):
            check(varied(target, seed, dice))


def varied(target: Target, seed: bytes, dice: random.Random) -> bytes:
    """The seed as the target's own mutator changes it."""

    def mutate_bytes(data: bytes, most: int) -> bytes:
        return flip_bytes(data, most, dice)

    if target.mutate is None:
        return mutate_bytes(seed, target.max_bytes)
    return target.mutate(seed, target.max_bytes, dice, mutate_bytes)


@pytest.mark.parametrize("find", PAST_FINDS, ids=lambda find: f"{find.target}: {find.what}")
def test_what_a_search_found_once_breaks_no_promise_again(find: PastFind) -> None:
    without_warnings(TARGETS[find.target].prepare())(find.input())
