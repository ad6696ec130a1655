"""From pieces of the input to batches of features, in order: files are read and decoded while the model runs.

Three things go on at once: a thread walks through the pieces, so that archives and stores are read ahead; a pool of
threads decodes and prepares; another runs the model. A batch never holds rows of two pieces, so that what a piece gives
depends on it alone. Memory does not depend on the number of files: one batch more than run waits at most, and contents
that wait to be decoded have a bound in bytes.
"""

import json
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import Empty, Queue
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convmae_deploy.bundle.preprocessing import Preprocessing
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.extraction import stores
from convmae_deploy.extraction.pieces import Item, Readable
from convmae_deploy.extraction.tiles import Place, Tiles
from convmae_deploy.media.images import DEFAULT_LIMITS
from convmae_deploy.media.photo_files import MAX_PHOTO_BYTES
from convmae_deploy.media.video_limits import VideoLimits
from convmae_deploy.tasks.base import NO_OPTIONS, ModelOutputError, PredictOptions, Prepared
from convmae_deploy.tasks.features import FeaturePredictor
from convmae_deploy.tasks.video import views_of

FeatureType = Literal["f32", "f16"]
DTYPES: dict[FeatureType, type[np.floating[Any]]] = {"f32": np.float32, "f16": np.float16}
_MAX_DEFAULT_BATCH = 32
_MAX_FAILURES = 1000  # that wait for the next batch
_PREPARED_BYTES = 1024 * 1024 * 1024  # of what waits for the model
_WAITING_BYTES = 512 * 1024 * 1024  # of contents that were read from archives and are not decoded yet


@dataclass(frozen=True)
class Failure:
    """A photo or video that cannot be read, and why."""

    name: str
    error: str

    def line(self) -> bytes:
        """As JSON on a line: `path` and `error`."""
        return json.dumps({"path": as_text(self.name), "error": self.error}).encode() + b"\n"


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Features of the next photos or videos of a piece, and those that could not be read since the last ones."""

    names: Sequence[str]  # N of them
    features: dict[str, NDArray[Any]]  # level -> (N, ...), float32 or float16
    failures: Sequence[Failure]
    places: Sequence[Place] = ()  # N of tiles; none of whole photos


def as_text(name: str) -> str:
    """A file's name as text that any format can hold: bytes that are no UTF-8 reach Python as lone surrogates."""
    return os.fsencode(name).decode("utf-8", "replace")


@dataclass(frozen=True)
class _Row:
    """What becomes a row of the output."""

    name: str
    prepared: Prepared
    place: Place | None  # of a tile


class _RowError(Exception):
    """Features of a row that cannot be given, whatever the other rows are."""


