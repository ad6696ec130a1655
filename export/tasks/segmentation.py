"""Segmenters, and what they are held to on a user's data: the label of each pixel.

Shapes: H W a photo.
"""

import copy
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from convmae_deploy.backends.base import FloatArray, Outputs
from convmae_deploy.bundle.manifest import SIDE_STEP, Manifest
from convmae_deploy.bundle.preprocessing import standard_windows
from convmae_deploy.checkpoints.loading import load_segmenter
from convmae_deploy.checkpoints.native import CheckpointRecord
from convmae_deploy.data.segmentation_folder import SegmentationFolder, read_segmentation_folder
from convmae_deploy.data.segmentation_metrics import Confusion, confusion_of, scores_of
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.media.photo_files import find_photos, read_photo
from convmae_deploy.models.segmenter import ConvMAESegmenter
from convmae_deploy.printing import printable
from convmae_deploy.tasks.base import Predictor
from export.graphs.half_precision import HalfParts
from export.graphs.pooling import replace_adaptive_pooling
from export.tasks.base import ExportTask, TaskExport, own_preprocessing
from export.verification.task_data import (
    Agreement,
    Changes,
    ClassScores,
    TaskData,
    TaskMetric,
    logger,
    say_findings,
    spread,
)

HALF = HalfParts(half=("encoder", "downsample", "decode_head"), float32=("decode_head.conv_seg",))


class SegmenterGraph(nn.Module):
    """A segmenter's logits of one window. Exists only to be exported: its adaptive pooling is matrix products."""

    def __init__(self, model: ConvMAESegmenter) -> None:
        super().__init__()
        self.model = model
        replace_adaptive_pooling(self.model)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, h, w) to logits (B, K, h / 4, w / 4).

        The resize to the photo's own size is not in the graph: windows are averaged first, and full-size logits of 150
        classes would take 157 MB a window of 512 pixels instead of 10 MB.
        """
        return (self.model(image),)


def segmenter_task(model: ConvMAESegmenter, record: CheckpointRecord) -> ExportTask:
    """A segmenter; the reference keeps PyTorch's own adaptive pooling."""

    @torch.inference_mode()
    def reference(images: FloatArray) -> Outputs:
        return {"logits": model(torch.from_numpy(images)).numpy()}

    return ExportTask(
        task="segmentation",
        model=model,
        wrapper=SegmenterGraph(copy.deepcopy(model)).eval(),
        outputs=("logits",),
        half=HALF,
        reference=reference,
        record=record,
        # the authors' form of E4 has no cell for smaller ones
        smallest_side=SIDE_STEP if model.downsample is None else 2 * SIDE_STEP,
        preprocessing=own_preprocessing("segmentation", record, standard_windows(record.model.image_size, None)),
    )


