"""What an exported model is of, whatever its task."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from convmae_deploy.backends.base import InputArray, Outputs
from convmae_deploy.bundle.manifest import Manifest, Precision
from convmae_deploy.bundle.preprocessing import (
    AnyPreprocessing,
    ClipPreprocessing,
    InputType,
    Letterbox,
    Preprocessing,
    SlidingWindow,
)
from convmae_deploy.checkpoints.native import CheckpointKind, CheckpointRecord
from convmae_deploy.errors import ConvMAEError
from export.graphs.half_precision import HalfParts
from export.runtimes.runners import Runner
from export.verification.elementwise import TracedFile, Verification, verify
from export.verification.gates import GATES, compare
from export.verification.inputs import Batch
from export.verification.task_data import TaskData

Kind = TypeVar("Kind", Preprocessing, Letterbox, SlidingWindow, ClipPreprocessing)


ENCODER = HalfParts(half=("encoder",))


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
    half: HalfParts = ENCODER  # what of the model computes in half precision, where that is asked for
    probes: tuple[str, ...] = ()  # what the wrapper gives besides, for `verify` alone; not in the bundle
    max_batch: int = 32  # default of the largest batch
    # in pixels, of inputs of one graph for every height and width; None: there is no such graph of the task
    smallest_side: int | None = None

    def verify(self, file: TracedFile, batches: Iterable[Batch]) -> Verification:
        """A file against PyTorch: every output, element by element."""
        runner, gate = file.runner(self.outputs), GATES[file.precision]
        return verify(self.reference, runner, batches, gate, outputs=self.outputs, between=file.between)

    def check(self, expected: Outputs, found: Outputs, precision: Precision) -> str | None:
        """What is wrong with a batch's outputs of the finished bundle, in words: the first that differs by too much."""
        for name, values in found.items():
            problem = compare(expected[name], values, GATES[precision]).problem
            if problem is not None:
                return f"{name}: {problem}"
        return None


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


def with_input(task: ExportTask, dtype: InputType) -> ExportTask:
    """The same whose wrapper, which is changed, and whose reference take an input of another type."""
    spec = task.preprocessing.model_copy(update={"dtype": dtype})
    if dtype == "float32":
        return replace(task, preprocessing=spec)

    def normalise_first(module: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
        (images,) = arguments  # where the reference runs the wrapper they are normalised already
        return (normalised(images, spec),) if images.dtype == torch.uint8 else arguments

    def reference(levels: InputArray) -> Outputs:
        return task.reference(normalised(torch.from_numpy(levels), spec).numpy())

    task.wrapper.register_forward_pre_hook(normalise_first)
    return replace(task, preprocessing=spec, reference=reference)


def normalised(levels: Tensor, spec: AnyPreprocessing) -> Tensor:
    """Levels (B, 3, ...) as float32, scaled and normalised in the order of `convmae_deploy.tasks.preprocess`."""
    axes = (3, *(1 for _ in spec.input_axes))
    mean, std = (torch.tensor(values, dtype=torch.float32).reshape(axes) for values in (spec.mean, spec.std))
    return (levels.float() / 255 - mean) / std


def own_preprocessing(task: str, record: CheckpointRecord, standard: Kind) -> Kind:
    """The checkpoint's preprocessing, or where it has none the standard one of its task.

    Raises:
        ConvMAEError: it is that of another task.
    """
    found = record.preprocessing or standard
    if not isinstance(found, type(standard)):
        raise ConvMAEError(
            f"the preprocessing of a {task} model must be {type(standard).__name__}; train or import it again"
        )
    return found
