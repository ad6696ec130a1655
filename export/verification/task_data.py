"""Photos and videos of a user, with labels or without, for the models of each task.

Every model answers as it is served, through its predictor with the manifest's preprocessing. What it answers is kept
in few bytes, so that the metric can be computed, and models compared, after all of them have run.

Shapes: K classes, H W a photo.
"""

import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as run_lengths
from rich.console import Console
from rich.progress import track

from convmae_deploy.bundle.manifest import Manifest
from convmae_deploy.data.coco import CocoPhoto, CocoSplit, read_coco_photo
from convmae_deploy.data.segmentation_folder import LabelError, SegmentationFolder
from convmae_deploy.data.segmentation_metrics import confusion_of, scores_of
from convmae_deploy.engine.coco_evaluation import IOU_TYPES, coco_metrics
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.media.photo_files import read_photo
from convmae_deploy.tasks.base import LOGITS, Predictor
from convmae_deploy.tasks.classification import Classifier
from convmae_deploy.tasks.detection import Detector, coco_result
from convmae_deploy.tasks.segmentation import Segmenter
from convmae_deploy.tasks.video import VideoClassifier
from export.verification.gates import FP32, FloatArray, compare

SURE = 0.5  # detections of at least this score must be found by both models
LEAST = 0.4  # what a partner of a sure one must score
SAME_PLACE = 0.9  # least IoU of partners

Kind = Literal["photos", "videos"]
Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class TaskMetric:
    """One number of a model on labelled data."""

    name: str  # "top-1", "box AP", "mask AP" or "mIoU"
    value: float  # percent
    samples: int  # photos or videos that could be decoded


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How often two models say the same."""

    counted: str  # what is counted, in words
    decided: int
    agreeing: int  # of those
    by_chance: float = 0.0  # share that rounding alone may change, as near ties are among them; 0: they are not

    @property
    def share(self) -> float:
        """From 0 to 1; 1 where there was nothing to agree on."""
        return self.agreeing / self.decided if self.decided else 1.0


Changes = Counter[tuple[int, int]]  # (class of the reference, class of the model) -> how often, where they differ


class TaskData(ABC, Generic[Answer]):
    """Photos or videos for models of one task; one at a time is in memory, and what was answered in few bytes."""

    kind: Kind = "photos"
    batch = 1  # samples that a model is asked at once

    def __init__(self, files: Sequence[Path], *, labelled: bool) -> None:
        self.files = tuple(files)
        self.labelled = labelled

    def answers(self, predictor: Predictor, *, title: str = "Predicting") -> list[Answer | None]:
        """What a model makes of each sample, in the order of `files`; None where it cannot be decoded.

        Raises:
            ConvMAEError: none can be decoded.
            ModelOutputError: the graph's answer has a wrong shape or is not finite.
        """
        found: dict[int, Answer] = {}
        waiting: dict[int, Any] = {}
        for index in track(range(len(self.files)), title, console=Console(stderr=True), transient=True):
            try:
                waiting[index] = self.read(index, predictor)
            except LabelError:
                raise
            except ConvMAEError:
                continue
            if len(waiting) == self.batch:
                found |= self._ask(predictor, waiting)
                waiting = {}
        found |= self._ask(predictor, waiting)
        if not found:
            raise ConvMAEError(f"none of the {len(self.files)} {self.kind} can be decoded; choose another folder")
        return [found.get(index) for index in range(len(self.files))]

    def _ask(self, predictor: Predictor, samples: Mapping[int, Any]) -> dict[int, Answer]:
        if not samples:
            return {}
        return dict(zip(samples, self.ask(predictor, list(samples), list(samples.values())), strict=True))

    @abstractmethod
    def read(self, index: int, predictor: Predictor) -> Any:
        """A sample as `ask` takes it; raises ConvMAEError where it cannot be decoded."""

    @abstractmethod
    def ask(self, predictor: Predictor, indices: Sequence[int], samples: Sequence[Any]) -> Sequence[Answer]:
        """What a model makes of some samples."""

    @abstractmethod
    def metrics(self, answers: Sequence[Answer | None]) -> tuple[TaskMetric, ...]:
        """The task's metrics of what a model answered, the one to decide by last; none without labels."""

    @abstractmethod
    def agreement(self, expected: Sequence[Answer | None], found: Sequence[Answer | None]) -> Agreement:
        """How often a model says what the reference says."""

    def changes(self, expected: Sequence[Answer | None], found: Sequence[Answer | None]) -> Changes:
        """Which classes a model takes for which others than the reference does; detections have no such pairs."""
        return Counter()


