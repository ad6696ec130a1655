"""Absurd TIFF directories."""

import struct
import zlib

import numpy as np
import pytest

from convmae_deploy.media.images import ImageError, decode_image
from tests.hostile import photos
from tests.media.photo_files import encode, photo, pillow, refusal


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


def tiff(size: tuple[int, int], compression: int, pixels: bytes, *more: tuple[int, int, int]) -> bytes:
    """A grey TIFF of 8 bits; the pixels stand at offset 8.

    Args:
        size: (width, height).
        compression: by TIFF's number.
        pixels: of its one strip or tile.
        more: (tag, type, value).
    """
    entries = [(256, 4, size[0]), (257, 4, size[1]), (258, 3, 8), (259, 3, compression), (262, 3, 1), *more]
    fields = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in sorted(entries))
    directory = 8 + len(pixels)
    return b"II*\0" + struct.pack("<I", directory) + pixels + struct.pack("<H", len(entries)) + fields + bytes(4)


DEFLATED = zlib.compress(bytes(100 * 100))
STRIP = ((278, 4, 100), (273, 4, 8), (279, 4, len(DEFLATED)))


@pytest.mark.parametrize(
    ("side", "code"), [(128, None), (2048, None), (2049, "image_corrupt"), (46_000, "image_corrupt")]
)
def test_a_tile_may_be_larger_than_the_picture_but_not_take_gigabytes(side: int, code: str | None) -> None:
    pixels = zlib.compress(bytes(side * min(side, 2048)))
    data = tiff((100, 100), 8, pixels, (322, 4, side), (323, 4, side), (324, 4, 8), (325, 4, len(pixels)))
    if code is None:
        reserved: list[int] = []
        assert decode_image(data, reserve=reserved.append).image.size == (100, 100)
        assert reserved[0] > 14 * side * side
    else:
        assert refusal(data) == code


@pytest.mark.parametrize(
    ("compression", "code"), [(8, None), (34925, "unsupported_format"), (50001, "unsupported_format")]
)
def test_compressions_that_nobody_sends_or_that_ask_for_gigabytes_are_not_supported(
    compression: int, code: str | None
) -> None:
    data = tiff((100, 100), compression, DEFLATED, *STRIP)
    if code is None:
        assert decode_image(data).image.size == (100, 100)
    else:
        assert refusal(data) == code


@pytest.mark.parametrize(("scans", "code"), [(10, "image_truncated"), (60, "image_corrupt")])
def test_the_scans_of_a_jpeg_in_a_tiff_count_as_those_of_a_jpeg_do(scans: int, code: str) -> None:
    pixels = b"\xff\xd8" + b"\xff\xda\0\2" * scans + b"\xff\xd9"
    strip = ((278, 4, 5000), (273, 4, 8), (279, 4, len(pixels)))
    with pytest.raises(ImageError) as caught:
        decode_image(tiff((5000, 4000), 7, pixels, *strip))
    assert ("JPEG scans" in str(caught.value)) == (code == "image_corrupt")


def test_directories_in_a_loop_are_counted_once() -> None:
    data = bytearray(encode(photo(), "TIFF"))
    (directory,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, directory)
    struct.pack_into("<I", data, directory + 2 + 12 * entries, directory)
    assert decode_image(bytes(data)).frames == 1


def without_lengths(data: bytes, *, zero: bool) -> bytes:
    """A little-endian TIFF of one page that does not say the lengths of its strips, or says 0 of the only one."""
    (directory,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, directory)
    entries = [data[directory + 2 + 12 * index :][:12] for index in range(count)]
    kept = [entry for entry in entries if entry[:2] != struct.pack("<H", 279)]
    if zero:
        kept = sorted([*kept, struct.pack("<HHII", 279, 4, 1, 0)], key=lambda entry: struct.unpack_from("<H", entry))
    start = len(data) + len(data) % 2
    body = struct.pack("<H", len(kept)) + b"".join(kept) + bytes(4)
    return data[:4] + struct.pack("<I", start) + data[8:] + bytes(len(data) % 2) + body


@pytest.mark.parametrize("zero", [False, True], ids=["missing", "zero"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "group4", "tiff_adobe_deflate", "packbits", "jpeg", "zstd"])
def test_strips_of_no_said_length_are_decoded_as_pillow_does(compression: str | None, zero: bool) -> None:
    image = photo().convert("1") if compression == "group4" else photo()
    data = without_lengths(encode(image, "TIFF", compression=compression), zero=zero)
    assert np.array_equal(np.asarray(decode_image(data).image), pillow(data))


def test_several_uncompressed_strips_need_no_lengths_but_must_be_whole() -> None:
    pixels = bytes(range(100)) * 100
    offsets = (273, 4, (8, 2508, 5008, 7508))
    data = photos.tiff(photos.grey_tiff((100, 100), 1, (278, 3, (25,)), offsets), pixels)
    assert np.array_equal(np.asarray(decode_image(data).image), pillow(data))
    for size, places in (((100, 101), offsets), ((100, 100), (273, 4, (8, 2508, 5008, 900_000)))):
        assert refusal(photos.tiff(photos.grey_tiff(size, 1, (278, 3, (25,)), places), pixels)) == "image_truncated"


def test_several_compressed_strips_need_their_lengths() -> None:
    data = without_lengths(encode(photo(), "TIFF", compression="tiff_lzw", strip_size=500), zero=False)
    assert refusal(data) == "image_corrupt"
