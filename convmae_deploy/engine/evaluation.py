"""One walk over what a model is validated on, whatever its task; exact on any number of processes."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from convmae_deploy.data.photo_datasets import collate_readable
from convmae_deploy.data.sources import Collate, loaded
from convmae_deploy.data.unreadable import Unreadable, UnreadableCount
from convmae_deploy.data.workers import leave_signals_to_parent
from convmae_deploy.errors import ConvMAEError

Predict = Callable[[Tensor, Any], Any]  # images of a batch on the CPU, and what belongs to them, to outputs


class Metric(Protocol):
    """What a task measures: it sees the batches of one process and answers for those of all."""

    def update(self, outputs: Any, extra: Any) -> None:
        """Counts what a model made of a batch; `extra` is what the dataset gives beside the images."""

    def compute(self, accelerator: Accelerator) -> dict[str, float]:
        """The scores over all processes, which must all ask for them.

        Raises:
            ConvMAEError: the annotations are such that there is nothing to score.
        """

    def summary(self, scores: Mapping[str, float]) -> str:
        """The scores that matter, in words."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What an evaluation found."""

    scores: dict[str, float]  # the metric's; percentages but for the loss
    summary: str  # those that matter, in words
    images: int  # or videos
    unreadable: int  # files that could not be decoded; not counted in the rest
    files: tuple[Unreadable, ...] = ()  # these, on all processes

    @property
    def numbers(self) -> dict[str, float]:
        """What metrics.jsonl has of it."""
        return {f"val_{name}": value for name, value in self.scores.items()} | {"unreadable_val": self.unreadable}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and afterwards in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.inference_mode()
def outputs_of(model: nn.Module, images: Tensor, accelerator: Accelerator) -> Any:
    """What a model makes of images, in the precision of the training.

    Args:
        model: in evaluation mode, on the accelerator's device.
        images: (B, 3, ...), normalised, on any device.
        accelerator: of the training.
    """
    with accelerator.autocast():
        return model(images.to(accelerator.device))


def share_statistics(model: nn.Module, accelerator: Accelerator) -> None:
    """Gives all processes the main one's running statistics of BatchNorm: without SyncBN they saw different photos."""
    if accelerator.num_processes > 1:
        broadcast(list(model.buffers()))


def unreadable_files(counts: Iterable[int], total: int) -> tuple[Unreadable, ...]:
    """The files of all processes that could not be decoded, as far as they are known; all processes must ask for them.

    Args:
        counts: of this process, those of batches (`UnreadableCount`).
        total: of all processes.
    """
    own = [file for count in counts if isinstance(count, UnreadableCount) for file in count.files]
    return tuple(gather_object(own)) if total else ()


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    photos: Dataset[Any],
    metric: Metric,
    accelerator: Accelerator,
    *,
    batch_size: int,
    workers: int,
    collate: Collate = collate_readable,
    predict: Predict | None = None,
) -> Validation:
    """Runs a model over all photos or videos; each process takes every world_size-th one.

    Args:
        model: left in the mode it was in.
        photos: the split; of one that cannot be decoded it gives None.
        metric: new, so that nothing is counted yet.
        accelerator: says which process this is and brings the counts together.
        batch_size: images or videos at once.
        workers: decoding processes.
        collate: samples to a batch, unreadable ones counted.
        predict: what gives the outputs of a batch; None: the model.

    Raises:
        ConvMAEError: no photo could be read, the annotations are wrong, or they say nothing of what is measured.
    """
    share_statistics(model, accelerator)
    total = len(photos)  # type: ignore[arg-type]
    own = Subset(photos, range(accelerator.process_index, total, accelerator.num_processes))
    loader = DataLoader(
        own, batch_size, num_workers=workers, collate_fn=collate, worker_init_fn=leave_signals_to_parent
    )
    counts = torch.zeros(2, dtype=torch.int64)  # readable, unreadable
    left_out: list[int] = []
    with evaluating(model):
        for images, extra, unreadable in loaded(loader):
            counts += torch.tensor([len(images), unreadable])
            left_out += [unreadable] if unreadable else []
            if len(images):
                outputs = predict(images, extra) if predict else outputs_of(model, images, accelerator)
                metric.update(outputs, extra)
    readable, unreadable = accelerator.reduce(counts.to(accelerator.device), "sum").tolist()
    files = unreadable_files(left_out, unreadable)
    if not readable:
        first = f", the first, {files[0].file}: {files[0].reason}" if files else ""
        raise ConvMAEError(f"none of the {total} validation files could be decoded{first}; check the data folder")
    scores = metric.compute(accelerator)
    return Validation(
        scores=scores, summary=metric.summary(scores), images=readable, unreadable=unreadable, files=files
    )
