"""JPEGs beyond the limits are decoded at half their size where that is allowed, and only then."""

import numpy as np
import pytest
from PIL import Image

from convmae_deploy.media.images import ImageLimits, decode_image, decoding_bytes
from tests.hostile.photos import jpeg_of_scans
from tests.media.photo_files import encode, insert_after_jpeg_start, jpeg_segment, orientation_exif, photo, refusal

LIMITS = ImageLimits(max_pixels=96 * 64, max_side=96, halve=True)


def test_up_to_the_limit_every_pixel_is_decoded() -> None:
    data = encode(photo(96, 64), "JPEG")
    decoded = decode_image(data, limits=LIMITS)
    assert not decoded.halved
    assert np.array_equal(np.asarray(decoded.image), np.asarray(decode_image(data).image))


@pytest.mark.parametrize("size", [(97, 63), (192, 128), (191, 127), (97, 10)])
def test_beyond_it_a_jpeg_comes_at_half_its_size(size: tuple[int, int]) -> None:
    data = encode(photo(*size), "JPEG", quality=95)
    reserved: list[int] = []
    decoded = decode_image(data, limits=LIMITS, reserve=reserved.append)
    half = -(-size[0] // 2), -(-size[1] // 2)
    assert decoded.halved and decoded.original_size == size and decoded.image.size == half
    assert reserved == [decoding_bytes("JPEG", -(-size[0] * size[1] // 4), len(data))]
    exact = np.asarray(photo(*size).resize(half, Image.Resampling.BOX), dtype=int)
    assert np.abs(np.asarray(decoded.image, dtype=int) - exact).mean() < 8


def test_a_halved_photo_is_turned_too() -> None:
    data = insert_after_jpeg_start(encode(photo(192, 128), "JPEG"), jpeg_segment(0xE1, orientation_exif(6)))
    decoded = decode_image(data, limits=LIMITS)
    assert (decoded.image.size, decoded.original_size, decoded.orientation) == ((64, 96), (192, 128), 6)


def two_scans(data: bytes) -> bytes:
    """A JPEG whose first scan is of one component, though an end marker stands in a comment right after it."""
    start = data.rindex(b"\xff\xda")
    first = jpeg_segment(0xDA, b"\1\1\0\0\x3f\0") + jpeg_segment(0xFE, b"\xff\xd9")
    return data[:start] + first + data[start:]


@pytest.mark.parametrize(
    "data",
    [
        encode(photo(193, 128), "JPEG"),
        encode(photo(192, 130), "JPEG"),
        encode(photo(192, 128), "PNG"),
        encode(photo(192, 128), "WEBP"),
        encode(photo(192, 128), "JPEG", progressive=True),
        jpeg_of_scans(12, (192, 128)),
        two_scans(encode(photo(192, 128), "JPEG")),
    ],
    ids=["a side", "pixels", "PNG", "WebP", "progressive", "scans", "a scan of one component"],
)
def test_what_is_too_large_even_so_or_cannot_be_halved_is_refused(data: bytes) -> None:
    assert refusal(data, limits=LIMITS) == "image_too_large"


def test_nothing_is_halved_where_that_is_not_allowed() -> None:
    data = encode(photo(192, 128), "JPEG")
    assert refusal(data, limits=ImageLimits(max_pixels=96 * 64)) == "image_too_large"


def test_a_photo_that_would_take_too_much_memory_is_halved_too() -> None:
    data = encode(photo(96, 64), "JPEG")
    whole = decoding_bytes("JPEG", 96 * 64, len(data))
    for most, halved in ((whole, False), (whole - 1, True)):
        assert decode_image(data, limits=ImageLimits(max_bytes=most, halve=True)).halved == halved
    assert not decode_image(data, limits=ImageLimits(max_bytes=whole - 1)).halved
