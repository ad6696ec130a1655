"""Photos and videos of a user, with labels or without, for the models of each task.

Every model answers as it is served, through its predictor with the manifest's preprocessing. Its predictions are kept
in few bytes, so that the metric can be computed, and models compared, after all of them have run.
"""

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from rich.progress import track

from convmae_deploy.backends.base import FloatArray
from convmae_deploy.bundle.manifest import Manifest
from convmae_deploy.data.findings import Findings
from convmae_deploy.data.segmentation_folder import LabelError
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.printing import printable
from convmae_deploy.tasks.base import Predictor
from convmae_deploy.terminal import Terminal

PHOTOS_AT_ONCE = 16

logger = logging.getLogger("convmae_deploy")

Kind = Literal["photos", "videos"]
Prediction = TypeVar("Prediction")
Item = TypeVar("Item")


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
    agreeing: int
    by_chance: float = 0.0  # share that rounding alone may change, as near ties are among them; 0: they are not

    @property
    def share(self) -> float:
        """From 0 to 1; 1 where there was nothing to agree on."""
        return self.agreeing / self.decided if self.decided else 1.0


# class, and last what stands for all of them -> what is counted -> percent, or how many where it is whole
ClassScores = Mapping[str, Mapping[str, float]]
Changes = Counter[tuple[int, int]]  # (class of the reference, class of the model) -> how often, where they differ


class TaskData(ABC, Generic[Prediction]):
    """Photos or videos for models of one task; one at a time is in memory, and the predictions in few bytes."""

    kind: Kind = "photos"
    batch = 1  # samples in a run of a model

    def __init__(self, files: Sequence[Path], *, labelled: bool) -> None:
        self.files = tuple(files)
        self._said = False
        self.labelled = labelled

    @property
    def changing(self) -> str:
        """What `changes` counts, in words."""
        return self.kind

    def predictions(self, predictor: Predictor, *, title: str = "Predicting") -> list[Prediction | None]:
        """What a model makes of each sample, in the order of `files`; None where it cannot be decoded.

        Raises:
            ConvMAEError: none can be decoded.
            ModelOutputError: the graph's answer has a wrong shape or is not finite.
        """
        found: dict[int, Prediction] = {}
        waiting: dict[int, Any] = {}
        left_out: list[str] = []
        for index in track(range(len(self.files)), title, console=Terminal(stderr=True), transient=True):
            try:
                waiting[index] = self.read(index, predictor)
            except LabelError:
                raise
            except ConvMAEError as error:
                left_out.append(f"{self.files[index]}: {error}")
                continue
            if len(waiting) == self.batch:
                found |= self._predict(predictor, waiting)
                waiting = {}
        found |= self._predict(predictor, waiting)
        if not found:
            raise ConvMAEError(
                f"none of the {len(self.files)} {self.kind} can be decoded, the first {left_out[0]}; choose another "
                "folder"
            )
        if left_out and not self._said:  # once, as every model leaves out the same
            self._said = True
            count = f"{len(left_out)} of {len(self.files)} {self.kind}"
            logger.warning("%s cannot be decoded and are not measured, the first %s", count, printable(left_out[0]))
        return [found.get(index) for index in range(len(self.files))]

    def _predict(self, predictor: Predictor, samples: Mapping[int, Any]) -> dict[int, Prediction]:
        if not samples:
            return {}
        return dict(zip(samples, self.predict(predictor, list(samples), list(samples.values())), strict=True))

    @abstractmethod
    def read(self, index: int, predictor: Predictor) -> Any:
        """A sample as `predict` takes it; raises ConvMAEError where it cannot be decoded."""

    @abstractmethod
    def predict(self, predictor: Predictor, indices: Sequence[int], samples: Sequence[Any]) -> Sequence[Prediction]:
        """What a model makes of some samples."""

    @abstractmethod
    def metrics(self, predictions: Sequence[Prediction | None]) -> tuple[TaskMetric, ...]:
        """The task's metrics of a model's predictions, the one to decide by last; none without labels."""

    def by_class(self, predictions: Sequence[Prediction | None], classes: Sequence[str]) -> ClassScores:
        """A model's predictions against the labels, class by class; none without labels, and of detections."""
        return {}

    @abstractmethod
    def agreement(self, expected: Sequence[Prediction | None], found: Sequence[Prediction | None]) -> Agreement:
        """How often a model says what the reference says."""

    def changes(self, expected: Sequence[Prediction | None], found: Sequence[Prediction | None]) -> Changes:
        """Which classes a model takes for which others than the reference does; detections have no such pairs."""
        return Counter()


class OneRowData(TaskData[FloatArray]):
    """Photos or videos, each one row of the graph's input; a prediction is its row of the task's key output."""

    def __init__(self, files: Sequence[Path], labels: Sequence[int] | None, kind: Kind) -> None:
        super().__init__(files, labelled=labels is not None)
        self.labels, self.kind = labels, kind
        self.batch = 1 if kind == "videos" else PHOTOS_AT_ONCE

    def read(self, index: int, predictor: Predictor) -> FloatArray:
        """The graph's input (3, ...), of a video the clip in its middle."""
        (row,) = predictor.prepare(self.files[index]).rows
        return np.asarray(row)

    def predict(self, predictor: Predictor, indices: Sequence[int], samples: Sequence[FloatArray]) -> list[FloatArray]:
        """The key output of each, such as logits (K,)."""
        name = predictor.KEY_OUTPUT
        return list(predictor.run(np.stack(samples), (name,))[name])


def say_findings(data: Path, findings: Findings) -> None:
    """Logs what a reader of labelled data left out or found odd."""
    for kind, finding in (findings.doubts | findings.passed_over).items():
        logger.warning("%s: %s: %s", printable(data), kind, finding)


def known_labels(labels: Sequence[int], classes: tuple[str, ...], manifest: Manifest, data: Path) -> tuple[int, ...]:
    """Labels as indices of the model's classes, which the data may have in another order or lack some of.

    Raises:
        ConvMAEError: a class is none of the model's.
    """
    if classes == manifest.classes:  # names may come twice, as in ImageNet
        return tuple(labels)
    unknown = sorted(set(classes) - set(manifest.classes))
    if unknown:
        raise ConvMAEError(f"--data {data} has classes that the model does not know, for instance {unknown[0]!r}")
    indices = [manifest.classes.index(name) for name in classes]
    return tuple(indices[label] for label in labels)


def spread(items: Sequence[Item], limit: int | None) -> Sequence[Item]:
    """Up to `limit` of the items, evenly from the first to the last; all for None."""
    count = len(items) if limit is None else min(limit, len(items))
    return [items[index * len(items) // count] for index in range(count)]
