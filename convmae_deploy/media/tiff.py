"""The outside of TIFF files: the first page alone, with the tags that its pixels need and no others.

Pillow applies a TIFF's orientation by itself, follows its links to EXIF and GPS directories, and warns about any tag
that is odd. Giving it a file with one short directory makes TIFF behave as the other formats do.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from convmae_deploy.media.exif import MAX_XMP_BYTES, read_orientation, valid_orientation
from convmae_deploy.media.image_containers import CheckSize, Container
from convmae_deploy.media.image_errors import ImageError, corrupt, truncated
from convmae_deploy.media.jpeg import MAX_SCANNED_PIXELS

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _ORIENTATION, _SAMPLES = 256, 257, 258, 259, 274, 277
_STRIPS, _TILES = (273, 279), (324, 325)  # (offsets, byte counts)
_STRIP_ROWS, _TILE_WIDTH, _TILE_HEIGHT, _PLANES, _XMP = 278, 322, 323, 284, 700
_LONG = 4  # the type of a field of 32 bits
_UNSAID = ((), (0,))  # lengths of strips where some writers say none
_UNCOMPRESSED, _OLD_JPEG, _JPEG = 1, 6, 7
# Which are read; of the others LZMA may ask for gigabytes in a few bytes, and the rest is not met any more.
_COMPRESSIONS = {
    _UNCOMPRESSED: "none",
    2: "CCITT",
    3: "fax group 3",
    4: "fax group 4",
    5: "LZW",
    _OLD_JPEG: "JPEG",
    _JPEG: "JPEG",
    8: "Deflate",
    32773: "PackBits",
    32946: "Deflate",
    50000: "Zstandard",
}
_MAX_EXTRA_TILE_PIXELS = 1 << 22  # a picture may be smaller than its tiles
_MAX_REPEATED_BYTES = 2  # some writers store equal tiles once; each byte of the file counts as often as it is read
_MAX_SAMPLES = 6  # a pixel, as many as Pillow reads
_NUMBER_CODES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # field type -> struct code
# Tags with one value: size, compression, photometric, fill order, samples, rows per strip, planes, fax options,
# predictor, tile size, ink set, and the interchange fields of old-style JPEG.
_SCALARS = {256, 257, 259, 262, 266, 277, 278, 284, 292, 293, 317, 322, 323, 332, 512, 513, 514}
# Bits per sample, strips, colour map, tiles, extra samples, sample format, JPEG and YCbCr tables.
_LISTS = {258, 273, 279, 320, 324, 325, 338, 339, 347, 519, 520, 521, 529, 530, 531, 532}
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_MAX_PAGES = 10_000
_MAX_VALUES = 100_000  # in a tag; strips of one row in four planes are fewer
_MAX_VALUES_OF_TAG = {320: 3 << 16}  # the colour map of a 16-bit picture


@dataclass(frozen=True)
class _Layout:
    """Field widths of classic TIFF or BigTIFF in one byte order."""

    order: str  # "<" or ">"
    big: bool

    @property
    def count(self) -> str:
        return self.order + ("Q" if self.big else "H")

    @property
    def entry(self) -> str:
        return self.order + ("HHQ8s" if self.big else "HHI4s")

    @property
    def offset(self) -> str:
        return self.order + ("Q" if self.big else "I")


def read_tiff(data: bytes, check_size: CheckSize) -> Container:
    """The first page as a TIFF of its own, the number of pages, and the first page's orientation (1 to 8)."""
    layout = _Layout(order="<" if data[:2] == b"II" else ">", big=data[2:4] in (b"+\x00", b"\x00+"))
    header_bytes = 16 if layout.big else 8
    if len(data) < header_bytes:
        raise truncated("a TIFF that ends inside its header")
    (first,) = struct.unpack_from(layout.offset, data, 8 if layout.big else 4)
    entries = _entries(data, first, layout)
    width, height = _scalar(entries, _WIDTH, layout), _scalar(entries, _HEIGHT, layout)
    if width is None or height is None:
        raise corrupt("a TIFF that does not say its size")
    check_size(width, height)

    kept = {tag: entry for tag, entry in sorted(entries.items()) if tag in _SCALARS | _LISTS}
    _check_entries(data, kept, layout)
    pixels = _check_pixels(data, kept, layout, width, height)
    kept = dict(sorted(kept.items()))
    padding = bytes(-len(data) % 8)
    parts: tuple[bytes | memoryview, ...] = (
        data[: header_bytes - struct.calcsize(layout.offset)],
        struct.pack(layout.offset, len(data) + len(padding)),
        memoryview(data)[header_bytes:],
        padding,
        struct.pack(layout.count, len(kept)),
        *kept.values(),
        struct.pack(layout.offset, 0),
    )
    return Container(
        data=b"".join(parts),
        pixels=pixels,
        frames=_count_pages(data, first, layout),
        orientation=_orientation(data, entries, layout),
    )


