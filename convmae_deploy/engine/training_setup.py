"""How every training program is put together: its devices, then its data, its run and its loop."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import broadcast_object_list
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import Dataset

from convmae_deploy.checkpoints.initial import load_initial_encoder
from convmae_deploy.checkpoints.loading import load_exactly
from convmae_deploy.checkpoints.native import CheckpointRecord
from convmae_deploy.data.determinism import StepSampler, StepSource, seed_step
from convmae_deploy.data.photo_datasets import collate_readable
from convmae_deploy.data.sources import Collate, LoadedSource
from convmae_deploy.engine.epoch_log import EpochLog
from convmae_deploy.engine.failures import training_failures_in_words
from convmae_deploy.engine.recipe import Recipe
from convmae_deploy.engine.run_folder import DATA_CHECK, RunFolder, optimisation_so_far
from convmae_deploy.engine.start import MAY_CHANGE_ON_RESUME, algorithms_in_words, changes_in_words, start_lines
from convmae_deploy.engine.training_config import TrainingConfig, chosen_preset
from convmae_deploy.engine.training_loop import TrainingLoop
from convmae_deploy.engine.training_run import TrainingRun
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import check_can_create
from convmae_deploy.machine import keep_freed_memory
from convmae_deploy.models.convmae import ConvMAEConfig
from convmae_deploy.models.pretraining import ConvMAEPretraining, fastest_algorithms
from convmae_deploy.models.video_pretraining import VideoPretraining
from convmae_deploy.models.vit import ViT
from convmae_deploy.printing import printable
from convmae_deploy.program import SOME_INPUTS_BAD
from convmae_deploy.terminal import Terminal

if TYPE_CHECKING:
    from convmae_deploy.data.data_check import DataCheck

Program = TypeVar("Program", bound=TrainingConfig)
LoadEncoder = Callable[[Path, ConvMAEConfig], tuple[dict[str, Tensor], list[str]]]  # its weights, notes on them

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}  # by Accelerate's names


class DataChecked(Exception):
    """Ends a program that was to check its data alone (`--check-data`)."""


@dataclass(kw_only=True)
class Setup:
    """A program before its data and its model: devices, a console, and generators that are seeded."""

    config: TrainingConfig  # with the precision that was chosen
    accelerator: Accelerator
    console: Console
    precision_reason: str = ""  # why it was, a clause
    data_check: "DataCheck | None" = None  # on the main process of a run that begins
    choices: list[str] = field(default_factory=list)  # what was chosen for these devices, a line each

    @classmethod
    def of(cls, config: TrainingConfig, *, may_shard: bool = False) -> "Setup":
        """Finds the devices and seeds the generators, so that fresh weights follow from the seed.

        Args:
            config: of the program.
            may_shard: whether the program can run under FSDP.

        Raises:
            ConvMAEError: the precision is not for these devices, or FSDP is on and may not be.
        """
        run, reason = config.run.decided()
        accelerator = run.accelerator()
        if not may_shard and accelerator.distributed_type is DistributedType.FSDP:
            # processes validate different photos, so none may need the weights of another
            raise ConvMAEError("FSDP is for pretraining alone; start this program with torchrun, or without --use_fsdp")
        seed_step(run.seed, 0)
        return cls(
            config=replace(config, run=run),
            accelerator=accelerator,
            console=run.console(accelerator),
            precision_reason=reason,
        )

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

    def choose_depthwise(self, model: ConvMAEPretraining | VideoPretraining, cell_size: int) -> None:
        """On a GPU measures the algorithms that convolve visible cells; all processes take the main one's fastest.

        Args:
            model: that is to be pretrained, on any device; one without convolutions has nothing to choose.
            cell_size: pixels along the side of what a mask hides.
        """
        device = self.accelerator.device
        if device.type != "cuda" or isinstance(model.encoder, ViT):
            return
        chosen: list[Any] = [None, None]
        if self.accelerator.is_main_process:
            dtype = AUTOCAST.get(self.accelerator.mixed_precision, torch.float32)
            chosen[:] = fastest_algorithms(model, cell_size, device, dtype)
        broadcast_object_list(chosen)
        model.depthwise_algorithms, seconds = chosen
        self.choices.append(algorithms_in_words(model.depthwise_algorithms, seconds))

    def begin(
        self,
        record: CheckpointRecord,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        source: StepSource,
        facts: Mapping[str, Any],
    ) -> TrainingRun:
        """Creates (or, resuming, checks) the run folder, says what begins, hands model and optimizer to their devices.

        Args:
            record: what a checkpoint says of itself.
            model: with its initial weights.
            optimizer: of its parameters.
            source: of the updates.
            facts: about the data, for run.json.

        Raises:
            ConvMAEError: the folder cannot be made, holds another run, or, resuming, none or one of other updates.
        """
        run, accelerator = self.config.run, self.accelerator
        check_can_create(run.out)
        folder = RunFolder(run.out)
        write: Callable[[], None] = _nothing
        if accelerator.is_main_process:
            write = self._beginning(folder, source.steps, {**facts, "processes": accelerator.num_processes})
        if not run.resume:
            write()
        accelerator.wait_for_everyone()
        accelerator.gradient_accumulation_steps = source.micro_batches_per_step
        if accelerator.device.type == "cpu":
            keep_freed_memory()
        model, optimizer = accelerator.prepare(model, optimizer)
        if run.compile:
            model.compile()  # with what was put around it: inside of it DDP and FSDP could not break the graph
        return TrainingRun(
            config=run,
            accelerator=accelerator,
            folder=folder,
            record=record,
            model=model,
            optimizer=optimizer,
            note_resumed=write if run.resume else _nothing,
        )

    def _beginning(self, folder: RunFolder, steps: StepSampler, facts: Mapping[str, Any]) -> Callable[[], None]:
        """Says what begins; what this returns writes it down."""
        run, optimisation = self.config.run, self.config.optimisation
        precision = f"{run.precision}, {self.precision_reason}"
        lines = start_lines(self.accelerator, precision, facts, optimisation, steps) + self.choices
        if run.resume:
            changes = folder.changes(self.config, facts, MAY_CHANGE_ON_RESUME)
            if "processes" in changes:
                check_same_updates(steps, optimisation.batch_size, processes=changes["processes"][0])
            lines += changes_in_words(changes)
        else:
            folder.check_is_new()
        self.console.print("\n".join(lines))

        def write() -> None:
            folder.begin(
                self.config,
                seed=run.seed,
                data=facts,
                resume=run.resume,
                ignored=MAY_CHANGE_ON_RESUME,
                start=lines,
            )
            if self.data_check is not None:
                self.data_check.write(folder.path / DATA_CHECK)

        return write

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


def _nothing() -> None:
    """What a process that does not write has to write."""


def run_preset(
    presets: Mapping[str, tuple[str, Program]], program: str, prepare: Callable[[Program], TrainingLoop]
) -> int:
    """Runs a training program with what its command line says; returns the exit status.

    Args:
        presets: name to description and configuration.
        program: the command that starts it.
        prepare: makes the loop of a configuration.

    Raises:
        ConvMAEError: bad data or settings, or the machine refuses what it takes.
    """
    config = chosen_preset(presets, program)
    if config.run.resume:
        config = with_run_so_far(config, sys.argv)
    with training_failures_in_words(config):
        return run_training(config, prepare)


def with_run_so_far(config: Program, arguments: Sequence[str]) -> Program:
    """A resumed run's settings, in which those that may change as training goes on do so where a flag asks for it.

    Args:
        config: what the command line says.
        arguments: the command line itself.
    """
    given = {argument.partition("=")[0].replace("_", "-") for argument in arguments}
    had = optimisation_so_far(config.run.out)
    kept = {name: value for name, value in had.items() if f"--{name.replace('_', '-')}" not in given}
    return replace(config, optimisation=replace(config.optimisation, **kept))


def check_same_updates(steps: StepSampler, batch_size: int, *, processes: int) -> None:
    """Refuses other processes than a run has had where its updates would not hold as many files as before.

    Args:
        steps: as they are now.
        batch_size: that was asked for.
        processes: that the run has had.

    Raises:
        ConvMAEError: with the two numbers.
    """
    before = min(batch_size, steps.length) // processes * processes
    if steps.batch_size != before:
        raise ConvMAEError(
            f"an update held {before} files with {processes} processes and would hold {steps.batch_size} with "
            f"{steps.world_size}; resume with {processes}, or with a number for which an update holds {before}"
        )


def run_training(config: Program, prepare: Callable[[Program], TrainingLoop]) -> int:
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
    load_exactly(encoder, state, path)
    if report:
        console.print("\n".join(report))


def synchronised(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """The model, its BatchNorms with the statistics of all processes where there are several GPUs."""
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-any-return, no-untyped-call]
    return model
