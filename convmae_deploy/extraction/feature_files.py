"""Features in files: safetensors, npz and parquet, with the names of the photos beside the numbers."""

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from convmae_deploy.errors import ConvMAEError, missing_extra
from convmae_deploy.files import atomic_file, check_can_create

Features = Mapping[str, NDArray[Any]]  # level -> (N, ...), float32 or float16

SUFFIXES = (".safetensors", ".npz", ".parquet")
FILES_KEY = "files"  # safetensors: metadata entry with a JSON list; npz: array of strings
FILE_COLUMN = "file"  # parquet

_SAFETENSORS_TYPES = {"float16": "F16", "float32": "F32"}
_ROW_GROUP_BYTES = 64_000_000  # what parquet's writer holds at once


def check_feature_path(path: Path) -> None:
    """Fails early where `write_features` could only fail late.

    Raises:
        ConvMAEError: the suffix is none of `SUFFIXES`, `path` is a folder or cannot be made, or pyarrow is missing.
    """
    if path.suffix not in SUFFIXES:
        raise ConvMAEError(f"features are written to {', '.join(SUFFIXES)}; got {path}, choose one of these suffixes")
    if path.is_dir():
        raise ConvMAEError(f"{path} is a folder; give the name of the file to write")
    check_can_create(path)
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise missing_extra("parquet", "pyarrow", "parquet") from None


def write_features(path: Path, names: Sequence[str], features: Features) -> None:
    """Writes features and the names of their photos, whole or not at all.

    Args:
        path: the file; its suffix decides the format.
        names: one name a photo, N of them.
        features: level -> (N, ...). Parquet holds a map as one list a photo, with its shape in the column's metadata.

    Raises:
        ConvMAEError: as `check_feature_path`, or when a level does not have N rows.
    """
    check_feature_path(path)
    for level, values in features.items():
        if len(values) != len(names):
            raise ConvMAEError(f"level {level!r} must have one row for each of {len(names)} names; got {len(values)}")
    # File names that are not UTF-8 reach Python as lone surrogates, which no format can hold.
    readable = [os.fsencode(name).decode("utf-8", "replace") for name in names]
    with atomic_file(path) as temporary:
        if path.suffix == ".parquet":
            _write_parquet(temporary, readable, features)
            return
        with temporary.open("wb") as file:
            if path.suffix == ".npz":
                np.savez(file, allow_pickle=False, **{FILES_KEY: np.array(readable, dtype=np.str_)}, **features)
            else:
                _write_safetensors(file, features, {FILES_KEY: json.dumps(readable)})


def encode_safetensors(features: Features, metadata: Mapping[str, str] | None = None) -> bytes:
    """The features as the content of a safetensors file."""
    buffer = io.BytesIO()
    _write_safetensors(buffer, features, metadata or {})
    return buffer.getvalue()


def encode_npz(features: Features) -> bytes:
    """The features as the content of an npz file (not compressed: noise-like numbers do not shrink)."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **features)
    return buffer.getvalue()


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
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for values in features.values():
        file.write(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).data)


def _write_parquet(path: Path, names: Sequence[str], features: Features) -> None:
    import pyarrow
    from pyarrow import parquet

    columns = [pyarrow.array(names, type=pyarrow.string())]
    fields = [pyarrow.field(FILE_COLUMN, pyarrow.string())]
    row_bytes = 1
    for level, values in features.items():
        numbers = int(np.prod(values.shape[1:]))
        column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.reshape(-1)), numbers)
        columns.append(column)
        fields.append(pyarrow.field(level, column.type, metadata={"shape": json.dumps(values.shape[1:])}))
        row_bytes += numbers * values.dtype.itemsize
    table = pyarrow.Table.from_arrays(columns, schema=pyarrow.schema(fields))
    parquet.write_table(table, path, row_group_size=max(1, _ROW_GROUP_BYTES // row_bytes), use_dictionary=False)
