"""Features of few files in one file: safetensors, npz or Parquet, with the names of the photos beside the numbers."""

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.extraction.origin import METADATA_KEY, Origin
from convmae_deploy.extraction.pieces import import_parquet
from convmae_deploy.extraction.shards import TableWriter
from convmae_deploy.extraction.stores import cannot_be_read
from convmae_deploy.extraction.stream import Rows, as_text
from convmae_deploy.extraction.tiles import COLUMNS
from convmae_deploy.files import atomic_file, check_can_create, open_regular

Features = Mapping[str, NDArray[Any]]  # level -> (N, ...), float32 or float16

SUFFIXES = (".safetensors", ".npz", ".parquet")
FILES_KEY = "files"  # safetensors: metadata entry with a JSON list; npz: array of strings

_MAX_TEXT_BYTES = 2**20  # of an origin
_MAX_HEADER_BYTES = 100_000_000  # that the safetensors library reads
_SAFETENSORS_TYPES = {"float16": "F16", "float32": "F32", "int32": "I32"}


def check_feature_path(path: Path) -> None:
    """Fails early where `write_features` could only fail late.

    Raises:
        ConvMAEError: the suffix is none of `SUFFIXES`, `path` is a folder or cannot be made, or pyarrow is missing.
    """
    if path.suffix not in SUFFIXES:
        raise ConvMAEError(
            f"features are written to {', '.join(SUFFIXES)}, or as shards to a folder; got {path}, choose one of these "
            "suffixes, or end the name of a folder with a slash"
        )
    if path.is_dir():
        raise ConvMAEError(f"{path} is a folder; give the name of the file to write")
    check_can_create(path)
    if path.suffix == ".parquet":
        import_parquet("features in Parquet")


def write_features(path: Path, origin: Origin, parts: Iterable[Rows]) -> int:
    """Writes features and the names of their photos, whole or not at all.

    Parquet is written while the rows come; the two other formats hold arrays, which are in memory until the end.

    Args:
        path: the file; its suffix decides the format.
        origin: of the features; each format holds it as JSON under "convmae_deploy".
        parts: the rows in order; what they raise leaves no file behind.

    Returns:
        How many rows there are.

    Raises:
        ConvMAEError: as `check_feature_path`, the arrays do not fit into memory, or there is no row.
    """
    check_feature_path(path)
    if path.suffix == ".parquet":
        return _write_parquet(path, origin, parts)
    names: list[str] = []
    columns = (*origin.levels, *(COLUMNS if origin.tiled else ()))
    found: dict[str, list[NDArray[Any]]] = {column: [] for column in columns}
    try:
        for rows in parts:
            names += map(as_text, rows.names)
            for level, values in rows.features.items():
                found[level].append(values)
            if rows.places:
                for column, places in zip(COLUMNS, np.array(rows.places, np.int32).T, strict=True):
                    found[column].append(places)
        if not names:
            raise _nothing(path)
        features = {column: np.concatenate(found.pop(column)) for column in columns}
        array = np.array(names, dtype=np.str_) if path.suffix == ".npz" else None  # each as wide as the longest
    except MemoryError:
        raise ConvMAEError(
            f"the features of {len(names)} files or more do not fit into memory; write shards to a folder, or ask for "
            "fewer levels"
        ) from None
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        about = {FILES_KEY: json.dumps(names), METADATA_KEY: origin.model_dump_json()}
        if path.suffix == ".npz":
            np.savez(
                file,
                allow_pickle=False,
                **{FILES_KEY: array, METADATA_KEY: np.array(about[METADATA_KEY])},  # type: ignore[arg-type]
                **features,
            )
        else:
            _write_safetensors(file, features, about)
    return len(names)


def origin_in_file(path: Path) -> Origin | None:
    """What the vectors in a file of one of `SUFFIXES` were made by; None where it does not say so.

    Raises:
        ConvMAEError: the file cannot be read.
    """
    try:
        with open_regular(path):  # neither a pipe nor a device
            pass
    except OSError as error:
        raise ConvMAEError(f"{path}: {cannot_be_read(error)}") from error
    try:
        if path.suffix == ".parquet":
            text = (import_parquet("a file in Parquet").read_schema(path).metadata or {})[METADATA_KEY.encode()]
        elif path.suffix == ".npz":
            text = _text_in_npz(path)
        else:
            with safe_open(path, "numpy") as file:
                text = (file.metadata() or {})[METADATA_KEY]
        return Origin.model_validate_json(text)
    except (Exception, MemoryError):  # damaged files of three formats raise anything
        return None


def _text_in_npz(path: Path) -> str:
    with ZipFile(path) as archive:
        member = archive.getinfo(f"{METADATA_KEY}.npy")
        if member.file_size > _MAX_TEXT_BYTES:
            raise ValueError("it is too long")
        with archive.open(member) as file:
            return str(np.load(io.BytesIO(file.read(_MAX_TEXT_BYTES)), allow_pickle=False))


def encode_safetensors(features: Features) -> bytes:
    """The features as the content of a safetensors file."""
    buffer = io.BytesIO()
    _write_safetensors(buffer, features, {})
    return buffer.getvalue()


def encode_npz(features: Features) -> bytes:
    """The features as the content of an npz file (not compressed: noise-like numbers do not shrink)."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **features)
    return buffer.getvalue()


def _write_parquet(path: Path, origin: Origin, parts: Iterable[Rows]) -> int:
    count = 0
    with atomic_file(path) as temporary:
        with TableWriter(temporary, origin) as table:
            for rows in parts:
                table.write(rows)
                count += len(rows.names)
        if not count:
            raise _nothing(path)
    return count


def _nothing(path: Path) -> ConvMAEError:
    return ConvMAEError(f"none of the files could be read, so {path} was not written; see above")


def _write_safetensors(file: IO[bytes], features: Features, metadata: Mapping[str, str]) -> None:
    """Length of the header (8 bytes), header (JSON), then the numbers of all tensors one after the other.

    The safetensors package copies every tensor before it writes; dense maps of many photos are too large for that.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for level, values in features.items():
        if values.dtype.name not in _SAFETENSORS_TYPES:
            raise ConvMAEError(f"features must be float16 or float32; level {level!r} is {values.dtype.name}")
        header[level] = {
            "dtype": _SAFETENSORS_TYPES[values.dtype.name],
            "shape": list(values.shape),
            "data_offsets": [position, position + values.nbytes],
        }
        position += values.nbytes
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned
    if len(text) > _MAX_HEADER_BYTES:
        raise ConvMAEError("there are too many names for a safetensors file, which nobody could open; write shards")
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for values in features.values():
        file.write(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).data)