class SegmentedData(TaskData[bytes]):
    """Photos for segmenters; a prediction is the compressed labels of the photo."""

    def __init__(self, files: Sequence[Path], folder: SegmentationFolder | None, num_classes: int) -> None:
        super().__init__(files, labelled=folder is not None)
        self.folder, self.num_classes = folder, num_classes
        self._labels = {} if folder is None else {path: index for index, path in enumerate(folder.photos)}

    @property
    def changing(self) -> str:
        """What `changes` counts, in words."""
        return "pixels"

    def read(self, index: int, predictor: Predictor) -> Image.Image:
        """The photo; as it is stored, where it has labels."""
        path = self.files[index]
        return read_photo(path).image if self.folder is None else self.folder.read(self._labels[path])[0]

    def predict(self, predictor: Predictor, indices: Sequence[int], samples: Sequence[Image.Image]) -> list[bytes]:
        """The labels of each."""
        found = predictor.predict_each(samples)
        return [zlib.compress(entry.labels.astype(np.uint16).tobytes(), level=1) for entry in found]

    def metrics(self, predictions: Sequence[bytes | None]) -> tuple[TaskMetric, ...]:
        """Mean IoU over the classes that are true or predicted somewhere."""
        if self.folder is None:
            return ()
        confusion = self.confusion(self.folder, predictions)
        samples = sum(packed is not None for packed in predictions)
        missing = [name for name, pixels in zip(self.folder.classes, confusion.sum(axis=1), strict=True) if not pixels]
        if missing:
            words = f"{len(missing)} of {self.num_classes} classes have no pixel in {samples} label maps"
            logger.warning("%s, the first %s", words, printable(missing[0]))
        return (TaskMetric(name="mIoU", value=100 * scores_of(confusion).mean_iou, samples=samples),)

    def by_class(self, predictions: Sequence[bytes | None], classes: Sequence[str]) -> ClassScores:
        """IoU and accuracy of the pixels of each class, and their means."""
        if self.folder is None:
            return {}
        scores = scores_of(self.confusion(self.folder, predictions))
        shares = zip(classes, scores.iou, scores.accuracy, strict=True)
        rows = {name: {"IoU %": 100 * iou, "accuracy %": 100 * accuracy} for name, iou, accuracy in shares}
        return rows | {"mean": {"IoU %": 100 * scores.mean_iou, "accuracy %": 100 * scores.mean_accuracy}}

    def confusion(self, folder: SegmentationFolder, predictions: Sequence[bytes | None]) -> Confusion:
        """Pixels (K, K) by true and predicted class, of the photos that could be decoded."""
        confusion = np.zeros((self.num_classes, self.num_classes), np.int64)
        for path, packed in zip(self.files, predictions, strict=True):
            if packed is not None:
                labels = folder.read_labels(self._labels[path])
                confusion += confusion_of(labels, labels_of(packed).reshape(labels.shape), self.num_classes)
        return confusion

    def agreement(self, expected: Sequence[bytes | None], found: Sequence[bytes | None]) -> Agreement:
        """On the label of each pixel."""
        decided = agreeing = 0
        for before, after in zip(expected, found, strict=True):
            if before is not None and after is not None:
                labels = labels_of(before)
                decided += len(labels)
                agreeing += int((labels == labels_of(after)).sum())
        return Agreement(counted="pixels", decided=decided, agreeing=agreeing, by_chance=0.001)

    def changes(self, expected: Sequence[bytes | None], found: Sequence[bytes | None]) -> Changes:
        """Of pixels."""
        counts = np.zeros((self.num_classes, self.num_classes), np.int64)
        for before, after in zip(expected, found, strict=True):
            if before is not None and after is not None:
                counts += confusion_of(labels_of(before), labels_of(after), self.num_classes)
        np.fill_diagonal(counts, 0)
        return Counter({(int(row), int(column)): int(counts[row, column]) for row, column in np.argwhere(counts)})


def labels_of(packed: bytes) -> NDArray[np.uint16]:
    """The labels (H * W,) of a prediction."""
    return np.frombuffer(zlib.decompress(packed), np.uint16)


def read_segmented(data: Path, manifest: Manifest, split: str, limit: int | None) -> TaskData[Any]:
    """ROOT/images/<split>, ROOT/labels/<split>, ROOT/classes.json, ADE20K's folders, or any folder of photos."""
    if not any((data / name).is_dir() for name in ("labels", "annotations")):
        return SegmentedData(spread(find_photos([data]), limit), None, len(manifest.classes))
    folder = read_segmentation_folder(data, split)
    say_findings(data, folder.findings)
    if folder.classes != manifest.classes:
        raise ConvMAEError(
            f"--data {data} must have the model's {len(manifest.classes)} classes in the same order; it has "
            f"{len(folder.classes)}, the first of them {folder.classes[0]!r}"
        )
    return SegmentedData(spread(folder.photos, limit), folder, len(manifest.classes))


SEGMENTATION = TaskExport(
    kinds=("segmentation",),
    load=load_segmenter,
    assemble=segmenter_task,
    read_data=read_segmented,
    unlabelled=lambda files, manifest: SegmentedData(files, None, len(manifest.classes)),
    calibrated=32,
)
