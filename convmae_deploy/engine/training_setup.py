"""How every training program is put together: its devices, then its data, its run and its loop."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from accelerate import Accelerator, DistributedType
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import Dataset

from convmae_deploy.checkpoints.initial import load_initial_encoder
from convmae_deploy.checkpoints.native import CheckpointRecord
from convmae_deploy.data.determinism import StepSampler, StepSource, seed_step
from convmae_deploy.data.photo_datasets import collate_readable
from convmae_deploy.data.sources import Collate, LoadedSource
from convmae_deploy.engine.epoch_log import EpochLog
from convmae_deploy.engine.recipe import Recipe
from convmae_deploy.engine.run_folder import DATA_CHECK, RunFolder
from convmae_deploy.engine.training_config import TrainingConfig
from convmae_deploy.engine.training_loop import TrainingLoop
from convmae_deploy.engine.training_run import TrainingRun
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import check_can_create
from convmae_deploy.machine import keep_freed_memory
from convmae_deploy.models.convmae import ConvMAEConfig
from convmae_deploy.printing import printable
from convmae_deploy.program import SOME_INPUTS_BAD
from convmae_deploy.terminal import Terminal

if TYPE_CHECKING:
    from convmae_deploy.data.data_check import DataCheck

# The last three change what is learnt: for a run that met numbers that are not finite.
MAY_CHANGE_ON_RESUME = (
    *("data", "out", "init", "resume", "check_data", "workers", "save_minutes", "compile", "picture_epochs"),
    *("precision", "base_lr", "clip_grad"),
)

LoadEncoder = Callable[[Path, ConvMAEConfig], tuple[dict[str, Tensor], list[str]]]  # its weights, notes on them


class DataChecked(Exception):
    """Ends a program that was to check its data alone (`--check-data`)."""


@dataclass(kw_only=True)
class Setup:
    """A program before its data and its model: devices, a console, and generators that are seeded."""

    config: TrainingConfig
    accelerator: Accelerator
    console: Console
    data_check: "DataCheck | None" = None  # on the main process of a run that begins

    @classmethod
    def of(cls, config: TrainingConfig, *, may_shard: bool = False) -> "Setup":
        """Finds the devices and seeds the generators, so that fresh weights follow from the seed.

        Args:
            config: of the program.
            may_shard: whether the program can run under FSDP.

        Raises:
            ConvMAEError: the precision is not for these devices, or FSDP is on and may not be.
        """
        accelerator = config.run.accelerator()
        if not may_shard and accelerator.distributed_type is DistributedType.FSDP:
            # processes validate different photos, so none may need the weights of another
            raise ConvMAEError("FSDP is for pretraining alone; start this program with torchrun, or without --use_fsdp")
        seed_step(config.run.seed, 0)
        return cls(config=config, accelerator=accelerator, console=config.run.console(accelerator))

    def check_data(self, check: Callable[[], "DataCheck"]) -> None:
        """Says what was found in the data, where a run begins; with `--check-data` that is all.

        Args:
            check: looks at the data; called on the main process alone.

        Raises:
            ConvMAEError: the data are such that there is nothing to learn.
            DataChecked: with `--check-data`.
        """
        run = self.config.run
        if self.accelerator.is_main_process and (run.check_data or not run.resume):
            self.data_check = check()
            for line in self.data_check.lines(str(run.out / DATA_CHECK)):
                self.console.print(line, markup=False)
        if run.check_data:
            if self.data_check is not None and not run.resume:
                check_can_create(run.out)
                RunFolder(run.out).check_is_new()
                self.data_check.write(run.out / DATA_CHECK)
            self.accelerator.end_training()
            raise DataChecked

    def sampler(self, samples: int) -> StepSampler:
        """This process's share of so many samples in every update."""
        return StepSampler(
            samples,
            batch_size=self.config.optimisation.batch_size,
            micro_batch_size=self.config.optimisation.micro_batch_size,
            seed=self.config.run.seed,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )

    @property
    def pin_memory(self) -> bool:
        """Whether batches are for a GPU."""
        return bool(self.accelerator.device.type == "cuda")

    def source(self, samples: Dataset[Any], collate: Collate = collate_readable) -> LoadedSource:
        """The updates of an augmented dataset, whose keys are (epoch, index)."""
        sampler = self.sampler(len(samples))  # type: ignore[arg-type]
        return LoadedSource(
            samples, sampler, workers=self.config.run.workers, pin_memory=self.pin_memory, collate=collate
        )

    def begin(
        self,
        record: CheckpointRecord,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        micro_batches: int,
        facts: Mapping[str, Any],
    ) -> TrainingRun:
        """Creates (or, resuming, checks) the run folder and hands model and optimizer to their devices.

        Args:
            record: what a checkpoint says of itself.
            model: with its initial weights.
            optimizer: of its parameters.
            micro_batches: that each process accumulates for an update.
            facts: about the data, for run.json.

        Raises:
            ConvMAEError: the folder cannot be made, holds another run, or, resuming, none.
        """
        run, accelerator = self.config.run, self.accelerator
        check_can_create(run.out)
        folder = RunFolder(run.out)
        if accelerator.is_main_process:
            facts = {**facts, "processes": accelerator.num_processes}
            folder.begin(self.config, seed=run.seed, data=facts, resume=run.resume, ignored=MAY_CHANGE_ON_RESUME)
            if self.data_check is not None:
                self.data_check.write(run.out / DATA_CHECK)
        accelerator.wait_for_everyone()
        accelerator.gradient_accumulation_steps = micro_batches
        if accelerator.device.type == "cpu":
            keep_freed_memory()
        if run.compile:
            model.compile()
        model, optimizer = accelerator.prepare(model, optimizer)
        return TrainingRun(
            config=run, accelerator=accelerator, folder=folder, record=record, model=model, optimizer=optimizer
        )

    def loop(
        self,
        source: StepSource,
        recipe: Recipe,
        *,
        kind: Literal["photos", "videos"] = "photos",
        validate_on: Literal["val", "train"] = "val",
        validation_epochs: int = 0,
        picture_epochs: int = 0,
    ) -> TrainingLoop:
        """The loop over a recipe's run, before its first update; the last four arguments are those of `EpochLog`."""
        log = EpochLog(
            recipe=recipe,
            console=self.console,
            kind=kind,
            validate_on=validate_on,
            validation_epochs=validation_epochs,
            picture_epochs=picture_epochs,
        )
        return TrainingLoop(run=recipe.run, source=source, recipe=recipe, console=self.console, log=log)


