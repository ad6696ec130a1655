"""The settings that every training program has: where and how it runs, and what it learns from."""

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import tyro
from accelerate import Accelerator, PartialState
from pydantic import ValidationError
from rich.console import Console

from convmae_deploy.bundle.manifest import Licence
from convmae_deploy.engine.optimisation import OptimisationConfig
from convmae_deploy.engine.precision import Precision, cpu_capabilities, fast_precision
from convmae_deploy.engine.run_folder import precision_so_far
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import shortened
from convmae_deploy.models.convmae import check_image_size
from convmae_deploy.terminal import Terminal

MAX_WORKERS = 1024  # processes of each device
BOUNDS = {  # of numbers that mean the same in every program
    "auxiliary_weight": (0.0, 100.0),
    "base_lr": (0.0, 1e4),
    "color_jitter": (0.0, 10.0),
    "drop_path": (0.0, 0.99),
    "head_init_std": (1e-8, 10.0),
    "layer_decay": (1e-3, 1.0),
    "milestones": (0.0, 1.0),
    "momentum": (0.0, 0.9999),
    "scale": (0.01, 100.0),
    "trust_coefficient": (1e-9, 100.0),
}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where and how a run executes. Of these only seed and precision change what is learnt."""

    out: Path = tyro.MISSING  # the run folder
    resume: bool = False  # continue the run in `out`, exactly
    check_data: bool = False  # say what was found in the data and stop; status 1 where training would refuse them
    seed: int = 0  # order, augmentation, dropped paths and fresh weights follow from it
    # the forward pass's, weights and updates are fp32; auto: bf16 on a GPU or a CPU that is fast at it, else fp32
    precision: Literal["auto"] | Precision = "auto"
    compile: bool = False  # torch.compile the model: minutes at the start, faster updates on a GPU
    workers: int = 2  # decoding processes of each device
    save_minutes: float = 10.0  # a checkpoint within an epoch at least this often

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ConvMAEError(f"seed must be at least 0 and below 2^63; got {self.seed}")
        if not 0 <= self.workers <= MAX_WORKERS:
            raise ConvMAEError(f"workers must be from 0 to {MAX_WORKERS}; got {self.workers}")
        if not self.save_minutes > 0:
            raise ConvMAEError(f"save_minutes must be above 0; got {self.save_minutes:g}")

    def decided(self) -> "tuple[RunConfig, str]":
        """These settings with a precision in place of `auto`, and why it is that one, as a clause.

        A run that is resumed goes on in the precision that it has had.
        """
        if self.precision != "auto":
            return self, "as --precision says"
        if self.resume and (so_far := precision_so_far(self.out)) is not None:
            return replace(self, precision=so_far), "as in this run so far"
        device_type = PartialState(cpu=_is_process_of_cpus()).device.type
        precision, reason = fast_precision(device_type, cpu_capabilities())
        return replace(self, precision=precision), reason

    def accelerator(self) -> Accelerator:
        """Devices, processes and mixed precision, as torchrun or `accelerate launch` set them up.

        Raises:
            ConvMAEError: fp16 on a CPU, which Accelerate would run in fp32 without a word.
        """
        precision = self.decided()[0].precision
        if precision == "fp16" and not torch.accelerator.is_available():
            raise ConvMAEError("fp16 needs a GPU and there is none; choose --precision bf16 or fp32")
        return Accelerator(cpu=_is_process_of_cpus(), mixed_precision="no" if precision == "fp32" else precision)

    def console(self, accelerator: Accelerator) -> Console:
        """Where the main process speaks; the others are silent."""
        return Terminal(quiet=not accelerator.is_main_process, highlight=False, soft_wrap=True)


def _is_process_of_cpus() -> bool:
    """Whether torchrun started this process without an accelerator; unless it is told Accelerate takes it for alone."""
    return "LOCAL_RANK" in os.environ and not torch.accelerator.is_available()


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The settings that every training program has; each adds its own."""

    data: Path | str = tyro.MISSING  # what is trained on
    image_size: tuple[int, int] | None = None  # (height, width) in pixels; None: the variant's
    licence: str = "unspecified: ask whoever trained these weights"  # for the weights that come out
    optimisation: OptimisationConfig = field(default_factory=OptimisationConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        check_numbers(self)
        check_licence(self.licence)
        if self.image_size is not None:
            check_image_size(self.image_size)


@dataclass(frozen=True, kw_only=True)
class ValidatedConfig(TrainingConfig):
    """The settings of a program whose models are validated, and which starts from a pretrained encoder."""

    data: Path = tyro.MISSING  # folder of {train,val}/<class>/*
    init: Path | None = None  # pretrained checkpoint: ours (folder) or the authors' (.pth); None: from scratch
    validation_epochs: int = 1  # a validation every so many epochs, and after the last

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, validation_epochs=self.validation_epochs)


def check_numbers(settings: Any, name: str = "") -> None:
    """Raises ConvMAEError where a setting, in other settings too, is NaN or infinity, or beyond its `BOUNDS`."""
    if isinstance(settings, float) and not math.isfinite(settings):
        raise ConvMAEError(f"{name} must be a finite number; got {settings}")
    if name in BOUNDS and isinstance(settings, float):
        least, most = BOUNDS[name]
        if not least <= settings <= most:
            raise ConvMAEError(f"{name} must be from {least:g} to {most:g}; got {settings:g}")
    if is_dataclass(settings):
        for entry in fields(settings):
            check_numbers(getattr(settings, entry.name), entry.name)
    elif isinstance(settings, tuple):
        for value in settings:
            check_numbers(value, name)


def check_licence(name: str) -> None:
    """Raises ConvMAEError where a checkpoint could not say it."""
    try:
        Licence(name=name)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]["msg"]
        raise ConvMAEError(f"licence must be a text that checkpoints can hold; {problem}") from None


def check_at_least(least: int, **numbers: int | None) -> None:
    """Raises ConvMAEError where a setting, by its name, is less; None is allowed."""
    for name, number in numbers.items():
        if number is not None and number < least:
            raise ConvMAEError(f"{name} must be at least {least}; got {number}")


Config = TypeVar("Config", bound=TrainingConfig)


def chosen_preset(presets: Mapping[str, tuple[str, Config]], program: str) -> Config:
    """What the command line of a program says: a preset, then flags that change it.

    Args:
        presets: name to description and configuration.
        program: the command that starts it, for its help.

    Raises:
        ConvMAEError: the first argument is no preset; those that there are have been listed.
    """
    first = sys.argv[1] if len(sys.argv) > 1 else None
    if first not in (*presets, "-h", "--help"):
        width = max(map(len, presets))
        lines = [f"  {name:{width}}  {description}" for name, (description, _) in presets.items()]
        print(f"the presets of {program}:", *lines, sep="\n", file=sys.stderr)
        found = "nothing" if first is None else shortened(first)
        raise ConvMAEError(
            f"expected a preset first and flags after it, as in `{program} {next(iter(presets))} --data ... "
            f"--out ...`; got {found}"
        )
    return tyro.extras.overridable_config_cli(dict(presets), config=(tyro.conf.OmitArgPrefixes,), prog=program)
