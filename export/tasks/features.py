"""Encoders of photos without a head, and what they are held to on a user's data: which photo is most like which.

Shapes: N photos, D width of a pooled vector.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from convmae_deploy.backends.base import FloatArray
from convmae_deploy.bundle.manifest import SIDE_STEP, Manifest
from convmae_deploy.bundle.preprocessing import Preprocessing, standard_preprocessing
from convmae_deploy.checkpoints.loading import KINDS, load_feature_extractor
from convmae_deploy.checkpoints.native import CheckpointRecord
from convmae_deploy.data.class_folder import split_folder
from convmae_deploy.data.photo_folder import read_photo_folder
from convmae_deploy.media.photo_files import find_photos
from convmae_deploy.models.classifier import ConvMAEClassifier
from convmae_deploy.tasks.features import FEATURE_OUTPUTS
from export.runtimes.runners import torch_runner
from export.tasks.base import ExportTask, TaskExport
from export.verification.task_data import Agreement, OneRowData, TaskData, TaskMetric, say_findings, spread


class FeatureGraph(nn.Module):
    """All features from one pass. Exists only to be exported and to be its reference."""

    def __init__(self, model: ConvMAEClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) to the tensors named by FEATURE_OUTPUTS."""
        maps = self.model.encoder(image)
        return (self.model.forward_head(maps[2], pre_logits=True), *maps)


def feature_task(model: ConvMAEClassifier, record: CheckpointRecord) -> ExportTask:
    """An encoder of photos."""
    preprocessing = record.preprocessing
    if not isinstance(preprocessing, Preprocessing):  # that of a detector or a segmenter is not for whole photos
        preprocessing = standard_preprocessing(record.model.image_size)
    wrapper = FeatureGraph(model).eval()
    return ExportTask(
        task="features",
        model=model,
        wrapper=wrapper,
        outputs=FEATURE_OUTPUTS,
        reference=torch_runner(wrapper, FEATURE_OUTPUTS),
        record=record,
        preprocessing=preprocessing,
        smallest_side=SIDE_STEP,
    )


class FeatureData(OneRowData):
    """Photos or videos for models that give features; a prediction is the pooled vector (D,)."""

    def metrics(self, predictions: Sequence[FloatArray | None]) -> tuple[TaskMetric, ...]:
        """How often the most similar other sample is of the same class: leave-one-out nearest neighbour by cosine."""
        if self.labels is None:
            return ()
        pairs = [(a, label) for a, label in zip(predictions, self.labels, strict=True) if a is not None]
        if len(pairs) < 2:
            return ()
        labels = np.array([label for _, label in pairs])
        nearest, _ = nearest_of(np.stack([a for a, _ in pairs]))
        right = float((labels[nearest] == labels).mean())
        return (TaskMetric(name="nearest neighbour", value=100 * right, samples=len(pairs)),)

    def agreement(self, expected: Sequence[FloatArray | None], found: Sequence[FloatArray | None]) -> Agreement:
        """On the most similar other sample, wherever the best two are further apart than this model's noise."""
        kept = [(a, b) for a, b in zip(expected, found, strict=True) if a is not None and b is not None]
        if len(kept) < 3:
            return Agreement(counted=f"{self.kind} with a clear nearest neighbour", decided=0, agreeing=0)
        before, after = np.stack([a for a, _ in kept]), np.stack([b for _, b in kept])
        nearest, margin = nearest_of(before)
        decided = margin > NEAR_TIE
        agreeing = int((nearest_of(after)[0] == nearest)[decided].sum())
        return Agreement(
            counted=f"{self.kind} with a clear nearest neighbour", decided=int(decided.sum()), agreeing=agreeing
        )


NEAR_TIE = 1e-3  # in cosine: neighbours that differ by less may change places by rounding


def nearest_of(vectors: FloatArray) -> tuple[np.ndarray[Any, np.dtype[np.int64]], FloatArray]:
    """The most similar other vector of each by cosine, and by how much it is ahead of the second: (N,) and (N,).

    Args:
        vectors: (N, D), N at least 2.
    """
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    similar = unit @ unit.T  # (N, N)
    np.fill_diagonal(similar, -np.inf)
    nearest = similar.argmax(axis=1)
    best = np.sort(similar, axis=1)[:, -2:]
    return nearest, np.asarray(best[:, 1] - best[:, 0], dtype=np.float32)


def read_feature_photos(data: Path, manifest: Manifest, split: str, limit: int | None) -> TaskData[Any]:
    """ROOT/<split>/<class>/* with any classes, or any folder of photos without labels."""
    if not split_folder(data, split).is_dir():
        return FeatureData(spread(find_photos([data]), limit), None, "photos")
    folder = read_photo_folder(data, split)
    say_findings(data, folder.findings)
    return FeatureData(spread(folder.photos, limit), spread(folder.labels, limit), "photos")


FEATURES = TaskExport(
    kinds=tuple(kind for kind, held in KINDS.items() if "video" not in held.parts),
    load=load_feature_extractor,
    assemble=feature_task,
    headless=True,
    read_data=read_feature_photos,
    unlabelled=lambda files, manifest: FeatureData(files, None, "photos"),
    calibrated=128,
)
