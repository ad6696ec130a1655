"""Files whose outside is absurd, refused before anything is decoded."""

import pytest

from convmae_deploy.media.image_containers import check_jpeg_scans
from convmae_deploy.media.images import decode_image
from tests.media.photo_files import encode, grey_png, jpeg_segment, photo, png_chunk, png_header, refusal

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
    check_jpeg_scans(JPEG[:2] + jpeg_segment(0xFE, b"\xff\xda" * 200) + JPEG[2:])


def test_a_jpeg_of_tiny_segments_without_end_is_refused() -> None:
    assert refusal(jpeg_of_many_scans(101, jpeg_segment(0xFE, b"") * 200)) == "image_corrupt"


def test_the_chunks_of_a_png_are_counted_while_they_are_walked() -> None:
    chunk = png_chunk(b"tEXt", b"a\0b")
    assert refusal(png_header(8, 8) + chunk * 100_001) == "image_corrupt"  # not truncated: its end is never looked for
    assert refusal(png_header(8, 8) + png_chunk(b"zTXt", b"a\0\0") * 101) == "image_corrupt"
    assert decode_image(grey_png(8, 8, *[chunk] * 1000)).image.size == (8, 8)