class ClassifiedData(TaskData[FloatArray]):
    """Photos or videos for classifiers; an answer is logits (K,), of the one view in the middle."""

    batch = 16

    def __init__(self, files: Sequence[Path], labels: Sequence[int] | None, kind: Kind) -> None:
        super().__init__(files, labelled=labels is not None)
        self.labels, self.kind = labels, kind
        if kind == "videos":
            self.batch = 1

    def read(self, index: int, predictor: Predictor) -> FloatArray:
        """The graph's input (3, ...)."""
        if isinstance(predictor, VideoClassifier):
            (clip,) = predictor.clips(self.files[index])
            return np.asarray(clip)
        photo = read_photo(self.files[index]).image
        return cast(Classifier, predictor).preprocess(photo)

    def ask(self, predictor: Predictor, indices: Sequence[int], samples: Sequence[FloatArray]) -> list[FloatArray]:
        """Logits (K,) of each."""
        return list(predictor.run(np.stack(samples), (LOGITS,))[LOGITS])

    def metrics(self, answers: Sequence[FloatArray | None]) -> tuple[TaskMetric, ...]:
        """Top-1."""
        if self.labels is None:
            return ()
        pairs = [(a, label) for a, label in zip(answers, self.labels, strict=True) if a is not None]
        right = sum(int(logits.argmax()) == label for logits, label in pairs)
        return (TaskMetric(name="top-1", value=100 * right / len(pairs), samples=len(pairs)),)

    def agreement(self, expected: Sequence[FloatArray | None], found: Sequence[FloatArray | None]) -> Agreement:
        """On the top class, wherever fp32 rounding alone could not change it."""
        before, after = (np.stack([logits for logits in side if logits is not None]) for side in (expected, found))
        comparison = compare(before, after, FP32, top1=True)
        return Agreement(
            counted=f"{self.kind} that are no near tie",
            decided=comparison.images_decided,
            agreeing=comparison.images_agreeing,
        )

    def changes(self, expected: Sequence[FloatArray | None], found: Sequence[FloatArray | None]) -> Changes:
        """Of top classes, near ties included."""
        pairs = zip(expected, found, strict=True)
        classes = [(int(a.argmax()), int(b.argmax())) for a, b in pairs if a is not None and b is not None]
        return Counter(pair for pair in classes if pair[0] != pair[1])


class SegmentedData(TaskData[bytes]):
    """Photos for segmenters; an answer is the compressed labels of the photo."""

    def __init__(self, files: Sequence[Path], folder: SegmentationFolder | None, num_classes: int) -> None:
        super().__init__(files, labelled=folder is not None)
        self.folder, self.num_classes = folder, num_classes
        self._labels = {} if folder is None else {path: index for index, path in enumerate(folder.photos)}

    def read(self, index: int, predictor: Predictor) -> Image.Image:
        """The photo; as it is stored, where it has labels."""
        path = self.files[index]
        return read_photo(path).image if self.folder is None else self.folder.read(self._labels[path])[0]

    def ask(self, predictor: Predictor, indices: Sequence[int], samples: Sequence[Image.Image]) -> list[bytes]:
        """The labels of each."""
        found = cast(Segmenter, predictor).segment(samples)
        return [zlib.compress(entry.labels.astype(np.uint16).tobytes(), level=1) for entry in found]

    def metrics(self, answers: Sequence[bytes | None]) -> tuple[TaskMetric, ...]:
        """Mean IoU over the classes that are true or predicted somewhere."""
        if self.folder is None:
            return ()
        confusion = np.zeros((self.num_classes, self.num_classes), np.int64)
        for path, answer in zip(self.files, answers, strict=True):
            if answer is not None:
                labels = self.folder.read_labels(self._labels[path])
                confusion += confusion_of(labels, labels_of(answer).reshape(labels.shape), self.num_classes)
        samples = sum(answer is not None for answer in answers)
        return (TaskMetric(name="mIoU", value=100 * scores_of(confusion).mean_iou, samples=samples),)

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


