"""What a segmenter scores over a labelled split, window by window as it is served, and pictures of what it says.

Shapes: B windows, K classes, H W a photo, h w a window.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from convmae_deploy.bundle.preprocessing import SlidingWindow
from convmae_deploy.data.detection_datasets import collate_detections
from convmae_deploy.data.segmentation_datasets import read_pair
from convmae_deploy.data.segmentation_folder import SegmentationFolder
from convmae_deploy.data.segmentation_metrics import confusion_of, scores_of
from convmae_deploy.data.unreadable import Unreadable
from convmae_deploy.engine.evaluation import Validation, evaluate, evaluating, outputs_of
from convmae_deploy.engine.pictures import draw_rows
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.label_colours import class_areas, overlay, with_legend
from convmae_deploy.tasks.sliding_window import (
    Labels,
    RunWindows,
    resize_and_normalise,
    segment_normalised,
    segment_photo,
)

TILE = 320, 240  # (width, height) in pixels that a photo is fitted into
MAX_LEGEND = 24  # classes

PreparedPhoto = tuple[Tensor, NDArray[np.uint8]]  # resized and normalised (3, H, W), labels as annotated


class EvaluationSegmentation(Dataset[PreparedPhoto | Unreadable]):
    """Photos through the runtime's own preprocessing, with their labels in their own size, or `Unreadable`."""

    def __init__(self, folder: SegmentationFolder, preprocessing: SlidingWindow) -> None:
        self.folder = folder
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.folder.photos)

    def __getitem__(self, index: int) -> PreparedPhoto | Unreadable:
        pair = read_pair(self.folder, index)
        if isinstance(pair, Unreadable):
            return pair
        photo, labels = pair
        return torch.from_numpy(resize_and_normalise(photo, self.preprocessing)), labels


class ConfusionMetric:
    """mIoU and its relatives in percent: `miou`, `macc`, `aacc`, and `iou/NAME` of each class."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.classes = classes
        self.confusion = np.zeros((len(classes), len(classes)), np.int64)

    def update(self, outputs: list[Labels], extra: list[NDArray[np.uint8]]) -> None:
        """Counts labels (H, W) that were found against those that are annotated."""
        for found, labels in zip(outputs, extra, strict=True):
            self.confusion += confusion_of(labels, found, len(self.classes))

    def compute(self, accelerator: Accelerator) -> dict[str, float]:
        """The scores of all pixels that have a class."""
        confusion = accelerator.reduce(torch.from_numpy(self.confusion).to(accelerator.device), "sum").cpu().numpy()
        if not confusion.any():
            raise ConvMAEError("no pixel of the validation photos has a class; check their label maps and classes.json")
        scores = scores_of(confusion)
        means = {"miou": scores.mean_iou, "macc": scores.mean_accuracy, "aacc": scores.pixel_accuracy}
        by_class = {f"iou/{name}": value for name, value in zip(self.classes, scores.iou, strict=True)}
        return {name: 100 * value for name, value in (means | by_class).items()}

    def summary(self, scores: Mapping[str, float]) -> str:
        """The three means."""
        return f"mIoU {scores['miou']:.2f} %, mAcc {scores['macc']:.2f} %, aAcc {scores['aacc']:.2f} %"


def evaluate_segmenter(
    model: nn.Module, photos: EvaluationSegmentation, accelerator: Accelerator, *, batch_size: int, workers: int
) -> Validation:
    """Segments all photos one by one; `miou` is the score to choose by.

    Args:
        model: maps windows (B, 3, h, w) to logits (B, K, h / 4, w / 4); left in the mode it was in.
        photos: the split.
        accelerator: says which process this is and adds the counts up.
        batch_size: windows at once.
        workers: decoding processes.

    Raises:
        ConvMAEError: a label map is wrong, or no photo could be read or has labels.
    """
    run = window_runner(model, accelerator, batch_size)

    def segment(images: Tensor, labels: list[NDArray[np.uint8]]) -> list[Labels]:
        height, width = labels[0].shape
        return [segment_normalised(images[0].numpy(), (height, width), photos.preprocessing, run).labels]

    return evaluate(
        model,
        photos,
        ConfusionMetric(photos.folder.classes),
        accelerator,
        batch_size=1,  # photos differ in size
        workers=workers,
        collate=collate_detections,  # what belongs to the photos as a list
        predict=segment,
    )


def window_runner(model: nn.Module, accelerator: Accelerator, batch_size: int) -> RunWindows:
    """A model as the sliding window of the runtime runs it: from windows to logits, NumPy on both sides.

    Args:
        model: on the accelerator's device; left in the mode it was in.
        accelerator: of the training, for its precision.
        batch_size: windows at once.
    """

    def run(windows: NDArray[np.float32]) -> NDArray[np.float32]:
        parts = torch.split(torch.from_numpy(windows), batch_size)
        with evaluating(model):
            logits = [outputs_of(model, part, accelerator).float().cpu() for part in parts]
        return torch.cat(logits).numpy()

    return run


def segmentation_picture(
    folder: SegmentationFolder, indices: range, preprocessing: SlidingWindow, run: RunWindows
) -> Image.Image | None:
    """A row for each photo: itself, its labels, what the segmenter says; below a legend of the largest classes.

    Args:
        folder: of the photos.
        indices: of those to draw; unreadable ones are left out.
        preprocessing: of the segmenter.
        run: the segmenter, from windows to logits.

    Returns:
        None where no photo could be read.
    """
    classes = len(folder.classes)
    seen: list[NDArray[np.integer]] = []

    def rows() -> Iterator[dict[str, Image.Image]]:
        for index in indices:
            try:
                photo, labels = folder.read(index)
            except ConvMAEError:
                continue
            predicted = segment_photo(photo, preprocessing, run).labels
            seen.extend([labels.ravel(), predicted.ravel()])
            maps = {"labels": labels, "prediction": predicted}
            yield {"photo": photo} | {caption: overlay(photo, each, classes) for caption, each in maps.items()}

    drawn = draw_rows(rows(), TILE)
    if drawn is None:
        return None
    shown = list(class_areas(np.concatenate(seen), classes))[:MAX_LEGEND]
    return with_legend(drawn, folder.classes, shown)
