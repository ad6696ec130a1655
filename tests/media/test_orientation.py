"""A photo is turned as Pillow's `exif_transpose` turns it, wherever its file says how."""

import io
import tracemalloc
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from convmae_deploy.media.images import ImageLimits, decode_image
from tests.media.photo_files import encode, insert_after_jpeg_start, jpeg_segment, orientation_exif, photo, png_chunk

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'
XMP_ELEMENT = b"<x:xmpmeta><tiff:Orientation>%d</tiff:Orientation></x:xmpmeta>"
XAP = b"http://ns.adobe.com/xap/1.0/\0"


def profile(exif: bytes, name: bytes = b"exif") -> bytes:
    """An EXIF block as ImageMagick writes it into a text of a PNG."""
    digits = exif.hex().encode()
    lines = [digits[start : start + 72] for start in range(0, len(digits), 72)]
    return b"\n" + name + b"\n%8d\n" % len(exif) + b"\n".join(lines) + b"\n"


def text(name: bytes, content: bytes, kind: bytes = b"tEXt") -> bytes:
    """A chunk with a text, packed where its kind is."""
    if kind == b"tEXt":
        return png_chunk(kind, name + b"\0" + content)
    if kind == b"zTXt":
        return png_chunk(kind, name + b"\0\0" + zlib.compress(content))
    return png_chunk(kind, name + b"\0\0\0\0\0" + content)


def packed_text(name: bytes, content: bytes) -> bytes:
    return png_chunk(b"iTXt", name + b"\0\1\0\0\0" + zlib.compress(content))


EXIF = {turn: orientation_exif(turn) for turn in range(1, 9)}
NO_TURN = Image.Exif()
NO_TURN[0x010F] = "maker"
SILENT_EXIF = NO_TURN.tobytes().removeprefix(b"Exif\0\0")
RAW = b"Raw profile type exif"
BEFORE: dict[str, list[bytes]] = {
    **{f"raw profile {turn}": [text(RAW, profile(EXIF[turn]), b"zTXt")] for turn in range(1, 9)},
    "raw profile, not packed": [text(RAW, profile(EXIF[6]))],
    "raw profile, international": [text(RAW, profile(EXIF[6]), b"iTXt")],
    "raw profile of another name": [text(b"Raw profile type APP1", profile(EXIF[6], b"APP1"), b"zTXt")],
    "two raw profiles": [text(RAW, profile(EXIF[3])), text(RAW, profile(EXIF[8]), b"zTXt")],
    "raw profile and XMP": [text(RAW, profile(EXIF[3])), text(b"XML:com.adobe.xmp", XMP % 6, b"iTXt")],
    "XMP": [text(b"XML:com.adobe.xmp", XMP % 6, b"iTXt")],
    "XMP as an element": [text(b"XML:com.adobe.xmp", XMP_ELEMENT % 8, b"iTXt")],
    "XMP, packed": [packed_text(b"XML:com.adobe.xmp", XMP % 5)],
    "XMP in a plain text": [text(b"XML:com.adobe.xmp", XMP % 7)],
    "XMP of no orientation": [text(b"XML:com.adobe.xmp", b"<x:xmpmeta/>", b"iTXt")],
    "XMP out of range": [text(b"XML:com.adobe.xmp", XMP % 9, b"iTXt")],
    "chunk of EXIF and XMP": [png_chunk(b"eXIf", EXIF[3][6:]), text(b"XML:com.adobe.xmp", XMP % 6, b"iTXt")],
    "EXIF of no orientation and XMP": [png_chunk(b"eXIf", SILENT_EXIF), text(b"XML:com.adobe.xmp", XMP % 6, b"iTXt")],
    "text that is EXIF": [text(b"exif", EXIF[6])],
    "no orientation": [text(b"Comment", b"tiff:Orientation=\"6\"")],
}  # fmt: skip


def upright(data: bytes) -> NDArray[np.uint8]:
    """The pixels that Pillow gives."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def check(data: bytes) -> None:
    """Ours are the same, and without turning they are those of the file."""
    assert np.array_equal(np.asarray(decode_image(data).image), upright(data))
    assert decode_image(data, apply_orientation=False).image.size == (96, 64)


@pytest.mark.parametrize("place", ["before the pixels", "after the pixels"])
@pytest.mark.parametrize("name", BEFORE)
def test_a_png_is_turned_as_pillow_turns_it(name: str, place: str) -> None:
    data = encode(photo(), "PNG")
    at = data.index(b"IDAT") - 4 if place == "before the pixels" else data.index(b"IEND") - 4
    check(data[:at] + b"".join(BEFORE[name]) + data[at:])


def test_a_chunk_of_exif_may_stand_after_the_pixels() -> None:
    data = encode(photo(), "PNG")
    at = data.index(b"IEND") - 4
    check(data[:at] + png_chunk(b"eXIf", EXIF[6][6:]) + data[at:])
    assert decode_image(data[:at] + png_chunk(b"eXIf", EXIF[6][6:]) + data[at:]).orientation == 6


@pytest.mark.parametrize(
    "chunk",
    [
        text(RAW, b"\nexif\n 4\nxyz\n"),
        text(RAW, EXIF[6].hex().encode()),
        png_chunk(b"zTXt", RAW + b"\0\0no deflate"),
        png_chunk(b"zTXt", RAW + b"\0\1" + zlib.compress(profile(EXIF[6]))),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0"),
        packed_text(b"XML:com.adobe.xmp", bytes(40_000_000) + XMP % 6),
    ],
    ids=["no digits", "no lines", "no deflate", "unknown packing", "cut", "bomb"],
)
def test_broken_texts_and_those_of_absurd_size_say_nothing(chunk: bytes) -> None:
    data = encode(photo(), "PNG")
    at = data.index(b"IDAT") - 4
    assert decode_image(data[:at] + chunk + data[at:]).orientation == 1


@pytest.mark.parametrize("name", [RAW, b"exif", b"XML:com.adobe.xmp"])
@pytest.mark.parametrize("kind", [b"tEXt", b"iTXt"])
def test_a_text_of_lines_without_end_takes_no_more_memory_than_the_file(name: bytes, kind: bytes) -> None:
    data = encode(photo(), "PNG")
    at = data.index(b"IDAT") - 4
    large = data[:at] + text(name, b"\n" * 3_000_000, kind) + data[at:]
    tracemalloc.start()
    try:
        assert decode_image(large).orientation == 1
        assert tracemalloc.get_traced_memory()[1] < 5 * len(large)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_jpeg_is_turned_by_its_xmp_where_its_exif_says_nothing(turn: int) -> None:
    data = encode(photo(), "JPEG")
    packet = jpeg_segment(0xE1, XAP + XMP % turn)
    check(insert_after_jpeg_start(data, packet))
    check(insert_after_jpeg_start(data, packet + jpeg_segment(0xE1, b"Exif\0\0" + SILENT_EXIF)))
    check(insert_after_jpeg_start(data, jpeg_segment(0xE1, EXIF[3]) + packet))


@pytest.mark.parametrize("kind", ["WEBP", "TIFF", "AVIF"])
def test_other_formats_are_turned_by_their_xmp_too(kind: str) -> None:
    options = {"tiffinfo": {700: XMP % 6}} if kind == "TIFF" else {"xmp": XMP % 6}
    data = encode(photo(), kind, **options, **({"lossless": True} if kind == "WEBP" else {}))
    decoded = decode_image(data, limits=ImageLimits(formats=(kind,)))
    assert decoded.orientation == 6
    assert np.array_equal(np.asarray(decoded.image), upright(data))
