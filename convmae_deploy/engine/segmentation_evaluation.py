"""mIoU of a segmenter over a labelled split, window by window as it is served, exact on any number of processes.

Shapes: B windows, K classes, H W a photo, h w a window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from convmae_deploy.bundle.manifest import SlidingWindow
from convmae_deploy.data.segmentation_folder import LabelError, SegmentationFolder
from convmae_deploy.data.segmentation_metrics import SegmentationScores, confusion_of, scores_of
from convmae_deploy.data.sources import loaded
from convmae_deploy.data.workers import leave_signals_to_parent
from convmae_deploy.engine.epoch_log import Validation
from convmae_deploy.engine.training_run import share_statistics
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.sliding_window import RunWindows, resize_and_normalise, segment_normalised

PreparedPhoto = tuple[NDArray[np.float32], NDArray[np.uint8]]  # resized and normalised (3, H, W), labels as annotated


@dataclass(frozen=True, kw_only=True)
class SegmentationResult:
    """Result of an evaluation."""

    scores: SegmentationScores
    classes: tuple[str, ...]
    images: int
    unreadable: int  # photos that could not be decoded; not counted in the rest

    def validation(self) -> Validation:
        """What there is to tell of it: percentages, mIoU the one to choose by."""
        scores = self.scores
        told = (
            f"mIoU {100 * scores.mean_iou:.2f} %, mAcc {100 * scores.mean_accuracy:.2f} %, "
            f"aAcc {100 * scores.pixel_accuracy:.2f} %"
        )
        by_class = {f"val_iou/{name}": 100 * value for name, value in zip(self.classes, scores.iou, strict=True)}
        return Validation(
            scores={
                "val_miou": 100 * scores.mean_iou,
                "val_macc": 100 * scores.mean_accuracy,
                "val_aacc": 100 * scores.pixel_accuracy,
                **by_class,
                "unreadable_val": self.unreadable,
            },
            told=told,
            summary=f"{told} on {self.images} photos",
        )


class EvaluationSegmentation(Dataset[PreparedPhoto | None]):
    """Photos through the runtime's own preprocessing, with their labels in their own size; unreadable ones are None."""

    def __init__(self, folder: SegmentationFolder, preprocessing: SlidingWindow) -> None:
        self.folder = folder
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.folder.photos)

    def __getitem__(self, index: int) -> PreparedPhoto | None:
        try:
            photo, labels = self.folder.read(index)
        except LabelError:
            raise
        except ConvMAEError:
            return None
        return resize_and_normalise(photo, self.preprocessing), labels


def evaluate_segmenter(
    model: nn.Module, photos: EvaluationSegmentation, accelerator: Accelerator, *, batch_size: int, workers: int
) -> SegmentationResult:
    """Segments all photos; each process takes every world_size-th one.

    Args:
        model: maps windows (B, 3, h, w) to logits (B, K, h / 4, w / 4); left in the mode it was in.
        photos: the split.
        accelerator: says which process this is and adds the counts up.
        batch_size: windows at once.
        workers: decoding processes.

    Raises:
        ConvMAEError: a label map is wrong, or no photo could be read or has labels.
    """
    share_statistics(model, accelerator)
    run = window_runner(model, accelerator, batch_size)
    own = Subset(photos, range(accelerator.process_index, len(photos), accelerator.num_processes))
    loader = DataLoader(own, 1, num_workers=workers, collate_fn=the_one, worker_init_fn=leave_signals_to_parent)
    classes = photos.folder.classes
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    images = unreadable = 0
    for prepared in loaded(loader):
        if prepared is None:
            unreadable += 1
            continue
        image_chw, labels = prepared
        found = segment_normalised(image_chw, (labels.shape[0], labels.shape[1]), photos.preprocessing, run)
        confusion += confusion_of(labels, found.labels, len(classes))
        images += 1

    counts = torch.tensor([*confusion.flatten(), images, unreadable], device=accelerator.device)
    *cells, images, unreadable = accelerator.reduce(counts, "sum").tolist()
    if not images:
        raise ConvMAEError(f"none of the {len(photos)} validation photos could be decoded; check the data folder")
    if not any(cells):
        raise ConvMAEError("no pixel of the validation photos has a class; check their label maps and classes.json")
    scores = scores_of(np.array(cells, np.int64).reshape(confusion.shape))
    return SegmentationResult(scores=scores, classes=classes, images=images, unreadable=unreadable)


def window_runner(model: nn.Module, accelerator: Accelerator, batch_size: int) -> RunWindows:
    """A model as the sliding window of the runtime runs it: from windows to logits, NumPy on both sides.

    Args:
        model: on the accelerator's device; left in the mode it was in.
        accelerator: of the training, for its precision.
        batch_size: windows at once.
    """

    @torch.inference_mode()
    def run(windows: NDArray[np.float32]) -> NDArray[np.float32]:
        was_training = model.training
        model.eval()
        logits = []
        for first in range(0, len(windows), batch_size):
            part = torch.from_numpy(windows[first : first + batch_size]).to(accelerator.device)
            with accelerator.autocast():
                logits.append(model(part).float().cpu())
        model.train(was_training)
        return torch.cat(logits).numpy()

    return run


def the_one(samples: Sequence[Any]) -> Any:
    """The one sample of a batch, as it is: photos differ in size."""
    return samples[0]
