"""Models of videos: classifiers, and encoders without a head."""

import copy
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from convmae_deploy.bundle.manifest import Manifest
from convmae_deploy.bundle.preprocessing import standard_clips
from convmae_deploy.checkpoints.loading import KINDS, load_video_classifier, load_video_feature_extractor
from convmae_deploy.checkpoints.native import CheckpointRecord
from convmae_deploy.data.class_folder import split_folder
from convmae_deploy.data.video_folder import VideoFolder, list_of, read_video_folder
from convmae_deploy.media.video_formats import find_videos
from convmae_deploy.models.classifier import ConvMAEClassifier
from convmae_deploy.tasks.video import VIDEO_FEATURE_OUTPUTS, VIDEO_OUTPUTS
from export.graphs.slotwise import replace_depthwise_3d
from export.runtimes.runners import torch_runner
from export.tasks.base import ExportTask, TaskExport, own_preprocessing
from export.tasks.classification import ClassifiedData
from export.tasks.features import FeatureData
from export.verification.task_data import TaskData, known_labels, say_findings, spread

MAX_BATCH = 8  # a clip is as much work as eight photos


class VideoFeatureGraph(nn.Module):
    """All features of clips from one pass. Exists only to be exported and to be its reference.

    The head of a classifier was trained on vectors that `fc_norm` gives, so that of a slot goes through it too.
    """

    def __init__(self, model: ConvMAEClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, clip: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, F, H, W) to the tensors named by VIDEO_FEATURE_OUTPUTS."""
        maps = self.model.encoder(clip)
        pooled = self.model.forward_head(maps[2], pre_logits=True)
        slots_btd = self.model.fc_norm(maps[2].mean(dim=(3, 4)).transpose(1, 2))
        return (pooled, slots_btd, *maps)


class VideoClassifierGraph(VideoFeatureGraph):
    """The same with the logits first."""

    def forward(self, clip: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, F, H, W) to the tensors named by VIDEO_OUTPUTS."""
        pooled, *others = super().forward(clip)
        return (self.model.head(pooled), pooled, *others)


def video_classifier_task(model: ConvMAEClassifier, record: CheckpointRecord) -> ExportTask:
    """A video classifier with its features."""
    return _video_task("video-classification", VideoClassifierGraph, VIDEO_OUTPUTS, model, record)


def video_feature_task(model: ConvMAEClassifier, record: CheckpointRecord) -> ExportTask:
    """An encoder of videos."""
    return _video_task("video-features", VideoFeatureGraph, VIDEO_FEATURE_OUTPUTS, model, record)


def _video_task(
    task: str,
    graph: type[VideoFeatureGraph],
    outputs: tuple[str, ...],
    model: ConvMAEClassifier,
    record: CheckpointRecord,
) -> ExportTask:
    """A model of clips; the reference keeps PyTorch's own 3-D convolutions."""
    assert record.video is not None  # the record of a video model says so
    standard = standard_clips(record.model.image_size, frames=record.video.frames)
    # frozen: where gradients are wanted the model convolves by itself, and asks its layers for their weights alone
    wrapper = graph(copy.deepcopy(model)).eval().requires_grad_(False)
    replace_depthwise_3d(wrapper)
    return ExportTask(
        task=task,
        model=model,
        wrapper=wrapper,
        outputs=outputs,
        reference=torch_runner(graph(model).eval(), outputs),
        record=record,
        preprocessing=own_preprocessing(task, record, standard),
        max_batch=MAX_BATCH,
    )


def labelled_videos(data: Path, split: str) -> VideoFolder | None:
    """ROOT/<split>/<class>/*, ROOT/<split>.csv or .txt; None: a folder of videos without labels."""
    if not split_folder(data, split).is_dir() and list_of(data, split) is None:
        return None
    folder = read_video_folder(data, split)
    say_findings(data, folder.findings)
    return folder


def read_classified_videos(data: Path, manifest: Manifest, split: str, limit: int | None) -> TaskData[Any]:
    """Videos with the model's classes, or without labels."""
    folder = labelled_videos(data, split)
    if folder is None:
        return ClassifiedData(spread(find_videos([data]), limit), None, "videos")
    labels = known_labels(folder.labels, folder.classes, manifest, data)
    return ClassifiedData(spread(folder.videos, limit), spread(labels, limit), "videos")


def read_feature_videos(data: Path, manifest: Manifest, split: str, limit: int | None) -> TaskData[Any]:
    """Videos with any classes, or without labels."""
    folder = labelled_videos(data, split)
    if folder is None:
        return FeatureData(spread(find_videos([data]), limit), None, "videos")
    return FeatureData(spread(folder.videos, limit), spread(folder.labels, limit), "videos")


VIDEO_CLASSIFICATION = TaskExport(
    kinds=("video-classification",),
    load=load_video_classifier,
    assemble=video_classifier_task,
    read_data=read_classified_videos,
    unlabelled=lambda files, manifest: ClassifiedData(files, None, "videos"),
    calibrated=32,
)
VIDEO_FEATURES = TaskExport(
    kinds=tuple(kind for kind, held in KINDS.items() if "video" in held.parts),
    load=load_video_feature_extractor,
    assemble=video_feature_task,
    headless=True,
    read_data=read_feature_videos,
    unlabelled=lambda files, manifest: FeatureData(files, None, "videos"),
    calibrated=32,
)
