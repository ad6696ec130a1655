import random
import struct
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.ImageFile import ImageFile

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.media import images
from convmae_deploy.media.images import ImageError, ImageLimits, decode_image, decoding_bytes
from tests.media.photo_files import (
    encode,
    grey_png,
    insert_after_jpeg_start,
    jpeg_segment,
    orientation_exif,
    photo,
    pillow,
    png_chunk,
    png_header,
    refusal,
)

JPEG = encode(photo(), "JPEG")
PNG = encode(photo(), "PNG")
ALL_FORMATS = {
    "JPEG": JPEG,
    "PNG": PNG,
    "WEBP": encode(photo(), "WEBP"),
    "BMP": encode(photo(), "BMP"),
    "GIF": encode(photo(), "GIF"),
    "TIFF": encode(photo(), "TIFF"),
}


@pytest.mark.parametrize("name", ALL_FORMATS)
def test_each_accepted_format_decodes_to_the_pixels_that_pillow_gives(name: str) -> None:
    decoded = decode_image(ALL_FORMATS[name])
    assert (decoded.format, decoded.frames, decoded.orientation) == (name, 1, 1)
    assert decoded.image.mode == "RGB"
    assert decoded.original_size == decoded.image.size == (96, 64)
    assert np.array_equal(np.asarray(decoded.image), pillow(ALL_FORMATS[name]))


def test_no_bytes_are_an_empty_body() -> None:
    assert refusal(b"") == "empty_body"


@pytest.mark.parametrize(
    "data",
    [
        b"hello, this is a text file",
        b"BMW makes cars",
        "prix à débattre".encode(),
        bytes(1000),
        random.Random(0).randbytes(1000),
        b"\xff",
        b"<html><body>404</body></html>",
        b"PK\x03\x04" + bytes(50),
    ],
)
def test_bytes_of_no_image_format_are_not_an_image(data: bytes) -> None:
    assert refusal(data) == "not_an_image"


@pytest.mark.parametrize(
    "magic",
    [
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xe0",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"RIFF\x00\x01\x00\x00WEBPVP8 ",
        b"BM",
        b"II*\x00\x08\x00\x00\x00",
    ],
)
@pytest.mark.parametrize("garbage", [b"garbage " * 40, random.Random(1).randbytes(500), b"\xff" * 300])
def test_a_valid_beginning_with_garbage_after_it_is_refused(magic: bytes, garbage: bytes) -> None:
    assert refusal(magic + garbage) in ("image_corrupt", "image_truncated", "image_too_large", "aspect_ratio") or (
        magic == b"BM" and refusal(magic + garbage) == "not_an_image"
    )


