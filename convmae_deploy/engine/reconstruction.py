"""What programs that pretrain by masked reconstruction share: their loss, and what follows each epoch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from accelerate import Accelerator
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from convmae_deploy.checkpoints.native import CheckpointRecord
from convmae_deploy.data.determinism import StepSource
from convmae_deploy.engine.epoch_log import EpochLog
from convmae_deploy.engine.optimisation import OptimisationConfig, build_adamw
from convmae_deploy.engine.training_loop import TrainingLoop
from convmae_deploy.engine.training_run import RunConfig, TrainingRun

Choose = Callable[[Tensor], Tensor]  # noise (B, cells) to the visible cells (G * B, K)
Picture = Callable[[Any, Tensor, Tensor], Image.Image]  # of model, inputs and visible cells


class PretrainingSettings(Protocol):
    """What a pretraining program's configuration has, whatever it trains on."""

    @property
    def picture_epochs(self) -> int:
        """A picture every so many epochs; 0: never."""

    @property
    def optimisation(self) -> OptimisationConfig:
        """How weights are updated."""

    @property
    def run(self) -> RunConfig:
        """Where and how."""


@dataclass(kw_only=True)
class ReconstructionRecipe:
    """The loss of masked reconstruction, and what follows each epoch."""

    run: TrainingRun
    console: Console
    log: EpochLog
    choose: Choose
    picture: Picture
    latest: tuple[Tensor, Tensor] | None = None  # inputs and their masks, of the micro-batch at hand

    def loss(self, inputs: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error of the hidden pixels; the masks follow from the noise."""
        kept = self.choose(noise)
        self.latest = inputs, kept
        return self.run.model(inputs, kept)  # type: ignore[no-any-return]

    def finish_epoch(self, epoch: int, train_loss: float) -> None:
        """Logs, draws and saves."""
        self.log.finish_and_save(epoch, train_loss, draw=self.draw)

    def draw(self) -> Image.Image | None:
        """What was last trained on; not under FSDP, where no process has a whole model."""
        run = self.run
        if run.is_sharded:
            self.console.print("no picture: under FSDP no process has the whole model; draw it from a checkpoint")
        if self.latest is None or run.is_sharded:
            return None
        return self.picture(run.accelerator.unwrap_model(run.model), *self.latest)


def reconstruction_loop(
    config: PretrainingSettings,
    *,
    accelerator: Accelerator,
    console: Console,
    record: CheckpointRecord,
    model: nn.Module,
    source: StepSource,
    data: str,
    facts: Mapping[str, Any],
    choose: Choose,
    picture: Picture,
) -> TrainingLoop:
    """A pretraining before its first update.

    Args:
        config: of the program.
        accelerator: of `config.run`.
        console: where the main process speaks.
        record: what a checkpoint says of itself.
        model: with its initial weights; maps inputs and visible cells to the loss.
        source: of inputs and mask noise.
        data: name of the data.
        facts: about the data, for run.json.
        choose: from noise to masks.
        picture: what is drawn every `picture_epochs`.
    """
    run = TrainingRun.begin(
        config,
        run=config.run,
        accelerator=accelerator,
        record=record,
        model=model,
        optimizer=build_adamw(model, config.optimisation),
        micro_batches=source.micro_batches_per_step,
        facts=facts,
    )
    log = EpochLog(
        run=run, console=console, data=data, epochs=config.optimisation.epochs, picture_epochs=config.picture_epochs
    )
    recipe = ReconstructionRecipe(run=run, console=console, log=log, choose=choose, picture=picture)
    return TrainingLoop(run=run, optimisation=config.optimisation, source=source, recipe=recipe, console=console)


def finish_pretraining(loop: TrainingLoop) -> int:
    """Trains to the end or a signal; returns the exit status (0, or 128 + signal when stopped).

    Raises:
        ConvMAEError: losses stay not finite, or data unreadable.
    """
    status = loop.fit()
    if status == 0:
        out = loop.run.config.out
        loop.console.print(f"pretrained encoder: {out}; finetune it with --init {out}")
    return status
