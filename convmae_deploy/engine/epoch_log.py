"""What is told and kept of each epoch of a training program, whatever it trains."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from PIL import Image
from rich.console import Console

from convmae_deploy.checkpoints.native import CheckpointRecord
from convmae_deploy.engine.progress import draw_curves, peak_memory_gb
from convmae_deploy.engine.training_run import TrainingRun
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import atomic_file


def check_validation_epochs(validation_epochs: int) -> None:
    """Raises ConvMAEError unless there is a validation at least every so many epochs."""
    if validation_epochs < 1:
        raise ConvMAEError(f"validation_epochs must be at least 1; got {validation_epochs}")


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What a validation found."""

    scores: Mapping[str, float]  # name in metrics.jsonl -> number, in the order of the line
    told: str  # for the console, after the training loss
    summary: str  # for the provenance of the weights


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
    best_by_label: str = ""  # of its axis, with the unit
    began: float = field(default_factory=time.monotonic)  # the epoch, or what came before the first

    def finish_and_save(
        self,
        epoch: int,
        train_loss: float,
        *,
        validate: Callable[[], Validation] | None = None,
        draw: Callable[[], Image.Image | None] | None = None,
        save_best: Callable[[CheckpointRecord], None] | None = None,
    ) -> None:
        """Validates where it is due, logs, draws, and saves `best`, where it is the best so far, and `last`.

        Args:
            epoch: from 0; all processes must call this.
            train_loss: mean of its updates.
            validate: on all processes.
            draw: a picture for `pictures/`, or None; every `picture_epochs`, on the main process alone.
            save_best: on all processes; None saves the run's model.
        """
        run = self.run
        validation = validate() if validate is not None and self.is_due(epoch) else None
        best = self.finish(epoch, train_loss, validation)
        picture = None
        if draw is not None and run.accelerator.is_main_process and self.picture_is_due(epoch):
            picture = draw()
        if picture is not None:
            with atomic_file(run.folder.path / "pictures" / f"epoch-{epoch + 1:04}.png") as temporary:
                picture.save(temporary, format="png")
        if best is not None and save_best is not None:
            save_best(best)
        elif best is not None:
            run.save_weights("best", best)
        run.save()

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
        if run.accelerator.is_main_process:
            run.folder.log(
                step=progress.step,
                epoch=epoch + 1,
                lr=max(group["lr"] for group in run.optimizer.param_groups),
                train_loss=train_loss,
                **({} if validation is None else validation.scores),
                seconds=round(now - self.began, 1),
                peak_memory_gb=round(peak_memory_gb(), 2),
                unreadable_train=progress.unreadable,
                skipped_updates=progress.skipped,
            )
            draw_curves(
                run.config.out / "curves.png", run.folder.metrics(), score=self.best_by, score_label=self.best_by_label
            )
        told = f"epoch {epoch + 1}/{self.epochs}: training loss {train_loss:.4f}"
        self.console.print(told if validation is None else f"{told}, {validation.told}")
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
            "validation": validation.summary,
            "trained_with": ", ".join(f"{name} {number}" for name, number in described["versions"].items()),
        }
        return run.record.model_copy(update={"provenance": provenance})
