"""Photos in folders, tar and Parquet files for the tests of extraction."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convmae_deploy.extraction.pieces import Item, Readable
from tests.data.tar_shards import write_shard
from tests.media.photo_files import encode, photo


def encoded(seed: int) -> bytes:
    """A photo as the content of a file."""
    return encode(photo(seed=seed), "PNG")


def write_photos(folder: Path, count: int, *, bad: tuple[int, ...] = ()) -> list[Path]:
    """Photos 00.png, 01.png, ...; those at places in `bad` hold text."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{index:02}.png" for index in range(count)]
    for index, file in enumerate(files):
        file.write_bytes(b"no photo" if index in bad else encoded(index))
    return files


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """A tar file with these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_shard(path, members)


def write_parquet(path: Path, columns: Mapping[str, Any], *, group: int = 1000) -> Path:
    """A Parquet file with these columns, so many rows in a group."""
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(dict(columns)), path, row_group_size=group)
    return path


def contents(piece: Readable) -> list[tuple[str, Any]]:
    """Names and contents of a piece; errors as text."""
    return [(item.name, _shown(item)) for item in piece.items()]


def _shown(item: Item) -> Any:
    return str(item.content) if isinstance(item.content, Exception) else item.content
