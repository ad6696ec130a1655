"""What an exported model is of, whatever its task."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from convmae_deploy.backends.base import Outputs
from convmae_deploy.bundle.manifest import AnyPreprocessing, Manifest, Precision
from convmae_deploy.checkpoints.native import CheckpointKind, CheckpointRecord
from convmae_deploy.errors import ConvMAEError
from export.runtimes.runners import Runner
from export.verification.elementwise import TracedFile, Verification, verify
from export.verification.gates import GATES, compare
from export.verification.inputs import Batch
from export.verification.task_data import TaskData

Verifier = Callable[[TracedFile, Iterable[Batch]], Verification]
Check = Callable[[Outputs, Outputs, Precision], str | None]  # (expected, found) of a batch -> what is wrong, in words


@dataclass(frozen=True, kw_only=True)
class ExportTask:
    """A model ready to be exported and to be compared with."""

    task: str
    model: nn.Module  # in evaluation mode, as it was loaded
    wrapper: nn.Module  # gives the tensors of `outputs` as a flat tuple; its model is its attribute `model`
    outputs: tuple[str, ...]
    reference: Runner  # PyTorch, which is right
    record: CheckpointRecord
    preprocessing: AnyPreprocessing
    verify: Verifier
    check: Check  # the finished bundle's outputs against the reference's
    probes: tuple[str, ...] = ()  # what the wrapper gives besides, for `verify` alone; not in the bundle
    max_batch: int = 32  # default of the largest batch


@dataclass(frozen=True, kw_only=True)
class TaskExport:
    """How models of one task are exported: everything that needs torch or labelled data."""

    kinds: tuple[CheckpointKind, ...]  # kinds of checkpoints that it can be made from
    load: Callable[..., tuple[Any, CheckpointRecord]]  # (checkpoint, image_size=size or None)
    assemble: Callable[[Any, CheckpointRecord], ExportTask]  # takes what `load` gives
    read_data: Callable[[Path, Manifest, str, int | None], TaskData[Any]]  # see `read_task_data`
    unlabelled: Callable[[Sequence[Path], Manifest], TaskData[Any]]  # data from files alone
    calibrated: int  # photos or videos that int8 is calibrated on
    headless: bool = False  # whether the model has no classes


def verify_elementwise(
    reference: Runner, outputs: tuple[str, ...], file: TracedFile, batches: Iterable[Batch]
) -> Verification:
    """Every output of a file, element by element."""
    runner, gate = file.runner(outputs), GATES[file.precision]
    return verify(reference, runner, batches, gate, outputs=outputs, between=file.between)


def elementwise_problem(expected: Outputs, found: Outputs, precision: Precision) -> str | None:
    """The first output of `found` that differs by more than its precision may, and how."""
    for name, values in found.items():
        problem = compare(expected[name], values, GATES[precision]).problem
        if problem is not None:
            return f"{name}: {problem}"
    return None


def wrong_preprocessing(what: str, wanted: type[AnyPreprocessing]) -> ConvMAEError:
    """What to raise where a checkpoint's preprocessing is that of another task."""
    return ConvMAEError(f"the preprocessing of {what} must be {wanted.__name__}; train or import it again")
