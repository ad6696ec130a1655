"""Order and randomness as pure functions of (seed, epoch, step), so that a resumed run repeats an uninterrupted one.

No generator state is ever saved: every step seeds the generators anew, and so does each sample (`data.photo_datasets`).
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from convmae_deploy.errors import ConvMAEError

# images (B, 3, H, W); what belongs to them, a tensor (labels, noise) or B dicts of tensors (boxes); unreadable photos
MicroBatch = tuple[Tensor, Any, int]


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Seeds Python, NumPy and torch (all devices) for one update on one process."""
    state = int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)
    torch.manual_seed(state)


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Micro-batches of (epoch, index) keys of one process: a new order every epoch, from any step on.

    Update k of an epoch uses entries [k * batch_size, (k + 1) * batch_size) of the epoch's permutation, dealt out to
    the processes in turn; a remainder smaller than a batch is left out. A batch larger than the dataset is the dataset.
    """

    def __init__(
        self, length: int, *, batch_size: int, micro_batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        """
        Args:
            length: samples in the dataset.
            batch_size: samples per update over all processes.
            micro_batch_size: most samples in one yielded list.
            seed: of the order.
            rank: this process.
            world_size: all processes.

        Raises:
            ConvMAEError: a process would have nothing to do.
        """
        if min(length, batch_size) < world_size:
            raise ConvMAEError(
                f"{world_size} processes need at least as many samples an update; "
                f"got {length} samples and batch_size {batch_size}"
            )
        self.length, self.micro_batch_size = length, micro_batch_size
        self.batch_size = min(batch_size, length) // world_size * world_size  # so that all have the same to do
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch = self.first_step = 0

    @property
    def steps_per_epoch(self) -> int:
        """Updates in an epoch."""
        return self.length // self.batch_size

    @property
    def micro_batches_per_step(self) -> int:
        """Lists yielded per update."""
        return -(-self.batch_size // self.world_size // self.micro_batch_size)

    def start(self, epoch: int, first_step: int = 0) -> None:
        """Chooses the epoch, and the update within it, that the next iteration begins with."""
        self.epoch, self.first_step = epoch, first_step

    def __len__(self) -> int:
        return (self.steps_per_epoch - self.first_step) * self.micro_batches_per_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        for step in range(self.first_step, self.steps_per_epoch):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            own = batch[self.rank :: self.world_size]
            for part in np.array_split(own, self.micro_batches_per_step):
                yield [(self.epoch, int(index)) for index in part]


class StepSource(ABC):
    """Where the updates of one process come from: the same number on every process, a pure function of the seed."""

    def __init__(self, steps: StepSampler) -> None:
        self.steps = steps

    @property
    def steps_per_epoch(self) -> int:
        """Updates in an epoch."""
        return self.steps.steps_per_epoch

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches in an update."""
        return self.steps.micro_batches_per_step

    def epoch(self, epoch: int, first_step: int) -> Iterator[list[MicroBatch]]:
        """The micro-batches of each update of an epoch (from 0), from update `first_step` of the epoch on."""
        self.steps.start(epoch, first_step)
        batches = self.micro_batches(epoch)
        for _ in range(first_step, self.steps_per_epoch):
            yield [next(batches) for _ in range(self.micro_batches_per_step)]

    @abstractmethod
    def micro_batches(self, epoch: int) -> Iterator[MicroBatch]:
        """One after the other, from where `steps` was started."""
