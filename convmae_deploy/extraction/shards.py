"""Shards of features: Parquet files, each whole or absent, which say what they were made by.

A shard holds a row for each photo or video that could be read, or for each tile of a photo: `path`, of tiles `x` and
`y` in pixels of the upright photo, and a list of fixed size for each level. What could not be read stands beside it, in
`_failures-….jsonl`, which is written before the shard: a shard marks its piece of the work as done. Readers of the
folder pass over names that begin with an underscore.
"""

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.extraction.origin import METADATA_KEY, Origin
from convmae_deploy.extraction.outputs import Output
from convmae_deploy.extraction.pieces import import_parquet
from convmae_deploy.extraction.stream import Failure, Rows, as_text
from convmae_deploy.extraction.tiles import COLUMNS, Place
from convmae_deploy.files import shortened
from convmae_deploy.folders import PassedOver

PATH_COLUMN = "path"
JOB_NAME = "_job.json"
_JOB_KEY = b"convmae_deploy_job"  # of a shard's metadata
_CHECKING_THREADS = 8  # they wait for the store
_MAX_JOB_BYTES = 16 * 2**20
_SPOOLED_BYTES = 2**20
_GROUP_ROWS = 1024  # rows that a reader takes at once
_GROUP_BYTES = 64_000_000  # what the writer holds at once, at most


