"""A benchmark from start to end: everyone starts, gives the same answers, warms up, and takes turns.

Who fails is out, with the reason, and the others go on.
"""

import pickle
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from convmae_deploy.backends.base import Outputs
from export.benchmarking.process import Started, WorkerError, WorkerProcess
from export.benchmarking.timing import Rounds, interleave
from export.runtimes.combinations import Combination
from export.verification.gates import FP32, compare

LEAST_TURN_SECONDS = 0.1  # a fast combination runs several times in a turn, so that the percentiles are of many runs


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How it is measured."""

    batch_sizes: tuple[int, ...]  # ascending
    rounds: int
    warm_up: int  # runs of each batch size
    rest: Callable[[float], None] = time.sleep  # waits for seconds


@dataclass(kw_only=True)
class Entry:
    """A combination and what became of it."""

    combination: Combination
    process: WorkerProcess | None = None
    started: Started | None = None
    difference: float | None = None  # largest |difference| from the first one's outputs / its largest absolute value
    problem: str | None = None  # why it is out, for all batch sizes
    failed: dict[int, str] = field(default_factory=dict)  # batch size -> why it has no figures
    taken: dict[int, Rounds] = field(default_factory=dict)  # batch size -> seconds
    peak_gb: dict[int, float] = field(default_factory=dict)  # batch size -> most resident memory until then
    predictions: list[Any] | None = None  # for a user's data

    @property
    def working(self) -> WorkerProcess:
        """To be asked."""
        assert self.process is not None  # nobody asks one that did not start
        return self.process


def measure(
    combinations: Sequence[Combination],
    open_process: Callable[[Combination], WorkerProcess],
    plan: Plan,
    on_step: Callable[[str, int], None],
    *,
    predict: Callable[[WorkerProcess], Path] | None = None,
    exact_outputs: bool = True,
) -> list[Entry]:
    """Measures all.

    Args:
        combinations: at least one; the first that starts is the reference of the outputs.
        open_process: makes what can be asked; raises WorkerError where it cannot.
        plan: how.
        on_step: what is being done, and how many steps were finished: `steps(combinations, plan)` in all.
        predict: lets one run a user's data; returns a pickle of its predictions.
        exact_outputs: whether those that compute in full precision must give the reference's outputs.
    """
    entries = [Entry(combination=one) for one in combinations]
    with ExitStack() as stack:
        for entry in entries:
            on_step(f"Starting {entry.combination.name}", 1)
            _start(entry, open_process, stack)
        _compare_outputs(entries, plan.batch_sizes[0], exact_outputs)
        for batch_size in plan.batch_sizes:
            _measure_batch(entries, batch_size, plan, on_step)
        if predict is not None:
            for entry in _able(entries):
                on_step(f"Predictions of {entry.combination.name}", 0)
                _predict(entry, predict)
    return entries


def steps(combinations: Sequence[Combination], plan: Plan) -> int:
    """How often `on_step` hears of a finished one."""
    return len(combinations) + len(plan.batch_sizes) * (len(combinations) + plan.rounds)


def _start(entry: Entry, open_process: Callable[[Combination], WorkerProcess], stack: ExitStack) -> None:
    try:
        entry.process = open_process(entry.combination)
        stack.callback(entry.process.close)
        entry.started = entry.process.start()
    except WorkerError as error:
        entry.problem = str(error)


def _able(entries: Sequence[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.problem is None]


def _compare_outputs(entries: Sequence[Entry], batch_size: int, exact_outputs: bool) -> None:
    """Puts out who gives other outputs than the first although it should not: its speed means nothing."""
    reference: Outputs | None = None
    for entry in _able(entries):
        try:
            found = entry.working.outputs(batch_size)
        except WorkerError as error:
            entry.problem = str(error)
            continue
        if reference is None:
            reference, exact_outputs = found, exact_outputs and entry.combination.exact
        for name, values in found.items():
            if name not in reference or not np.issubdtype(values.dtype, np.floating):
                continue
            comparison = compare(reference[name], values, FP32)
            entry.difference = max(entry.difference or 0.0, comparison.max_rel)
            unusable = not np.isfinite(comparison.max_abs)
            if comparison.problem is not None and (unusable or (exact_outputs and entry.combination.exact)):
                entry.problem = f"its {name} are not those of the first: {comparison.problem}; its speed means nothing"


def _measure_batch(entries: Sequence[Entry], batch_size: int, plan: Plan, on_step: Callable[[str, int], None]) -> None:
    for entry in _able(entries):
        on_step(f"Batch {batch_size}: warm-up of {entry.combination.name}", 1)
        try:
            entry.working.warm_up(batch_size, plan.warm_up)
        except WorkerError as error:
            entry.failed[batch_size] = str(error)
    ready = [entry for entry in _able(entries) if batch_size not in entry.failed]
    turns = {index: _turn(entry, batch_size) for index, entry in enumerate(ready)}
    title = f"Batch {batch_size}: measuring"
    taken = interleave(turns, plan.rounds, lambda: on_step(title, 1), rest=plan.rest)
    for index, entry in enumerate(ready):
        if batch_size not in entry.failed:
            entry.taken[batch_size] = taken[index]


def _turn(entry: Entry, batch_size: int) -> Callable[[], list[float]]:
    """The turn of one, which is empty from the first failure on."""

    def take() -> list[float]:
        if batch_size in entry.failed:
            return []
        try:
            seconds, entry.peak_gb[batch_size] = entry.working.turn(batch_size, LEAST_TURN_SECONDS)
        except WorkerError as error:
            entry.failed[batch_size] = str(error)
            return []
        return seconds

    return take


def _predict(entry: Entry, predict: Callable[[WorkerProcess], Path]) -> None:
    try:
        entry.predictions = pickle.loads(predict(entry.working).read_bytes())  # written by this program's own child
    except WorkerError as error:
        entry.problem = str(error)