def _orientation(data: bytes, entries: dict[int, bytes], layout: _Layout) -> int:
    """Of the directory, or else of its XMP packet."""
    orientation = _scalar(entries, _ORIENTATION, layout)
    if orientation is not None or _XMP not in entries:
        return valid_orientation(orientation or 0)
    _, kind, count, value = struct.unpack(layout.entry, entries[_XMP])
    (offset,) = struct.unpack(layout.offset, value)
    size = count * _TYPE_BYTES.get(kind, 1)
    return read_orientation(b"", data[offset : offset + min(size, MAX_XMP_BYTES)])


def _entries(data: bytes, directory: int, layout: _Layout) -> dict[int, bytes]:
    """Tag -> its raw entry, of the directory at the given offset; the first of a repeated tag counts."""
    entries: dict[int, bytes] = {}
    size = struct.calcsize(layout.entry)
    try:
        (count,) = struct.unpack_from(layout.count, data, directory)
    except (struct.error, OverflowError):
        raise truncated("a TIFF whose directory lies beyond its end") from None
    start = directory + struct.calcsize(layout.count)
    if count == 0 or count > 65_535:
        raise corrupt("a TIFF with an absurd directory")
    if start + count * size > len(data):
        raise truncated("a TIFF that ends inside its directory")
    for position in range(start, start + count * size, size):
        (tag,) = struct.unpack_from(layout.order + "H", data, position)
        entries.setdefault(tag, data[position : position + size])
    return entries


def _scalar(entries: dict[int, bytes], tag: int, layout: _Layout) -> int | None:
    if tag not in entries:
        return None
    _, kind, count, value = struct.unpack(layout.entry, entries[tag])
    if count != 1 or kind not in _NUMBER_CODES or _TYPE_BYTES[kind] > len(value):
        return None
    number: int = struct.unpack_from(layout.order + _NUMBER_CODES[kind], value)[0]
    return number


def _numbers(data: bytes, entries: dict[int, bytes], tag: int, layout: _Layout) -> tuple[int, ...]:
    """All values of a tag that `_check_entries` has passed; empty where the tag is missing or holds no integers."""
    if tag not in entries:
        return ()
    _, kind, count, value = struct.unpack(layout.entry, entries[tag])
    if kind not in _NUMBER_CODES:
        return ()
    fields = f"{layout.order}{count}{_NUMBER_CODES[kind]}"
    if struct.calcsize(fields) <= len(value):
        return struct.unpack_from(fields, value)
    return struct.unpack_from(fields, data, struct.unpack(layout.offset, value)[0])


def _check_pixels(data: bytes, entries: dict[int, bytes], layout: _Layout, width: int, height: int) -> int:
    """The pixel data must lie inside the file: whatever Pillow reads beyond it would be our own directory.

    Adds the length of the only strip or tile where the file does not say it.

    Returns:
        Pixels that a decoder makes room for: those of the picture, or of a tile that is larger.
    """
    tiled = _TILES[0] in entries
    places, lengths = _TILES if tiled else _STRIPS
    offsets, counts = (_numbers(data, entries, tag, layout) for tag in (places, lengths))
    if not offsets:
        raise corrupt("a TIFF that does not say where its pixels are")
    samples = _scalar(entries, _SAMPLES, layout) or 1
    if samples > _MAX_SAMPLES:
        raise corrupt(f"a TIFF with {samples} values a pixel")
    compression = _scalar(entries, _COMPRESSION, layout) or _UNCOMPRESSED
    if compression not in _COMPRESSIONS:
        known = ", ".join(dict.fromkeys(_COMPRESSIONS.values()))
        raise ImageError(
            "unsupported_format", f"found a TIFF of compression {compression}, accepted are {known}; convert it to one"
        )
    tile = _tile_pixels(entries, layout, tiled, width, height)
    if tile > max(width * height, _MAX_EXTRA_TILE_PIXELS):
        raise corrupt("a TIFF whose tiles are much larger than the picture")
    if compression == _UNCOMPRESSED:  # Pillow reads what the rows need, whatever lengths the file says
        needed = _raw_counts(data, entries, layout, offsets, (width, height))
        if counts not in _UNSAID and sum(counts) < sum(needed):
            raise truncated("a TIFF with fewer pixels than its size")
        counts = needed
    elif len(offsets) == 1 and counts in _UNSAID and offsets[0] < len(data):
        counts = (len(data) - offsets[0],)
        entries[lengths] = _long_entry(lengths, counts[0], layout)
    if len(offsets) != len(counts):
        raise corrupt("a TIFF that does not say where its pixels are")
    if any(offset + count > len(data) for offset, count in zip(offsets, counts, strict=True)):
        raise truncated("a TIFF that ends inside its pixels")
    if sum(counts) > _MAX_REPEATED_BYTES * len(data):
        raise corrupt("a TIFF whose strips or tiles are the same bytes again and again")
    if compression in (_OLD_JPEG, _JPEG):
        _check_scans(data, offsets, counts, tile if compression == _JPEG else width * height)
    return max(width * height, tile)


