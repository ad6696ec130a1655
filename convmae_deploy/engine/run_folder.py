"""The folder of a training run: what was run, its metrics, and the checkpoints to resume from and to use.

run.json         config, command, versions, seed, data, the lines that were said at the start; on resume compared, and
                 what changed is noted
metrics.jsonl    one JSON object a line, one line an epoch
tensorboard/     the same, and loss, gradient and learning rate of every update
curves.png       the metrics, drawn
pictures/        reconstructions while pretraining, predictions of segmenters
features/        what a linear probe computed once
data_check.json  what was found in the data, what was left out and what looks wrong
unreadable.txt   files that could not be decoded, with the reason
last/  best/     checkpoints; `last` also holds `training_state.pt`, which continues the run exactly
"""

import json
import math
import platform
import re
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from convmae_deploy.checkpoints.native import CheckpointRecord, read_checkpoint, write_checkpoint_files
from convmae_deploy.checkpoints.pth_file import load_without_code
from convmae_deploy.data.listing import LISTING
from convmae_deploy.engine.precision import Precision
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import RUN_RECORD, atomic_directory, atomic_file, existing_directory, read_json, shortened
from convmae_deploy.printing import printable

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PACKAGES = ("convmae-deploy", "torch", "torchvision", "timm", "accelerate", "pillow", "numpy")
STATE_NAME = "training_state.pt"
DATA_CHECK = "data_check.json"