class Job(BaseModel):
    """What a folder of shards is made by. Two runs of one job give the same shards."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    origin: Origin
    computed_by: str  # the runtime, and where it was to run
    files: int | None  # in all sources; None: that shows when they are read
    sources_sha256: str  # of all names, and of how they are cut into shards
    shard_rows: int  # rows of a shard, at most
    shards: int

    def shard_name(self, index: int) -> str:
        """The file of a shard."""
        return f"features-{index:05}-of-{self.shards:05}.parquet"

    def failures_name(self, index: int) -> str:
        """The file beside a shard with what could not be read."""
        return f"_failures-{index:05}-of-{self.shards:05}.jsonl"

    def differences(self, other: "Job") -> list[str]:
        """What makes the other a different job, in words."""
        mine, others = _facts(self), _facts(other)
        return [
            f"{name} {shortened(mine[name])[1:-1]}, now {shortened(others[name])[1:-1]}"
            for name in mine
            if mine[name] != others[name]
        ]


def _facts(job: Job) -> dict[str, str]:
    origin = job.origin
    return {
        "bundle": origin.bundle,
        "graph": f"{origin.graph} of SHA-256 {origin.graph_sha256[:16]}…, computed in {origin.precision}",
        "runtime": job.computed_by,
        "levels": " ".join(origin.levels),
        "dtype": origin.dtype,
        "preprocessing": json.dumps(origin.preprocessing, sort_keys=True),
        "views": origin.pooling,
        "shard rows": str(job.shard_rows),
        "shards": str(job.shards),
        "the sources": f"{'some' if job.files is None else job.files} files of SHA-256 {job.sources_sha256[:16]}…",
    }


@dataclass(frozen=True)
class Found:
    """What a folder holds of a job already."""

    job: Job  # as it began: another release, or a bundle that was verified once more, goes on with it
    done: frozenset[int] = frozenset()  # indices of shards
    failures: frozenset[int] = frozenset()  # those beside which there are failures


def begin(output: Output, title: str, job: Job, indices: Iterable[int] | None = None) -> Found:
    """Makes a folder this job's, and finds out what of it is there.

    Args:
        output: the folder.
        title: what to call it.
        job: what is to be written.
        indices: of the shards to look for; None: all.

    Raises:
        ConvMAEError: something else is in the folder, or it cannot be written to.
    """
    output.tidy()
    names = output.names()
    if JOB_NAME not in names:
        # Temporary files are there where a process was killed before it wrote this one.
        strangers = sorted(name for name in names if not name.startswith("."))
        if strangers:
            raise ConvMAEError(
                f"{shortened(title)} holds no features but {shortened(strangers[0])}; choose a new or an empty folder"
            )
        # Of several processes that begin at once one makes it, and the others hold theirs against it.
        output.create(JOB_NAME, (job.model_dump_json(indent=2) + "\n").encode())
    begun = read_job(output, title)
    differences = begun.differences(job)
    if differences:
        raise ConvMAEError(
            f"{shortened(title)} holds another job's features ({'; '.join(differences)}); choose another folder, or "
            "repeat that job's settings to go on with it"
        )
    return _found(output, title, begun, indices)


def _found(output: Output, title: str, job: Job, indices: Iterable[int] | None) -> Found:
    """What a folder holds of its job; refuses tables of something else, which who reads the folder would read too."""
    names = output.names()
    own = {job.shard_name(index) for index in range(job.shards)}
    for name in sorted(names):
        if name.endswith(".parquet") and not name.startswith(("_", ".")) and name not in own:
            raise ConvMAEError(
                f"{shortened(title)} holds {shortened(name)}, which is no shard of its job; move it away"
            )
    wanted = range(job.shards) if indices is None else indices
    done = [index for index in wanted if job.shard_name(index) in names]
    with ThreadPoolExecutor(_CHECKING_THREADS) as pool:
        jobs = pool.map(lambda index: shard_job(output, job.shard_name(index)), done)
        for index, found in zip(done, jobs, strict=True):
            if found != job:
                name = f"{shortened(title)}/{job.shard_name(index)}"
                raise ConvMAEError(f"{name} is no shard of this job; remove it, and it is made again")
    return Found(job, frozenset(done), frozenset(index for index in done if job.failures_name(index) in names))


def folder_origin(output: Output, title: str) -> Origin:
    """What all vectors in a folder of shards were made by.

    Raises:
        ConvMAEError: it is none, or a file in it is of something else.
    """
    job = read_job(output, title)
    return _found(output, title, job, None).job.origin


def read_job(output: Output, title: str) -> Job:
    """The job of a folder of shards.

    Raises:
        ConvMAEError: it cannot be read.
    """
    try:
        return Job.model_validate_json(output.read(JOB_NAME, _MAX_JOB_BYTES))
    except ValidationError:
        raise ConvMAEError(
            f"{shortened(title)}/{JOB_NAME} is not what convmae features writes; choose another folder"
        ) from None


def shard_job(output: Output, name: str) -> Job | None:
    """The job that a shard is of; None where it is none that can be read."""
    parquet = import_parquet("shards of features")
    try:
        with output.opened(name) as file:
            text = (parquet.read_schema(file).metadata or {})[_JOB_KEY]
        return Job.model_validate_json(text)
    except (KeyError, OSError, ValueError):  # pyarrow's and pydantic's errors are ValueErrors
        return None


def schema_of(origin: Origin, job: Job | None = None) -> Any:
    """The Arrow schema of a table of features: `path`, of tiles `x` and `y`, and a list of fixed size for each level.

    Args:
        origin: of the rows.
        job: that they are a part of; None: of none.
    """
    import pyarrow

    number = {"f32": pyarrow.float32(), "f16": pyarrow.float16()}[origin.dtype]
    fields = [pyarrow.field(PATH_COLUMN, pyarrow.string(), nullable=False)]
    if origin.tiled:
        fields += [pyarrow.field(name, pyarrow.int32(), nullable=False) for name in COLUMNS]
    for name, level in origin.levels.items():
        kind = pyarrow.list_(pyarrow.field("element", number, nullable=False), int(np.prod(level.shape)))
        about = {"shape": json.dumps(level.shape), "fingerprint": level.fingerprint}
        fields.append(pyarrow.field(name, kind, nullable=False, metadata=about))
    of_a_job = {} if job is None else {_JOB_KEY: job.model_dump_json().encode()}
    return pyarrow.schema(fields, metadata={METADATA_KEY.encode(): origin.model_dump_json().encode(), **of_a_job})


@dataclass(frozen=True)
class Written:
    """What became of a piece of the work."""

    rows: int
    failures: int
    first: Failure | None  # of the failures
    passed_over: PassedOver = field(default_factory=PassedOver)  # what shows while a piece is read


class TableWriter:
    """Writes rows to a Parquet file, a group at a time."""

    def __init__(self, path: Path, origin: Origin, job: Job | None = None) -> None:
        """
        Args:
            path: the file to make.
            origin: of the rows.
            job: that they are a part of; None: of none.
        """
        parquet = import_parquet("features in Parquet")
        self._schema = schema_of(origin, job)
        numbers = sum(int(np.prod(level.shape)) for level in origin.levels.values())
        self._group = max(1, min(_GROUP_ROWS, _GROUP_BYTES // (4 * numbers)))
        self._levels = tuple(origin.levels)
        # The bytes of floating-point numbers pack better one place after the other; each value occurs once.
        self._writer = parquet.ParquetWriter(
            path,
            self._schema,
            compression="zstd",
            use_dictionary=False,
            use_byte_stream_split=[f"{level}.list.element" for level in self._levels],
        )
        self._names: list[str] = []
        self._places: list[Place] = []
        self._parts: dict[str, list[NDArray[Any]]] = {level: [] for level in self._levels}

    def write(self, rows: Rows) -> None:
        """Adds rows."""
        start = 0
        while start < len(rows.names):
            stop = min(len(rows.names), start + self._group - len(self._names))
            self._names += rows.names[start:stop]
            self._places += rows.places[start:stop]
            for level in self._levels:
                self._parts[level].append(rows.features[level][start:stop])
            if len(self._names) == self._group:
                self._flush()
            start = stop

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Writes what is left and ends the file; after an exception, which stays, the file is of no use."""
        if kind is not None:
            with suppress(Exception):  # a disk that is full is full here too
                self._writer.close()
            return
        if self._names:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        features = {level: np.concatenate(parts) for level, parts in self._parts.items()}
        self._writer.write_table(
            as_table(self._schema, self._names, features, self._places), row_group_size=self._group
        )
        self._names, self._places = [], []
        self._parts = {level: [] for level in self._levels}


