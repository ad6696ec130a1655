"""Photos that are made to cost a server far more than their bytes: one of each kind, the same every time.

Each is a small file. What it is about is in its name; what a good reader does with it is to refuse it with a sentence,
or to decode it within the memory and the time that its number of pixels is worth.
"""

import struct
import zlib
from collections.abc import Callable
from typing import Any

from PIL import Image

from tests.media.photo_files import encode, grey_png, insert_after_jpeg_start, jpeg_segment, packed_zeros, png_chunk

LARGE = (8160, 6120)  # pixels, just below the 50 million that are accepted


def png(size: tuple[int, int], *chunks: tuple[bytes, bytes]) -> bytes:
    """A black, grey PNG with further chunks between its header and its pixels."""
    return grey_png(*size, *(png_chunk(kind, content) for kind, content in chunks))


def jpeg_of_scans(count: int, size: tuple[int, int] = LARGE, mode: str = "RGB") -> bytes:
    """A progressive JPEG whose last scan is repeated: the decoder goes through all pixels each time."""
    data = encode(Image.new(mode, size), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (count - data.count(b"\xff\xda")) + data[-2:]


def jpeg_of_segments(count: int, kind: int, content: bytes, size: tuple[int, int] = (64, 48)) -> bytes:
    """A JPEG with a segment that is repeated in its header."""
    return insert_after_jpeg_start(encode(Image.new("RGB", size), "JPEG"), jpeg_segment(kind, content) * count)


def gif(*blocks: bytes, size: tuple[int, int] = (64, 48)) -> bytes:
    """A black GIF with further blocks in front of its picture."""
    data = encode(Image.new("P", size), "GIF")
    start = data.index(b",")
    return data[:start] + b"".join(blocks) + data[start:]


def webp_of_frames(count: int) -> bytes:
    """An animated WebP of frames of one pixel."""
    one = encode(Image.new("RGB", (1, 1)), "WEBP", lossless=True)
    picture = one[12:]
    frame = b"ANMF" + struct.pack("<I", 16 + len(picture)) + bytes(16) + picture
    head = b"VP8X" + struct.pack("<I", 10) + b"\x02" + bytes(9) + b"ANIM" + struct.pack("<I", 6) + bytes(6)
    body = b"WEBP" + head + frame * count
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff(entries: list[tuple[int, int, tuple[int, ...]]], pixels: bytes, following: int = 0) -> bytes:
    """A little-endian TIFF of one directory; values of 4 bytes each, the pixels at offset 8.

    Args:
        entries: (tag, type 3 or 4, values).
        pixels: what stands at offset 8.
        following: offset of the next directory.
    """
    values, fields = b"", b""
    start = 8 + len(pixels)
    for tag, kind, numbers in sorted(entries):
        packed = struct.pack(f"<{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
        if len(packed) > 4:
            fields += struct.pack("<HHII", tag, kind, len(numbers), start + len(values))
            values += packed + bytes(-len(packed) % 4)
        else:
            fields += struct.pack("<HHI4s", tag, kind, len(numbers), packed)
    directory = start + len(values)
    body = struct.pack("<H", len(entries)) + fields + struct.pack("<I", following)
    return b"II*\0" + struct.pack("<I", directory) + pixels + values + body


def grey_tiff(size: tuple[int, int], compression: int, *more: tuple[int, int, tuple[int, ...]]) -> list[Any]:
    """Entries of an 8-bit grey TIFF without strips or tiles."""
    width, height = size
    return [(256, 4, (width,)), (257, 4, (height,)), (258, 3, (8,)), (259, 3, (compression,)), (262, 3, (1,)), *more]


def tiff_of_huge_tiles() -> bytes:
    """A picture of 100 x 100 pixels in a tile of 2 gigabytes."""
    pixels = zlib.compress(bytes(1000))
    tiles = ((322, 4, (46_000,)), (323, 4, (46_000,)), (324, 4, (8,)), (325, 4, (len(pixels),)))
    return tiff(grey_tiff((100, 100), 8, *tiles), pixels)


def tiff_of_the_same_strip(rows: int = 16_000, width: int = 3000) -> bytes:
    """A strip for each row, all of them the same 4 megabytes."""
    pixels = zlib.compress(bytes(16_000)) + bytes(4_000_000)
    strips = ((278, 3, (1,)), (273, 4, (8,) * rows), (279, 4, (len(pixels),) * rows))
    return tiff(grey_tiff((width, rows), 8, *strips), pixels)


def tiff_of_directories(count: int) -> bytes:
    """A small picture and a chain of directories, the last of which leads back to the second."""
    picture = encode(Image.new("L", (64, 48)), "TIFF")
    directory = int.from_bytes(picture[4:8], "little")
    (entries,) = struct.unpack_from("<H", picture, directory)
    link = directory + 2 + 12 * entries
    start = len(picture) + len(picture) % 2
    chain = b"".join(struct.pack("<HI", 0, start + 6 * ((number + 1) % count)) for number in range(count))
    return picture[:link] + struct.pack("<I", start) + picture[link + 4 :] + bytes(len(picture) % 2) + chain


def tiff_of_lzma() -> bytes:
    """A strip whose compression asks for a dictionary of 4 gigabytes."""
    import lzma

    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0}]
    pixels = bytearray(lzma.compress(bytes(10_000), filters=filters))
    header = 12 + 4 * (pixels[12] + 1)  # of the block: size, flags, filter, size of its properties, dictionary
    pixels[16] = 40
    struct.pack_into("<I", pixels, header - 4, zlib.crc32(bytes(pixels[12 : header - 4])))
    strips = ((278, 3, (100,)), (273, 4, (8,)), (279, 4, (len(pixels),)))
    return tiff(grey_tiff((100, 100), 34925, *strips), bytes(pixels))


