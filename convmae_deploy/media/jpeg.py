"""The outside of JPEG files: what stands before the first scan, without metadata, and how much work the scans are.

Pillow keeps every segment of the header and puts the parts of EXIF data together by copying what it has each time, so
that a file of tiny parts keeps it busy for minutes. A decoder goes through the whole picture once for each scan,
however short the scan is, and nothing stops it once it runs.
"""

import re

from convmae_deploy.media.exif import read_orientation
from convmae_deploy.media.image_containers import CheckSize, Container
from convmae_deploy.media.image_errors import ImageError, corrupt, truncated, unsupported

_MAX_SEGMENTS = 10_000
_MAX_TABLES = 1000  # segments that are kept; encoders write about ten
# Each scan costs up to 3 nanoseconds a pixel, however little it says: so two or three seconds at most.
MAX_SCANNED_PIXELS = 600_000_000
_USUAL_SCANS = 18  # as many as libjpeg writes for four components, which a photo of any size may have
_MAX_SCANS = 100

# Segment kinds of the header and the largest length field each can have; APPn and comments may have any.
_LIMITS = {0xC4: 2 + 8 * 273, 0xDB: 2 + 4 * 129, 0xDD: 4, 0xDA: 14, 0xCC: 2 + 64}
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_FRAME_LIMIT = 2 + 6 + 3 * 4
_FREE = {*range(0xE0, 0xF0), 0xFE}
_COLOUR_SEGMENTS = {0xE0: b"JFIF", 0xEE: b"Adobe"}  # which say what the components are; their kind and beginning
_EXIF = 0xE1
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_JPEG_LS = 0xF7
_SEQUENTIAL = (0xC0, 0xC1)
# Kinds of pictures that a decoder may not know.
_ODD_FRAMES = {0xC3: "lossless"} | dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "hierarchical")
_ODD_FRAMES |= {0xCB: "lossless", 0xC9: "arithmetic-coded", 0xCA: "arithmetic-coded"}
# How the APPn segments in use begin.
_WORDS = (
    b"JFIF",
    b"JFXX",
    b"Exif",
    b"http",
    b"ICC_",
    b"MPF\0",
    b"Adob",
    b"Phot",
    b"Duck",
    b"FPXR",
    b"urn:",
    b"AROT",
)
_SCAN, _END, _TEMPORARY = 0xDA, 0xD9, 0x01
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # neither stuffed nor padding nor a restart


def read_jpeg(data: bytes, check_size: CheckSize) -> Container:
    """Walks the header as libjpeg and Pillow do, and keeps the segments that the pixels depend on.

    Raises:
        ImageError: `image_corrupt` or `image_truncated`, or what `check_size` raises.
    """
    view = memoryview(data)
    kept, pixels, unusual = [view[:2]], 0, ""
    frame, components = 0, b""
    exif, xmp = b"", b""
    position, segments = 2, 0
    while (marker := _MARKER.search(data, position)) is not None:
        start, kind = marker.start(), data[marker.start() + 1]
        end = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
        if kind == _SCAN:
            break
        segments += 1
        if segments > _MAX_SEGMENTS or len(kept) > _MAX_TABLES:
            raise corrupt("a JPEG with an absurd number of segments")
        if kind == _JPEG_LS:
            raise unsupported("a JPEG-LS file")
        if not _is_whole_segment(kind, end - marker.end(), end, len(data)):
            raise jpeg_header_error(data, f"a segment of kind {kind:02x} in its header")
        if kind in _FRAMES:
            height, width = (int.from_bytes(data[at : at + 2], "big") for at in (start + 5, start + 7))
            check_size(width, height)
            pixels, unusual = max(pixels, width * height), _unusual(kind, data[start + 4], data[start + 9])
            frame, components = kind, data[start + 9 : start + 10]
        if kind == _EXIF and not exif and data.startswith(b"Exif\0\0", start + 4):
            exif = data[start + 4 : end]
        elif kind == _EXIF and data.startswith(_XMP, start + 4):
            xmp = data[start + 4 : end]
        if kind not in _FREE or data[start + 4 : end].startswith(_COLOUR_SEGMENTS.get(kind, b"\0never")):
            kept.append(view[start:end])
        position = end
    if marker is None or not pixels:  # the header names no size, or no scan follows
        raise jpeg_header_error(data, "no picture data")
    # libjpeg is content without the end marker. Scans cannot contain it, and a thumbnail's lies before them.
    if data.rfind(b"\xff\xd9", marker.end()) < 0:
        raise truncated("a JPEG without its end")
    _check_scans(data, marker.start(), pixels)
    return Container(
        data=b"".join((*kept, view[marker.start() :])),
        pixels=pixels,
        orientation=read_orientation(exif, xmp),
        # libjpeg keeps coefficients of the whole picture unless its first scan has all components of a sequential one
        halves=frame in _SEQUENTIAL and data[marker.end() + 2 : marker.end() + 3] == components,
        unusual=unusual,
    )


