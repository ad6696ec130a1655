"""JPEG files: what stands before the first scan, and how often a decoder goes through the picture."""

import struct
from collections.abc import Callable

import numpy as np
import pytest

from convmae_deploy.media.images import decode_image
from convmae_deploy.media.jpeg import read_jpeg
from tests.media.photo_files import (
    encode,
    insert_after_jpeg_start,
    jpeg_segment,
    orientation_exif,
    photo,
    pillow,
    refusal,
)

JPEG = encode(photo(), "JPEG", progressive=True)


def jpeg_of_many_scans(count: int, between: bytes = b"") -> bytes:
    """The progressive JPEG with its last scan repeated, and something before each repetition."""
    last = JPEG[JPEG.rindex(b"\xff\xda") : -2]
    return JPEG[:-2] + (between + last) * count + JPEG[-2:]


@pytest.mark.parametrize("between", [b"", jpeg_segment(0xFE, b"\xff\xd9"), b"\xff\xff"])
def test_a_jpeg_of_many_scans_is_refused_wherever_an_end_seems_to_be(between: bytes) -> None:
    assert decode_image(jpeg_of_many_scans(20, between)).image.size == (96, 64)
    assert refusal(jpeg_of_many_scans(101, between)) == "image_corrupt"


def test_what_looks_like_scans_after_the_end_of_a_jpeg_is_none() -> None:
    plain = decode_image(JPEG).image.tobytes()  # a phone appends a video, whose bytes are as good as random
    assert decode_image(JPEG + b"\xff\xda\0\0" * 200).image.tobytes() == plain


def test_what_looks_like_scans_inside_a_comment_is_none() -> None:
    assert decode_image(insert_after_jpeg_start(JPEG, jpeg_segment(0xFE, b"\xff\xda" * 200))).image.size == (96, 64)


def test_a_jpeg_of_tiny_segments_without_end_is_refused() -> None:
    assert refusal(jpeg_of_many_scans(101, jpeg_segment(0xFE, b"") * 200)) == "image_corrupt"


def claiming(data: bytes, width: int, height: int) -> bytes:
    """The progressive JPEG with another size in its header."""
    frame = data.index(b"\xff\xc2") + 5
    return data[:frame] + struct.pack(">HH", height, width) + data[frame + 4 :]


@pytest.mark.parametrize(("width", "height", "most"), [(96, 64, 100), (5000, 4000, 30), (8160, 6120, 18)])
def test_how_many_scans_are_decoded_depends_on_the_pixels(width: int, height: int, most: int) -> None:
    usual = JPEG.count(b"\xff\xda")
    accepted = claiming(jpeg_of_many_scans(most - usual), width, height)
    read_jpeg(accepted, lambda width, height: None)
    assert refusal(claiming(jpeg_of_many_scans(most - usual + 1), width, height)) == "image_corrupt"


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_what_encoders_write_has_fewer_scans_than_are_refused(mode: str) -> None:
    data = encode(photo().convert(mode), "JPEG", progressive=True, subsampling=0)
    read_jpeg(claiming(data, 8160, 6120), lambda width, height: None)
    assert data.count(b"\xff\xda") <= 18


@pytest.mark.parametrize(
    "segments",
    [
        jpeg_segment(0xE1, b"Exif\0\0" + bytes(8)) * 9000,
        jpeg_segment(0xE2, b"ICC_PROFILE\0\1\2" + bytes(60_000)) * 300,
        jpeg_segment(0xED, b"Photoshop 3.0\0" + b"8BIM" * 10_000) * 20,
        jpeg_segment(0xFE, b"a comment"),
    ],
    ids=["tiny parts of EXIF", "profile of 18 MB", "Photoshop", "comment"],
)
def test_metadata_never_reaches_the_decoder(segments: bytes) -> None:
    data = insert_after_jpeg_start(JPEG, segments)
    container = read_jpeg(data, lambda width, height: None)
    assert len(container.data) <= len(JPEG)
    assert np.array_equal(np.asarray(decode_image(data).image), pillow(JPEG))


@pytest.mark.parametrize(
    "segment",
    [jpeg_segment(0xFE, b""), jpeg_segment(0xE1, b"Exif\0\0"), jpeg_segment(0xDB, b"\0" + bytes(64))],
    ids=["comments", "EXIF", "tables"],
)
def test_a_header_of_endless_segments_is_refused(segment: bytes) -> None:
    assert refusal(insert_after_jpeg_start(JPEG, segment * 10_001)) == "image_corrupt"


def test_the_first_exif_block_says_which_way_is_up() -> None:
    blocks = jpeg_segment(0xE1, orientation_exif(6)) + jpeg_segment(0xE1, orientation_exif(3))
    decoded = decode_image(insert_after_jpeg_start(JPEG, blocks))
    assert decoded.orientation == 6 and decoded.image.size == (64, 96)


@pytest.mark.parametrize("transform", [0, 1])
def test_what_the_components_mean_is_still_said_to_the_decoder(transform: int) -> None:
    adobe = jpeg_segment(0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, transform))
    jfif = JPEG.index(b"\xff\xe0")
    data = insert_after_jpeg_start(JPEG[:jfif] + JPEG[jfif + 18 :], adobe)
    assert np.array_equal(np.asarray(decode_image(data).image), pillow(data))
    assert np.array_equal(pillow(data), pillow(JPEG)) == (transform == 1)


def junk_before_a_marker(data: bytes) -> bytes:
    table = data.index(b"\xff\xdb")
    return data[:table] + b"\0\1\2\xff" + data[table:]


def padding_before_a_marker(data: bytes) -> bytes:
    return data[:2] + b"\xff" * 5 + data[2:]


@pytest.mark.parametrize("spoil", [junk_before_a_marker, padding_before_a_marker])
def test_what_lies_between_segments_is_skipped_as_decoders_do(spoil: Callable[[bytes], bytes]) -> None:
    assert np.array_equal(np.asarray(decode_image(spoil(JPEG)).image), pillow(JPEG))


def test_the_size_that_counts_is_the_largest_that_is_said() -> None:
    frame = JPEG.index(b"\xff\xc2")
    twice = JPEG[:frame] + JPEG[frame : frame + 19] + JPEG[frame:]
    sizes: list[tuple[int, int]] = []
    read_jpeg(twice, lambda width, height: sizes.append((width, height)))
    assert sizes == [(96, 64)] * 2
    assert refusal(twice) == "image_corrupt"