Config = TypeVar("Config", bound=TrainingConfig)


def run_training(config: Config, prepare: Callable[[Config], TrainingLoop]) -> int:
    """Runs a program, or with `--check-data` its check of the data alone.

    Args:
        config: of the program.
        prepare: everything before the first update.

    Returns:
        The exit status: 0, 128 + signal when stopped, or 1 where training would refuse the data that it was to check.
    """
    try:
        return prepare(config).fit()
    except DataChecked:
        return 0
    except ConvMAEError as error:
        if not config.run.check_data:
            raise
        Terminal(highlight=False, soft_wrap=True).print(f"training would refuse: {printable(error)}", markup=False)
        return SOME_INPUTS_BAD


def start_from(
    encoder: nn.Module,
    path: Path | None,
    architecture: ConvMAEConfig,
    console: Console,
    load: LoadEncoder = load_initial_encoder,
) -> None:
    """Gives an encoder of `architecture` trained weights, where there are any, and says what was changed to fit.

    Args:
        encoder: with fresh weights.
        path: of the trained ones, ours or the authors'; None: they stay fresh.
        architecture: what the encoder is.
        console: where the main process speaks.
        load: reads them; another one for video encoders.

    Raises:
        ConvMAEError: not such an encoder, or damaged.
    """
    if path is None:
        return
    state, report = load(path, architecture)
    encoder.load_state_dict(state)
    if report:
        console.print("\n".join(report))


def synchronised(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """The model, its BatchNorms with the statistics of all processes where there are several GPUs."""
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-any-return, no-untyped-call]
    return model