class FeatureStream:
    """A model that runs piece after piece; what it holds open is closed by `close`."""

    def __init__(
        self,
        predictor: FeaturePredictor,
        levels: Sequence[str],
        *,
        batch_size: int | None = None,
        dtype: FeatureType = "f32",
        options: PredictOptions = NO_OPTIONS,
        tiles: Tiles | None = None,
        lanes: int = 1,
        readers: int = 1,
    ) -> None:
        """
        Args:
            predictor: the model, which says whether the files are photos or videos.
            levels: names from `predictor.levels`.
            batch_size: photos or videos a run, at least 1; None: what the bundle allows, at most 32 rows.
            dtype: of the features.
            options: of each file: how often a video is looked at.
            tiles: that photos are cut into; None: they are resized and cropped as the bundle says.
            lanes: batches that the model runs side by side.
            readers: files that are read and prepared side by side.

        Raises:
            ConvMAEError: a level does not exist, an option does not fit, or the batch size is less than 1.
        """
        self.levels = tuple(dict.fromkeys(levels))
        self._options = replace(options, levels=self.levels)
        predictor.check_options(self._options)
        if batch_size is None:
            largest = min(predictor.manifest.input.max_batch, _MAX_DEFAULT_BATCH)
            batch_size = max(1, largest // views_of(options).total)
        if batch_size < 1:
            raise ConvMAEError(f"batch size must be at least 1; got {batch_size}")
        self._predictor, self._batch_size, self._dtype = predictor, batch_size, DTYPES[dtype]
        self._max_bytes = MAX_PHOTO_BYTES if predictor.MEDIUM == "photo" else VideoLimits().max_bytes
        self._lanes, self._tiles = lanes, tiles
        # Files that are read, decoded, or wait for the model: fewer where the model takes large ones.
        row_bytes = predictor.manifest.input.row_bytes * views_of(options).total
        if tiles is not None:  # of a photo that is cut all pixels are kept
            row_bytes = 3 * (options.max_pixels or DEFAULT_LIMITS.max_pixels)
        self._ahead = max(1, min(lanes * batch_size + readers, _PREPARED_BYTES // row_bytes))
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="convmae-read")
        self._model = ThreadPoolExecutor(lanes, thread_name_prefix="convmae-model")

    def close(self) -> None:
        """Waits for what is running, and ends the threads."""
        self._readers.shutdown(cancel_futures=True)
        self._model.shutdown(cancel_futures=True)

    def __enter__(self) -> "FeatureStream":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def run(self, pieces: Iterable[tuple[int, Readable]]) -> Iterator[tuple[int, Rows | None]]:
        """Features of all pieces, in order.

        Args:
            pieces: number and piece; they are asked for one after the other, ahead of the model.

        Yields:
            Number of the piece, and its next rows; None after its last ones.

        Raises:
            StoreError: a store does not answer.
            ModelError: the model does not run, or gives what it must not.
        """
        running: deque[tuple[int, Future[Rows] | None]] = deque()
        for number, batch in self._batches(pieces):
            running.append((number, batch if batch is None else self._model.submit(self._extract, *batch)))
            while sum(1 for _, future in running if future is not None) > self._lanes:
                yield _result(running.popleft())
        while running:
            yield _result(running.popleft())

    def _batches(
        self, pieces: Iterable[tuple[int, Readable]]
    ) -> Iterator[tuple[int, tuple[list[_Row], list[Failure]] | None]]:
        """What the model runs at once, of one piece; None after the last of a piece."""
        rows: list[_Row] = []
        failures: list[Failure] = []
        for number, item, future in self._read_ahead(pieces):
            if item is not None and future is not None:
                outcome = future.result()
                if isinstance(outcome, ConvMAEError):
                    failures.append(Failure(item.name, str(outcome)))
                else:
                    for row in self._rows_of(item.name, outcome):
                        rows.append(row)
                        if len(rows) == self._batch_size:
                            yield number, (rows, failures)
                            rows, failures = [], []
                del outcome
            if item is None and rows:
                yield number, (rows, failures)
                rows, failures = [], []
            elif len(failures) == _MAX_FAILURES or (item is None and failures):
                yield number, ([], failures)
                failures = []
            if item is None:
                yield number, None

    def _rows_of(self, name: str, prepared: Prepared | Image.Image) -> Iterator[_Row]:
        """One, or a photo's tiles, which are cut as they are needed."""
        if isinstance(prepared, Prepared):
            yield _Row(name, prepared, None)
            return
        assert self._tiles is not None and isinstance(self._predictor.manifest.preprocessing, Preprocessing)
        for place, tile in self._tiles.cut(prepared, self._predictor.manifest.preprocessing):
            yield _Row(name, tile, place)

    def _read_ahead(self, pieces: Iterable[tuple[int, Readable]]) -> Iterator[tuple[int, Item | None, Any]]:
        """Items, each with what is made of it; None after the last of a piece."""
        queue: Queue[tuple[int, Item | None, Any] | BaseException | None] = Queue(self._ahead)
        waiting, ended = _Bytes(_WAITING_BYTES), threading.Event()

        def walk() -> None:
            try:
                for number, piece in pieces:
                    for item in piece.items():
                        size = len(item.content) if isinstance(item.content, bytes) else 0
                        waiting.take(size)
                        future = self._readers.submit(self._prepare, item)
                        future.add_done_callback(partial(waiting.give_back, size))
                        # what is kept until the model has run it is the name, not the content
                        queue.put((number, replace(item, content=""), future))
                        if ended.is_set():
                            return
                    queue.put((number, None, None))
                queue.put(None)
            except BaseException as error:  # for the thread that waits
                queue.put(error)

        walker = threading.Thread(target=walk, name="convmae-walk", daemon=True)
        walker.start()
        try:
            while (entry := queue.get()) is not None:
                if isinstance(entry, BaseException):
                    raise entry
                yield entry
        finally:
            ended.set()
            while walker.is_alive():  # it may wait for a place in the queue
                with suppress(Empty):
                    queue.get(timeout=0.05)

    def _prepare(self, item: Item) -> Prepared | Image.Image | ConvMAEError:
        """What the model takes of a file; of one that is cut into tiles the photo itself, upright and whole."""
        content = item.content
        try:
            if isinstance(content, ConvMAEError):
                return content
            source: bytes | Path
            if isinstance(content, bytes):
                source = content
            elif stores.is_remote(content):
                source = stores.read(content, self._max_bytes)
            else:
                source = stores.local_path(content)
            if self._tiles is not None:
                return self._predictor.open_photo(source, self._options, whole=True)
            return self._predictor.prepare(source, self._options)
        except stores.StoreError:
            raise
        except ConvMAEError as error:
            return error
        except MemoryError:
            return ConvMAEError("there is not enough memory for it; free some, or make it smaller")

    def _extract(self, rows: list[_Row], failures: list[Failure]) -> Rows:
        """Runs a batch; where an output is not what it must be, its rows one by one, as one may spoil the others."""
        if not rows:
            return Rows(names=(), features={}, failures=failures)
        places = [row.place for row in rows if row.place is not None]
        try:
            features = self._run([row.prepared for row in rows])
            return Rows(names=[row.name for row in rows], features=features, failures=failures, places=places)
        except _RowError as error:
            if len(rows) == 1:
                where = f"the tile at x = {places[0][0]}, y = {places[0][1]}: " if places else ""
                return Rows(names=(), features={}, failures=[*failures, Failure(rows[0].name, f"{where}{error}")])
        parts = [self._extract([row], []) for row in rows]
        good = [part for part in parts if part.names]
        return Rows(
            names=[part.names[0] for part in good],
            places=[place for part in good for place in part.places],
            features={level: np.concatenate([part.features[level] for part in good]) for level in self.levels if good},
            failures=[*failures, *(failure for part in parts for failure in part.failures)],
        )

    def _run(self, prepared: list[Prepared]) -> dict[str, NDArray[Any]]:
        try:
            found = self._predictor.interpret(prepared, self._options)
        except ModelOutputError as error:
            raise _RowError(str(error)) from error
        features = {}
        for level in self.levels:
            with np.errstate(over="ignore"):
                features[level] = np.stack([each[level] for each in found]).astype(self._dtype, copy=False)
            if not np.isfinite(features[level]).all():
                raise _RowError(f"a feature of level {level} does not fit into f16; ask for f32")
        return features


def _result(entry: tuple[int, Future[Rows] | None]) -> tuple[int, Rows | None]:
    number, future = entry
    return number, None if future is None else future.result()


class _Bytes:
    """Bytes that may wait at once; a content that is larger than all of them waits alone."""

    def __init__(self, limit: int) -> None:
        self._limit, self._taken, self._changed = limit, 0, threading.Condition()

    def take(self, size: int) -> None:
        """Waits until there is room."""
        with self._changed:
            self._changed.wait_for(lambda: self._taken == 0 or self._taken + size <= self._limit)
            self._taken += size

    def give_back(self, size: int, _: object = None) -> None:
        """Makes room."""
        with self._changed:
            self._taken -= size
            self._changed.notify_all()
