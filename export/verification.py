"""The steps of a verification that a new export and a finished bundle share: its inputs, its run, its explanation."""

from collections.abc import Sequence
from pathlib import Path

import onnxruntime
import torch
from rich.console import Console
from rich.progress import track

from convmae_deploy.runtime.manifest import AnyPreprocessing, ClipPreprocessing
from export.divergence import Divergence, find_divergence
from export.gates import FP32
from export.inputs import PICTURES, Batch, Samples, verification_photos
from export.report import failure_sentence, write_failure
from export.runners import Runner
from export.tasks import ExportTask
from export.to_onnx import ExportedGraph
from export.verify import Verification, VerificationError, smallest_failing_images
from export.video_inputs import verification_clips

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


def run_verification(task: ExportTask, graph: ExportedGraph, path: Path, batches: list[Batch]) -> Verification:
    """Compares the graph at `path` with PyTorch on all batches behind a progress bar."""
    progress = track(batches, "Verifying", console=Console(stderr=True), transient=True)
    between = (
        f"torch {torch.__version__} eager fp32 (cpu)",
        f"onnxruntime {onnxruntime.__version__} (CPUExecutionProvider)",
    )
    return task.verify(graph, path, progress, between)


def explain(
    task: ExportTask,
    graph: ExportedGraph,
    candidate: Runner,
    verification: Verification,
    folder: Path,
    command: Sequence[str],
    consequence: str,
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
    """
    failure, reference = verification.worst, task.reference
    divergence: Divergence | None = None
    arrays = {graph.input: failure.batch.images}
    try:
        images = failure.batch.images
        if failure.output in task.outputs:  # others cannot be had from the bundle's own graph
            images = smallest_failing_images(reference, candidate, failure, FP32)
        arrays = {graph.input: images}
        arrays |= {f"expected_{name}": value for name, value in reference(images).items()}
        arrays |= {f"found_{name}": value for name, value in candidate(images).items()}
        divergence = find_divergence(graph, images, FP32)
    except Exception as error:  # the graph does not run, or not in pieces: the failure itself must still be told
        Console(stderr=True).print(f"The diverging layer was not found: {error}", style="yellow", highlight=False)
    write_failure(
        folder,
        model=graph.model,
        verification=verification,
        divergence=divergence,
        arrays=arrays,
        command=list(command),
    )
    return VerificationError(failure_sentence(failure, divergence, folder, consequence))
