"""One run of a training program: what continues it, what stops it, what is kept of it."""

import math
import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from convmae_deploy.checkpoints.native import CheckpointRecord
from convmae_deploy.engine.interruption import Interruption
from convmae_deploy.engine.run_folder import RunFolder
from convmae_deploy.engine.training_config import RunConfig
from convmae_deploy.errors import ConvMAEError

SKIPPED_UPDATES_IN_A_ROW = 10  # that end a run; fp16's first loss scales are usually too large for one to three
FULL_STATE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether something is so on any process; all must ask."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum").item())


@dataclass(kw_only=True)
class Progress:
    """How far a run is; saved with every checkpoint, so that resuming continues the sums as well."""

    step: int = 0  # updates done
    epoch_loss: float = 0.0  # sum of the losses of this epoch's updates so far, but for skipped ones
    epoch_skipped: int = 0  # updates of this epoch skipped so far
    best_metric: float = -math.inf  # the best of the epochs finished so far
    unreadable: int = 0  # photos skipped so far
    skipped: int = 0  # updates skipped so far: no photo readable, or loss or gradient not finite
    skipped_in_a_row: int = 0  # those since the last update that was done


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """Model, optimizer and progress of a run, with its folder."""

    config: RunConfig
    accelerator: Accelerator
    folder: RunFolder
    record: CheckpointRecord  # what a checkpoint of this run says of itself
    model: nn.Module  # as `accelerator.prepare` returned it
    optimizer: torch.optim.Optimizer
    note_resumed: Callable[[], None] = lambda: (
        None
    )  # writes down that the run goes on, once `TrainingLoop.fit` has not refused
    progress: Progress = field(default_factory=Progress)

    def weights(self) -> dict[str, Tensor]:
        """State dict of the bare model, whole on the main process; all processes must ask for it."""
        state = get_model_state_dict(self.model, options=FULL_STATE)
        return {name: value for name, value in state.items() if isinstance(value, Tensor)}

    def save(self) -> None:
        """Replaces the checkpoint `last`: the weights, and all that is needed to continue exactly.

        All processes must call it: under FSDP each holds a part.
        """
        weights = self.weights()
        optimizer = get_optimizer_state_dict(self.model, self.bare_optimizer, options=FULL_STATE)
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {
                "optimizer": optimizer,
                "scaler": None if scaler is None else scaler.state_dict(),
                "progress": asdict(self.progress),
            }
            self.folder.save("last", weights, self.record, state)

    def save_weights(self, name: str, record: CheckpointRecord) -> None:
        """Replaces the checkpoint `name`: weights to use, not to continue from; all processes must call it."""
        weights = self.weights()
        if self.accelerator.is_main_process:
            self.folder.save(name, weights, record)

    def resume(self) -> None:
        """Continues from `last`; from the beginning where the run stopped before its first checkpoint.

        Raises:
            ConvMAEError: the processes do not find the same checkpoint.
        """
        loaded = self.folder.load_last()
        progress = None if loaded is None else self._progress_of(loaded[1])
        found = torch.tensor([-1 if progress is None else progress.step], device=self.accelerator.device)
        steps = self.accelerator.gather(found).tolist()
        if len(set(steps)) > 1:
            raise ConvMAEError(
                f"all processes must find the same checkpoint in {self.folder.path}; they found those of updates "
                f"{steps} (-1: none): put --out on a disk that all nodes share"
            )
        if loaded is not None and progress is not None:
            weights, state = loaded
            if not isinstance(state.get("optimizer"), dict) or not state["optimizer"]:
                raise self._not_continued("it has no state of an optimiser")
            try:
                set_model_state_dict(self.model, {**weights}, options=FULL_STATE)
                set_optimizer_state_dict(self.model, self.bare_optimizer, state["optimizer"], options=FULL_STATE)
                if self.accelerator.scaler is not None and state["scaler"] is not None:
                    self.accelerator.scaler.load_state_dict(state["scaler"])
            except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
                raise self._not_continued(str(error).partition("\n")[0][:200]) from None
            vars(self.progress).update(vars(progress))
        if self.accelerator.is_main_process:
            self.folder.forget_metrics_after(self.progress.step)

    def _progress_of(self, state: Mapping[str, Any]) -> Progress:
        try:
            progress = Progress(**state["progress"])
        except (KeyError, TypeError):
            raise self._not_continued("its progress is not said") from None
        if not all(isinstance(value, int | float) for value in vars(progress).values()):
            raise self._not_continued("its progress is not in numbers")
        if not isinstance(progress.step, int) or not 0 <= progress.step < 2**63:
            raise self._not_continued(f"it is of update {progress.step}")
        return progress

    def _not_continued(self, reason: str) -> ConvMAEError:
        return ConvMAEError(
            f"the checkpoint `last` in {self.folder.path} is none of this training ({reason}); take that of another "
            "copy, or start again with another --out"
        )

    @property
    def bare_model(self) -> Any:
        """The model without what `accelerator.prepare` put around it."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds only a part of the weights."""
        return self.accelerator.distributed_type is DistributedType.FSDP

    @property
    def bare_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer without Accelerate's wrapper."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def count_skipped(self, reason: str, remedy: str) -> None:
        """Notes that an update was skipped.

        Args:
            reason: of the update, the end of a sentence.
            remedy: what to do, should updates go on like this.

        Raises:
            ConvMAEError: it was one of several in a row; a checkpoint of the weights, which are good, is written first.
        """
        self.progress.skipped += 1
        self.progress.skipped_in_a_row += 1
        if self.progress.skipped_in_a_row < SKIPPED_UPDATES_IN_A_ROW:
            return
        self.progress.skipped_in_a_row = 0
        self.save()
        raise ConvMAEError(
            f"the last {SKIPPED_UPDATES_IN_A_ROW} updates up to {self.progress.step} were skipped, the last because "
            f"{reason}; the weights before them are in {self.folder.path / 'last'}: {remedy}"
        )

    def must_stop(self, interruption: Interruption) -> bool:
        """Whether any process was asked to stop, so that all stop after the same update."""
        if not any_process(self.accelerator, interruption.signal_number is not None):
            return False
        if interruption.signal_number is None:
            interruption.signal_number = signal.SIGTERM
        return True
