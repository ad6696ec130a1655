"""Features of many photo or video files: found, decoded, batched; bad files are kept apart from good ones."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.base import NO_OPTIONS, PredictOptions, Prepared
from convmae_deploy.tasks.features import FeaturePredictor

_MAX_READERS = 8  # threads that decode; more do not help before the disk or the model is the limit


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """Features of the photos or videos that could be read."""

    files: list[Path]  # the good ones, N of them, in the order asked for
    features: dict[str, NDArray[np.float32]]  # level -> (N, ...)
    failures: dict[Path, ConvMAEError]  # the bad ones and why


def extract_features(
    predictor: FeaturePredictor,
    files: Sequence[Path],
    levels: Sequence[str],
    *,
    batch_size: int,
    options: PredictOptions = NO_OPTIONS,
    on_file: Callable[[Path, ConvMAEError | None], bool] = lambda path, error: True,
) -> Extraction:
    """Runs files through the model, `batch_size` at a time; no more than the result and one batch is in memory.

    Args:
        predictor: the model, which says whether the files are photos or videos.
        files: the files.
        levels: names from `predictor.levels`.
        batch_size: files a run, at least 1.
        options: of each file: how often a video is looked at.
        on_file: called with every file and what is wrong with it (None: nothing); returning False ends the work early.

    Raises:
        ConvMAEError: a level does not exist, the batch size is less than 1, or the result does not fit into memory.
    """
    options = replace(options, levels=tuple(levels))
    predictor.check_options(options)
    if batch_size < 1:
        raise ConvMAEError(f"batch size must be at least 1; got {batch_size}")
    features = _allocate(predictor, len(files), levels)
    good: list[Path] = []
    failures: dict[Path, ConvMAEError] = {}
    with ThreadPoolExecutor(min(_MAX_READERS, os.cpu_count() or 1)) as pool:
        for start in range(0, len(files), batch_size):
            prepared: list[Prepared] = []
            first = len(good)
            for path, outcome in _prepare(
                pool, lambda path: predictor.prepare(path, options), files[start : start + batch_size]
            ):
                error = outcome if isinstance(outcome, ConvMAEError) else None
                if isinstance(outcome, ConvMAEError):
                    failures[path] = outcome
                else:
                    prepared.append(outcome)
                    good.append(path)
                if not on_file(path, error):
                    return Extraction(files=[], features={}, failures=failures)
            found = predictor.interpret(prepared, options) if prepared else []
            for row, values in enumerate(found, first):
                for level in levels:
                    features[level][row] = values[level]
    rows = {level: values[: len(good)] for level, values in features.items()}
    return Extraction(files=good, features=rows, failures=failures)


def _allocate(predictor: FeaturePredictor, count: int, levels: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    shapes = {level: (count, *predictor.manifest.outputs[level].shape) for level in levels}
    try:
        return {level: np.empty(shape, dtype=np.float32) for level, shape in shapes.items()}
    except MemoryError:
        gigabytes = sum(4 * float(np.prod(shape, dtype=float)) for shape in shapes.values()) / 1e9
        raise ConvMAEError(
            f"the features of {count} files need {gigabytes:.1f} GB of memory, which is not there; "
            "ask for fewer files or levels at a time"
        ) from None


def _prepare(
    pool: ThreadPoolExecutor, prepare: Callable[[Path], Prepared], files: Sequence[Path]
) -> Iterator[tuple[Path, Prepared | ConvMAEError]]:
    def attempt(path: Path) -> Prepared | ConvMAEError:
        try:
            return prepare(path)
        except ConvMAEError as error:
            return error

    return zip(files, pool.map(attempt, files), strict=True)
