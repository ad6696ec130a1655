"""What is reported and kept of each epoch of a training program, whatever it trains."""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console

from convmae_deploy.checkpoints.native import CheckpointRecord
from convmae_deploy.engine.evaluation import Validation
from convmae_deploy.engine.progress import draw_curves, peak_memory_gb
from convmae_deploy.engine.recipe import Recipe
from convmae_deploy.engine.training_run import TrainingRun
from convmae_deploy.engine.unreadable_log import UnreadableLog
from convmae_deploy.files import atomic_file


@dataclass(kw_only=True)
class EpochLog:
    """Reports each epoch in metrics.jsonl, TensorBoard, curves.png and on the console."""

    recipe: Recipe
    console: Console
    kind: Literal["photos", "videos"] = "photos"  # what the data are
    validate_on: Literal["val", "train"] = "val"  # the split that is validated on
    validation_epochs: int = 0  # a validation every so many epochs, and after the last; 0: never
    picture_epochs: int = 0  # a picture every so many epochs, and after the last; 0: never
    began: float = field(default_factory=time.monotonic)  # the epoch, or what came before the first
    unreadable: UnreadableLog = field(init=False)

    def __post_init__(self) -> None:
        self.unreadable = UnreadableLog(self.run.config.out, writes=self.run.accelerator.is_main_process)

    @property
    def run(self) -> TrainingRun:
        """The run that is logged."""
        return self.recipe.run

    @property
    def epochs(self) -> int:
        """Of the whole run."""
        return self.recipe.config.optimisation.epochs

    def finish_and_save(self, epoch: int, train_loss: float) -> None:
        """Validates and draws where it is due, logs, and saves `best`, where it is the best so far, and `last`.

        Args:
            epoch: from 0; all processes must call this.
            train_loss: mean of its updates.
        """
        run, recipe = self.run, self.recipe
        best = self.finish(epoch, train_loss, recipe.validate() if self.is_due(epoch) else None)
        drawn = run.accelerator.is_main_process and self.picture_is_due(epoch)
        if drawn and (picture := recipe.draw()) is not None:
            with atomic_file(run.folder.path / "pictures" / f"epoch-{epoch + 1:04}.png") as temporary:
                picture.save(temporary, format="png")
        if best is not None:
            recipe.save_best(best)
        run.save()

    def is_due(self, epoch: int) -> bool:
        """Whether a validation follows this epoch (from 0)."""
        if not self.validation_epochs:
            return False
        return (epoch + 1) % self.validation_epochs == 0 or epoch + 1 == self.epochs

    def picture_is_due(self, epoch: int) -> bool:
        """Whether a picture follows this epoch (from 0): where any do, one follows the last."""
        return self.picture_epochs > 0 and ((epoch + 1) % self.picture_epochs == 0 or epoch + 1 == self.epochs)

    def finish(self, epoch: int, train_loss: float, validation: Validation | None = None) -> CheckpointRecord | None:
        """Logs, draws and prints an epoch; all processes must call it.

        Args:
            epoch: from 0.
            train_loss: mean of its updates.
            validation: None where there was none.

        Returns:
            What the checkpoint `best` says of itself, where this validation is the best so far; else None.
        """
        run, progress, best_by = self.run, self.run.progress, self.recipe.best_by
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
            draw_curves(
                run.config.out / "curves.png",
                run.folder.metrics(),
                score=None if best_by is None else f"val_{best_by}",
                score_label=f"validation {self.recipe.best_label} (%)",
            )
        self.unreadable.add(() if validation is None else validation.files)
        if sentence := self.unreadable.finish_epoch():
            self.console.print(sentence, markup=False)
        parts = [f"epoch {epoch + 1}/{self.epochs}: training loss {train_loss:.4f}"]
        parts += [f"validation loss {found['val_loss']:.4f}"] if "val_loss" in found else []
        self.console.print(", ".join(parts if validation is None else [*parts, validation.summary]))
        self.began = now
        if validation is None or best_by is None or validation.scores[best_by] <= progress.best_metric:
            return None
        if not math.isfinite(found.get("val_loss", 0.0)):  # the classes of logits that are no numbers mean nothing
            return None
        progress.best_metric = validation.scores[best_by]
        return self._scored_record(epoch, validation)

    def _scored_record(self, epoch: int, validation: Validation) -> CheckpointRecord:
        """The run's record with where the weights came from and what they scored."""
        run = self.run
        if not run.accelerator.is_main_process:
            return run.record  # it saves nothing, and where nodes share no disk it cannot read run.json
        described = run.folder.description()
        train, val = (described["data"][f"{split}_{self.kind}"] for split in ("train", "val"))
        data = Path(self.recipe.config.data).absolute().name
        provenance = {
            "data": f"{train} training {self.kind} of {data}, validated on themselves"
            if self.validate_on == "train"
            else f"{train} training and {val} validation {self.kind} of {data}",
            "command": described["command"],
            "seed": str(run.config.seed),
            "epoch": f"{epoch + 1} of {self.epochs}",
            "validation": f"{validation.summary} on {validation.images} {self.kind}",
            "trained_with": ", ".join(f"{name} {number}" for name, number in described["versions"].items()),
        }
        return run.record.model_copy(update={"provenance": provenance})
