"""What a model is worth on a user's own data: its task's metric where there are labels, and where two models disagree.

Every model answers as it is served, through its predictor with the manifest's preprocessing. Data with labels lie as
the training programs read them:

    classification, video    ROOT/<split>/<class>/*, videos also ROOT/<split>.csv or .txt
    detection                ROOT/annotations/instances_<split>.json, or COCO's own folders
    segmentation             ROOT/images/<split>, ROOT/labels/<split>, ROOT/classes.json, or ADE20K's own folders

Any other folder is one of photos or videos without labels: then there is no metric, and models can still be compared.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.bundle.manifest import INT8, BundleFile, Manifest, Precision
from convmae_deploy.tasks import TASKS
from convmae_deploy.tasks.base import Predictor
from export.runtimes.runners import Runner
from export.verification.task_data import Agreement, TaskMetric


class RunnerBackend:
    """Lets a predictor run on any `Runner`: PyTorch, or a graph that is in no bundle yet."""

    providers = ("CPU",)

    def __init__(self, runner: Runner, name: str) -> None:
        self.name = name
        self._runner = runner

    def run(self, image: NDArray[np.float32], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Runs images (B, 3, H, W), or clips (B, 3, T, H, W), and returns the named outputs, each (B, ...)."""
        found = self._runner(image)
        return {name: found[name] for name in outputs}


def predictor_on(runner: Runner, manifest: Manifest, name: str) -> Predictor:
    """The predictor of a manifest on a runner that gives all of its outputs; `name` says what runs."""
    return TASKS[manifest.task](Bundle(Path(manifest.name), manifest), RunnerBackend(runner, name))


@dataclass(frozen=True, kw_only=True)
class TaskGate:
    """What a graph may make of a user's data otherwise than the reference."""

    differing: float  # largest share of answers that are not the reference's; 1: not held
    loss: float  # points of each metric
    two_sided: bool = False  # whether a gain of as many points is wrong too


TASK_GATES: dict[Precision, TaskGate] = {
    "fp32": TaskGate(differing=0.0, loss=0.05, two_sided=True),
    "fp16": TaskGate(differing=0.005, loss=0.2),
    "bf16": TaskGate(differing=0.01, loss=0.3),
    **dict.fromkeys(INT8, TaskGate(differing=1.0, loss=1.0)),
}


def task_gate(precision: Precision, file: BundleFile | None = None) -> TaskGate:
    """The gate of a precision; for an int8 file the drop that its maker allowed it.

    Args:
        precision: that it computes in.
        file: its entry in the manifest; None: it has none.
    """
    gate = TASK_GATES[precision]
    if precision in INT8 and file is not None and file.quantisation is not None:
        return replace(gate, loss=file.quantisation.max_drop)
    return gate


def task_problems(
    gate: TaskGate, before: Sequence[TaskMetric], after: Sequence[TaskMetric], agreement: Agreement
) -> list[str]:
    """What is wrong with a graph on a user's data, a clause each.

    Args:
        gate: that holds.
        before: metrics of the reference; none without labels.
        after: metrics of the graph, the same ones.
        agreement: of the two.
    """
    problems = [
        f"{one.name} changes from {one.value:.2f} % to {other.value:.2f} %, by more than {gate.loss:g} points"
        for one, other in zip(before, after, strict=True)
        if one.value - other.value > gate.loss or (gate.two_sided and other.value - one.value > gate.loss)
    ]
    allowed = allowed_differences(gate, agreement)
    # Where labels decide, an answer among near ties that changes is no harm of its own.
    held = not before or agreement.by_chance == 0
    if held and agreement.decided - agreement.agreeing > allowed:
        problems.append(
            f"the reference's answer on {agreement.agreeing} of {agreement.decided} {agreement.counted}, where "
            f"{agreement.decided - allowed} are to agree"
        )
    return problems


def allowed_differences(gate: TaskGate, agreement: Agreement) -> int:
    """How many answers may be others than the reference's; of few samples one, unless the gate allows none."""
    exact = math.floor(agreement.by_chance * agreement.decided)
    return max(exact, math.ceil(gate.differing * agreement.decided))