def _unusual(kind: int, bits: int, components: int) -> str:
    """What is unusual about a picture, so that few decoders know it; empty for an ordinary one.

    Args:
        kind: of the segment that describes it.
        bits: of a value.
        components: of a pixel.
    """
    if bits != 8:
        return f"a JPEG of {bits} bits a channel"
    if kind in _ODD_FRAMES:
        return f"a JPEG that is {_ODD_FRAMES[kind]}"
    return "" if components in (1, 3, 4) else f"a JPEG of {components} channels"


def _is_whole_segment(kind: int, length: int, end: int, size: int) -> bool:
    limit = _FRAME_LIMIT if kind in _FRAMES else _LIMITS.get(kind, 0xFFFF if kind in _FREE else 0)
    return 2 <= length <= limit and end <= size


def _check_scans(data: bytes, first: int, pixels: int) -> None:
    """Refuses a JPEG of so many scans that decoding it would take many seconds.

    Counting the scans' marker is enough for nearly every file. Where it is frequent it may be chance, for instance in
    the video that a phone appends to its photo, so then the segments are walked as libjpeg does.

    Args:
        data: the file.
        first: where its first scan begins.
        pixels: of the picture.

    Raises:
        ImageError: `image_corrupt`.
    """
    most = max(_USUAL_SCANS, min(_MAX_SCANS, MAX_SCANNED_PIXELS // pixels))
    if data.count(b"\xff\xda", first) <= most:
        return
    position, scans, segments = first, 0, 0
    while (marker := _MARKER.search(data, position)) is not None:
        kind, position = data[marker.start() + 1], marker.end()
        if kind == _END:
            return
        segments += 1
        scans += kind == _SCAN
        if scans > most or segments > _MAX_SEGMENTS:
            raise corrupt(f"a JPEG of more than {most} scans, too many for {pixels} pixels")
        if kind != _TEMPORARY:
            position += int.from_bytes(data[position : position + 2], "big")


def jpeg_header_error(data: bytes, reason: str) -> ImageError:
    """Why a JPEG's header could not be read: cut short, or broken.

    Args:
        data: the file.
        reason: what was found, or what Pillow said.
    """
    position = 2
    while position < len(data) and data[position] == 0xFF:
        if position + 4 > len(data):
            return truncated("a JPEG that ends inside its header")
        kind = data[position + 1]
        if kind == 0xFF:  # padding
            position += 1
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if not _is_whole_segment(kind, length, 0, 0):
            break
        if position + 2 + length > len(data):
            # Random bytes after the magic, too, name a segment that runs off the end.
            word = data[position + 4 : position + 8]
            if 0xE0 <= kind <= 0xEF and not any(known.startswith(word) for known in _WORDS):
                break
            return truncated("a JPEG that ends inside its header")
        if kind == _SCAN:
            return corrupt(f"a JPEG that cannot be decoded ({reason})")
        position += 2 + length
    if 2 < position and position >= len(data):
        return truncated("a JPEG that ends inside its header")
    return corrupt(f"a JPEG that cannot be decoded ({reason})")