def as_table(
    schema: Any, names: Sequence[str], features: Mapping[str, NDArray[Any]], places: Sequence[Place] = ()
) -> Any:
    """Rows as an Arrow table of `schema_of`."""
    import pyarrow

    columns = [pyarrow.array([as_text(name) for name in names], type=pyarrow.string())]
    if places:
        columns += [pyarrow.array(values, type=pyarrow.int32()) for values in zip(*places, strict=True)]
    for level in list(schema)[len(columns) :]:
        numbers = pyarrow.array(np.ascontiguousarray(features[level.name]).reshape(-1), type=level.type.value_type)
        columns.append(pyarrow.FixedSizeListArray.from_arrays(numbers, type=level.type))
    return pyarrow.Table.from_arrays(columns, schema=schema)


def write_shard(output: Output, job: Job, index: int, parts: Iterable[Rows]) -> Written:
    """Writes one shard, after the file with what could not be read.

    Args:
        output: the folder.
        job: that the shard is of.
        index: of the shard.
        parts: its rows in order; what they raise leaves no shard behind.
    """
    count, failed, first = 0, 0, None
    with tempfile.SpooledTemporaryFile(_SPOOLED_BYTES) as lines:
        with output.writing(job.shard_name(index)) as path:
            with TableWriter(path, job.origin, job) as table:
                for rows in parts:
                    table.write(rows)
                    count += len(rows.names)
                    for failure in rows.failures:
                        lines.write(failure.line())
                    failed += len(rows.failures)
                    first = first or next(iter(rows.failures), None)
            if failed:
                lines.seek(0)
                with output.writing(job.failures_name(index)) as beside, beside.open("wb") as file:
                    shutil.copyfileobj(lines, file)
            elif output.exists(job.failures_name(index)):  # of an earlier try
                output.remove(job.failures_name(index))
    return Written(rows=count, failures=failed, first=first)
