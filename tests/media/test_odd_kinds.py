"""Files that are in order and of a kind that is not decoded here: the refusal says what they are."""

import struct
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from convmae_deploy.media.image_formats import identify
from convmae_deploy.media.images import ImageError, decode_image
from tests.media.odd_jpegs import SIZE, odd_jpeg, value
from tests.media.photo_files import encode, photo, png_chunk

ODD: dict[str, tuple[bytes, str]] = {
    "12 bits": (odd_jpeg(0xC1, bits=12), "a JPEG of 12 bits a channel"),
    "hierarchical": (odd_jpeg(0xC5), "a JPEG that is hierarchical"),
    "lossless, arithmetic": (odd_jpeg(0xCB), "a JPEG that is lossless"),
    "JPEG-LS": (odd_jpeg(0xF7), "a JPEG-LS file"),
    "two channels": (odd_jpeg(0xC0, components=2), "a JPEG of 2 channels"),
    "CgBI": (
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"CgBI", b"\x50\0\x20\x02") + encode(photo(), "PNG")[8:],
        r"a PNG of Apple's own kind \(CgBI\)",
    ),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(50), "JPEG 2000"),
    "JPEG XL": (b"\xff\x0a" + bytes(50), "JPEG XL"),
    "JPEG XR": (b"II\xbc\x01" + bytes(50), "JPEG XR"),
    "CR3": (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "raw photo of a Canon camera"),
    "RAF": (b"FUJIFILMCCD-RAW 0201" + bytes(50), "raw photo of a Fujifilm camera"),
    "HEIF of another brand": (b"\0\0\0\x18ftypheif\0\0\0\0mif1heif", "HEIC"),
    "DICOM": (bytes(128) + b"DICM" + bytes(50), "DICOM"),
}


@pytest.mark.parametrize("name", ODD)
def test_the_refusal_says_what_the_file_is(name: str) -> None:
    data, what = ODD[name]
    with pytest.raises(ImageError, match=f"found {what}") as caught:
        decode_image(data)
    assert caught.value.code == "unsupported_format"


@pytest.mark.parametrize("components", [1, 3])
def test_a_lossless_jpeg_is_decoded(components: int) -> None:
    pixels = np.asarray(decode_image(odd_jpeg(0xC3, components=components)).image)
    channels = [[[value(x, y, channel % components) for channel in range(3)] for x in range(SIZE)] for y in range(SIZE)]
    assert np.array_equal(pixels, np.array(channels))


def test_a_tiff_of_a_rare_kind_of_pixels_is_not_called_broken() -> None:
    data = bytearray(encode(photo().convert("L"), "TIFF"))
    at = data.index(struct.pack("<HHI", 258, 3, 1))
    struct.pack_into("<H", data, at + 8, 7)  # bits of a value
    with pytest.raises(ImageError, match="a TIFF with pixels of a kind that is rare") as caught:
        decode_image(bytes(data))
    assert caught.value.code == "unsupported_format"


def test_a_raw_photo_of_an_unknown_camera_is_no_image() -> None:
    with pytest.raises(ImageError, match="no known image format"):
        identify(b"II\xbd\x01" + bytes(50))


def test_a_broken_tiff_writes_nothing_to_standard_error() -> None:
    code = (
        "import sys; from convmae_deploy.media.images import decode_image, ImageError\n"
        "try: decode_image(sys.stdin.buffer.read())\n"
        "except ImageError as error: print(error.code)"
    )
    options: dict[str, Any] = {"compression": "tiff_adobe_deflate"}
    data = bytearray(encode(photo(), "TIFF", **options))
    data[60:120] = bytes(byte ^ 0x5A for byte in data[60:120])
    done = subprocess.run([sys.executable, "-c", code], input=bytes(data), capture_output=True)
    assert (done.stdout, done.stderr) == (b"image_corrupt\n", b"")
