"""Models out of checkpoints: what each kind holds, how its model is made, and the encoder of any of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convmae_deploy.bundle.preprocessing import Letterbox
from convmae_deploy.checkpoints.native import (
    CONFIG_NAME,
    ENCODER_PREFIX,
    NORM_PREFIX,
    CheckpointKind,
    CheckpointRecord,
    read_checkpoint,
)
from convmae_deploy.checkpoints.resizing import resize_positions, resize_video_positions
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.classifier import ConvMAEClassifier, build_classifier, build_video_classifier
from convmae_deploy.models.convmae import ConvMAEConfig
from convmae_deploy.models.detector import ConvMAEDetector, build_detector
from convmae_deploy.models.pretraining import ConvMAEPretraining, build_pretraining
from convmae_deploy.models.segmenter import ConvMAESegmenter, build_segmenter
from convmae_deploy.models.video_pretraining import VideoPretraining, build_video_pretraining
from convmae_deploy.models.vit import build_encoder


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """What a checkpoint of one kind holds, and how its model is made."""

    name: str
    remedy: str  # what to do where one is wanted and there is another
    parts: tuple[str, ...]  # fields of the record that it must have
    build: Callable[[Any], nn.Module]  # from a record that has them


KINDS: dict[CheckpointKind, _Kind] = {
    "classification": _Kind(
        name="classifier",
        remedy="finetune it first",
        parts=(),
        build=lambda record: build_classifier(
            record.model, num_classes=len(record.classes), global_pool=record.global_pool
        ),
    ),
    "pretraining": _Kind(
        name="pretraining model with its decoder",
        remedy="give a run of pretraining",
        parts=("pretraining",),
        build=lambda record: build_pretraining(record.model, record.pretraining),
    ),
    "detection": _Kind(
        name="detector",
        remedy="train one first",
        parts=("detector",),
        build=lambda record: build_detector(record.model, record.detector, num_classes=len(record.classes)),
    ),
    "segmentation": _Kind(
        name="segmenter",
        remedy="train one first",
        parts=("segmenter",),
        build=lambda record: build_segmenter(record.model, record.segmenter, num_classes=len(record.classes)),
    ),
    "features": _Kind(
        name="encoder",
        remedy="import one first",
        parts=(),
        build=lambda record: build_encoder(record.model),
    ),
    "video-pretraining": _Kind(
        name="video pretraining model with its decoder",
        remedy="give a run of pretraining on videos",
        parts=("video", "video_pretraining"),
        build=lambda record: build_video_pretraining(record.model, record.video, record.video_pretraining),
    ),
    "video-classification": _Kind(
        name="video classifier",
        remedy="finetune one first",
        parts=("video",),
        build=lambda record: build_video_classifier(record.model, record.video, num_classes=len(record.classes)),
    ),
}


def load_model(
    path: Path, kind: CheckpointKind, *, image_size: tuple[int, int] | None = None
) -> tuple[Any, CheckpointRecord]:
    """A model in evaluation mode with its record, its position embeddings resized when another size is asked for.

    Args:
        path: run folder or checkpoint.
        kind: what it must hold; one of `KINDS`.
        image_size: (height, width) in pixels of its inputs; None keeps the checkpoint's.

    Raises:
        ConvMAEError: it is of another kind or damaged, or its tensors are not those of its config.
    """
    record, state = read_checkpoint(path)
    wanted = KINDS[kind]
    if record.kind != kind:
        raise ConvMAEError(f"{path} must hold a {wanted.name} and holds: {KINDS[record.kind].name}; {wanted.remedy}")
    missing = [part for part in wanted.parts if getattr(record, part) is None]
    if missing:
        raise ConvMAEError(
            f"{path} must say in {CONFIG_NAME} what its {missing[0]} is and does not; copy it again, or import the "
            "original file again"
        )
    if image_size is not None and not image_size == record.model.image_size == record.model.input_size:
        record, state = resized(record, state, image_size)
    with torch.device("meta"):  # shapes alone: no memory is taken for what is not in the file
        check_fits(wanted.build(record), state, path)
    model = wanted.build(record)
    load_exactly(model, state, path)
    return model.eval(), record


def load_classifier(
    path: Path, *, image_size: tuple[int, int] | None = None
) -> tuple[ConvMAEClassifier, CheckpointRecord]:
    """`load_model` of a classifier."""
    return load_model(path, "classification", image_size=image_size)


def load_pretraining(
    path: Path, *, image_size: tuple[int, int] | None = None
) -> tuple[ConvMAEPretraining, CheckpointRecord]:
    """`load_model` of a pretraining model, whose decoder has a position embedding too."""
    return load_model(path, "pretraining", image_size=image_size)


def load_detector(path: Path, *, image_size: tuple[int, int] | None = None) -> tuple[ConvMAEDetector, CheckpointRecord]:
    """`load_model` of a detector."""
    return load_model(path, "detection", image_size=image_size)


def load_segmenter(
    path: Path, *, image_size: tuple[int, int] | None = None
) -> tuple[ConvMAESegmenter, CheckpointRecord]:
    """`load_model` of a segmenter; the size is that of a window."""
    return load_model(path, "segmentation", image_size=image_size)


def load_video_pretraining(
    path: Path, *, image_size: tuple[int, int] | None = None
) -> tuple[VideoPretraining, CheckpointRecord]:
    """`load_model` of a video pretraining model."""
    return load_model(path, "video-pretraining", image_size=image_size)


def load_video_classifier(
    path: Path, *, image_size: tuple[int, int] | None = None
) -> tuple[ConvMAEClassifier, CheckpointRecord]:
    """`load_model` of a video classifier."""
    return load_model(path, "video-classification", image_size=image_size)


def load_feature_extractor(
    path: Path, *, image_size: tuple[int, int] | None = None
) -> tuple[ConvMAEClassifier, CheckpointRecord]:
    """The encoder of any checkpoint of photos in evaluation mode, as a classifier without a head, and its record.

    The pooled vector of a classifier is the one that its head was fed. Any other model has none of its own: then it is
    the mean of E3's tokens, normalised without trained weights, from which the authors finetune and probe.

    Args:
        path: run folder or checkpoint.
        image_size: (height, width) in pixels of its inputs; None keeps the checkpoint's.

    Raises:
        ConvMAEError: it is of videos, or damaged.
    """
    record, _ = read_checkpoint(path)
    if record.kind == "classification":
        classifier, record = load_classifier(path, image_size=image_size)
    else:
        config, state = load_encoder_state(path, image_size or record.model.input_size)
        classifier = build_classifier(config, num_classes=0)
        load_exactly(classifier.encoder, state, path)
        record = record.model_copy(update={"model": config})
    return _without_head(classifier, record)


def load_video_feature_extractor(
    path: Path, *, image_size: tuple[int, int] | None = None
) -> tuple[ConvMAEClassifier, CheckpointRecord]:
    """`load_feature_extractor` of a checkpoint of videos."""
    record, _ = read_checkpoint(path)
    if record.kind == "video-classification":
        return _without_head(*load_video_classifier(path, image_size=image_size))
    pretraining, record = load_video_pretraining(path, image_size=image_size)
    assert record.video is not None  # the record of a video model says so
    classifier = build_video_classifier(record.model, record.video, num_classes=0)
    classifier.encoder.load_state_dict(pretraining.encoder.state_dict())
    return _without_head(classifier, record)


def _without_head(
    classifier: ConvMAEClassifier, record: CheckpointRecord
) -> tuple[ConvMAEClassifier, CheckpointRecord]:
    classifier.reset_classifier(0)
    return classifier.eval(), record.model_copy(update={"classes": (), "category_ids": ()})


def load_encoder_state(path: Path, image_size: tuple[int, int]) -> tuple[ConvMAEConfig, dict[str, Tensor]]:
    """The config and the encoder's weights (keys without prefix) of any checkpoint of ours, resized to `image_size`.

    Raises:
        ConvMAEError: it is of videos, holds no encoder, or is damaged.
    """
    record, state = read_checkpoint(path)
    if record.video is not None:
        held = KINDS[record.kind].name
        raise ConvMAEError(f"{path} must hold a model of images and holds: {held}; give one of these")
    record, state = resized(record, state, image_size)
    encoder = encoder_part(state)
    if record.kind == "features" and not encoder:  # in a folder for a hub it has the names of a whole model
        encoder = {name: value for name, value in state.items() if not name.startswith(NORM_PREFIX)}
    if not encoder:
        raise ConvMAEError(f"{path} holds a probe's head alone; give the run's `best`, or the encoder that it is of")
    return record.model, encoder


def encoder_part(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors of a whole model, keys without their prefix."""
    encoder = {name: value for name, value in state.items() if name.startswith(ENCODER_PREFIX)}
    return {name.removeprefix(ENCODER_PREFIX): value for name, value in encoder.items()}


