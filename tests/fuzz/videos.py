"""Target: the videos that a stranger sends, from the first bytes to frames."""

import random
from itertools import pairwise

from tests.fuzz.chunks import mutate_chunks
from tests.fuzz.target import Check, MutateBytes, require, require_sentence

MAX_PIXELS = 65_536
_FRAMES_READ = 6

VIDEO_TOKENS = (
    *(
        b"ftypisom",
        b"moov",
        b"mvhd",
        b"trak",
        b"tkhd",
        b"mdia",
        b"mdhd",
        b"hdlrvide",
        b"minf",
        b"stbl",
        b"stsd",
        b"stts",
    ),
    *(
        b"ctts",
        b"stsc",
        b"stsz",
        b"stco",
        b"co64",
        b"stss",
        b"edts",
        b"elst",
        b"mdat",
        b"moof",
        b"traf",
        b"trun",
        b"avc1",
    ),
    *(b"avcC", b"hvc1", b"hvcC", b"mp4v", b"vp09", b"free", b"wide", b"cmov", b"dref", b"alis", b"url "),
    *(
        b"\x1aE\xdf\xa3",
        b"\x18\x53\x80\x67",
        b"\x15\x49\xa9\x66",
        b"\x16\x54\xae\x6b",
        b"\x1f\x43\xb6\x75",
        b"\x1c\x53\xbb\x6b",
    ),
    *(
        b"\xa3",
        b"\xa0",
        b"\xa1",
        b"\xae",
        b"\xd7",
        b"\x83\x81\x01",
        b"\x86",
        b"\xe0",
        b"\xb0",
        b"\xba",
        b"\xec",
        b"\x6d\x80",
    ),
    *(
        b"\x62\x40",
        b"\x50\x34",
        b"\x50\x35",
        b"\x42\x54\x81\x00",
        b"\x42\x55",
        b"\xe7",
        b"webm",
        b"matroska",
        b"V_VP9",
        b"V_VP8",
    ),
    *(b"V_MPEG4/ISO/AVC", b"V_UNCOMPRESSED", b"V_MS/VFW/FOURCC", b"V_PRORES", b"\x01\xff\xff\xff\xff\xff\xff\xff"),
    *(
        b"RIFF",
        b"AVI ",
        b"LIST",
        b"hdrl",
        b"avih",
        b"strl",
        b"strh",
        b"strf",
        b"movi",
        b"idx1",
        b"00dc",
        b"vids",
        b"XVID",
    ),
    *(b"GIF89a", b"!\xf9\x04", b"FLV\x01", b"OggS", b"\0\0\x01\xba", b"\0\0\x01\xb3", b"\0\0\x01\xe0", b"G\x40\0\x10"),
    *(b"\0\0\0\x01\x67", b"\0\0\0\x01\x68", b"\0\0\0\x01\x65", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
)


def video_seeds() -> dict[str, bytes]:
    """A video of every container, and of the codecs that are common in it."""
    from tests.video_files import make_audio, make_gif, make_video

    def make(container: str, codec: str | None = None, **options: object) -> bytes:
        return make_video(container, codec=codec, frames=3, size=(32, 48), **options)  # type: ignore[arg-type]

    return {
        "h264.mp4": make("mp4"),
        "turned.mp4": make("mp4", "mpeg4", rotation=90),
        "fragments.mp4": make("mp4", "mpeg4", options={"movflags": "frag_keyframe+empty_moov"}),
        "uneven.mp4": make("mp4", "mpeg4", milliseconds=(0, 40, 400)),
        "mjpeg.mov": make("mov", "mjpeg", pixels="yuvj420p"),
        "vp9.webm": make("webm"),
        "vp8.webm": make("webm", "libvpx"),
        "raw.mkv": make("matroska", "ffv1"),
        "mpeg4.mkv": make("matroska", "mpeg4"),
        "mpeg4.avi": make("avi"),
        "transport.ts": make("mpegts", "mpeg2video"),
        "flash.flv": make("flv", "flv"),
        "program.mpg": make("mpeg"),
        "vp8.ogv": make("ogg"),
        "windows.wmv": make("asf", "wmv2"),
        "small.gif": make_gif(frames=3),
        "sound.mp4": make_audio("mp4", cover=True),
    }


def video_check() -> Check:
    """Opening a video and decoding a few of its frames."""
    import numpy as np

    from convmae_deploy.media.video_file import VideoError, VideoLimits, open_video

    limits = VideoLimits(
        max_bytes=65_536, max_seconds=60.0, max_frames=200, max_pixels=MAX_PIXELS, decoding_seconds=5.0
    )

    def check(data: bytes) -> None:
        try:
            with open_video(data, limits=limits) as video:
                times, count = video.times.tolist(), len(video)
                require(0 < count <= limits.max_frames, f"{count} frames must be within the limit")
                require(bool(np.isfinite(times).all()) and times[0] >= 0, f"times must be numbers; they are {times}")
                require(all(before <= after for before, after in pairwise(times)), f"times must ascend: {times}")
                require(0 <= video.seconds <= limits.max_seconds, f"{video.seconds} seconds must be within the limit")
                shown = video.on_screen(np.array([0.0, 0.5, 0.999])).tolist()
                require(all(0 <= number < count for number in shown), f"frames {shown} must be some of {count}")
                frames = list(video.frames(range(min(count, _FRAMES_READ))))
        except VideoError as error:
            require_sentence(error)
            return
        shapes = {frame.shape for frame in frames}
        require(len(shapes) == 1, f"frames must have one size; they have {shapes}")
        height, width, channels = shapes.pop()
        require(
            channels == 3 and 0 < height * width <= MAX_PIXELS, f"{width} x {height} pixels must be within the limit"
        )
        require(all(frame.dtype == np.uint8 for frame in frames), "frames must be of 8 bits")

    return check


def mutate_video(data: bytes, most: int, dice: random.Random, mutate_bytes: MutateBytes) -> bytes:
    """MP4 keeps whole boxes and AVI whole chunks most of the time; other containers are changed anywhere."""
    for place, magic, layout in ((0, b"RIFF", "riff"), (4, b"ftyp", "boxes")):
        if data[place : place + 4] == magic and dice.random() < 0.75:
            return mutate_chunks(data, layout, most, dice, mutate_bytes)
    return mutate_bytes(data, most)
