"""Saves an encoder with fresh weights: a linear probe must start from some, whatever they are.

python -m benchmarks.fresh_encoder base --out encoder/
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from convmae_deploy.checkpoints import CheckpointRecord, save_checkpoint
from convmae_deploy.models.convmae import MODELS, Variant, build_convmae
from convmae_deploy.program import run_program


@dataclass(frozen=True, kw_only=True)
class FreshEncoderConfig:
    """Saves an encoder with fresh weights."""

    variant: Annotated[Variant, tyro.conf.Positional]  # the encoder's
    out: Path  # the checkpoint, a folder
    seed: int = 0  # the weights follow from it


def main() -> None:
    """The command."""
    config = tyro.cli(FreshEncoderConfig, prog="python -m benchmarks.fresh_encoder")
    torch.manual_seed(config.seed)
    architecture = MODELS[config.variant]()
    record = CheckpointRecord(kind="features", variant=config.variant, model=architecture)
    save_checkpoint(config.out, build_convmae(architecture).state_dict(), record)


if __name__ == "__main__":
    run_program(main)
