"""The steps of a verification that a new export and a finished bundle share: its run, and where it fails."""

from pathlib import Path

import onnx
from rich.progress import track

from convmae_deploy.bundle.manifest import Precision
from convmae_deploy.terminal import Terminal
from export.graphs.half_precision import in_half_precision
from export.graphs.to_onnx import ExportedGraph
from export.runtimes.combinations import GRAPH_RUNTIMES, REFERENCE
from export.runtimes.runners import runtimes_for
from export.tasks.base import ExportTask
from export.verification.divergence import Divergence
from export.verification.elementwise import Failure, TracedFile, Verification
from export.verification.gates import incomparable
from export.verification.inputs import Batch, smallest_batches
from export.verification.layer_errors import LayerErrors, layer_errors
from export.verification.overflow import find_overflow
from export.verification.samples import PICTURES


def photo_batch(batches: list[Batch]) -> Batch:
    """The largest batch of photos or clips, or of what was made in their place."""
    return max((batch for batch in batches if batch.name.startswith(PICTURES)), key=lambda batch: len(batch.images))


def run_verification(
    task: ExportTask,
    graph: ExportedGraph,
    path: Path,
    batches: list[Batch],
    precision: Precision = "fp32",
) -> Verification:
    """Compares a file with PyTorch on all batches behind a progress bar.

    Args:
        task: gives the numbers that hold.
        graph: as it was traced, with the task's probes.
        path: the file.
        batches: the inputs.
        precision: of the file; its gates hold.
    """
    file = TracedFile(graph=graph, path=path, precision=precision, runtime=runtimes_for(precision)[0])
    if file.runtime == REFERENCE:  # which takes minutes for a large batch
        batches = smallest_batches(batches)
    progress = track(batches, f"Verifying {path.name}", console=Terminal(stderr=True), transient=True)
    verification = task.verify(file, progress)
    if precision not in GRAPH_RUNTIMES[file.runtime].widens or verification.failures:
        return verification
    return with_overflows(task, verification, batches)


def with_overflows(task: ExportTask, verification: Verification, batches: list[Batch]) -> Verification:
    """A verification by a runtime that computes float16 in float32, with what overflows elsewhere as failures.

    Looked for in PyTorch, on single images and on the photos.
    """
    half = in_half_precision(task.wrapper, task.half, "fp16")
    overflow = find_overflow(half, task.wrapper, [*smallest_batches(batches), photo_batch(batches)])
    if overflow is None:
        return verification
    failure = Failure(batch=overflow.batch, output=task.outputs[0], comparison=incomparable(str(overflow)))
    report = verification.report.model_copy(update={"passed": False})
    return Verification(report=report, failures=(failure,))


def find_loss(
    task: ExportTask, model: onnx.ModelProto, float32: onnx.ModelProto, batch: Batch, precision: Precision
) -> Divergence | LayerErrors:
    """Which layer of a graph in reduced precision is to be looked at: one that overflows, else the least exact."""
    if precision in ("fp16", "int8-fp16"):
        overflow = find_overflow(in_half_precision(task.wrapper, task.half, "fp16"), task.wrapper, [batch])
        if overflow is not None:
            return Divergence(layers=(), first=None, explanation=str(overflow))
    return layer_errors(float32, model, batch.images, precision=precision, runtime=runtimes_for(precision)[0])
