"""Training programs made to stop or to fail at a chosen update."""

import signal
from collections.abc import Sequence

import pytest
from torch import Tensor, nn

from convmae_deploy.data.determinism import MicroBatch
from convmae_deploy.engine.interruption import Interruption
from convmae_deploy.engine.training_loop import TrainingLoop, Update
from convmae_deploy.engine.training_run import TrainingRun


def stop_after(monkeypatch: pytest.MonkeyPatch, updates: int) -> None:
    """Makes the next run stop after so many updates, as a SIGTERM would."""
    done = 0
    original = TrainingLoop.update

    def counting(self: TrainingLoop, micro_batches: Sequence[MicroBatch]) -> Update:
        nonlocal done
        done += 1
        return original(self, micro_batches)

    def must_stop(self: TrainingRun, interruption: Interruption) -> bool:
        if done >= updates:
            interruption.signal_number = signal.SIGTERM
        return done >= updates

    monkeypatch.setattr(TrainingLoop, "update", counting)
    monkeypatch.setattr(TrainingRun, "must_stop", must_stop)


def not_a_number(model: nn.Module) -> Tensor:
    """A loss of all parameters that is not finite, and so are its gradients."""
    return sum((parameter.sum() for parameter in model.parameters()), start=next(model.parameters()).sum()) * float(
        "nan"
    )