def resized(
    record: CheckpointRecord, state: dict[str, Tensor], image_size: tuple[int, int]
) -> tuple[CheckpointRecord, dict[str, Tensor]]:
    """The same checkpoint for another image size: positions, model and preprocessing."""
    model = replace(record.model, image_size=image_size)
    if record.video is not None:
        slots = record.video.slots
        tensors = resize_video_positions(state, (slots, record.model.grid_size), (slots, model.grid_size))
    else:
        tensors, _ = resize_positions(state, model.dense, record.model.grid_size, model.grid_size)
    preprocessing = record.preprocessing
    if preprocessing is None and record.kind == "detection":
        preprocessing = Letterbox(size=image_size)
    elif preprocessing is not None:
        preprocessing = preprocessing.with_input_size(image_size)
    return record.model_copy(update={"model": model, "preprocessing": preprocessing}), tensors


def load_exactly(model: nn.Module, state: dict[str, Tensor], source: Path) -> None:
    """`load_state_dict` that raises one sentence when names or shapes differ."""
    check_fits(model, state, source)
    model.load_state_dict(state)


def check_fits(model: nn.Module, state: dict[str, Tensor], source: Path) -> None:
    """Raises ConvMAEError unless the tensors have the names and shapes of a model's."""
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if differing:
        name = differing[0]
        raise ConvMAEError(
            f"{source} does not fit its config: {len(differing)} tensors differ, first {name}: "
            f"expected {expected.get(name, 'none')}, found {found.get(name, 'none')}"
        )
