"""What programs that train a classifier share: photos, the loop of finetuning, and what is told of each epoch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch.nn.functional as F
from accelerate import Accelerator
from rich.console import Console
from timm.data import Mixup
from torch import Tensor, nn

from convmae_deploy.bundle.manifest import Licence, standard_preprocessing
from convmae_deploy.checkpoints.native import CheckpointRecord
from convmae_deploy.data.augmentation import AugmentationConfig, batch_mixing
from convmae_deploy.data.determinism import StepSource
from convmae_deploy.data.photo_datasets import EvaluationPhotos
from convmae_deploy.data.photo_folder import PhotoFolder, read_photo_folder
from convmae_deploy.data.video_datasets import EvaluationVideos
from convmae_deploy.engine.epoch_log import EpochLog, Validation
from convmae_deploy.engine.evaluation import Accuracy, AverageOfViews, evaluate
from convmae_deploy.engine.optimisation import OptimisationConfig, build_adamw
from convmae_deploy.engine.training_loop import TrainingLoop
from convmae_deploy.engine.training_run import RunConfig, TrainingRun
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.classifier import ConvMAEClassifier, GlobalPool
from convmae_deploy.models.convmae import variant_config


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
    architecture = variant_config(variant, image_size)
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
    validate_on: Literal["val", "train"] = "val",
) -> EpochLog:
    """The epoch log of a classifier, whose `best` is the one with the best top-1."""
    return EpochLog(
        run=run,
        console=console,
        data=data.name,
        epochs=epochs,
        kind=kind,
        validate_on=validate_on,
        validation_epochs=validation_epochs,
        best_by="val_top1",
        best_by_label="validation top-1 (%)",
    )


class FinetuningSettings(Protocol):
    """What a finetuning program's configuration has, whatever it trains on."""

    @property
    def data(self) -> Path:
        """Folder of the data."""

    @property
    def layer_decay(self) -> float:
        """Factor of the learning rate from one layer to the one below it."""

    @property
    def validation_epochs(self) -> int:
        """A validation every so many epochs."""

    @property
    def optimisation(self) -> OptimisationConfig:
        """How weights are updated."""

    @property
    def augmentation(self) -> AugmentationConfig:
        """Mixing and label smoothing among it."""

    @property
    def run(self) -> RunConfig:
        """Where and how."""


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe:
    """The loss of a classifier, and what follows each epoch."""

    config: FinetuningSettings
    run: TrainingRun
    validated: nn.Module  # the bare model, or what makes one answer of its views
    validation: EvaluationPhotos | EvaluationVideos
    mixing: Mixup | None
    log: EpochLog

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy against smoothed, and where there are two inputs mixed, targets.

        Args:
            inputs: images (B, 3, H, W) or clips (B, 3, T, H, W).
            labels: (B,).
        """
        smoothing, targets = self.config.augmentation.label_smoothing, labels
        if self.mixing is not None and len(inputs) > 1:
            even = len(inputs) // 2 * 2  # mixing pairs the inputs of a batch; it smooths the targets itself
            inputs, targets = self.mixing(inputs[:even], labels[:even])
            smoothing = 0.0
        return F.cross_entropy(self.run.model(inputs).float(), targets, label_smoothing=smoothing)

    def finish_epoch(self, epoch: int, train_loss: float) -> None:
        """Validates, logs and saves."""
        self.log.finish_and_save(epoch, train_loss, validate=self.validate)

    def validate(self) -> Validation:
        """What the classifier scores on the validation photos, or on one view of the videos."""
        accuracy = evaluate(
            self.validated,
            self.validation,
            self.run.accelerator,
            batch_size=self.config.optimisation.micro_batch_size,
            workers=self.config.run.workers,
        )
        return told_accuracy(accuracy, self.log.kind)


def finetuning_loop(
    config: FinetuningSettings,
    *,
    accelerator: Accelerator,
    console: Console,
    record: CheckpointRecord,
    classifier: ConvMAEClassifier,
    source: StepSource,
    validation: EvaluationPhotos | EvaluationVideos,
    facts: Mapping[str, Any],
    validate_on: Literal["val", "train"] = "val",
) -> TrainingLoop:
    """A finetuning before its first update.

    Args:
        config: of the program.
        accelerator: of `config.run`.
        console: where the main process speaks.
        record: what a checkpoint says of itself.
        classifier: with its initial weights.
        source: of inputs and labels.
        validation: what is validated on.
        facts: about the data, for run.json.
        validate_on: which split that is.
    """
    run = TrainingRun.begin(
        config,
        run=config.run,
        accelerator=accelerator,
        record=record,
        model=classifier,
        optimizer=build_adamw(classifier, config.optimisation, layer_decay=config.layer_decay),
        micro_batches=source.micro_batches_per_step,
        facts=facts,
    )
    videos = isinstance(validation, EvaluationVideos)
    log = classification_log(
        run,
        console,
        data=config.data,
        epochs=config.optimisation.epochs,
        validation_epochs=config.validation_epochs,
        kind="videos" if videos else "photos",
        validate_on=validate_on,
    )
    recipe = FinetuneRecipe(
        config=config,
        run=run,
        validated=AverageOfViews(classifier) if videos else classifier,
        validation=validation,
        mixing=batch_mixing(config.augmentation, len(record.classes)),
        log=log,
    )
    return TrainingLoop(run=run, optimisation=config.optimisation, source=source, recipe=recipe, console=console)


def finish_finetuning(loop: TrainingLoop) -> int:
    """Trains to the end or a signal; returns the exit status (0, or 128 + signal when stopped).

    Raises:
        ConvMAEError: losses stay not finite, or data unreadable.
    """
    status = loop.fit()
    if status == 0:
        best = loop.run.config.out / "best"
        loop.console.print(f"best validation top-1 {loop.run.progress.best_metric:.2f} %: {best}")
    return status


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
