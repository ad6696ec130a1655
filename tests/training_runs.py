"""Training programs made to stop or to fail at a chosen update, and what their runs have written."""

import json
import re
import signal
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from convmae_deploy.data.determinism import MicroBatch
from convmae_deploy.engine.interruption import Interruption
from convmae_deploy.engine.training_loop import TrainingLoop, Update
from convmae_deploy.engine.training_run import TrainingRun


class Start(Protocol):
    """Starts or resumes a program in a run folder, all else being the same; gives the exit status."""

    def __call__(self, out: Path, *, resume: bool = False) -> int: ...


def lines_of(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, without the times and the memory, which no run repeats."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name not in ("seconds", "peak_memory_gb")} for line in lines
    ]


def flags_of(main: Callable[[], int], capsys: pytest.CaptureFixture[str]) -> set[str]:
    """The flags that a program's --help lists; `sys.argv` must ask for it."""
    with pytest.raises(SystemExit):
        main()
    return set(re.findall(r"--[a-z][a-z0-9-]+", capsys.readouterr().out)) - {"--help"}


def check_resuming(start: Start, folder: Path, monkeypatch: pytest.MonkeyPatch, stops: Sequence[int]) -> None:
    """A run that is stopped after each of so many updates and resumed is to the last bit one that was not."""
    whole, parts = folder / "whole", folder / "parts"
    assert start(whole) == 0
    for before, stop in pairwise((0, *stops)):
        with monkeypatch.context() as patch:
            stop_after(patch, stop - before)
            assert start(parts, resume=before > 0) == 128 + signal.SIGTERM
    assert start(parts, resume=True) == 0
    assert lines_of(parts) == lines_of(whole)
    for checkpoint in (path.name for path in whole.iterdir() if (path / "model.safetensors").exists()):
        expected, found = (load_file(run / checkpoint / "model.safetensors") for run in (whole, parts))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())


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
