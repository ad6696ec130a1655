"""Does the graph give PyTorch's numbers? Compares every output on every batch and keeps the evidence."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from convmae_deploy.backends.base import FloatArray
from convmae_deploy.bundle.manifest import Precision
from convmae_deploy.bundle.numerics import NumericsReport
from convmae_deploy.errors import ConvMAEError
from export.graphs.to_onnx import ExportedGraph
from export.runtimes.runners import Runner, describe, file_runner, one_by_one
from export.verification.gates import FINITE, Comparison, Tolerance, compare, incomparable, worst_of
from export.verification.inputs import Batch

LOGITS = "logits"


class VerificationError(ConvMAEError):
    """The graph does not give the reference's numbers."""


@dataclass(frozen=True, kw_only=True)
class TracedFile:
    """A file in question with the program that it was traced from, and what runs it."""

    graph: ExportedGraph  # as it was traced, with probes where there are any
    path: Path  # as it is in the bundle, without them
    precision: Precision
    runtime: str  # of GRAPH_RUNTIMES

    @property
    def between(self) -> tuple[str, str]:
        """What is compared, for the report: (reference, runtime)."""
        return f"torch {torch.__version__} eager fp32 (cpu)", describe(self.runtime, self.precision)

    def runner(self, outputs: Sequence[str]) -> Runner:
        """Some outputs of the file."""
        return file_runner(self.runtime, self.path, outputs)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One output of one batch that did not pass a gate."""

    batch: Batch
    output: str
    comparison: Comparison


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The report, and what failed, in the order of the runs."""

    report: NumericsReport
    failures: tuple[Failure, ...]

    @property
    def worst(self) -> Failure:
        """The failure that is furthest from its gate; the earliest of equals."""
        return max(self.failures, key=lambda failure: failure.comparison.excess)


def verify(
    reference: Runner,
    candidate: Runner,
    batches: Iterable[Batch],
    tolerance: Tolerance,
    *,
    outputs: Sequence[str],
    between: tuple[str, str],
) -> Verification:
    """Runs both on every batch; then the candidate on some images one by one, which must equal their batch.

    Args:
        reference: gives the numbers that hold.
        candidate: gives the numbers in question.
        batches: the inputs; the last of 2 to 4 images, not blank, that passes is also run image by image.
        tolerance: the gate.
        outputs: names of the outputs to compare; the one called "logits" must also agree on the top class.
        between: what the two are, for the report: (reference, runtime).
    """
    rows: dict[str, list[tuple[str, Comparison]]] = {output: [] for output in outputs}
    failures: list[Failure] = []
    names: list[str] = []
    several: Batch | None = None
    sizes: set[int] = set()
    for batch in batches:
        gate = tolerance if tolerance.blank or not batch.blank else FINITE
        comparisons = _compare_outputs(reference, candidate, batch.images, outputs, gate)
        passed = all(comparison.problem is None for comparison in comparisons.values())
        if not passed or gate is tolerance:
            _record(batch, comparisons, rows, failures)
        names.append(batch.name)
        sizes.add(len(batch.images))
        several = batch if passed and 2 <= len(batch.images) <= 4 and not batch.blank else several
    if several is not None and len(sizes) > 1:  # a graph for batches of one size takes no single image
        single = Batch(f"{several.name} singly", several.images)
        _record(
            single,
            _compare_outputs(one_by_one(candidate), candidate, single.images, outputs, tolerance),
            rows,
            failures,
        )
        names.append(single.name)
    report = NumericsReport(
        reference=between[0],
        runtime=between[1],
        inputs=tuple(names),
        tolerance=tolerance.describe(),
        outputs={output: worst_of(comparisons) for output, comparisons in rows.items()},
        passed=not failures,
    )
    return Verification(report=report, failures=tuple(failures))


def smallest_failing_images(
    reference: Runner, candidate: Runner, failure: Failure, tolerance: Tolerance, *, least: int = 1
) -> FloatArray:
    """The one image that shows a failure, `least` times, or the whole batch where it does not show alone."""
    worst = failure.comparison.worst_image
    alone = np.repeat(failure.batch.images[worst : worst + 1], least, axis=0)
    comparison = _compare_outputs(reference, candidate, alone, [failure.output], tolerance)[failure.output]
    return alone if comparison.problem is not None else failure.batch.images


def _compare_outputs(
    reference: Runner, candidate: Runner, images: FloatArray, outputs: Sequence[str], tolerance: Tolerance
) -> dict[str, Comparison]:
    expected = reference(images)
    try:
        found = candidate(images)
    except Exception as error:  # ONNX Runtime's exceptions have no common base; a graph that does not run has failed
        reason = " ".join(str(error).split())
        return dict.fromkeys(outputs, incomparable(f"the graph does not run: {reason}"))
    return {name: compare(expected[name], found[name], tolerance, top1=name == LOGITS) for name in outputs}


def _record(
    batch: Batch,
    comparisons: dict[str, Comparison],
    rows: dict[str, list[tuple[str, Comparison]]],
    failures: list[Failure],
) -> None:
    for output, comparison in comparisons.items():
        rows[output].append((batch.name, comparison))
        if comparison.problem is not None:
            failures.append(Failure(batch=batch, output=output, comparison=comparison))