@pytest.mark.parametrize("magic", [b"\xff\xd8\xff", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"])
@pytest.mark.parametrize("garbage", [b"garbage " * 40, random.Random(1).randbytes(500)])
def test_a_jpeg_or_png_beginning_with_garbage_after_it_is_corrupt(magic: bytes, garbage: bytes) -> None:
    assert refusal(magic + garbage) == "image_corrupt"


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_anywhere_is_truncated(progressive: bool) -> None:
    data = encode(photo(), "JPEG", progressive=progressive, exif=orientation_exif(6), icc_profile=bytes(300))
    for length in [*range(3, 700), len(data) // 2, *range(len(data) - 20, len(data))]:
        assert refusal(data[:length]) == "image_truncated", length


def test_a_jpeg_of_a_header_alone_is_truncated() -> None:
    scan = JPEG.index(b"\xff\xda")
    assert refusal(JPEG[:scan]) == "image_truncated"
    assert refusal(JPEG[: scan + 14]) == "image_truncated"


@pytest.mark.parametrize("name", ["PNG", "WEBP", "BMP", "TIFF"])
def test_other_formats_cut_anywhere_are_truncated(name: str) -> None:
    data = ALL_FORMATS[name]
    for length in [*range(16, 200, 7), len(data) // 2, len(data) - 5, len(data) - 1]:
        assert refusal(data[:length]) == "image_truncated", length


def test_a_gif_may_lack_its_trailer_but_not_its_first_frame() -> None:
    data = ALL_FORMATS["GIF"]
    decode_image(data[:-1])
    for length in (13, 800, len(data) // 2, len(data) - 2):
        assert refusal(data[:length]) == "image_truncated", length


def test_an_uncompressed_tiff_with_too_few_pixels_never_shows_other_bytes_of_the_file() -> None:
    data = bytearray(ALL_FORMATS["TIFF"])
    count = data.index(struct.pack("<HHII", 279, 4, 1, 96 * 64 * 3))
    struct.pack_into("<I", data, count + 8, 100)
    assert refusal(bytes(data)) == "image_truncated"


@pytest.mark.parametrize("name", ALL_FORMATS)
def test_damaged_files_give_pixels_or_a_reason_but_never_a_warning(name: str) -> None:
    data, chance = ALL_FORMATS[name], random.Random(2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(60):
            damaged = bytearray(data)
            for _ in range(chance.choice((1, 4))):
                damaged[chance.choice((chance.randrange(100), chance.randrange(len(data))))] = chance.randrange(256)
            try:
                assert decode_image(bytes(damaged)).image.mode == "RGB"
            except ImageError as error:
                assert str(error)
    assert not caught


def test_a_png_with_a_wrong_checksum_is_corrupt() -> None:
    for kind in (b"IHDR", b"IDAT", b"IEND"):
        damaged = bytearray(PNG)
        length = struct.unpack(">I", PNG[PNG.index(kind) - 4 : PNG.index(kind)])[0]
        damaged[PNG.index(kind) + 4 + length] ^= 1
        assert refusal(bytes(damaged)) == "image_corrupt", kind


def test_a_png_with_valid_chunks_but_too_little_data_is_truncated() -> None:
    rows = zlib.compress(bytes(65 * 10))
    data = png_header(64, 64) + png_chunk(b"IDAT", rows[:-8]) + png_chunk(b"IEND", b"")
    assert refusal(data) in ("image_truncated", "image_corrupt")


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_a_png_without_extent_is_corrupt(size: tuple[int, int]) -> None:
    assert refusal(png_header(*size) + png_chunk(b"IEND", b"")) == "image_corrupt"


def test_a_png_of_absurdly_many_chunks_is_corrupt() -> None:
    assert refusal(grey_png(8, 8, *[png_chunk(b"tIME", b"")] * 100_001)) == "image_corrupt"


@pytest.mark.parametrize("frames", [0, 0x90000000])
def test_a_png_with_an_invalid_animation_header_is_corrupt(frames: int) -> None:
    assert refusal(grey_png(8, 8, png_chunk(b"acTL", struct.pack(">II", frames, 0)))) == "image_corrupt"


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"MM\0*\0\0\0\x08\xff\xff" + bytes(20),
        b"XX" + bytes(30),
        orientation_exif(6)[6:-7],
    ],
)
def test_broken_exif_is_ignored(exif: bytes) -> None:
    data = insert_after_jpeg_start(JPEG, jpeg_segment(0xE1, b"Exif\0\0" + exif))
    # Without JFIF's resolution Pillow would look for one in the EXIF data, and warn.
    data = data.replace(b"JFIF", b"JFIX")
    decoded = decode_image(data)
    assert np.array_equal(np.asarray(decoded.image), pillow(JPEG))


def test_an_exif_text_chunk_of_a_png_is_ignored() -> None:
    decode_image(grey_png(8, 8, png_chunk(b"iTXt", b"exif\0\0\0\0\0hello"), png_chunk(b"tEXt", b"transparency\0x")))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (png_header(60_000, 60_000), "image_too_large"),
        (png_header(9_000, 9_000) + b"tiny", "image_too_large"),
        (png_header(60_000, 1), "image_too_large"),
        (png_header(1, 20_000), "image_too_large"),
        (png_header(2, 20_000), "image_too_large"),
        (png_header(2, 16_000), "aspect_ratio"),
        (png_header(16_000, 100), "aspect_ratio"),
        (b"GIF89a" + struct.pack("<HHBBB", 60_000, 60_000, 0, 0, 0), "image_too_large"),
        (b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0, 0, 0) + struct.pack("<BHHHHB", 0x2C, 0, 0, 65_000, 9_000, 0), None),
        (b"RIFF\xff\xff\xff\x00WEBPVP8X" + struct.pack("<II", 10, 0) + b"\xff\x3f\x00\xff\x3f\x00", "image_too_large"),
    ],
)
def test_too_large_images_are_refused_by_their_header_alone(data: bytes, code: str | None) -> None:
    assert refusal(data) == (code or "image_too_large")


def test_a_jpeg_and_a_bmp_and_a_tiff_that_claim_too_much_are_too_large() -> None:
    frame = JPEG.index(b"\xff\xc0")
    jpeg = JPEG[: frame + 5] + struct.pack(">HH", 60_000, 60_000) + JPEG[frame + 9 :]
    bmp = bytearray(ALL_FORMATS["BMP"])
    struct.pack_into("<ii", bmp, 18, 60_000, 60_000)
    tiff = bytearray(ALL_FORMATS["TIFF"])
    width = tiff.index(struct.pack("<HH", 256, 4))
    struct.pack_into("<I", tiff, width + 8, 60_000)
    for data in (jpeg, bytes(bmp), bytes(tiff)):
        assert refusal(data) == "image_too_large"


def test_a_png_of_100_megapixels_in_97_kilobytes_is_refused_from_its_header_without_memory_for_it() -> None:
    # The data is never looked at, else it would be corrupt: it is no compressed data.
    data = png_header(10_000, 10_000) + png_chunk(b"IDAT", bytes(97_000)) + png_chunk(b"IEND", b"")
    tracemalloc.start()
    assert refusal(data) == "image_too_large"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.slow
def test_an_image_beyond_pillows_own_limits_gives_neither_warning_nor_error() -> None:
    for pixels in (80_000_000, 400_000_000):
        limits = ImageLimits(max_pixels=pixels, max_side=50_000)
        height = pixels // 10_000
        assert refusal(png_header(9_999, height) + png_chunk(b"IEND", b""), limits=limits) != "image_too_large"
        assert refusal(png_header(10_001, height) + png_chunk(b"IEND", b""), limits=limits) == "image_too_large"
    data = encode(Image.new("1", (19_000, 10_000)), "PNG")
    assert decode_image(data, limits=limits).image.size == (19_000, 10_000)


def test_limits_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConvMAEError, match="formats must be some of"):
        ImageLimits(formats=("JPEG", "SVG"))
    with pytest.raises(ConvMAEError, match="at least 1"):
        ImageLimits(max_side=0)


