"""How things are timed against each other: interleaved rounds, percentiles, and when one is significantly faster."""

import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Name = TypeVar("Name", bound=Hashable)
Turn = Callable[[], Sequence[float]]  # runs something at least once and returns the seconds of every timed run
Rounds = list[list[float]]  # what one combination took: the seconds of its runs, round by round

REST_SECONDS = 0.25  # before each turn: the last one's idle threads spin for up to 0.2 s and would disturb it
MOST_RUNS = 50  # in a turn
CHANCE = 0.05  # the most that a difference may be due to chance for one to count as faster


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What the rounds of one combination come to, at one batch size."""

    runs: int  # timed ones, of all rounds; with fewer than 100 the 99th percentile is about the slowest
    p50_ms: float  # for the whole batch
    p90_ms: float
    p99_ms: float
    images_per_second: float  # at the median; of videos clips
    spread: float  # the rounds' medians': (90th percentile - 10th) / the median of all runs
    round_ms: tuple[float, ...]  # the median of each round


def timed_turn(
    run: Callable[[], object], *, at_least: float = 0.0, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Seconds of each run: one, and more until they took `at_least` seconds together, up to MOST_RUNS."""
    seconds: list[float] = []
    while not seconds or (sum(seconds) < at_least and len(seconds) < MOST_RUNS):
        begun = clock()
        run()
        seconds.append(clock() - begun)
    return seconds


def interleave(
    turns: Mapping[Name, Turn],
    rounds: int,
    advance: Callable[[], None],
    *,
    rest: Callable[[float], None] = time.sleep,
) -> dict[Name, Rounds]:
    """Lets everyone take one turn in every round, in an order that rotates: a machine that slows down slows all.

    Args:
        turns: by name, warm.
        rounds: turns of each.
        advance: called after each round.
        rest: waits for as many seconds; called before each turn.
    """
    names = list(turns)
    taken: dict[Name, Rounds] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % max(1, len(names))
        for name in names[first:] + names[:first]:
            rest(REST_SECONDS)
            taken[name].append(list(turns[name]()))
        advance()
    return taken


def summarise(rounds: Sequence[Sequence[float]], batch_size: int) -> Statistics:
    """Percentiles of all runs, and how far the rounds lie apart.

    Args:
        rounds: seconds of the runs of each round; at least one run in each.
        batch_size: images or clips of a run.
    """
    seconds = np.concatenate([np.asarray(runs, float) for runs in rounds])
    p50, p90, p99 = (float(value) for value in np.percentile(seconds, (50, 90, 99)))
    medians = [float(np.median(runs)) for runs in rounds]
    low, high = np.percentile(medians, (10, 90))
    return Statistics(
        runs=len(seconds),
        p50_ms=1000 * p50,
        p90_ms=1000 * p90,
        p99_ms=1000 * p99,
        images_per_second=batch_size / p50,
        spread=float(high - low) / p50,
        round_ms=tuple(1000 * median for median in medians),
    )


def is_significantly_faster(faster: Sequence[float], slower: Sequence[float]) -> bool:
    """Whether one is the faster in so many rounds that chance would hardly do it (one-sided sign test).

    Rounds are held against each other in pairs, because what disturbs a machine disturbs all of a round; fewer than
    five rounds never suffice.

    Args:
        faster: seconds an image in each round.
        slower: the same of the other.
    """
    pairs = list(zip(faster, slower, strict=True))
    wins = sum(own < other for own, other in pairs)
    tail = sum(math.comb(len(pairs), count) for count in range(wins, len(pairs) + 1))
    return tail <= CHANCE * float(2 ** len(pairs))
