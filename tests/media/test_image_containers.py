"""Files whose outside is absurd, refused before anything is decoded; metadata that nobody reads costs nothing."""

import struct

import numpy as np
import pytest
from PIL import Image

from convmae_deploy.media.image_containers import read_bmp, read_gif, read_png
from convmae_deploy.media.images import decode_image
from tests.media.photo_files import encode, grey_png, packed_zeros, photo, pillow, png_chunk, png_header, refusal

BOMB = b"a\0\0" + packed_zeros(40_000_000)


def no_check(width: int, height: int) -> None:
    """Any size will do."""


def test_the_chunks_of_a_png_are_counted_while_they_are_walked() -> None:
    chunk = png_chunk(b"tEXt", b"a\0b")
    assert refusal(png_header(8, 8) + chunk * 100_001) == "image_corrupt"  # not truncated: its end is never looked for
    assert decode_image(grey_png(8, 8, *[chunk] * 1000)).image.size == (8, 8)


@pytest.mark.parametrize(
    "chunks",
    [
        [png_chunk(b"zTXt", BOMB)],
        [png_chunk(b"iCCP", BOMB)],
        [png_chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB[3:])],
        [png_chunk(b"iCCP", b"a\0\0" + packed_zeros(2_500_000))],
        [png_chunk(b"zTXt", b"a\0\0" + packed_zeros(1_500_000))] * 3,
        [png_chunk(b"acTL", struct.pack(">II", 3, 0)), *[png_chunk(b"fdAT", b"no number")] * 2],
    ],
    ids=["zTXt bomb", "iCCP bomb", "iTXt bomb", "large profile", "long texts", "broken animation"],
)
def test_what_a_png_holds_beside_its_pixels_is_neither_unpacked_nor_a_reason_to_refuse_it(chunks: list[bytes]) -> None:
    data = grey_png(8, 8, *chunks)
    assert decode_image(data).image.size == (8, 8)
    assert len(read_png(data, no_check).data) < 150  # that is all that Pillow sees


def test_a_png_keeps_its_palette_and_its_orientation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(photo().quantize(16), "PNG", exif=exif)
    decoded = decode_image(data)
    assert decoded.orientation == 6
    expected = photo().quantize(16).convert("RGB").transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(np.asarray(decoded.image), np.asarray(expected))


def test_of_a_gif_only_the_first_picture_is_decoded() -> None:
    frames = [photo(seed=seed).quantize(16) for seed in range(3)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:], comment=b"c" * 255, transparency=3)
    start = data.index(b"!")
    data = data[:start] + (b"!\xfe" + b"\xff" + bytes(255) + b"\0") * 1000 + data[start:]
    container = read_gif(data, no_check)
    assert container.frames == 3 and len(container.data) < len(data) // 3 and b"\xfe\xff\0" not in container.data
    assert np.array_equal(np.asarray(decode_image(data).image), np.asarray(frames[0].convert("RGB")))


def test_the_canvas_of_a_gif_is_that_of_its_first_picture_where_that_is_larger() -> None:
    data = bytearray(encode(photo(), "GIF"))
    struct.pack_into("<HH", data, 6, 20, 10)
    assert read_gif(bytes(data), no_check).pixels == 96 * 64
    assert decode_image(bytes(data)).image.size == (96, 64)


def test_a_gif_whose_screen_has_no_size_is_as_large_as_its_first_picture() -> None:
    for screen in ((0, 0), (0, 64), (96, 0)):
        data = bytearray(encode(photo().quantize(16), "GIF"))
        struct.pack_into("<HH", data, 6, *screen)
        assert decode_image(bytes(data)).original_size == (96, 64)
        assert np.array_equal(np.asarray(decode_image(bytes(data)).image), pillow(bytes(data)))
        struct.pack_into("<HH", data, data.index(b",") + 5, 0, 0)
        assert refusal(bytes(data)) == "image_corrupt"


def run_length_bmp(width: int, height: int) -> bytes:
    """A run-length coded BMP of one white pixel a row."""
    pixels = b"\x01\xff\0\0" * height + b"\0\x01"
    palette = b"".join(bytes((level, level, level, 0)) for level in range(256))
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(pixels), 0, 0, 54 + 1024) + header + palette + pixels


def test_a_run_length_bmp_of_many_pixels_is_refused_however_few_bytes_it_has() -> None:
    assert decode_image(run_length_bmp(16, 9)).image.getpixel((0, 0)) == (255, 255, 255)
    assert len(run_length_bmp(7000, 7000)) < 30_000
    assert refusal(run_length_bmp(7000, 7000)) == "unsupported_format"


@pytest.mark.parametrize(("side", "pixels"), [(-64, 96 * 64), (64, 96 * 64)])
def test_rows_of_a_bmp_may_go_either_way(side: int, pixels: int) -> None:
    data = bytearray(encode(photo(), "BMP"))
    struct.pack_into("<i", data, 22, side)
    assert read_bmp(bytes(data), no_check).pixels == pixels
    assert decode_image(bytes(data)).image.size == (96, 64)


def test_the_oldest_header_of_a_bmp_has_shorter_fields() -> None:
    header = struct.pack("<IHHHH", 12, 4, 2, 1, 24)
    data = b"BM" + struct.pack("<IHHI", 26 + 24, 0, 0, 26) + header + bytes(range(24))
    assert read_bmp(data + bytes(4), no_check).pixels == 8
    assert decode_image(data).image.size == (4, 2)
