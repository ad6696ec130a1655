"""Where training programs take their updates from (`data.determinism.StepSource`)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset

from convmae_deploy.data.determinism import MicroBatch, StepSampler, StepSource
from convmae_deploy.data.photo_datasets import collate_readable
from convmae_deploy.data.workers import end_workers_at_exit, leave_signals_to_parent
from convmae_deploy.errors import ConvMAEError

Collate = Callable[[Sequence[Any]], MicroBatch]


class LoadedSource(StepSource):
    """Updates through a DataLoader.

    Of photos that any process can open by their index resuming repeats the uninterrupted run exactly; of shards it goes
    on with the next ones (`ShardSampler`).
    """

    def __init__(
        self,
        photos: Dataset[Any],
        steps: StepSampler,
        batches: Iterable[list[Any]] | None = None,
        *,
        workers: int,
        pin_memory: bool,
        collate: Collate = collate_readable,
    ) -> None:
        """
        Args:
            photos: what makes samples of keys.
            steps: of this process.
            batches: its micro-batches of keys; None: (epoch, index), as `steps` gives them.
            workers: decoding processes; 0 decodes in this one.
            pin_memory: whether batches are for a GPU.
            collate: samples to a micro-batch, unreadable ones (None) counted.
        """
        super().__init__(steps)
        self._loader: DataLoader[Any] = DataLoader(
            photos,
            batch_sampler=steps if batches is None else batches,
            num_workers=workers,
            collate_fn=collate,
            worker_init_fn=leave_signals_to_parent,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
        )

    def micro_batches(self, epoch: int) -> Iterator[MicroBatch]:
        """What the loader makes of the keys of the epoch that `steps` was started at."""
        return loaded(self._loader)


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
