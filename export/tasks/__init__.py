"""How models of each task are exported: one file for each, and one table of them.

What a task is without torch stands in `convmae_deploy.tasks`; here is what needs torch or labelled data: how a
checkpoint becomes a graph, how the graph is verified, and what the model is held to on a user's data.
"""

from pathlib import Path
from typing import Any

from convmae_deploy.bundle.manifest import Manifest
from convmae_deploy.checkpoints.loading import KINDS
from convmae_deploy.checkpoints.native import read_checkpoint
from convmae_deploy.errors import ConvMAEError
from export.tasks.base import ExportTask, TaskExport
from export.tasks.classification import CLASSIFICATION
from export.tasks.detection import DETECTION
from export.tasks.features import FEATURES
from export.tasks.segmentation import SEGMENTATION
from export.tasks.video import VIDEO_CLASSIFICATION, VIDEO_FEATURES
from export.verification.task_data import TaskData

SPLIT = "val"

# By the names of `convmae_deploy.tasks.TASKS`. Of those that a kind of checkpoint can be, it is the first.
EXPORTS: dict[str, TaskExport] = {
    "classification": CLASSIFICATION,
    "detection": DETECTION,
    "segmentation": SEGMENTATION,
    "video-classification": VIDEO_CLASSIFICATION,
    "features": FEATURES,
    "video-features": VIDEO_FEATURES,
}


def open_task(checkpoint: Path, image_size: tuple[int, int] | None, task: str | None = None) -> ExportTask:
    """The model of a run folder or checkpoint.

    Args:
        checkpoint: run folder or checkpoint.
        image_size: (height, width) in pixels of its input; None: the checkpoint's own.
        task: what it is exported for; None: what it was trained for.

    Raises:
        ConvMAEError: it cannot be exported for this task, or is damaged.
    """
    record = read_checkpoint(checkpoint)[0]  # the weights go: the model takes its own below
    possible = [name for name, export in EXPORTS.items() if record.kind in export.kinds]
    chosen = possible[0] if task is None else task
    if chosen not in possible:
        held, known = KINDS[record.kind].name, " or ".join(possible)
        raise ConvMAEError(f"{checkpoint} holds: {held}, which can be exported for {known}, not for {task}")
    if not record.model.has_stages:
        raise ConvMAEError(
            f"{checkpoint} holds a plain ViT, the baseline to compare with, whose graph would lack E1 and E2; export "
            "a ConvMAE"
        )
    export = EXPORTS[chosen]
    model, record = export.load(checkpoint, image_size=image_size)
    if not record.classes and not export.headless:
        raise ConvMAEError(
            f"{checkpoint} has no classes, so there is no head to export; finetune it first, or export its features "
            f"with --task {possible[-1]}"
        )
    return export.assemble(model, record)


def read_task_data(data: Path, manifest: Manifest, *, split: str = SPLIT, limit: int | None = None) -> TaskData[Any]:
    """A user's data for a model.

    Args:
        data: the folder, see above.
        manifest: of the model: its task and classes.
        split: which part of labelled data.
        limit: so many samples at most, spread evenly; None: all.

    Raises:
        ConvMAEError: there is nothing for this task, labels cannot be read, or a class is none of the model's.
    """
    if not data.is_dir():
        raise ConvMAEError(f"--data must be a folder; found {'a file' if data.exists() else 'nothing'} at {data}")
    if limit is not None and limit < 1:
        raise ConvMAEError(f"the number of samples must be at least 1; got {limit}")
    return EXPORTS[manifest.task].read_data(data, manifest, split, limit)
