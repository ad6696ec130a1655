"""Small tar shards of photos that the tests make for themselves."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 32  # pixels


def encoded_photo(value: int) -> bytes:
    """A grey PNG of one value, by which the tests know it again."""
    stream = io.BytesIO()
    Image.fromarray(np.full((SIDE, SIDE, 3), value, dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write_shard(path: Path, members: Mapping[str, bytes]) -> Path:
    """A tar file of the members in their order; returns its path."""
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return path


def make_shards(folder: Path, photos: Sequence[int]) -> list[Path]:
    """Shards 000.tar, 001.tar, ... with so many photos each, whose values count from 0 through all shards."""
    folder.mkdir(exist_ok=True)
    first = [sum(photos[:shard]) for shard in range(len(photos))]
    return [
        write_shard(
            folder / f"{shard:03}.tar",
            {f"{member}.png": encoded_photo(first[shard] + member) for member in range(count)},
        )
        for shard, count in enumerate(photos)
    ]
