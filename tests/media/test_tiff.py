"""Absurd TIFF directories."""

import struct

import pytest

from tests.media.photo_files import refusal


def tiff_of_strips(count: int, offsets: int, counts: int) -> bytes:
    """A grey TIFF of 100 x 100 pixels whose strips or tiles are all empty."""
    entries = [(256, 3, 1, 100), (257, 3, 1, 100), (offsets, 3, count, 8), (counts, 3, count, 8)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    values = bytes(4 * count)
    return b"II*\0" + struct.pack("<I", 8 + len(values)) + values + directory + bytes(4)


@pytest.mark.parametrize("tags", [(273, 279), (324, 325)], ids=["strips", "tiles"])
def test_a_tiff_of_more_than_100000_strips_or_tiles_is_refused_for_their_number(tags: tuple[int, int]) -> None:
    assert refusal(tiff_of_strips(100_000, *tags)) == "image_truncated"
    assert refusal(tiff_of_strips(100_001, *tags)) == "image_corrupt"
