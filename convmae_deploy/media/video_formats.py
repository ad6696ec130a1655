"""Which container a video is in, recognised by its first bytes and never by its name."""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from convmae_deploy.folders import find_files
from convmae_deploy.media.image_formats import DECODABLE, is_text, known_format
from convmae_deploy.media.video_errors import VideoError

# What is taken from a folder; a file that is named itself may have any name.
VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".3gp", ".webm", ".mkv", ".avi", ".gif", ".ts", ".mts", ".m2ts")
    + (".mpg", ".mpeg", ".flv", ".ogv", ".wmv")
)
ACCEPTED = "MP4, QuickTime, WebM, Matroska, AVI, GIF, MPEG, FLV, Ogg or WMV"

# The decoders that are let in, of some two hundred that FFmpeg has, by its names: what phones, cameras, browsers, data
# sets and the containers above hold. Each is code that reads bytes of strangers.
CODECS = {
    "h264": "H.264",
    "hevc": "HEVC",
    "vp8": "VP8",
    "vp9": "VP9",
    "libdav1d": "AV1",
    "libaom-av1": "AV1",
    "av1": "AV1",
    "mpeg4": "MPEG-4",
    "msmpeg4": "MPEG-4",  # as DivX 3 wrote it
    "h263": "H.263",
    "flv": "H.263",  # as Flash had it
    "mpeg1video": "MPEG-1",
    "mpeg2video": "MPEG-2",
    "mjpeg": "Motion JPEG",
    "wmv2": "WMV",
    "wmv3": "WMV",
    "vc1": "WMV",
    "theora": "Theora",
    "gif": "GIF",
    "prores": "ProRes",
    "qtrle": "QuickTime Animation",
    "ffv1": "FFV1",
    "rawvideo": "uncompressed video",
}
ACCEPTED_CODECS = ", ".join(dict.fromkeys(CODECS.values()))

_MAGIC: tuple[tuple[int, bytes, str], ...] = (  # offset, bytes there, FFmpeg's name of the container
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (8, b"AVI ", "avi"),
    (0, b"GIF87a", "gif"),
    (0, b"GIF89a", "gif"),
    (0, b"\x00\x00\x01\xba", "mpeg"),
    (0, b"FLV\x01", "flv"),
    (0, b"OggS", "ogg"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    # Files of QuickTime before brands begin with any of these boxes.
    (4, b"moov", "mov"),
    (4, b"mdat", "mov"),
    (4, b"wide", "mov"),
    (4, b"free", "mov"),
    (4, b"skip", "mov"),
)
_TRANSPORT_PACKETS = ((0, 188), (4, 192))  # where the first synchronisation byte is, and the distance of the next
_PICTURES = (*DECODABLE, "HEIC", "JPEG 2000", "JPEG XL", "PNM", "SVG", "ICO", "PSD", "QOI")


def identify(data: bytes) -> str:
    """FFmpeg's name of the container, for instance "mov" or "matroska".

    FFmpeg itself is never asked: it also knows playlists and scripts that name other files.

    Args:
        data: the file's content, not empty; its first 4096 bytes are enough.

    Raises:
        VideoError: a picture, or no container that is accepted.
    """
    for offset, magic, name in _MAGIC:
        if data[offset : offset + len(magic)] == magic:
            return name
    if any(data[start : start + step + 1 : step] == b"GG" for start, step in _TRANSPORT_PACKETS):
        return "mpegts"
    found = known_format(data)
    if found == "MP4 or QuickTime video":
        return "mov"
    if found in _PICTURES:
        raise VideoError("still_image", f"expected a video, found a still picture ({found}); send a video")
    found = found or ("text" if is_text(data) else "bytes of no known video format")
    raise VideoError("not_a_video", f"expected a video ({ACCEPTED}), found {found}; send the bytes of a video")


def mp4_has_index(data: bytes) -> bool:
    """Whether an MP4 holds its index, a box at the top level, to the end."""
    position = 0
    while position + 8 <= len(data):
        size, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        if kind == b"moov":
            return position + size <= len(data)
        if size < 8:
            return False
        position += size
    return False


def mp4_overstates_its_frames(data: bytes) -> bool:
    """Whether tables of an MP4 say that there is more in the file than its size, for which FFmpeg makes an index.

    Every appearance of a table's name counts, wherever it stands: hostile boxes do not nest as they should. Only what a
    whole media data box (mdat) holds is left out, as FFmpeg leaves it out.
    """
    return any(
        samples * max(1, size) > len(data)
        for start, end in _outside_of_media(data)
        for table in (b"stsz", b"trun")
        for size, samples in _tables(data, table, start, end)
    )


def _outside_of_media(data: bytes) -> Iterator[tuple[int, int]]:
    """Where the parts between the media data boxes at the top level begin and end."""
    position = start = 0
    while position + 16 <= len(data):
        size, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        if size < 8 or position + size > len(data):
            break
        if kind == b"mdat":
            yield start, position
            start = position + size
        position += size
    yield start, len(data)


def _tables(data: bytes, name: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Bytes of each sample, 0 where they differ, and number of samples of every table of that name."""
    while (start := data.find(name, start, end)) >= 0:
        first, second = struct.unpack(">II", data[start + 8 : start + 16].ljust(8, b"\0"))
        yield (first, second) if name == b"stsz" else (0, first)
        start += 4


def find_videos(paths: Sequence[Path]) -> list[Path]:
    """The files among `paths`, and for each folder the videos in it, at any depth, sorted; hidden files are left out.

    Raises:
        ConvMAEError: a folder holds no video.
    """
    return find_files(paths, VIDEO_SUFFIXES, "videos")
