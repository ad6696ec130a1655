"""Classifiers of photos, and what they are held to on a user's data: the top class.

Shapes: K classes.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from convmae_deploy.backends.base import FloatArray
from convmae_deploy.bundle.manifest import SIDE_STEP, Manifest
from convmae_deploy.bundle.preprocessing import standard_preprocessing
from convmae_deploy.checkpoints.loading import load_classifier
from convmae_deploy.checkpoints.native import CheckpointRecord
from convmae_deploy.data.class_folder import split_folder
from convmae_deploy.data.photo_folder import read_photo_folder
from convmae_deploy.media.photo_files import find_photos
from convmae_deploy.models.classifier import ConvMAEClassifier
from convmae_deploy.tasks.classification import CLASSIFIER_OUTPUTS
from export.runtimes.runners import torch_runner
from export.tasks.base import ExportTask, TaskExport, own_preprocessing
from export.tasks.features import FeatureGraph
from export.verification.gates import FP32, compare
from export.verification.task_data import (
    Agreement,
    Changes,
    ClassScores,
    OneRowData,
    TaskData,
    TaskMetric,
    known_labels,
    say_findings,
    spread,
)


class ClassifierGraph(FeatureGraph):
    """All outputs of a classifier from one pass. Exists only to be exported and to be its reference."""

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) to the tensors named by CLASSIFIER_OUTPUTS."""
        pooled, *maps = super().forward(image)
        return (self.model.head(pooled), pooled, *maps)


def classifier_task(model: ConvMAEClassifier, record: CheckpointRecord) -> ExportTask:
    """A classifier with its features."""
    wrapper = ClassifierGraph(model).eval()
    return ExportTask(
        task="classification",
        model=model,
        wrapper=wrapper,
        outputs=CLASSIFIER_OUTPUTS,
        reference=torch_runner(wrapper, CLASSIFIER_OUTPUTS),
        record=record,
        preprocessing=own_preprocessing("classification", record, standard_preprocessing(record.model.image_size)),
        smallest_side=SIDE_STEP,
    )


class ClassifiedData(OneRowData):
    """Photos or videos for classifiers; a prediction is logits (K,), of the one view in the middle."""

    def metrics(self, predictions: Sequence[FloatArray | None]) -> tuple[TaskMetric, ...]:
        """Top-1."""
        if self.labels is None:
            return ()
        pairs = [(a, label) for a, label in zip(predictions, self.labels, strict=True) if a is not None]
        right = sum(int(logits.argmax()) == label for logits, label in pairs)
        return (TaskMetric(name="top-1", value=100 * right / len(pairs), samples=len(pairs)),)

    def by_class(self, predictions: Sequence[FloatArray | None], classes: Sequence[str]) -> ClassScores:
        """Top-1 and top-5 of the samples of each class, and of all."""
        if self.labels is None:
            return {}
        ranks: dict[int, list[int]] = {}  # by class: how many classes are ahead of the true one
        for label, logits in zip(self.labels, predictions, strict=True):
            if logits is not None:
                ranks.setdefault(label, []).append(int((logits > logits[label]).sum()))
        rows = {classes[label]: ranks[label] for label in sorted(ranks)} | {"all": [*chain(*ranks.values())]}
        return {
            name: {self.kind: len(found), "top-1 %": share_below(1, found), "top-5 %": share_below(5, found)}
            for name, found in rows.items()
        }

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


def share_below(limit: int, ranks: Sequence[int]) -> float:
    """Percent of the ranks that are smaller."""
    return 100 * sum(rank < limit for rank in ranks) / len(ranks)


def read_classified_photos(data: Path, manifest: Manifest, split: str, limit: int | None) -> TaskData[Any]:
    """ROOT/<split>/<class>/*, or any folder of photos without labels."""
    if not split_folder(data, split).is_dir():
        return ClassifiedData(spread(find_photos([data]), limit), None, "photos")
    folder = read_photo_folder(data, split)
    say_findings(data, folder.findings)
    labels = known_labels(folder.labels, folder.classes, manifest, data)
    return ClassifiedData(spread(folder.photos, limit), spread(labels, limit), "photos")


CLASSIFICATION = TaskExport(
    kinds=("classification",),
    load=load_classifier,
    assemble=classifier_task,
    read_data=read_classified_photos,
    unlabelled=lambda files, manifest: ClassifiedData(files, None, "photos"),
    calibrated=128,
)
