"""What programs that train on videos share."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from convmae_deploy.bundle.manifest import Licence
from convmae_deploy.bundle.preprocessing import standard_clips
from convmae_deploy.checkpoints.native import CheckpointKind, CheckpointRecord
from convmae_deploy.checkpoints.video_initial import Inflation, load_initial_video_encoder
from convmae_deploy.engine.training_config import RunConfig, TrainingConfig, check_at_least
from convmae_deploy.engine.training_setup import start_from
from convmae_deploy.models.classifier import ConvMAEClassifier
from convmae_deploy.models.convmae import ConvMAEConfig, Variant
from convmae_deploy.models.video import VideoConfig
from convmae_deploy.models.video_pretraining import VideoPretraining
from convmae_deploy.models.vit import variant_config

Model = TypeVar("Model", ConvMAEClassifier, VideoPretraining)


@dataclass(frozen=True, kw_only=True)
class VideoTrainingConfig(TrainingConfig):
    """The settings of a program that trains on videos."""

    variant: Variant  # the encoder's
    init: Path | None = None  # encoder to start from, of videos or of images; None: from scratch
    inflation: Inflation = "centre"  # what becomes of an image encoder's kernels
    stride: int | None = 4  # from one frame of a clip to the next; None: one frame of each of as many equal parts
    grad_checkpointing: bool = False  # recompute the blocks in the backward pass: less memory, more time
    video: VideoConfig = field(default_factory=VideoConfig)
    run: RunConfig = field(default_factory=lambda: RunConfig(workers=8))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, stride=self.stride)

    def started(self, model: Model, architecture: ConvMAEConfig, console: Console) -> Model:
        """The model, its encoder with the weights of `init` where one is given; see `start_from`."""
        load = partial(load_initial_video_encoder, video=self.video, inflation=self.inflation)
        start_from(model.encoder, self.init, architecture, console, load)
        model.set_grad_checkpointing(self.grad_checkpointing)
        return model

    def initial_record(self, kind: CheckpointKind, **parts: Any) -> CheckpointRecord:
        """What the checkpoints of a run say of themselves before any result.

        Args:
            kind: of the model.
            parts: what only this kind has.
        """
        architecture = variant_config(self.variant, self.image_size)
        return CheckpointRecord(
            kind=kind,
            variant=self.variant,
            model=architecture,
            video=self.video,
            preprocessing=standard_clips(architecture.image_size, frames=self.video.frames, stride=self.stride),
            licence=Licence(name=self.licence),
            **parts,
        )
