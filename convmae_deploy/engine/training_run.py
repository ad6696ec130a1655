"""One run of a training program: what continues it, what stops it, what is kept of it."""

import math
import os
import signal
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
import tyro
from accelerate import Accelerator
from torch import Tensor, nn

from convmae_deploy.checkpoints.native import CheckpointRecord
from convmae_deploy.engine.interruption import Interruption
from convmae_deploy.engine.run_folder import RunFolder
from convmae_deploy.errors import ConvMAEError

MAY_CHANGE_ON_RESUME = ("data", "out", "init", "resume", "workers", "save_minutes")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where and how a run executes. Of these only seed and precision change what is learnt."""

    out: Path = tyro.MISSING  # the run folder
    resume: bool = False  # continue the run in `out`, exactly
    seed: int = 0  # of order, augmentation, dropped paths and fresh weights
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"  # of the forward pass; weights and updates are fp32
    workers: int = 2  # decoding processes of each device
    save_minutes: float = 10.0  # a checkpoint within an epoch at least this often

    def accelerator(self) -> Accelerator:
        """Devices, processes and mixed precision, as torchrun or `accelerate launch` set them up.

        Raises:
            ConvMAEError: fp16 on a CPU, which Accelerate would run in fp32 without a word.
        """
        # Accelerate joins the processes of torchrun on a machine without accelerator only when told that it is one.
        on_cpu = "LOCAL_RANK" in os.environ and not torch.accelerator.is_available()
        if self.precision == "fp16" and not torch.accelerator.is_available():
            raise ConvMAEError("fp16 needs a GPU and there is none; choose --precision bf16 or fp32")
        return Accelerator(cpu=on_cpu, mixed_precision="no" if self.precision == "fp32" else self.precision)


@dataclass(kw_only=True)
class Progress:
    """How far a run is; saved with every checkpoint, so that resuming continues the sums as well."""

    step: int = 0  # updates done
    epoch_loss: float = 0.0  # sum of the losses of this epoch's updates so far
    best_metric: float = -math.inf  # of the epochs finished so far
    unreadable: int = 0  # photos skipped so far


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """Model, optimizer and progress of a run, with its folder."""

    config: RunConfig
    accelerator: Accelerator
    folder: RunFolder
    record: CheckpointRecord  # what a checkpoint of this run says of itself
    model: nn.Module  # as `accelerator.prepare` returned it
    optimizer: torch.optim.Optimizer
    progress: Progress = field(default_factory=Progress)

    def weights(self) -> dict[str, Tensor]:
        """State dict of the bare model."""
        return self.accelerator.unwrap_model(self.model).state_dict()  # type: ignore[no-any-return]

    def save(self) -> None:
        """Replaces the checkpoint `last`: the weights, and all that is needed to continue exactly."""
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        state = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "progress": asdict(self.progress),
        }
        self.folder.save("last", self.weights(), self.record, state)

    def resume(self) -> None:
        """Continues from `last`; from the beginning where the run stopped before its first checkpoint."""
        loaded = self.folder.load_last()
        if loaded is not None:
            weights, state = loaded
            self.accelerator.unwrap_model(self.model).load_state_dict(weights)
            self.optimizer.load_state_dict(state["optimizer"])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            vars(self.progress).update(state["progress"])
        if self.accelerator.is_main_process:
            self.folder.forget_metrics_after(self.progress.step)

    def check_finite(self, loss: float) -> None:
        """Raises ConvMAEError when training has diverged."""
        if not math.isfinite(loss):
            raise ConvMAEError(
                f"the loss of update {self.progress.step} is {loss} where a finite number was expected; start again "
                "with --precision fp32 or a lower --base-lr"
            )

    def must_stop(self, interruption: Interruption) -> bool:
        """Whether any process was asked to stop, so that all stop after the same update."""
        if self.accelerator.num_processes == 1:
            return interruption.signal_number is not None
        flag = torch.tensor(float(interruption.signal_number or 0), device=self.accelerator.device)
        if self.accelerator.reduce(flag, "sum").item() == 0:
            return False
        if interruption.signal_number is None:
            interruption.signal_number = signal.SIGTERM
        return True
