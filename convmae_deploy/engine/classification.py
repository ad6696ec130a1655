"""What programs that train a classifier share: their photos, and what is logged and kept after each epoch."""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator, DistributedType
from rich.console import Console

from convmae_deploy.checkpoints.native import CheckpointRecord
from convmae_deploy.data.photo_folder import PhotoFolder, read_photo_folder
from convmae_deploy.engine.determinism import StepSampler
from convmae_deploy.engine.evaluation import Accuracy
from convmae_deploy.engine.optimisation import OptimisationConfig
from convmae_deploy.engine.progress import draw_curves
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


def check_validation_epochs(validation_epochs: int) -> None:
    """Raises ConvMAEError unless there is a validation at least every so many epochs."""
    if validation_epochs < 1:
        raise ConvMAEError(f"validation_epochs must be at least 1; got {validation_epochs}")


def refuse_sharding(accelerator: Accelerator) -> None:
    """Raises ConvMAEError under FSDP: processes validate different photos, so none may need the weights of another."""
    if accelerator.distributed_type is DistributedType.FSDP:
        raise ConvMAEError("FSDP is for pretraining alone; start this program with torchrun, or without --use_fsdp")


def split_facts(train: PhotoFolder, val: PhotoFolder) -> dict[str, Any]:
    """What run.json says of the photos."""
    return {"classes": list(train.classes), "train_photos": len(train.photos), "val_photos": len(val.photos)}


def training_sampler(
    train: PhotoFolder, optimisation: OptimisationConfig, seed: int, accelerator: Accelerator
) -> StepSampler:
    """This process's share of the photos of every update."""
    return StepSampler(
        len(train.photos),
        batch_size=optimisation.batch_size,
        micro_batch_size=optimisation.micro_batch_size,
        seed=seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )


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


@dataclass(kw_only=True)
class EpochLog:
    """Tells of each epoch in metrics.jsonl, TensorBoard, curves.png and on the console."""

    run: TrainingRun
    console: Console
    data: Path  # the folder of photos
    epochs: int
    validation_epochs: int  # a validation every so many epochs, and after the last
    began: float = field(default_factory=time.monotonic)  # the epoch, or what came before the first

    def is_due(self, epoch: int) -> bool:
        """Whether a validation follows this epoch (from 0)."""
        return (epoch + 1) % self.validation_epochs == 0 or epoch + 1 == self.epochs

    def finish(self, epoch: int, train_loss: float, accuracy: Accuracy | None) -> CheckpointRecord | None:
        """Logs, draws and prints an epoch; all processes must call it.

        Args:
            epoch: from 0.
            train_loss: mean of its updates.
            accuracy: of the validation; None where there was none.

        Returns:
            What the checkpoint `best` says of itself, where this validation is the best so far; else None.
        """
        run, progress = self.run, self.run.progress
        now = time.monotonic()
        scores, told = {}, f"epoch {epoch + 1}/{self.epochs}: training loss {train_loss:.4f}"
        if accuracy is not None:
            scores = {"val_loss": accuracy.loss, "val_top1": accuracy.top1, "val_top5": accuracy.top5}
            scores["unreadable_val"] = accuracy.unreadable
            told += f", validation loss {accuracy.loss:.4f}, top-1 {accuracy.top1:.2f} %, top-5 {accuracy.top5:.2f} %"
        if run.accelerator.is_main_process:
            run.folder.log(
                step=progress.step,
                epoch=epoch + 1,
                lr=max(group["lr"] for group in run.optimizer.param_groups),
                train_loss=train_loss,
                **scores,
                seconds=round(now - self.began, 1),
                unreadable_train=progress.unreadable,
                skipped_updates=progress.skipped,
            )
            draw_curves(run.config.out / "curves.png", run.folder.metrics())
        self.console.print(told)
        self.began = now
        if accuracy is None or accuracy.top1 <= progress.best_metric:
            return None
        progress.best_metric = accuracy.top1
        return self._scored_record(epoch, accuracy)

    def _scored_record(self, epoch: int, accuracy: Accuracy) -> CheckpointRecord:
        """The run's record with where the weights came from and what they scored."""
        run = self.run
        if not run.accelerator.is_main_process:
            return run.record  # it saves nothing, and where nodes share no disk it cannot read run.json
        described = run.folder.description()
        facts = described["data"]
        provenance = {
            "data": f"{facts['train_photos']} training and {facts['val_photos']} validation photos of {self.data.name}",
            "command": described["command"],
            "seed": str(run.config.seed),
            "epoch": f"{epoch + 1} of {self.epochs}",
            "validation": f"top-1 {accuracy.top1:.2f} %, top-5 {accuracy.top5:.2f} % on {accuracy.images} photos",
            "trained_with": ", ".join(f"{name} {number}" for name, number in described["versions"].items()),
        }
        return run.record.model_copy(update={"provenance": provenance})