def labels_of(answer: bytes) -> NDArray[np.uint16]:
    """The labels (H * W,) of a segmenter's answer."""
    return np.frombuffer(zlib.decompress(answer), np.uint16)


Result = dict[str, Any]  # of COCO's results format; without labels image ids count and categories are class indices


class DetectedData(TaskData[list[Result]]):
    """Photos for detectors; an answer is the photo's detections in COCO's results format."""

    def __init__(self, files: Sequence[Path], split: CocoSplit | None, manifest: Manifest) -> None:
        super().__init__(files, labelled=split is not None)
        self.split = split
        if split is None:
            self._categories = dict(enumerate(range(len(manifest.classes))))
        else:
            ids = dict(zip(split.classes, split.category_ids, strict=True))
            self._categories = {index: ids[name] for index, name in enumerate(manifest.classes) if name in ids}

    def _photo(self, index: int) -> CocoPhoto | None:
        return None if self.split is None else self.split.photos[index]

    def read(self, index: int, predictor: Predictor) -> Image.Image:
        """The photo; as its annotations mean it, where it has some."""
        photo = self._photo(index)
        return read_photo(self.files[index]).image if photo is None else read_coco_photo(photo)

    def ask(self, predictor: Predictor, indices: Sequence[int], samples: Sequence[Image.Image]) -> list[list[Result]]:
        """The detections of each; those of classes that the data do not have are left out."""
        answers = []
        for index, found in zip(indices, cast(Detector, predictor).detect(samples, threshold=0.0), strict=True):
            photo = self._photo(index)
            image_id = index if photo is None else photo.id
            known = [one for one in found if one.index in self._categories]
            answers.append([coco_result(one, image_id, self._categories[one.index]) for one in known])
        return answers

    def metrics(self, answers: Sequence[list[Result] | None]) -> tuple[TaskMetric, ...]:
        """COCO's AP of boxes and of masks, over the photos that could be decoded.

        Raises:
            ConvMAEError: these photos have no object to be found.
        """
        if self.split is None:
            return ()
        seen = [index for index, answer in enumerate(answers) if answer is not None]
        truth = self.split.subset(seen).ground_truth()
        results = [result for answer in answers if answer is not None for result in answer]
        metrics = []
        for kind in IOU_TYPES:
            numbers = coco_metrics(truth, results, kind)
            if "ap" not in numbers:
                raise ConvMAEError(f"none of the {len(seen)} photos holds an object to be found; choose other data")
            metrics.append(TaskMetric(name=f"{kind} AP", value=100 * numbers["ap"], samples=len(seen)))
        return tuple(metrics)

    def agreement(self, expected: Sequence[list[Result] | None], found: Sequence[list[Result] | None]) -> Agreement:
        """On every sure detection of either side: the other has one of its class in its place."""
        decided = agreeing = 0
        for before, after in zip(expected, found, strict=True):
            if before is not None and after is not None:
                for sure, others in ((before, after), (after, before)):
                    partners = [_has_partner(one, others) for one in sure if one["score"] >= SURE]
                    decided += len(partners)
                    agreeing += sum(partners)
        return Agreement(
            counted=f"detections with a score of {SURE} or more", decided=decided, agreeing=agreeing, by_chance=0.02
        )


def _has_partner(detection: Result, others: Sequence[Result]) -> bool:
    """Whether one of `others` is the same object."""
    boxes = [
        other["bbox"]
        for other in others
        if other["score"] >= LEAST and other["category_id"] == detection["category_id"]
    ]
    if not boxes:
        return False
    overlaps = run_lengths.iou([detection["bbox"]], boxes, [0] * len(boxes))  # (1, boxes)
    return bool(overlaps.max() >= SAME_PLACE)
