"""Updates of files that are not there, for what only counts them."""

from collections.abc import Iterator

from convmae_deploy.data.determinism import MicroBatch, StepSampler, StepSource


class Updates(StepSource):
    """So many files in updates of `batch_size`."""

    def __init__(self, files: int, *, batch_size: int = 1024, micro_batch_size: int = 128, processes: int = 1) -> None:
        super().__init__(
            StepSampler(files, batch_size=batch_size, micro_batch_size=micro_batch_size, seed=0, world_size=processes)
        )

    def micro_batches(self, epoch: int) -> Iterator[MicroBatch]:
        """There are none."""
        raise NotImplementedError
