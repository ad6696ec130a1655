"""What programs that train a classifier share: their photos, and what is told of each epoch."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch.nn.functional as F
from rich.console import Console
from timm.data import Mixup
from torch import Tensor, nn

from convmae_deploy.checkpoints.native import CheckpointRecord
from convmae_deploy.data.photo_folder import PhotoFolder, read_photo_folder
from convmae_deploy.engine.epoch_log import EpochLog, Validation
from convmae_deploy.engine.evaluation import Accuracy
from convmae_deploy.engine.training_run import TrainingRun
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.classifier import GlobalPool
from convmae_deploy.models.convmae import MODELS
from convmae_deploy.runtime.manifest import Licence, standard_preprocessing


def read_splits(root: Path) -> tuple[PhotoFolder, PhotoFolder]:
    """The photos of `root/train` and `root/val`.

    Raises:
        ConvMAEError: a split is missing, or they differ in their classes.
    """
    train, val = (read_photo_folder(root, split) for split in ("train", "val"))
    if train.classes != val.classes:
        differing = sorted(set(train.classes) ^ set(val.classes))
        raise ConvMAEError(f"train and val of {root} must have the same classes; only one of them has {differing}")
    return train, val


def split_facts(train: PhotoFolder, val: PhotoFolder) -> dict[str, Any]:
    """What run.json says of the photos."""
    return {"classes": list(train.classes), "train_photos": len(train.photos), "val_photos": len(val.photos)}


def initial_record(
    variant: str,
    classes: tuple[str, ...],
    image_size: tuple[int, int] | None,
    *,
    licence: str,
    global_pool: GlobalPool = "avg",
) -> CheckpointRecord:
    """What the checkpoints of a run say of themselves before any result.

    Args:
        variant: name in MODELS.
        classes: the name of each logit.
        image_size: (height, width) in pixels of validation and use; None: the variant's.
        licence: of the weights that come out.
        global_pool: how tokens become one vector.
    """
    architecture = MODELS[variant]()
    if image_size is not None:
        architecture = replace(architecture, image_size=image_size)
    return CheckpointRecord(
        kind="classifier",
        variant=variant,
        model=architecture,
        classes=classes,
        global_pool=global_pool,
        preprocessing=standard_preprocessing(architecture.image_size),
        licence=Licence(name=licence),
    )


def classification_log(
    run: TrainingRun,
    console: Console,
    *,
    data: Path,
    epochs: int,
    validation_epochs: int,
    kind: Literal["photos", "videos"] = "photos",
) -> EpochLog:
    """The epoch log of a classifier, whose `best` is the one with the best top-1."""
    return EpochLog(
        run=run,
        console=console,
        data=data.name,
        epochs=epochs,
        kind=kind,
        validation_epochs=validation_epochs,
        best_by="val_top1",
        best_by_label="validation top-1 (%)",
    )


def classification_loss(
    model: nn.Module, inputs: Tensor, labels: Tensor, mixing: Mixup | None, smoothing: float
) -> Tensor:
    """Cross-entropy against smoothed, and where there are two inputs mixed, targets.

    Args:
        model: to logits (B, K).
        inputs: images (B, 3, H, W) or clips (B, 3, T, H, W).
        labels: (B,).
        mixing: Mixup and CutMix; None: neither.
        smoothing: share of the target that is spread over all classes.
    """
    targets = labels
    if mixing is not None and len(inputs) > 1:
        even = len(inputs) // 2 * 2  # mixing pairs the inputs of a batch; it smooths the targets itself
        inputs, targets = mixing(inputs[:even], labels[:even])
        smoothing = 0.0
    return F.cross_entropy(model(inputs).float(), targets, label_smoothing=smoothing)


def told_accuracy(accuracy: Accuracy, kind: Literal["photos", "videos"] = "photos") -> Validation:
    """What a validation of a classifier found."""
    percentages = f"top-1 {accuracy.top1:.2f} %, top-5 {accuracy.top5:.2f} %"
    return Validation(
        scores={
            "val_loss": accuracy.loss,
            "val_top1": accuracy.top1,
            "val_top5": accuracy.top5,
            "unreadable_val": accuracy.unreadable,
        },
        told=f"validation loss {accuracy.loss:.4f}, {percentages}",
        summary=f"{percentages} on {accuracy.images} {kind}",
    )
