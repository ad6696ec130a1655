"""Videos that are made to cost a server far more than their bytes: one of each kind, the same every time.

Each is a small file of one of the containers that are accepted. What it is about is in its name; what a good reader
does with it is to refuse it with a sentence, or to decode it within the memory and the time that a video may take.
"""

import io
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import av
from PIL import Image

from tests.hostile.photos import jpeg_of_scans
from tests.media.photo_files import encode
from tests.video_files import make_video

LARGE = (2304, 4096)  # (height, width), as large as is accepted


def element(identifier: int, *content: bytes) -> bytes:
    """An element of Matroska."""
    body = b"".join(content)
    name = identifier.to_bytes((identifier.bit_length() + 7) // 8, "big")
    return name + (len(body) | 1 << 56).to_bytes(8, "big") + body


def number(identifier: int, value: int) -> bytes:
    """An element of Matroska that holds a number."""
    return element(identifier, value.to_bytes(max(1, (value.bit_length() + 7) // 8), "big"))


def track(index: int, *more: bytes, codec: bytes = b"V_MPEG4/ISO/ASP", size: tuple[int, int] = (48, 64)) -> bytes:
    """A video track of Matroska."""
    picture = element(0xE0, number(0xB0, size[1]), number(0xBA, size[0]))
    return element(
        0xAE, number(0xD7, index), number(0x73C5, index), number(0x83, 1), element(0x86, codec), picture, *more
    )


def compressed(algorithm: int, settings: bytes = b"") -> bytes:
    """The encoding of a track whose blocks are compressed once more: 0 zlib, 3 a header that is left out of each."""
    how = element(0x5034, number(0x4254, algorithm), *([element(0x4255, settings)] if settings else []))
    return element(0x6D80, element(0x6240, number(0x5031, 0), number(0x5032, 1), number(0x5033, 0), how))


def block(content: bytes, *, time: int = 0, flags: int = 0x80) -> bytes:
    """A block of the first track."""
    return element(0xA3, b"\x81" + struct.pack(">hB", time, flags), content)


def matroska(*parts: bytes) -> bytes:
    """A Matroska file of these parts."""
    header = element(0x1A45DFA3, element(0x4282, b"matroska"), number(0x4287, 4), number(0x4285, 2))
    return header + element(0x18538067, element(0x1549A966, number(0x2AD7B1, 1_000_000)), *parts)


def matroska_of_blocks(track_encoding: bytes, blocks: Sequence[bytes]) -> bytes:
    """A file of one track and one cluster."""
    return matroska(element(0x1654AE6B, track(1, track_encoding)), element(0x1F43B675, number(0xE7, 0), *blocks))


def compressed_blocks(count: int, size: int = 9_000_000) -> bytes:
    """Blocks that are a thousandth of what they hold."""
    content = zlib.compress(bytes(size), 9)
    return matroska_of_blocks(compressed(0), [block(content, time=40 * index % 30_000) for index in range(count)])


def laced_blocks(laces: int, size: int = 9_000_000) -> bytes:
    """One block that holds many such frames, which are unpacked all at once."""
    content = zlib.compress(bytes(size), 9)
    laced = bytes((laces - 1,)) + content * laces  # frames of equal size
    return matroska_of_blocks(compressed(0), [block(laced, flags=0x84)])


def stripped_headers(count: int, size: int) -> bytes:
    """Blocks of nothing but a header that each is said to have left out."""
    return matroska_of_blocks(compressed(3, bytes(size)), [block(b"\0") for _ in range(count)])


def many_elements(identifier: int, inner: bytes, outer: int) -> bytes:
    """A list of a million empty entries, each of which becomes a large object; then a video."""
    entry = identifier.to_bytes((identifier.bit_length() + 7) // 8, "big") + bytes((0x80 | len(inner),)) + inner
    tracks = element(0x1654AE6B, track(1))
    many = element(outer, track(1) if outer == 0x1654AE6B else b"", entry * 1_000_000)
    return matroska(
        *([] if outer == 0x1654AE6B else [tracks]), many, element(0x1F43B675, number(0xE7, 0), block(b"\0"))
    )


def many_tracks(count: int) -> bytes:
    """Tracks of large H.264 frames, each of which a careless reader decodes a little of."""
    source = make_video("h264", codec="libx264", size=LARGE, frames=1, codec_options={"preset": "ultrafast"})
    tracks = [track(index + 1, codec=b"V_MPEG4/ISO/AVC", size=LARGE) for index in range(count)]
    blocks = [element(0xA3, struct.pack(">H", 0x4000 | index + 1) + b"\0\0\x80", source) for index in range(count)]
    return matroska(element(0x1654AE6B, *tracks), element(0x1F43B675, number(0xE7, 0), *blocks))


def huge_attachments() -> bytes:
    """Tags, names and files of many megabytes beside a small video."""
    tag = element(0x7373, element(0x67C8, element(0x45A3, b"n" * 1_000_000), element(0x4487, b"v" * 4_000_000)))
    file = element(0x61A7, element(0x466E, b"a.ttf"), element(0x4660, b"font/ttf"), element(0x465C, bytes(5_000_000)))
    cluster = element(0x1F43B675, number(0xE7, 0), block(b"\0"))
    return matroska(element(0x1654AE6B, track(1)), element(0x1254C367, tag), element(0x1941A469, file), cluster)


def patched(data: bytes, box: bytes, offset: int, value: bytes) -> bytes:
    """A file with other bytes at an offset behind the name of its first box of a kind."""
    at = data.index(box) + 4 + offset
    return data[:at] + value + data[at + len(value) :]


def samples_of_equal_size(count: int) -> bytes:
    """An MP4 whose tables say that there are billions of frames, in a few bytes."""
    data = make_video("mp4", codec="mpeg4")
    data = patched(data, b"stsz", 4, struct.pack(">II", 1, count))
    data = patched(data, b"stts", 8, struct.pack(">I", count))
    return patched(data, b"stsc", 12, struct.pack(">I", count))


def fragment_of_samples(count: int) -> bytes:
    """A fragmented MP4 with a run of many frames, each of them without a byte of its own."""
    data = make_video("mp4", codec="mpeg4", options={"movflags": "frag_keyframe+empty_moov"})
    return patched(data, b"trun", 1, b"\0\0\0" + struct.pack(">I", count))


def edit_lists(count: int, frames: int) -> bytes:
    """An MP4 that plays its frames again and again, and whose index is made once for each time."""
    data = make_video("mp4", codec="mpeg4", frames=frames, options={"use_editlist": "0"})
    entries = struct.pack(">IiI", 100_000, 0, 0x10000) * count
    edits = struct.pack(">I4sII", 16 + len(entries), b"elst", 0, count) + entries
    box = struct.pack(">I4s", 8 + len(edits), b"edts") + edits
    at = data.index(b"mdia") - 4
    for name in (b"moov", b"trak"):
        start = data.index(name) - 4
        size = int.from_bytes(data[start : start + 4], "big") + len(box)
        data = data[:start] + struct.pack(">I", size) + data[start + 4 :]
    return data[:at] + box + data[at:]


def index_of_indexes(entries: int) -> bytes:
    """An AVI whose index names the same part of it 256 times."""
    data = make_video("avi", codec="mpeg4")
    at = data.index(b"JUNK", data.index(b"strf"))  # where the muxer leaves room for an index of indexes
    size = int.from_bytes(data[at + 4 : at + 8], "little")
    count = (size - 24) // 16
    index = struct.pack("<HBBI4sQI", 2, 0, 1, entries, b"00dc", 0, 0) + struct.pack("<II", 4, 4) * entries
    chunk = struct.pack("<4sI", b"ix00", len(index)) + index
    head = struct.pack("<HBBI4s12x", 4, 0, 0, count, b"00dc")
    head += struct.pack("<QII", len(data), len(chunk), entries) * count
    data = data[:at] + struct.pack("<4sI", b"indx", size) + head.ljust(size, b"\0") + data[at + 8 + size :]
    return bytes(data + chunk)


def frames_that_grow() -> bytes:
    """A transport stream of small frames and then of 35 megapixels."""
    fast = {"preset": "ultrafast"}
    small = make_video("mpegts", codec="libx264", codec_options=fast)
    return small + make_video("mpegts", codec="libx264", size=(4320, 8192), frames=1, codec_options=fast)


def references(pixels: str, size: tuple[int, int] = LARGE) -> bytes:
    """The largest frames, each of which is kept as one of sixteen that later ones may refer to."""
    options = {"preset": "ultrafast", "refs": "16", "x264-params": "ref=16:bframes=0:keyint=250:level=6.2"}
    return make_video("mp4", codec="libx264", size=size, frames=24, pixels=pixels, codec_options=options)


def scans_of_motion_jpeg(count: int) -> bytes:
    """An AVI of JPEGs of 9 megapixels, each of a hundred scans."""
    picture = jpeg_of_scans(count, (LARGE[1], LARGE[0]))
    target = io.BytesIO()
    with av.open(target, "w", format="avi") as output:
        stream = output.add_stream("mjpeg", rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = *LARGE, "yuvj420p"
        for index in range(20):
            packet = av.Packet(picture)
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, index, index, True
            output.mux(packet)
    return target.getvalue()


def large_gif(frames: int) -> bytes:
    """A GIF of 9 megapixels and many frames."""
    pictures = [Image.new("P", (LARGE[1], LARGE[0]), index % 2) for index in range(2)]
    data = encode(pictures[0], "GIF", save_all=True, append_images=pictures[1:], duration=40)
    last = data.rindex(b"!\xf9")
    return data[:last] + data[last:-1] * frames + b";"


def flipped(container: str, codec: str, seed: int) -> bytes:
    """A video of which some bytes are wrong."""
    data, chance = bytearray(make_video(container, codec=codec)), random.Random(seed)
    for _ in range(8):
        data[chance.randrange(16, len(data))] = chance.randrange(256)
    return bytes(data)


def cut(container: str, codec: str, **options: Any) -> bytes:
    """The first two thirds of a video."""
    data = make_video(container, codec=codec, **options)
    return data[: 2 * len(data) // 3]


VIDEOS: dict[str, Callable[[], bytes]] = {
    "Matroska of compressed blocks, 0.9 GB": lambda: compressed_blocks(100),
    "Matroska of compressed blocks, 7 GB": lambda: compressed_blocks(800),
    "Matroska of one block of 1 GB": lambda: laced_blocks(120),
    "Matroska of headers left out, 2 GB": lambda: stripped_headers(2_000, 1_000_000),
    "Matroska of a million tracks": lambda: many_elements(0xAE, b"", 0x1654AE6B),
    "Matroska of a million tags": lambda: many_elements(0x7373, b"", 0x1254C367),
    "Matroska of a million index entries": lambda: many_elements(0xBB, b"", 0x1C53BB6B),
    "Matroska of a million chapters": lambda: many_elements(0x45B9, b"\xb6\x80", 0x1043A770),
    "Matroska of 60 large tracks": lambda: many_tracks(60),
    "Matroska of large tags and attachments": huge_attachments,
    "MP4 that says 2^31 frames": lambda: samples_of_equal_size(0x7FFFFFFF),
    "MP4 that says 15 million frames": lambda: samples_of_equal_size(15_000_000),
    "MP4 with a run of 15 million frames": lambda: fragment_of_samples(15_000_000),
    "MP4 that is played 20,000 times": lambda: edit_lists(20_000, 2_000),
    "AVI whose index is 256 times itself": lambda: index_of_indexes(500_000),
    "frames that become 35 megapixels": frames_that_grow,
    "H.264 of 16 references, 9 megapixels": lambda: references("yuv420p"),
    "H.264 of 16 references, 9 megapixels in 4:4:4 and 10 bits": lambda: references("yuv444p10le"),
    "Motion JPEG of 100 scans a frame": lambda: scans_of_motion_jpeg(100),
    "GIF of 9 megapixels and 2,000 frames": lambda: large_gif(2_000),
    "a codec that is not let in": lambda: make_video("avi", codec="cinepak", pixels="rgb24", size=(48, 64)),
    "MP4 with wrong bytes": lambda: flipped("mp4", "libx264", 1),
    "WebM with wrong bytes": lambda: flipped("webm", "libvpx-vp9", 2),
    "transport stream with wrong bytes": lambda: flipped("mpegts", "mpeg2video", 3),
    "FLV cut off": lambda: cut("flv", "libx264", frames=200),
    "Matroska cut off": lambda: cut("matroska", "libx264", frames=200),
}
