"""A job of feature extraction: from a plan of its sources to shards in a folder."""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Self

from convmae_deploy.backends.base import Device, check_threads
from convmae_deploy.backends.choice import settle
from convmae_deploy.backends.runtimes import AUTO, DEFAULT_RUNTIME, RUNTIMES, RuntimeOptions, start_backend
from convmae_deploy.bundle.manifest import Manifest
from convmae_deploy.bundle.preprocessing import Size
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.extraction.origin import Origin, feature_levels, origin_of
from convmae_deploy.extraction.outputs import Output, open_output
from convmae_deploy.extraction.pieces import Piece
from convmae_deploy.extraction.shards import Found, Job, Written, begin, write_shard
from convmae_deploy.extraction.sources import Plan
from convmae_deploy.extraction.stream import FeatureStream, FeatureType, Rows
from convmae_deploy.extraction.tiles import Tiles
from convmae_deploy.machine import available_cores
from convmae_deploy.tasks import load_bundle, task_of
from convmae_deploy.tasks.base import NO_OPTIONS, PredictOptions
from convmae_deploy.tasks.features import FeaturePredictor

DEFAULT_SHARD_ROWS = 10_000
_MAX_LANES = 4  # each has the memory of a batch
_DEVICE_LANES = 2  # one is computed while the next is sent; never run on a GPU yet
_MAX_READERS = 32  # more do not help before the disk or the model is the limit
_REMOTE_READERS = 16  # they wait for the store, and hold a photo each
_USUAL_TILES = 100  # of a photo, where nobody has counted them
_SHARD_BYTES = 256_000_000  # of a shard by default, at most


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model to be opened, here or in another process, and what to ask of it."""

    bundle: Path
    levels: tuple[str, ...] = ("pooled",)
    dtype: FeatureType = "f32"
    batch_size: int | None = None  # photos or videos a run; None: what the bundle allows, at most 32 rows
    options: PredictOptions = NO_OPTIONS  # of each file: how often a video is looked at
    size: Size | None = None  # (height, width) in pixels of the graph's input; None: the bundle's
    tiles: Tiles | None = None  # that photos are cut into, instead of being resized and cropped; None: none
    device: Device = "auto"
    threads: int | None = None  # of all runs of the model together; None: one a core
    cores: int | None = None  # that the model and the readers may use; None: all that this process has
    runtime: RuntimeOptions = DEFAULT_RUNTIME

    def settled(self) -> Self:
        """The same with the runtime that this machine's choice says, where it is `auto`; see `choice.settle`."""
        if self.runtime.runtime != AUTO:
            return self
        runtime, device = settle(load_bundle(self.bundle), self.runtime, self.device)
        return replace(self, runtime=runtime, device=device)

    def open(self) -> FeaturePredictor:
        """Starts the model.

        Raises:
            ConvMAEError: the bundle is not in order or has no features, or the runtime or the device does not start.
        """
        check_threads(self.threads)
        bundle = load_bundle(self.bundle)
        feature_levels(bundle)
        # ONNX Runtime's threads are a pool of the session, beside which each run has its own.
        threads = self._threads() if self._shares_threads() else self._threads() - self._lanes() + 1
        backend = start_backend(bundle, device=self.device, threads=threads, options=self.runtime)
        predictor = task_of(bundle.manifest)(bundle, backend, self.runtime)
        assert isinstance(predictor, FeaturePredictor)  # `feature_levels` says so
        if predictor.MEDIUM == "video" and (self.size is not None or self.tiles is not None):
            raise ConvMAEError(f"sizes and tiles are for models of photos; {bundle.manifest.name} is one of videos")
        return predictor.at(self._size(predictor.manifest))

    def _size(self, manifest: Manifest) -> Size:
        """(height, width) in pixels of the graph's input."""
        if self.tiles is not None:
            if self.size is not None:
                raise ConvMAEError("tiles are as large as the graph's input, so that a size says nothing; leave it out")
            return self.tiles.side, self.tiles.side
        return self.size or manifest.preprocessing.input_size

    def stream(self, predictor: FeaturePredictor, *, remote: bool) -> FeatureStream:
        """What runs it; see `FeatureStream`."""
        return FeatureStream(
            predictor,
            self.levels,
            batch_size=self.batch_size,
            dtype=self.dtype,
            options=self.options,
            tiles=self.tiles,
            lanes=self._lanes() if predictor.backend.providers[0].startswith("CPU") else _DEVICE_LANES,
            readers=_REMOTE_READERS if remote else self._readers(),
        )

    def _threads(self) -> int:
        return self.threads or self._cores()

    def _cores(self) -> int:
        return self.cores or available_cores()

    def _shares_threads(self) -> bool:
        return RUNTIMES[self.runtime.settled].shares_threads

    def _lanes(self) -> int:
        """Runs side by side on a CPU: several with few threads keep it busier than one with many."""
        return 2 if self._shares_threads() else min(_MAX_LANES, self._threads())

    def _readers(self) -> int:
        """Files that are prepared side by side: on the cores that the model leaves, where it leaves some."""
        cores = self._cores()
        return min(_MAX_READERS, cores - self._threads() if self._threads() < cores else cores)

    def origin(self) -> Origin:
        """What its vectors are made by."""
        levels = tuple(dict.fromkeys(self.levels))
        bundle = load_bundle(self.bundle)
        return origin_of(
            bundle.at(self._size(bundle.manifest)),
            levels,
            runtime=self.runtime,
            options=self.options,
            dtype=self.dtype,
            tiles=self.tiles,
        )