class RunFolder:
    """Reads and writes one run folder. Only the main process of a distributed run may write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: SummaryWriter | None = None

    def begin(
        self,
        config: Any,
        *,
        seed: int,
        data: Mapping[str, Any],
        resume: bool,
        ignored: Collection[str],
        start: Sequence[str] = (),
        beside: Collection[str] = (),
    ) -> None:
        """Creates the folder, or checks that the one that is there belongs to the same run.

        Args:
            config: the run's dataclass.
            seed: of the run.
            data: facts about the data (classes, counts), compared on resume.
            resume: whether to continue.
            ignored: fields of the config that a resumed run may change; what it changes is noted in run.json.
            start: what the program says as it starts, to be kept.
            beside: names of what may lie in the folder of a new run.

        Raises:
            ConvMAEError: the folder exists and `resume` is False, or the reverse, or its config differs.
        """
        current = {"config": _plain(config), "data": dict(data)}
        started = {
            "command": shlex.join([Path(sys.executable).name, "-m", _module_name(), *sys.argv[1:]]),
            "start": list(start),
            "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
            "cpu_threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        }
        now = datetime.now(UTC).isoformat(timespec="seconds")
        if resume:
            changes = self.changes(config, data, ignored)
            record = self.description() | current
            record.setdefault("resumed", []).append({"at": now, "changed": changes} | started)
            self._write_description(record)
            return
        self.check_is_new(beside)
        self._write_description(current | {"seed": seed, "started": now} | started)

    def check_is_new(self, beside: Collection[str] = ()) -> None:
        """Raises ConvMAEError where the folder holds anything but a check of the data and `beside`, or is a file."""
        if self.path.exists() and not self.path.is_dir():
            raise ConvMAEError(f"expected a folder for the run at {self.path}, found a file; choose another --out")
        there = {entry.name for entry in self.path.iterdir()} if self.path.exists() else set()
        if RUN_RECORD in there:
            raise ConvMAEError(f"{self.path} holds a run already; add --resume to continue it or choose another --out")
        others = sorted(name for name in there - {DATA_CHECK, *beside} if not name.startswith("."))
        if others:
            raise ConvMAEError(
                f"{self.path} holds {shortened(others[0])} and is no run: choose another --out, or an empty folder"
            )

    def _write_description(self, record: Mapping[str, Any]) -> None:
        with atomic_file(self.path / RUN_RECORD) as temporary:
            temporary.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")

    def changes(self, config: Any, data: Mapping[str, Any], ignored: Collection[str]) -> dict[str, tuple[Any, Any]]:
        """Fields of config and data that differ from what the run had so far, as (old, new).

        Raises:
            ConvMAEError: one of them may not (see `begin`), or there is no run.
        """
        file = self.path / RUN_RECORD
        record = {"config": _plain(config), "data": dict(data)}
        if not file.is_file():
            raise ConvMAEError(f"--resume needs a run in {self.path}; found no run.json, so start it without --resume")
        before = read_json(file)
        if not isinstance(before, dict) or not {"config", "data"} <= before.keys():
            raise ConvMAEError(f"{file} must hold the config and the data of a run; it does not, so it cannot go on")
        changes: dict[str, tuple[Any, Any]] = {}
        refused: dict[str, tuple[Any, Any]] = {}
        for part in ("config", "data"):
            old, new = _flat(before[part]), _flat(json.loads(json.dumps(record[part])))
            for name in sorted(old.keys() | new.keys(), key=lambda name: (name == LISTING, name)):
                if old.get(name) == new.get(name) or name == LISTING and name not in old:  # a run of an earlier version
                    continue
                if name.split(".")[-1] in ignored:
                    changes[name] = old.get(name), new.get(name)
                elif name != LISTING:
                    refused[f"{part} {name}"] = old.get(name), new.get(name)
                elif not refused:
                    raise ConvMAEError(
                        f"the files of --data, or what they are labelled with, are others than when {self.path} was "
                        "begun, though as many; bring back the earlier names and labels, or choose another --out"
                    )
        if refused:
            self._check_program(before)
            (setting, (was, now)), *others = refused.items()
            also = f", and differs in {', '.join(name for name, _ in others)}" if others else ""
            raise ConvMAEError(
                f"{self.path} was begun with {setting} = {was} and is now given {now}{also}; resume with the same "
                f"settings (its command: {printable(str(before.get('command', 'unknown')))}) or choose another --out"
            )
        return changes

    def _check_program(self, record: Mapping[str, Any]) -> None:
        """Raises ConvMAEError where another program began the run, whose settings are others."""
        found = re.match(r"\S+ -m (\S+)", str(record.get("command", "")))
        begun = found[1] if found else _module_name()
        if begun != _module_name():
            raise ConvMAEError(
                f"{self.path} holds a run of {begun}, with which {_module_name()} cannot go on; choose another --out"
            )

    def description(self) -> dict[str, Any]:
        """The content of run.json."""
        content: dict[str, Any] = read_json(self.path / RUN_RECORD)
        return content

    def log(self, *, step: int, **metrics: float) -> None:
        """Appends a line to metrics.jsonl, after `step` updates, and its numbers to TensorBoard.

        A number that is not finite is null in the line.
        """
        line = {"step": step} | {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        for name, value in metrics.items():
            self._tensorboard(step).add_scalar(f"epoch/{name}", value, step)

    def log_update(self, step: int, **numbers: float) -> None:
        """The numbers of update `step` (from 1) for TensorBoard alone."""
        for name, value in numbers.items():
            self._tensorboard(step).add_scalar(f"update/{name}", value, step)

    def _tensorboard(self, step: int) -> "SummaryWriter":
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # what an interrupted run wrote beyond its last checkpoint is repeated
            self._writer = SummaryWriter(self.path / "tensorboard", purge_step=step)
        return self._writer

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl, but for a last one that a crash cut short."""
        file = self.path / "metrics.jsonl"
        try:
            lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.is_file() else []
            found = [json.loads(line) for line in lines]
        except (ValueError, RecursionError) as error:
            raise ConvMAEError(f"{file} has a line that is no JSON ({error}); take that line out") from None
        if not all(isinstance(line, dict) and isinstance(line.get("step"), int) for line in found):
            raise ConvMAEError(f'{file} has a line that is no object with a number "step"; take that line out')
        if not all(isinstance(value, int | float | None) for line in found for value in line.values()):
            raise ConvMAEError(f"{file} has a line with a value that is no number; take that line out")
        return found

    def forget_metrics_after(self, step: int) -> None:
        """Drops the lines of later steps, which a resumed run is about to repeat."""
        kept = [line for line in self.metrics() if line["step"] <= step]
        with atomic_file(self.path / "metrics.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def save(
        self,
        name: str,
        weights: dict[str, Tensor],
        record: CheckpointRecord,
        training_state: Mapping[str, Any] | None = None,
    ) -> None:
        """Replaces the checkpoint `name`, with what is needed to continue where `training_state` is given.

        Raises:
            ConvMAEError: the folder is gone.
            OSError: the disk is full, or refuses for another reason; what `name` was it still is.
        """
        if not self.path.is_dir():
            raise ConvMAEError(
                f"the run folder {self.path} is gone; a checkpoint without its run.json cannot be resumed"
            )
        if self._writer is not None:
            self._writer.flush()
        with atomic_directory(self.path / name, replace=True) as temporary:
            write_checkpoint_files(temporary, weights, record)
            if training_state is not None:
                _write_state(temporary / STATE_NAME, training_state)

    def load_last(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Weights and training state that `save` was given last; None where the run never got that far.

        Executes no code from the files.
        """
        last = existing_directory(self.path / "last")
        if last is None:
            epochs = len(self.metrics())
            if epochs > 1:  # the first may be written and not saved yet
                missing = self.path / "last"
                raise ConvMAEError(f"{missing} is gone after {epochs} epochs; bring it back or choose another --out")
            return None
        _, weights = read_checkpoint(last)
        state = load_without_code(last / STATE_NAME)
        if not isinstance(state, dict):
            raise ConvMAEError(f"{last / STATE_NAME} holds no state of a training; start again without --resume")
        return weights, state


def _write_state(path: Path, state: Mapping[str, Any]) -> None:
    try:
        with path.open("wb") as file:
            torch.save(dict(state), file)
    except RuntimeError as error:  # with what the disk said inside
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def precision_so_far(run: Path) -> Precision | None:
    """The precision that a run has had; None where there is no run that says so."""
    precision = _settings_so_far(run, "run").get("precision")
    return precision if precision in get_args(Precision) else None


def optimisation_so_far(run: Path) -> dict[str, Any]:
    """What a run has had of the numbers that may change as it goes on; nothing where there is no run that says so."""
    kinds = {"epochs": (int,), "micro_batch_size": (int,), "base_lr": (int, float), "clip_grad": (int, float, NoneType)}
    found = _settings_so_far(run, "optimisation")
    return {name: found[name] for name, known in kinds.items() if name in found and type(found[name]) in known}


def _settings_so_far(run: Path, part: str) -> dict[str, Any]:
    """A part of the config in run.json; what is wrong with that is said where the run is resumed."""
    try:
        found = read_json(run / RUN_RECORD)["config"][part]
    except (ConvMAEError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _module_name() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec is not None else Path(sys.argv[0]).stem


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"  # this one, run from a checkout


def _plain(value: Any) -> Any:
    """Dataclasses, paths and tuples as what JSON holds."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    return json.loads(json.dumps(value, default=str))


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        name: leaf
        for key, inner in value.items()
        for name, leaf in _flat(inner, f"{prefix}.{key}" if prefix else str(key)).items()
    }
