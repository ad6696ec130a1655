"""What programs share that train a detector or a segmenter."""

from dataclasses import dataclass, field
from typing import Any, TypeVar

from rich.console import Console

from convmae_deploy.engine.optimisation import DenseOptimisationConfig
from convmae_deploy.engine.training_config import ValidatedConfig, check_at_least
from convmae_deploy.engine.training_setup import start_from
from convmae_deploy.models.convmae import ConvMAEConfig
from convmae_deploy.models.detector import ConvMAEDetector
from convmae_deploy.models.segmenter import ConvMAESegmenter

Model = TypeVar("Model", ConvMAEDetector, ConvMAESegmenter)

# Of the nano presets, for a few hundred photos on a CPU; the rate is 2e-3 for 8 photos.
NANO: dict[str, Any] = {"drop_path": 0.05, "layer_decay": 0.9, "validation_epochs": 10, "picture_epochs": 10}
NANO_OPTIMISATION = DenseOptimisationConfig(
    batch_size=8, micro_batch_size=8, base_lr=6.4e-2, warmup_steps=100, clip_grad=1.0
)


@dataclass(frozen=True, kw_only=True)
class DenseTrainingConfig(ValidatedConfig):
    """The settings of a program that trains a detector or a segmenter."""

    grad_checkpointing: bool = False  # recompute the encoder's blocks in the backward pass: less memory, more time
    picture_epochs: int = 1  # a picture of validation photos every so many epochs, and after the last; 0: never
    optimisation: DenseOptimisationConfig = field(default_factory=DenseOptimisationConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, picture_epochs=self.picture_epochs)

    def started(self, model: Model, architecture: ConvMAEConfig, console: Console) -> Model:
        """The model, its encoder with the weights of `init` where one is given; see `start_from`."""
        start_from(model.encoder, self.init, architecture, console)
        model.set_grad_checkpointing(self.grad_checkpointing)
        return model
