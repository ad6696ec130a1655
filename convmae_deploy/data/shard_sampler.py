"""Which samples of which shards an update of one process gets."""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

from convmae_deploy.data.determinism import StepSampler
from convmae_deploy.data.shards import NO_PHOTOS, Shards, read_shard
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.printing import printable

_BATCHES_AHEAD = 4  # read while the device computes
MAX_HELD_BYTES = 4 * 1024**3  # for encoded photos that wait to be drawn, should they be larger than photos are

Item = TypeVar("Item")


class ShardPhoto(NamedTuple):
    """An encoded photo and what its augmentation and mask depend on, beside the seed."""

    epoch: int
    shard: int  # place in the sorted list of shards
    member: int  # place among the samples of the shard
    lap: int  # how often its process had been through all its shards in this epoch
    data: bytes | None  # None: could not be read
    name: str = ""  # of the shard
    problem: str = ""  # why it could not be read


class ShardSampler:
    """Micro-batches of `ShardPhoto` of one process: shards in a new order every epoch, read from front to back.

    The order of shards is the epoch's permutation, dealt out to the processes in turn; samples come through a shuffle
    buffer. Every process makes the same number of updates: one that has been through all its shards begins with its
    first again (a new lap), and what is left of the others' is not used in that epoch.

    Starting in the middle of an epoch skips every shard of the process of which the updates before have read a part,
    into the buffer or further, and continues with the next one: what these updates had not yet used of it is not seen
    in that epoch. What follows is a function of (seed, epoch, update), but not what an uninterrupted run would see.
    """

    def __init__(self, shards: Shards, steps: StepSampler, *, shuffle_buffer: int = 1000) -> None:
        """
        Args:
            shards: of the whole data set.
            steps: over the samples of an epoch; gives seed, process, and the sizes and number of batches.
            shuffle_buffer: encoded photos, among which the next one is drawn; fewer where they are very large.

        Raises:
            ConvMAEError: a process would have no shard.
        """
        if len(shards.names) < steps.world_size:
            raise ConvMAEError(
                f"{steps.world_size} processes need at least as many shards; got {len(shards.names)}, split them"
            )
        self._shards, self._steps, self._shuffle_buffer = shards, steps, max(1, shuffle_buffer)

    def __iter__(self) -> Iterator[list[ShardPhoto]]:
        return _read_ahead(self._micro_batches(self._steps.epoch, self._steps.first_step))

    def own_shards(self, epoch: int) -> list[int]:
        """The shards of this process in the order of the epoch."""
        order = np.random.default_rng((self._steps.seed, epoch)).permutation(len(self._shards.names))
        return [int(shard) for shard in order[self._steps.rank :: self._steps.world_size]]

    def begun(self, epoch: int, step: int) -> tuple[int, int]:
        """How far this process has read for the updates before `step`: (laps completed, shards begun of the next).

        It counts the shards that have been read.

        Raises:
            ConvMAEError: none of this process's shards holds anything.
        """
        used = step * self._own_batch  # samples
        own = self.own_shards(epoch)
        lap = 0
        while used:
            before = 0  # samples in the shards before
            for begun, shard in enumerate(own):
                if before >= used + self._shuffle_buffer:
                    return lap, begun
                before += self._shards.samples(shard)
            self._check_any(before, own)
            used = max(0, used - before)
            lap += 1
        return lap, 0

    @property
    def _own_batch(self) -> int:
        return self._steps.batch_size // self._steps.world_size

    def _micro_batches(self, epoch: int, first_step: int) -> Iterator[list[ShardPhoto]]:
        parts = np.array_split(np.arange(self._own_batch), self._steps.micro_batches_per_step)
        photos = self._photos(epoch, first_step)
        for _ in range(first_step, self._steps.steps_per_epoch):
            for part in parts:
                yield list(itertools.islice(photos, len(part)))

    def _photos(self, epoch: int, first_step: int) -> Iterator[ShardPhoto]:
        """Without end."""
        first_lap, begun = self.begun(epoch, first_step)
        own = self.own_shards(epoch)
        for lap in itertools.count(first_lap):
            shards = own[begun:] if lap == first_lap else own
            generator = np.random.default_rng((self._steps.seed, epoch, self._steps.rank, lap, shards[0]))
            readable = 0
            for photo in _shuffled(self._lap(epoch, lap, shards), self._shuffle_buffer, generator):
                readable += photo.data is not None
                yield photo
            if shards == own:
                self._check_any(readable, own)

    def _lap(self, epoch: int, lap: int, shards: Sequence[int]) -> Iterator[ShardPhoto]:
        for shard in shards:
            for member, data in enumerate(read_shard(self._shards.names[shard])):
                readable, problem = (data, "") if isinstance(data, bytes) else (None, data)
                name = printable(self._shards.names[shard])
                yield ShardPhoto(epoch, shard, member, lap, data=readable, name=name, problem=problem)

    def _check_any(self, samples: int, own: Sequence[int]) -> None:
        if not samples:
            raise ConvMAEError(
                f"expected photos in {self._shards.names[own[0]]} and the {len(own) - 1} other shards of process "
                f"{self._steps.rank}, found none that can be read; {NO_PHOTOS}"
            )


def _shuffled(photos: Iterable[ShardPhoto], size: int, generator: np.random.Generator) -> Iterator[ShardPhoto]:
    """Each photo once; at most `size` of them and `MAX_HELD_BYTES` are held back."""
    held: list[ShardPhoto] = []
    room = MAX_HELD_BYTES
    for photo in photos:
        held.append(photo)
        room -= len(photo.data or b"")
        while len(held) > size or room < 0:
            drawn = held.pop()
            if held:
                place = int(generator.integers(len(held)))
                drawn, held[place] = held[place], drawn
            room += len(drawn.data or b"")
            yield drawn
    generator.shuffle(held)
    yield from held


def _read_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, fetched by a thread while the caller works on those before."""
    pool = ThreadPoolExecutor(1)
    try:
        ahead = deque(pool.submit(next, items, None) for _ in range(_BATCHES_AHEAD))
        while (item := ahead.popleft().result()) is not None:
            ahead.append(pool.submit(next, items, None))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)
