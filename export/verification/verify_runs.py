"""The runs of a verification: each file of a bundle on each runtime against the reference, tensors and task.

The reference is PyTorch where a checkpoint is given, else the bundle's fp32 graph in ONNX Runtime, which its manifest
says was verified. Its outputs are kept on disk, so that it runs once for all the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from convmae_deploy.backends.base import FloatArray, Outputs
from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.bundle.manifest import Manifest
from convmae_deploy.bundle.numerics import NumericsReport
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks import task_of
from convmae_deploy.tasks.base import ModelOutputError
from convmae_deploy.terminal import Terminal
from export.runtimes.combinations import REFERENCE, Combination
from export.runtimes.runners import Runner, start
from export.verification.detection_sets import verify_detection_sets
from export.verification.elementwise import Failure, Verification, verify
from export.verification.gates import GATES
from export.verification.inputs import Batch, smallest_batches
from export.verification.layer_errors import LayerErrors
from export.verification.samples import PICTURES
from export.verification.task_data import Agreement, Changes, TaskData, TaskMetric
from export.verification.task_metrics import predictor_on, task_gate, task_problems

SCATTERED = 600  # pairs of values in a scatter plot, at most
SCATTERED_IMAGES = 8  # images that they are taken from, in the largest batch of pictures


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What is right."""

    runner: Runner
    title: str  # with its version
    short: str  # for a sentence: "PyTorch"
    manifest: Manifest  # with the classes and the preprocessing that hold


