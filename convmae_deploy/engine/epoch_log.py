"""What is told and kept of each epoch of a training program, whatever it trains."""

import time
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Console

from convmae_deploy.checkpoints.native import CheckpointRecord
from convmae_deploy.engine.evaluation import Validation
from convmae_deploy.engine.progress import draw_curves, peak_memory_gb
from convmae_deploy.engine.recipe import Recipe
from convmae_deploy.engine.training_run import TrainingRun
from convmae_deploy.files import atomic_file


@dataclass(kw_only=True)
class EpochLog:
    """Tells of each epoch in metrics.jsonl, TensorBoard, curves.png and on the console."""

    run: TrainingRun
    console: Console
    data: str  # name of the photos or videos, for the provenance
    epochs: int
    kind: Literal["photos", "videos"] = "photos"  # of the data
    validate_on: Literal["val", "train"] = "val"  # the split that is validated on
    validation_epochs: int = 0  # a validation every so many epochs, and after the last; 0: never
    picture_epochs: int = 0  # a picture every so many epochs; 0: never
    best_by: str | None = None  # the score that `best` is chosen by, larger is better; it is drawn beside the losses
    best_label: str = ""  # what people call it
    began: float = field(default_factory=time.monotonic)  # the epoch, or what came before the first

    def finish_and_save(self, epoch: int, train_loss: float, recipe: Recipe) -> None:
        """Validates and draws where it is due, logs, and saves `best`, where it is the best so far, and `last`.

        Args:
            epoch: from 0; all processes must call this.
            train_loss: mean of its updates.
            recipe: says how to validate, draw and save.
        """
        best = self.finish(epoch, train_loss, recipe.validate() if self.is_due(epoch) else None)
        if self.run.accelerator.is_main_process and self.picture_is_due(epoch):
            picture = recipe.draw()
            if picture is not None:
                with atomic_file(self.run.folder.path / "pictures" / f"epoch-{epoch + 1:04}.png") as temporary:
                    picture.save(temporary, format="png")
        if best is not None:
            recipe.save_best(best)
        self.run.save()

    def is_due(self, epoch: int) -> bool:
        """Whether a validation follows this epoch (from 0)."""
        if not self.validation_epochs:
            return False
        return (epoch + 1) % self.validation_epochs == 0 or epoch + 1 == self.epochs

    def picture_is_due(self, epoch: int) -> bool:
        """Whether a picture follows this epoch (from 0)."""
        return self.picture_epochs > 0 and (epoch + 1) % self.picture_epochs == 0

    def finish(self, epoch: int, train_loss: float, validation: Validation | None = None) -> CheckpointRecord | None:
        """Logs, draws and prints an epoch; all processes must call it.

        Args:
            epoch: from 0.
            train_loss: mean of its updates.
            validation: None where there was none.

        Returns:
            What the checkpoint `best` says of itself, where this validation is the best so far; else None.
        """
        run, progress = self.run, self.run.progress
        now = time.monotonic()
        found = {} if validation is None else validation.numbers
        if run.accelerator.is_main_process:
            run.folder.log(
                step=progress.step,
                epoch=epoch + 1,
                lr=max(group["lr"] for group in run.optimizer.param_groups),
                train_loss=train_loss,
                **found,
                seconds=round(now - self.began, 1),
                peak_memory_gb=round(peak_memory_gb(), 2),
                unreadable_train=progress.unreadable,
                skipped_updates=progress.skipped,
            )
            best_by = None if self.best_by is None else f"val_{self.best_by}"
            label = f"validation {self.best_label} (%)"
            draw_curves(run.config.out / "curves.png", run.folder.metrics(), score=best_by, score_label=label)
        told = [f"epoch {epoch + 1}/{self.epochs}: training loss {train_loss:.4f}"]
        told += [f"validation loss {found['val_loss']:.4f}"] if "val_loss" in found else []
        self.console.print(", ".join(told if validation is None else [*told, validation.told]))
        self.began = now
        if validation is None or self.best_by is None or validation.scores[self.best_by] <= progress.best_metric:
            return None
        progress.best_metric = validation.scores[self.best_by]
        return self._scored_record(epoch, validation)

    def _scored_record(self, epoch: int, validation: Validation) -> CheckpointRecord:
        """The run's record with where the weights came from and what they scored."""
        run = self.run
        if not run.accelerator.is_main_process:
            return run.record  # it saves nothing, and where nodes share no disk it cannot read run.json
        described = run.folder.description()
        facts = described["data"]
        train, val = facts[f"train_{self.kind}"], facts[f"val_{self.kind}"]
        provenance = {
            "data": f"{train} training {self.kind} of {self.data}, validated on themselves"
            if self.validate_on == "train"
            else f"{train} training and {val} validation {self.kind} of {self.data}",
            "command": described["command"],
            "seed": str(run.config.seed),
            "epoch": f"{epoch + 1} of {self.epochs}",
            "validation": f"{validation.told} on {validation.images} {self.kind}",
            "trained_with": ", ".join(f"{name} {number}" for name, number in described["versions"].items()),
        }
        return run.record.model_copy(update={"provenance": provenance})