@dataclass(frozen=True)
class Part:
    """The shards that one of several processes makes: those whose index leaves `index` when divided by `count`."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Part":
        """A part as users write it, "3/64".

        Raises:
            ConvMAEError: it is none.
        """
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if found is None or not int(found[1]) < int(found[2]):
            raise ConvMAEError(f"a shard index must be from 0/N to N-1/N for N processes, such as 3/64; got {text!r}")
        return cls(int(found[1]), int(found[2]))


def shard_rows_of(origin: Origin) -> int:
    """How many photos or videos a shard has by default: fewer where rows are large, or each photo has many."""
    row_bytes = 4 * sum(math.prod(level.shape) for level in origin.levels.values())
    if origin.tiled:
        row_bytes *= _USUAL_TILES
    return max(1, min(DEFAULT_SHARD_ROWS, _SHARD_BYTES // row_bytes))


@dataclass(frozen=True, kw_only=True)
class ShardMaker:
    """Makes shards of pieces; it can be sent to another process."""

    model: ModelSpec
    out: str  # a folder, or its URI
    job: Job
    remote: bool  # whether files are read from an object store

    def open(self, predictor: FeaturePredictor | None = None) -> "OpenShardMaker":
        """Starts the model, unless it runs already."""
        stream = self.model.stream(predictor or self.model.open(), remote=self.remote)
        return OpenShardMaker(self, open_output(self.out), stream)


@dataclass(frozen=True)
class OpenShardMaker:
    """A `ShardMaker` whose model runs."""

    maker: ShardMaker
    output: Output
    stream: FeatureStream

    def run(
        self, pieces: Iterable[tuple[int, Piece]], on_rows: Callable[[Rows], None] = lambda rows: None
    ) -> Iterator[tuple[int, Written]]:
        """Makes shards one after the other.

        Args:
            pieces: index of the shard, and what it is made of.
            on_rows: called with rows before they are written; what it raises ends the work, and leaves no part of a
                shard behind.

        Yields:
            Index of a shard that is done, and what is in it.
        """

        def seen(group: Iterable[tuple[int, Rows | None]]) -> Iterator[Rows]:
            for _, rows in group:
                if rows is not None:
                    on_rows(rows)
                    yield rows

        begun: dict[int, Piece] = {}

        def kept() -> Iterator[tuple[int, Piece]]:
            for index, piece in pieces:
                begun[index] = piece
                yield index, piece

        for index, group in groupby(self.stream.run(kept()), key=itemgetter(0)):
            written = write_shard(self.output, self.maker.job, index, seen(group))
            yield index, replace(written, passed_over=begun.pop(index).passed_over)


def prepare_job(
    model: ModelSpec, plan: Plan, out: str, part: Part, *, retry_failures: bool = False
) -> tuple[ShardMaker, list[int], Found]:
    """Makes the output folder this job's, and finds out what is left to do.

    Args:
        model: that runs.
        plan: of the sources.
        out: the folder, or its URI.
        part: which shards to make.
        retry_failures: whether to make those again beside which there are failures.

    Returns:
        What makes them, the indices of those to make, and what of this part is there already.

    Raises:
        ConvMAEError: something else is in the folder, or it cannot be written to.
    """
    job = Job(
        origin=model.origin(),
        computed_by=f"{model.runtime.settled} on {model.device}",
        files=plan.rows(range(plan.shards)),
        sources_sha256=plan.digest(),
        shard_rows=plan.shard_rows,
        shards=plan.shards,
    )
    mine = range(part.index, plan.shards, part.count)
    found = begin(open_output(out), out, job, mine)
    kept = found.done - found.failures if retry_failures else found.done
    left = [index for index in mine if index not in kept]
    maker = ShardMaker(model=model, out=out, job=found.job, remote=plan.is_remote)
    return maker, left, Found(found.job, kept, found.failures & kept)
