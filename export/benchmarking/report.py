"""What people get to see of a benchmark: the machine, the tables, what to pick, and the record of it all as JSON."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from pydantic import BaseModel, ConfigDict

from convmae_deploy.backends.base import ComputePrecision, PerformanceHint
from convmae_deploy.backends.choice import Goal
from convmae_deploy.backends.onnxruntime_backend import VERSION
from convmae_deploy.backends.runtimes import RUNTIMES
from convmae_deploy.bundle.manifest import Precision
from convmae_deploy.machine import available_cores, processor
from convmae_deploy.tasks import TASKS
from export.benchmarking.rounds import Entry
from export.benchmarking.timing import Statistics, is_significantly_faster, summarise
from export.runtimes.combinations import Combination

TIMED = (
    "an array as the graph takes it, to outputs as NumPy arrays; not timed: decoding, preprocessing, postprocessing, "
    "compilation, session start"
)
PACKAGES = ("torch", *dict.fromkeys(extra for runtime in RUNTIMES.values() for extra in runtime.extras))
MOST_LOAD = 0.5  # load average a core, above which a machine is not quiet
MOST_SPREAD = 0.1  # a row that spreads more is not to be relied on
MOST_RIVALS = 3  # that a sentence names
BASELINE: tuple[str, Precision] = ("onnxruntime", "fp32")  # what others are said to be faster than


Ranked = tuple["Row", Statistics]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CombinationRecord(_Record):
    """One combination."""

    name: str
    runtime: str  # one of MEASURED
    file: str | None  # its name in the bundle; null: PyTorch
    precision: Precision  # the file's
    computes_in: ComputePrecision | None  # null: as the file is written
    hint: PerformanceHint | None
    description: str | None  # what ran it, and where; null: it did not start
    start_seconds: float | None  # from the checked bundle, or the checkpoint, to something that runs
    start_gb: float | None  # most resident memory of its process until then
    difference: float | None  # its outputs' from the first combination's, as a share of their largest value
    agreement: float | None  # share of a user's data that it answers as the first combination does, from 0 to 1
    metrics: dict[str, float]  # on labelled data, in percent
    problem: str | None  # why it was not measured, or not to the end


class Row(_Record):
    """One combination at one batch size."""

    combination: str
    batch_size: int
    timing: Statistics | None  # null: it failed
    peak_gb: float | None  # most resident memory of its process until then, libraries included; not that of a GPU
    problem: str | None  # why it failed


class LeftOutRecord(_Record):
    """What was not tried."""

    name: str
    reason: str


class Advice(_Record):
    """What to pick, a sentence each."""

    latency: str
    throughput: str


class BenchmarkRecord(_Record):
    """`benchmark.json`."""

    schema_version: Literal[1] = 1
    bundle: str  # the name in its manifest
    task: str
    variant: str
    inputs: str  # "photos", "made pictures", "videos" or "made clips"
    timed: str = TIMED
    rounds: int
    warm_up: int
    threads: int  # CPU threads of every combination
    machine: dict[str, str]
    warnings: tuple[str, ...]
    counted: str | None  # what `agreement` counts, in words
    combinations: tuple[CombinationRecord, ...]
    rows: tuple[Row, ...]
    left_out: tuple[LeftOutRecord, ...]
    advice: Advice

    @property
    def unit(self) -> str:
        """What a batch consists of."""
        return unit_of(self.task)

    @property
    def complete(self) -> bool:
        """Whether something was measured and nothing failed."""
        problems = [entry.problem for entry in self.combinations] + [row.problem for row in self.rows]
        return bool(self.rows) and not any(problems)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What combinations make of a user's data."""

    counted: str | None = None  # what the agreement is of, in words
    agreement: dict[Combination, float] = field(default_factory=dict)  # with the first combination, from 0 to 1
    metrics: dict[Combination, dict[str, float]] = field(default_factory=dict)  # in percent


def unit_of(task: str) -> str:
    """What a batch consists of."""
    return "clip" if TASKS[task].MEDIUM == "video" else "image"


def rows_of(entries: Sequence[Entry], batch_sizes: Sequence[int]) -> tuple[Row, ...]:
    """A row for each combination that started and each batch size."""
    return tuple(
        Row(
            combination=entry.combination.name,
            batch_size=size,
            timing=summarise(entry.taken[size], size) if size in entry.taken else None,
            peak_gb=entry.peak_gb.get(size),
            problem=entry.failed.get(size),
        )
        for size in batch_sizes
        for entry in entries
        if size in entry.taken or size in entry.failed
    )


def combination_records(entries: Sequence[Entry], judged: Judged) -> tuple[CombinationRecord, ...]:
    """What is reported of each combination besides its figures."""
    return tuple(
        CombinationRecord(
            name=entry.combination.name,
            runtime=entry.combination.runtime,
            file=entry.combination.file or None,
            precision=entry.combination.precision,
            computes_in=entry.combination.computes_in,
            hint=entry.combination.hint,
            description=None if entry.started is None else entry.started.description,
            start_seconds=None if entry.started is None else entry.started.seconds,
            start_gb=None if entry.started is None else entry.started.peak_gb,
            difference=entry.difference,
            agreement=judged.agreement.get(entry.combination),
            metrics=judged.metrics.get(entry.combination, {}),
            problem=entry.problem,
        )
        for entry in entries
    )