def tiff_of_jpeg_scans() -> bytes:
    """A strip of 24 megapixels that is a JPEG of 100 scans."""
    size = (6000, 4000)
    pixels = jpeg_of_scans(100, size, "L")
    return tiff(grey_tiff(size, 7, (278, 4, (size[1],)), (273, 4, (8,)), (279, 4, (len(pixels),))), pixels)


def bmp_of_runs(size: tuple[int, int]) -> bytes:
    """A run-length coded BMP of one pixel a row; the rest of each row is filled up one by one."""
    width, height = size
    pixels = b"\x01\x01\0\0" * height + b"\0\x01"
    palette = b"".join(bytes((level // 2, level, level, 0)) for level in range(256))
    offset = 14 + 40 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(pixels), 0, 0, offset) + header + palette + pixels


BOMB = b"name\0\0" + packed_zeros(60_000_000)

PHOTOS: dict[str, Callable[[], bytes]] = {
    "WebP of 49 megapixels": lambda: encode(Image.new("RGB", (7000, 7000)), "WEBP", method=0),
    "WebP of 49 megapixels with alpha": lambda: encode(Image.new("RGBA", (7000, 7000)), "WEBP", method=0),
    "WebP of 200,000 frames": lambda: webp_of_frames(200_000),
    "JPEG of 50 megapixels and 100 scans": lambda: jpeg_of_scans(100),
    "JPEG of 50 megapixels and 18 scans": lambda: jpeg_of_scans(18),
    "CMYK JPEG of 50 megapixels, progressive": lambda: encode(Image.new("CMYK", LARGE), "JPEG", progressive=True),
    "JPEG of 100,000 parts of EXIF": lambda: jpeg_of_segments(100_000, 0xE1, b"Exif\0\0" + bytes(60)),
    "JPEG of 1,000,000 comments": lambda: jpeg_of_segments(1_000_000, 0xFE, b""),
    "JPEG of 200,000 tables": lambda: jpeg_of_segments(200_000, 0xDB, b"\0" + bytes(64)),
    "PNG of 50 megapixels": lambda: png(LARGE),
    "PNG with a colour profile of 60 MB": lambda: png((64, 48), (b"iCCP", BOMB)),
    "PNG with texts of 6 GB": lambda: png((64, 48), *[(b"zTXt", BOMB)] * 100),
    "PNG with a profile of 19,000,000 lines": lambda: png(
        (64, 48), (b"tEXt", b"Raw profile type exif\0" + b"\n" * 19_000_000)
    ),
    "PNG of 90,000 animation frames": lambda: png(
        (64, 48), (b"acTL", struct.pack(">II", 90_000, 0)), *[(b"fdAT", bytes(4))] * 90_000
    ),
    "GIF of 75,000 comments": lambda: gif(*[b"!\xfe" + b"\xff" + bytes(255) + b"\0"] * 75_000),
    "GIF of one comment of 20 MB": lambda: gif(b"!\xfe" + (b"\xff" + bytes(255)) * 78_000 + b"\0"),
    "GIF of 50 megapixels": lambda: encode(Image.new("P", LARGE), "GIF"),
    "TIFF in tiles of 2 GB": tiff_of_huge_tiles,
    "TIFF of 16,000 times the same strip": tiff_of_the_same_strip,
    "TIFF of 1,000,000 directories in a loop": lambda: tiff_of_directories(1_000_000),
    "TIFF with a dictionary of 4 GB": tiff_of_lzma,
    "TIFF of 100 JPEG scans": tiff_of_jpeg_scans,
    "TIFF of 50 megapixels in one bit": lambda: encode(Image.new("1", LARGE), "TIFF", compression="group4"),
    "BMP of 49 megapixels in runs": lambda: bmp_of_runs((7000, 7000)),
    "BMP of 4 megapixels in runs": lambda: bmp_of_runs((16_000, 250)),
}
