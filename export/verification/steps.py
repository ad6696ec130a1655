"""The steps of a verification that a new export and a finished bundle share: its inputs, its run, its explanation."""

from collections.abc import Sequence
from pathlib import Path

import onnx
from rich.progress import track

from convmae_deploy.bundle.manifest import AnyPreprocessing, ClipPreprocessing, Precision
from convmae_deploy.terminal import Terminal
from export.graphs.half_precision import in_half_precision
from export.graphs.to_onnx import ExportedGraph
from export.reports.report import failure_sentence, write_failure
from export.tasks.base import ExportTask
from export.verification.divergence import Divergence, find_divergence
from export.verification.elementwise import Candidate, Failure, Verification, VerificationError, smallest_failing_images
from export.verification.gates import GATES, incomparable
from export.verification.inputs import PICTURES, Batch, Samples, verification_photos
from export.verification.layer_errors import LayerErrors, layer_errors
from export.verification.overflow import find_overflow
from export.verification.runners import Runner, RunnerName, runners_for
from export.verification.video_inputs import verification_clips

PHOTOS = 32  # photos in the verification, at most
CLIPS = 8  # the same of clips, which are held in memory as the graph takes them


def verification_samples(spec: AnyPreprocessing, data: Path | None, checkpoint: Path) -> Samples:
    """Photos, or the clips of videos; see `verification_photos` and `verification_clips`."""
    if isinstance(spec, ClipPreprocessing):
        return verification_clips(spec, data, checkpoint, CLIPS)
    return verification_photos(data, checkpoint, PHOTOS)


def photo_batch(batches: list[Batch]) -> Batch:
    """The largest batch of photos or clips, or of what was made in their place."""
    return max((batch for batch in batches if batch.name.startswith(PICTURES)), key=lambda batch: len(batch.images))


def run_verification(
    task: ExportTask,
    graph: ExportedGraph,
    path: Path,
    batches: list[Batch],
    precision: Precision = "fp32",
    runner: RunnerName | None = None,
) -> Verification:
    """Compares a file with PyTorch on all batches behind a progress bar.

    Args:
        task: gives the numbers that hold.
        graph: as it was traced, with the task's probes.
        path: the file.
        batches: the inputs.
        precision: of the file; its gates hold.
        runner: what runs it; None: the best there is for the precision.
    """
    candidate = Candidate(graph=graph, path=path, precision=precision, runner=runner or runners_for(precision)[0])
    if candidate.runner == "onnx reference":  # which takes minutes for a large batch
        batches = [batch for batch in batches if len(batch.images) == 1]
    progress = track(batches, f"Verifying {path.name}", console=Terminal(stderr=True), transient=True)
    verification = task.verify(candidate, progress)
    if precision != "fp16" or candidate.runner != "onnxruntime" or verification.failures:
        return verification
    return with_overflows(task, verification, batches)


def with_overflows(task: ExportTask, verification: Verification, batches: list[Batch]) -> Verification:
    """A verification by a runtime that computes float16 in float32, with what overflows elsewhere as failures.

    Looked for in PyTorch, on single images and on the photos.
    """
    half = in_half_precision(task.wrapper, "fp16")
    chosen = [batch for batch in batches if len(batch.images) == 1]
    overflow = find_overflow(half, task.wrapper, [*chosen, photo_batch(batches)])
    if overflow is None:
        return verification
    failure = Failure(batch=overflow.batch, output=task.outputs[0], comparison=incomparable(str(overflow)))
    report = verification.report.model_copy(update={"passed": False})
    return Verification(report=report, failures=(failure,))


def explain(
    task: ExportTask,
    graph: ExportedGraph,
    candidate: Runner,
    verification: Verification,
    folder: Path,
    command: Sequence[str],
    consequence: str,
    *,
    precision: Precision = "fp32",
    float32: onnx.ModelProto | None = None,
) -> VerificationError:
    """Finds the layer, writes the reproducer and returns the error to raise.

    Args:
        task: gives the numbers that hold.
        graph: that failed, with the traced program it should compute.
        candidate: runs it.
        verification: with at least one failure.
        folder: of the reproducer; an older one is replaced.
        command: the program's arguments, for the reproducer.
        consequence: a clause for the message, with its comma in front, or "".
        precision: of the graph.
        float32: the fp32 graph, which one in another precision is held against layer by layer.
    """
    failure, reference, gate = verification.worst, task.reference, GATES[precision]
    divergence: Divergence | LayerErrors | None = None
    arrays = {graph.input: failure.batch.images}
    try:
        images = failure.batch.images
        if failure.output in task.outputs:  # others cannot be had from the bundle's own graph
            images = smallest_failing_images(reference, candidate, failure, gate)
        arrays = {graph.input: images}
        arrays |= {f"expected_{name}": value for name, value in reference(images).items()}
        arrays |= {f"found_{name}": value for name, value in candidate(images).items()}
        if float32 is None:
            divergence = find_divergence(graph, images, gate)
        else:
            divergence = find_loss(task, graph.model, float32, Batch(failure.batch.name, images), precision)
    except Exception as error:  # the graph does not run, or not in pieces: the failure itself must still be told
        Terminal(stderr=True).print(f"The diverging layer was not found: {error}", style="yellow", highlight=False)
    write_failure(
        folder,
        model=graph.model,
        verification=verification,
        divergence=divergence,
        arrays=arrays,
        command=list(command),
        runs_in=runners_for(precision)[0].replace(" ", "-"),  # as reproduce.py calls them
        tolerance=gate,
    )
    return VerificationError(failure_sentence(failure, divergence, folder, consequence))


def find_loss(
    task: ExportTask, model: onnx.ModelProto, float32: onnx.ModelProto, batch: Batch, precision: Precision
) -> Divergence | LayerErrors:
    """Which layer of a graph in reduced precision is to be looked at: one that overflows, else the least exact."""
    if precision == "fp16":
        overflow = find_overflow(in_half_precision(task.wrapper, precision), task.wrapper, [batch])
        if overflow is not None:
            return Divergence(layers=(), first=None, explanation=str(overflow))
    return layer_errors(float32, model, batch.images, precision=precision, runner=runners_for(precision)[0])
