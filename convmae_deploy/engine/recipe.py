"""What differs from one training program to another, for the loop that they share."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor

from convmae_deploy.checkpoints.native import CheckpointRecord
from convmae_deploy.engine.evaluation import Validation
from convmae_deploy.engine.training_config import TrainingConfig
from convmae_deploy.engine.training_run import TrainingRun


@dataclass(kw_only=True)
class Recipe:
    """The loss of a micro-batch, and what is measured, drawn and saved after an epoch."""

    config: TrainingConfig
    run: TrainingRun
    loss_parts: dict[str, Tensor] = field(default_factory=dict, init=False)  # of the last loss, scalars to be logged
    best_by: ClassVar[str | None] = None  # the score that `best` is chosen by, larger is better; None: no validation
    best_label: ClassVar[str] = ""  # what people call it

    def loss(self, images: Tensor, extra: Any) -> Tensor:
        """The mean loss of a micro-batch on the device; `extra` is what the dataset gives beside the images."""
        raise NotImplementedError

    def validate(self) -> Validation:
        """What the model scores; called on all processes."""
        raise NotImplementedError

    def draw(self) -> Image.Image | None:
        """A picture for people, or None where there is nothing to draw; called on the main process alone."""
        return None

    def save_best(self, record: CheckpointRecord) -> None:
        """Writes the checkpoint `best`; called on all processes."""
        self.run.save_weights("best", record)

    def last_words(self) -> str:
        """What to print at the end of the run."""
        best, last = self.run.config.out / "best", self.run.config.out / "last"
        if not best.is_dir():
            return f"there is no checkpoint {best}; the weights after the last update are {last}"
        return f"best validation {self.best_label} {self.run.progress.best_metric:.2f} %: {best}"