def test_an_image_of_one_pixel_decodes() -> None:
    assert decode_image(encode(photo(1, 1), "PNG")).image.size == (1, 1)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<svg/>', "SVG"),
        (b"%PDF-1.7\n", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "EPS"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic" + bytes(8), "HEIC"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif" + bytes(8), "AVIF"),
        (b"\0\0\0\x18ftypisom\0\0\0\0mp41", "MP4"),
        (b"8BPS\0\1" + bytes(20), "PSD"),
        (encode(photo(16, 16), "ICO"), "ICO"),
        (encode(photo(), "DDS"), "DDS"),
        (b"SIMPLE  =                    T" + b" " * 50, "FITS"),
        (encode(photo(), "JPEG2000"), "JPEG 2000"),
        (encode(photo(), "AVIF"), "AVIF"),
        (encode(photo(), "PPM"), "PNM"),
        (encode(photo(), "QOI"), "QOI"),
    ],
)
def test_other_image_formats_are_unsupported_and_the_accepted_ones_are_named(data: bytes, name: str) -> None:
    with pytest.raises(ImageError, match="JPEG, PNG, WEBP, BMP, GIF, TIFF") as caught:
        decode_image(data)
    assert caught.value.code == "unsupported_format"
    assert name in str(caught.value)


def test_avif_decodes_where_it_is_allowed_and_jpeg_does_not_where_it_is_not() -> None:
    data = encode(photo(), "AVIF")
    assert np.array_equal(np.asarray(decode_image(data, limits=ImageLimits(formats=("AVIF",))).image), pillow(data))
    assert refusal(JPEG, limits=ImageLimits(formats=("PNG",))) == "unsupported_format"


@pytest.mark.parametrize("data", [JPEG + b"PK\x03\x04" + bytes(200), ALL_FORMATS["GIF"] + b"<script>alert(1)</script>"])
def test_an_image_with_another_file_appended_is_an_image(data: bytes) -> None:
    assert decode_image(data).image.size == (96, 64)


def test_a_large_run_length_bmp_is_refused_because_it_is_slow() -> None:
    bmp = bytearray(encode(photo(1000, 1100).convert("L"), "BMP"))
    struct.pack_into("<I", bmp, 30, 1)
    assert refusal(bytes(bmp)) == "unsupported_format"


@pytest.mark.parametrize("name", ALL_FORMATS)
def test_what_decoding_may_take_is_said_before_it_begins(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reserved: list[int] = []
    decode_image(ALL_FORMATS[name], reserve=reserved.append)
    assert reserved == [decoding_bytes(name, 96 * 64, len(ALL_FORMATS[name]))]

    def too_much(size: int) -> None:
        raise ImageError("image_too_large", "no room")

    monkeypatch.setattr(ImageFile, "load", None)
    monkeypatch.setitem(images._PILLOW_FILES, "WEBP", None)  # which allocates when it is made
    with pytest.raises(ImageError, match="no room"):
        decode_image(ALL_FORMATS[name], reserve=too_much)


def test_a_decoded_photo_holds_neither_its_file_nor_its_decoder() -> None:
    for data in (encode(photo(), "WEBP"), encode(photo().convert("RGBA"), "WEBP", lossless=True)):
        assert not hasattr(decode_image(data).image, "_decoder")


def test_pillows_globals_stay_as_they_are() -> None:
    before = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    decode_image(JPEG)
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before
