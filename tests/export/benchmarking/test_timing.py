"""Rounds, percentiles and the sign test, against numbers worked out by hand and a clock that stands still."""

from collections.abc import Callable

import pytest

from export.benchmarking.timing import (
    MOST_RUNS,
    REST_SECONDS,
    interleave,
    is_significantly_faster,
    summarise,
    timed_turn,
)


class FakeClock:
    """Time that passes only where it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.now += seconds

        return run


def test_everyone_takes_one_turn_a_round_after_a_rest_and_each_leads_in_turn() -> None:
    clock = FakeClock()
    events: list[str] = []

    def turn(name: str, seconds: float) -> Callable[[], list[float]]:
        def take() -> list[float]:
            events.append(name)
            return timed_turn(clock.work(seconds), clock=clock)

        return take

    def rest(seconds: float) -> None:
        assert seconds == REST_SECONDS
        events.append("rest")
        clock.now += seconds

    turns = {name: turn(name, seconds) for name, seconds in {"a": 0.1, "b": 0.2, "c": 0.4}.items()}
    taken = interleave(turns, 3, lambda: events.append("round"), rest=rest)
    order = [event for event in events if event != "rest"]
    assert order == ["a", "b", "c", "round", "b", "c", "a", "round", "c", "a", "b", "round"]
    assert events.count("rest") == 9
    assert all(events[index - 1] == "rest" for index, event in enumerate(events) if event in turns)
    for name, seconds in {"a": 0.1, "b": 0.2, "c": 0.4}.items():  # nobody's rest, and nobody else's run
        assert taken[name] == [[pytest.approx(seconds)]] * 3


def test_a_turn_is_one_run_or_as_many_as_take_the_time_wanted_but_not_without_end() -> None:
    clock = FakeClock()
    assert timed_turn(clock.work(3.0), at_least=1.0, clock=clock) == [3.0]
    assert timed_turn(clock.work(0.25), at_least=1.0, clock=clock) == [0.25] * 4
    assert timed_turn(clock.work(0.25), clock=clock) == [0.25]
    assert len(timed_turn(clock.work(0.0), at_least=1.0, clock=clock)) == MOST_RUNS


def test_percentiles_are_of_all_runs_and_the_spread_is_of_the_rounds() -> None:
    # medians of the rounds 2, 4 and 3: sorted 2 3 4, so their percentiles are 2.2 (10th) and 3.8 (90th)
    found = summarise([[1.0, 2.0, 3.0], [4.0], [3.0]], batch_size=6)
    assert found.runs == 5
    # all runs sorted: 1 2 3 3 4; the 90th percentile lies 0.6 of the way from the fourth to the fifth, the 99th 0.96
    assert (found.p50_ms, found.p90_ms, found.p99_ms) == pytest.approx((3000, 3600, 3960))
    assert found.images_per_second == pytest.approx(2)
    assert found.spread == pytest.approx(1.6 / 3)
    assert found.round_ms == pytest.approx((2000, 4000, 3000))


@pytest.mark.parametrize(
    ("wins", "rounds", "expected"),
    [
        (5, 5, True),  # 1 of 32 by chance
        (4, 4, False),  # 1 of 16
        (9, 10, True),  # 11 of 1024
        (8, 10, False),  # 56 of 1024
        (2, 2, False),
        (0, 5, False),
    ],
)
def test_one_is_faster_only_where_chance_would_hardly_do_it(wins: int, rounds: int, expected: bool) -> None:
    assert is_significantly_faster([1.0] * wins + [3.0] * (rounds - wins), [2.0] * rounds) is expected


def test_equals_are_never_is_significantly_faster() -> None:
    assert not is_significantly_faster([1.0] * 20, [1.0] * 20)