def _raw_counts(
    data: bytes, entries: dict[int, bytes], layout: _Layout, offsets: Sequence[int], size: tuple[int, int]
) -> tuple[int, ...]:
    """Bytes that Pillow reads of each uncompressed strip or tile.

    Raises:
        ImageError: `image_truncated`, there are too few of them for the picture.
    """
    width, height = size
    bits = _numbers(data, entries, _BITS, layout) or (1,)
    samples = _scalar(entries, _SAMPLES, layout) or 1
    apart = _scalar(entries, _PLANES, layout) == 2  # each sample in strips of its own
    bits_a_pixel = max(bits) if apart else sum(bits) * (samples if len(bits) == 1 else 1)
    if _TILES[0] in entries:
        columns, rows = (_scalar(entries, tag, layout) or 1 for tag in (_TILE_WIDTH, _TILE_HEIGHT))
    else:
        columns, rows = width, min(_scalar(entries, _STRIP_ROWS, layout) or height, height)
    across, down = -(-width // columns), -(-height // rows)
    if len(offsets) < across * down * (samples if apart else 1):
        raise truncated("a TIFF with fewer pixels than its size")
    line = -(-columns * bits_a_pixel // 8)
    last = height - (down - 1) * rows  # rows in the lowest ones, of which Pillow reads no more
    return tuple(line * (last if index // across % down == down - 1 else rows) for index in range(len(offsets)))


def _long_entry(tag: int, value: int, layout: _Layout) -> bytes:
    """A directory's entry of one number."""
    kind, code = (16, "Q") if layout.big else (_LONG, "I")
    return struct.pack(layout.entry, tag, kind, 1, struct.pack(layout.order + code, value))


def _tile_pixels(entries: dict[int, bytes], layout: _Layout, tiled: bool, width: int, height: int) -> int:
    """Pixels of a tile or strip."""
    if not tiled:
        return width * min(_scalar(entries, _STRIP_ROWS, layout) or height, height)
    sides = (_scalar(entries, tag, layout) for tag in (_TILE_WIDTH, _TILE_HEIGHT))
    return math.prod(side or 0 for side in sides)


def _check_scans(data: bytes, offsets: Sequence[int], counts: Sequence[int], tile: int) -> None:
    """As for JPEG files: a decoder goes through the tile once for each of its scans."""
    scans = sum(
        max(1, data.count(b"\xff\xda", offset, offset + count)) for offset, count in zip(offsets, counts, strict=True)
    )
    if scans * tile > MAX_SCANNED_PIXELS:
        raise corrupt(f"a TIFF of {scans} JPEG scans of {tile} pixels, too many to decode")


def _check_entries(data: bytes, entries: dict[int, bytes], layout: _Layout) -> None:
    total = 0
    for tag, entry in entries.items():
        _, kind, count, value = struct.unpack(layout.entry, entry)
        if kind not in _TYPE_BYTES or (tag in _SCALARS and count != 1):
            raise corrupt(f"a TIFF with an invalid tag {tag}")
        if count > _MAX_VALUES_OF_TAG.get(tag, _MAX_VALUES):
            raise corrupt(f"a TIFF with {count} values in its tag {tag}")
        size = count * _TYPE_BYTES[kind]
        if size > len(value):
            (offset,) = struct.unpack(layout.offset, value)
            total += size
            if offset + size > len(data) or total > len(data):
                raise truncated(f"a TIFF whose tag {tag} lies beyond its end")


def _count_pages(data: bytes, directory: int, layout: _Layout) -> int:
    """Directories in the chain, as far as it can be followed."""
    seen: set[int] = set()
    while directory and directory not in seen and len(seen) < _MAX_PAGES:
        try:
            (count,) = struct.unpack_from(layout.count, data, directory)
            (following,) = struct.unpack_from(
                layout.offset,
                data,
                directory + struct.calcsize(layout.count) + count * struct.calcsize(layout.entry),
            )
        except (struct.error, OverflowError):
            break
        seen.add(directory)
        directory = following
    return max(len(seen), 1)