@dataclass(frozen=True, kw_only=True)
class TaskOutcome:
    """What a model makes of the user's data."""

    metrics: tuple[TaskMetric, ...]
    agreement: Agreement | None = None  # with the reference; None: it is the reference
    changes: Changes = field(default_factory=Changes)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one file on one runtime."""

    combination: Combination
    runtime: str = ""  # with its version
    report: NumericsReport | None = None  # None: it was not run
    failures: tuple[Failure, ...] = ()
    task: TaskOutcome | None = None  # None: there were no data
    scatter: tuple[FloatArray, FloatArray] | None = None  # some values of the reference and of this, (n,) each
    problems: tuple[str, ...] = ()  # clauses; none: all holds
    divergence: str | None = None  # the first diverging layer, where there is a failure
    reproducer: Path | None = None

    @property
    def passed(self) -> bool:
        """Whether all holds; of one that was not run it says nothing."""
        return not self.problems


@dataclass(frozen=True, kw_only=True)
class Results:
    """All that a report tells."""

    bundle: Bundle
    reference: Reference
    outcomes: tuple[Outcome, ...]
    reference_task: TaskOutcome | None
    data: TaskData[Any] | None
    layers: dict[str, LayerErrors]  # file -> its modules against those of the fp32 graph
    manifest_problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def problems(self) -> list[str]:
        """Everything that does not hold, a clause each."""
        found = [f"{outcome.combination.title}: {problem}" for outcome in self.outcomes for problem in outcome.problems]
        return [*self.manifest_problems, *found]

    @property
    def run(self) -> list[Outcome]:
        """Those that were run."""
        return [outcome for outcome in self.outcomes if outcome.report is not None]


class KeptRunner:
    """A runner that runs on each batch once and keeps its outputs in a folder."""

    def __init__(self, runner: Runner, folder: Path) -> None:
        self._runner = runner
        self._folder = folder
        self._kept: dict[int, tuple[FloatArray, dict[str, Path]]] = {}  # by identity; the array is held to keep it

    def __call__(self, images: FloatArray) -> Outputs:
        if id(images) not in self._kept:
            found, paths = self._runner(images), {}
            for name, values in found.items():
                paths[name] = self._folder / f"{len(self._kept)}-{name}.npy"
                np.save(paths[name], values)
            self._kept[id(images)] = images, paths
            return found
        return {name: np.load(path) for name, path in self._kept[id(images)][1].items()}


@dataclass(frozen=True, kw_only=True)
class Examiner:
    """Holds one combination after the other against the reference."""

    bundle: Bundle
    reference: Reference  # its runner is a `KeptRunner`
    batches: Sequence[Batch]
    data: TaskData[Any] | None
    reference_predictions: list[Any] | None  # of `data`

    def examine(self, combination: Combination, verification: Verification | None = None) -> Outcome:
        """Runs a combination.

        Args:
            combination: a file on a runtime.
            verification: of its tensors, where it was made already.
        """
        if combination.reason is not None:
            return Outcome(combination=combination)
        starts = True
        try:
            runner, runtime = start(combination, self.bundle)
        except ConvMAEError as error:  # a graph that does not load has failed on every input
            starts, runner, runtime = False, raising(error), combination.where
        watched = Watched(runner, scatter_batch(self.batches).images)
        if verification is None:
            verification = self._verify(combination, watched, runtime)
        outcome, problems = self._run_task(combination, runner) if starts else (None, [])
        if verification.failures:
            worst = verification.worst
            problems.insert(0, f"worst output {worst.output} on {worst.batch.name}, {worst.comparison.problem}")
        return Outcome(
            combination=combination,
            runtime=runtime,
            report=verification.report,
            failures=verification.failures,
            task=outcome,
            scatter=self._scatter(watched),
            problems=tuple(problems),
        )

    def _verify(self, combination: Combination, runner: Runner, runtime: str) -> Verification:
        progress = track(self._batches(combination), combination.title, console=Terminal(stderr=True), transient=True)
        between = self.reference.title, runtime
        if task_of(self.bundle.manifest).GIVES_LISTS:
            return verify_detection_sets(
                self.reference.runner, runner, list(progress), combination.gate, between=between
            )
        outputs = tuple(self.bundle.manifest.outputs)
        gate = GATES[combination.gate]
        return verify(self.reference.runner, runner, progress, gate, outputs=outputs, between=between)

    def _batches(self, combination: Combination) -> list[Batch]:
        """The inputs; onnx's reference evaluator is too slow for more than single images."""
        if combination.runtime == REFERENCE:
            return smallest_batches(self.batches)
        return list(self.batches)

    def _run_task(self, combination: Combination, runner: Runner) -> tuple[TaskOutcome | None, list[str]]:
        """What it makes of the user's data, and what is wrong with that."""
        if self.data is None or self.reference_predictions is None or combination.runtime == REFERENCE:
            return None, []
        predictor = predictor_on(runner, self.bundle.manifest, combination.title)
        try:
            found = self.data.predictions(predictor, title=f"{combination.title}: {self.data.kind}")
        except ModelOutputError as error:
            return None, [f"it does not answer on the {self.data.kind}: {error}"]
        except Exception as error:  # no runtime's exceptions have a common base
            return None, [f"it does not run on the {self.data.kind}: {' '.join(str(error).split())}"]
        outcome = TaskOutcome(
            metrics=self.data.metrics(found),
            agreement=self.data.agreement(self.reference_predictions, found),
            changes=self.data.changes(self.reference_predictions, found),
        )
        before = self.data.metrics(self.reference_predictions)
        assert outcome.agreement is not None
        gate = task_gate(combination.gate, self.bundle.manifest.files.get(combination.file))
        return outcome, task_problems(gate, before, outcome.metrics, outcome.agreement)

    def _scatter(self, watched: "Watched") -> tuple[FloatArray, FloatArray] | None:
        """Pairs of values of the key output, spread over a few images."""
        try:
            found = watched.seen or watched(watched.images)
        except Exception:  # a graph that does not run has failed already
            return None
        name = task_of(self.bundle.manifest).KEY_OUTPUT
        before, after = (
            np.asarray(outputs[name][:SCATTERED_IMAGES]).ravel()
            for outputs in (self.reference.runner(watched.images), found)
        )
        chosen = np.unique(np.linspace(0, len(before) - 1, SCATTERED).astype(int))
        return before[chosen], after[chosen]


def raising(error: ConvMAEError) -> Runner:
    """A runner that always fails in the same way."""

    def run(images: FloatArray) -> Outputs:
        raise error

    return run


class Watched:
    """A runner that keeps what it gave for some images."""

    def __init__(self, runner: Runner, images: NDArray[np.float32]) -> None:
        self._runner, self.images = runner, images
        self.seen: Outputs | None = None

    def __call__(self, images: FloatArray) -> Outputs:
        found = self._runner(images)
        if images is self.images:
            self.seen = found
        return found


def scatter_batch(batches: Sequence[Batch]) -> Batch:
    """The pictures whose values are drawn: the largest batch of them that is not too large."""
    pictures = [batch for batch in batches if batch.name.startswith(PICTURES)]
    small = [batch for batch in pictures if len(batch.images) <= SCATTERED_IMAGES]
    return max(small or pictures, key=lambda batch: len(batch.images))
