"""Where training programs take their updates from (`data.determinism.StepSource`)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset

from convmae_deploy.data.determinism import MicroBatch, StepSampler
from convmae_deploy.data.photo_datasets import MaskedShardPhotos, collate_readable
from convmae_deploy.data.shard_sampler import ShardSampler
from convmae_deploy.data.shards import Shards
from convmae_deploy.data.workers import end_workers_at_exit, leave_signals_to_parent
from convmae_deploy.errors import ConvMAEError

Collate = Callable[[Sequence[Any]], MicroBatch]


class _LoadedSource:
    """Updates through a DataLoader whose batches are those of one process."""

    def __init__(
        self,
        photos: Dataset[Any],
        batches: Iterable[list[Any]],
        steps: StepSampler,
        *,
        workers: int,
        pin_memory: bool,
        collate: Collate = collate_readable,
    ) -> None:
        self._steps = steps
        self._loader: DataLoader[Any] = DataLoader(
            photos,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=collate,
            worker_init_fn=leave_signals_to_parent,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Updates in an epoch."""
        return self._steps.steps_per_epoch

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches in an update."""
        return self._steps.micro_batches_per_step

    def epoch(self, epoch: int, first_step: int) -> Iterator[list[MicroBatch]]:
        """The micro-batches of each update of an epoch, from update `first_step` on."""
        self._steps.start(epoch, first_step)
        batches = loaded(self._loader)
        for _ in range(first_step, self.steps_per_epoch):
            yield [next(batches) for _ in range(self.micro_batches_per_step)]


def loaded(loader: Iterable[Any]) -> Iterator[Any]:
    """What a DataLoader gives; where one of its processes refused, the sentence alone, without that process's trace.

    Raises:
        ConvMAEError: of the dataset.
    """
    end_workers_at_exit()  # one that refused lives as long as its exception
    try:
        yield from loader
    except ConvMAEError as error:
        lines = str(error).strip().splitlines()  # the last one is "module.Class: sentence" where there is a trace
        raise ConvMAEError(lines[-1].partition(": ")[2] if len(lines) > 1 else lines[0]) from None


class FolderSource(_LoadedSource):
    """Photos that any process can open by their index: resuming repeats the uninterrupted run exactly."""

    def __init__(
        self,
        photos: Dataset[Any],
        sampler: StepSampler,
        *,
        workers: int,
        pin_memory: bool,
        collate: Collate = collate_readable,
    ) -> None:
        """
        Args:
            photos: whose keys are (epoch, index), as `AugmentedPhotos`.
            sampler: of this process, over their indices.
            workers: decoding processes; 0 decodes in this one.
            pin_memory: whether batches are for a GPU.
            collate: samples to a micro-batch, unreadable ones (None) counted.
        """
        super().__init__(photos, sampler, sampler, workers=workers, pin_memory=pin_memory, collate=collate)


class ShardSource(_LoadedSource):
    """Photos out of tar shards: resuming in the middle of an epoch goes on with the next shards (`ShardSampler`)."""

    def __init__(
        self,
        shards: Shards,
        photos: MaskedShardPhotos,
        sampler: StepSampler,
        *,
        workers: int,
        pin_memory: bool,
        shuffle_buffer: int = 1000,
    ) -> None:
        """
        Args:
            shards: of the whole data set, the same on all processes.
            photos: what makes samples of them.
            sampler: of this process; its length is the samples of an epoch (`Shards.count`, or what the user says).
            workers: decoding processes; 0 decodes in this one.
            pin_memory: whether batches are for a GPU.
            shuffle_buffer: encoded photos kept in memory, among which the next one is drawn.

        Raises:
            ConvMAEError: a process would have no shard.
        """
        batches = ShardSampler(shards, sampler, shuffle_buffer=shuffle_buffer)
        super().__init__(photos, batches, sampler, workers=workers, pin_memory=pin_memory)