def machine_facts(threads: int) -> dict[str, str]:
    """What figures depend on besides the code.

    Args:
        threads: CPU threads of every combination.
    """
    facts = {
        "device": f"CPU, {processor()}, {available_cores()} cores",
        "threads": str(threads),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "onnxruntime": VERSION,
    }
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts


def noise_warnings(load: float | None, cores: int, rows: Sequence[Row]) -> tuple[str, ...]:
    """Why the figures may not be reliable, a sentence each.

    Args:
        load: the load average before the first run; None: this system has none.
        cores: of the machine.
        rows: what was measured.
    """
    warnings = []
    if load is not None and load > MOST_LOAD * cores:
        warnings.append(
            f"The load average was {load:.1f} on {cores} cores before the first run: others used the machine; "
            "measure on a quiet one."
        )
    unsteady = [row for row in rows if row.timing is not None and row.timing.spread > MOST_SPREAD]
    if unsteady:
        worst = max(unsteady, key=lambda row: row.timing.spread if row.timing is not None else 0.0)
        assert worst.timing is not None
        warnings.append(
            f"{len(unsteady)} of {len(rows)} rows spread over the rounds by more than {MOST_SPREAD:.0%} of their "
            f"median, {worst.combination} at batch {worst.batch_size} by {worst.timing.spread:.0%}: measure again, "
            "with more rounds."
        )
    return tuple(warnings)


def advise(rows: Sequence[Row], combinations: Sequence[CombinationRecord], unit: str, counted: str | None) -> Advice:
    """What to pick for latency, at the smallest batch size, and for throughput, at any.

    Args:
        rows: of all combinations.
        combinations: with their agreement.
        unit: what a batch consists of.
        counted: what the agreement is of.
    """
    if not any(row.timing is not None for row in rows):
        nothing = "nothing was measured, so there is nothing to pick"
        return Advice(latency=f"For latency: {nothing}.", throughput=f"For throughput: {nothing}.")
    first = ranking(rows, "latency")
    best, timing = first[0]
    smallest = best.batch_size
    batch = f"a batch of {smallest}" if smallest > 1 else f"one {unit}"
    latency = (
        f"For latency pick {best.combination}: {timing.p50_ms:.4g} ms for {batch} at the median"
        f"{_against_baseline(first, combinations)}{_rivals(first, lambda row, own: f'{own.p50_ms:.4g} ms')}"
        f"{_caveat(best, combinations, counted)}."
    )
    fastest = ranking(rows, "throughput")
    best, timing = fastest[0]

    def rate(row: Row, own: Statistics) -> str:
        return f"{own.images_per_second:.4g} at batch {row.batch_size}"

    throughput = (
        f"For throughput pick {best.combination} at batch {best.batch_size}: {timing.images_per_second:.4g} {unit}s/s"
        f"{_against_baseline(fastest, combinations)}{_rivals(fastest, rate)}{_caveat(best, combinations, counted)}."
    )
    return Advice(latency=latency, throughput=throughput)


def ranking(rows: Sequence[Row], goal: Goal) -> list[Ranked]:
    """The fastest first: at the smallest batch size for latency, each at its best one for throughput."""
    measured = [(row, row.timing) for row in rows if row.timing is not None]
    if goal == "latency":
        smallest = min((row.batch_size for row, _ in measured), default=0)
        return sorted((pair for pair in measured if pair[0].batch_size == smallest), key=lambda pair: pair[1].p50_ms)
    fastest: dict[str, Ranked] = {}
    for row, own in sorted(measured, key=lambda pair: -pair[1].images_per_second):
        fastest.setdefault(row.combination, (row, own))
    return list(fastest.values())


def _against_baseline(ranked: Sequence[Ranked], combinations: Sequence[CombinationRecord]) -> str:
    """How much faster the first of a ranking is than what everyone has."""
    names = [entry.name for entry in combinations if (entry.runtime, entry.precision) == BASELINE]
    best, timing = ranked[0]
    for row, own in ranked[1:]:
        if row.combination in names:
            ratio = timing.images_per_second / own.images_per_second
            return f", {ratio:.2f} times as fast as {row.combination}"
    return ""


def _rivals(ranked: Sequence[Ranked], figure: Callable[[Row, Statistics], str]) -> str:
    """Who is not significantly slower than the first of a ranking."""
    (best, timing), *others = ranked
    own = [milliseconds / best.batch_size for milliseconds in timing.round_ms]
    near = [
        f"{row.combination} ({figure(row, other)})"
        for row, other in others
        if not is_significantly_faster(own, [milliseconds / row.batch_size for milliseconds in other.round_ms])
    ]
    if not near:
        return ""
    more = f" and {len(near) - MOST_RIVALS} more" if len(near) > MOST_RIVALS else ""
    return f"; within the noise of {len(own)} rounds: {', '.join(near[:MOST_RIVALS])}{more}"


def _caveat(best: Row, combinations: Sequence[CombinationRecord], counted: str | None) -> str:
    """Where a fast one answers otherwise."""
    (entry,) = (entry for entry in combinations if entry.name == best.combination)
    if entry.agreement is None or entry.agreement == 1 or counted is None:
        return ""
    first = next(other.name for other in combinations if other.agreement is not None)
    return f"; it gives the answers of {first} on {entry.agreement:.1%} of the {counted}"
