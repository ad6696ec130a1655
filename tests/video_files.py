"""Small videos that the tests make for themselves.

Frame i of N is a flat grey of level `grey(i)`, with a red rectangle in its top left corner: so a decoded frame says
which one it is and which way is up.
"""

import struct
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray

MILLISECOND = Fraction(1, 1000)
CODECS = {"mp4": "libx264", "mov": "libx265", "webm": "libvpx-vp9", "avi": "mpeg4", "matroska": "libx264"} | {
    "mpegts": "libx264",
    "flv": "libx264",
    "mpeg": "mpeg2video",
    "ogg": "libvpx",
    "asf": "mpeg4",
}


def grey(number: int, count: int) -> int:
    """The level of frame `number` of `count`."""
    return 40 + round(180 * number / max(count - 1, 1))


def number_of(frame: NDArray[np.uint8], count: int) -> int:
    """Which frame this is, by its level in the middle."""
    height, width = frame.shape[:2]
    level = float(frame[height * 5 // 8 : height * 6 // 8, width * 5 // 8 : width * 6 // 8].mean())
    return round((level - 40) / 180 * max(count - 1, 1))


def make_frame(number: int, count: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """(height, width, 3)."""
    frame = np.full((*size, 3), grey(number, count), dtype=np.uint8)
    frame[: size[0] // 3, : size[1] // 2] = (255, 0, 0)
    return frame


def make_video(
    container: str = "mp4",
    *,
    codec: str | None = None,
    frames: int = 20,
    size: tuple[int, int] = (48, 64),
    rate: int = 25,
    pixels: str = "yuv420p",
    milliseconds: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
    rotation: int | None = None,
    mirrored: bool = False,
    dropped: Sequence[int] = (),
) -> bytes:
    """The content of a video file.

    Args:
        container: FFmpeg's name of the format.
        codec: FFmpeg's name of the encoder; None: the usual one.
        frames: how many.
        size: (height, width) in pixels as stored.
        rate: frames a second.
        pixels: FFmpeg's pixel format.
        milliseconds: when each frame is shown; None: evenly.
        options: of the container.
        codec_options: of the encoder.
        rotation: in degrees anticlockwise that a player turns the frames by.
        mirrored: whether a player mirrors left and right.
        dropped: packets that are not written, as by a recorder that is too slow; encoders without delay alone.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video"
        with av.open(path, "w", format=container, options=options) as output:
            stream = output.add_stream(codec or CODECS[container], rate=rate, options=codec_options)
            assert isinstance(stream, av.VideoStream)
            stream.height, stream.width = size
            stream.pix_fmt = pixels
            stream.bit_rate = 400_000
            if codec is None and container == "mov":
                stream.options = {"x265-params": "log-level=none"}
            if milliseconds is not None:
                stream.codec_context.time_base = MILLISECOND
            if rotation is not None or mirrored:
                stream.set_display_rotation(rotation or 0, hflip=mirrored)
            for number in range(frames):
                frame = av.VideoFrame.from_ndarray(make_frame(number, frames, size))
                if milliseconds is not None:
                    frame.pts, frame.time_base = milliseconds[number], MILLISECOND
                packets = stream.encode(frame)
                output.mux([] if number in dropped else packets)
            output.mux(stream.encode(None))
        return path.read_bytes()


def make_gif(frames: int = 12) -> bytes:
    """An animated GIF, ten frames a second."""
    return make_video("gif", codec="gif", frames=frames, rate=10, pixels="gray")


def make_audio(container: str = "mp4", *, cover: bool = False) -> bytes:
    """Half a second of silence, no picture but perhaps that of its cover."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audio"
        with av.open(path, "w", format=container) as output:
            stream = output.add_stream("aac", rate=16_000, layout="mono")
            picture = output.add_stream("png", rate=1) if cover else None
            if picture is not None:
                assert isinstance(picture, av.VideoStream)
                picture.height, picture.width, picture.pix_fmt = 48, 64, "rgb24"
                picture.disposition = Disposition.attached_pic
            for start in range(0, 8000, 1000):
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 1000), dtype=np.float32), format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 16_000, start
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
            if picture is not None:
                output.mux(picture.encode(av.VideoFrame.from_ndarray(make_frame(0, 1, (48, 64)))))
                output.mux(picture.encode(None))
        return path.read_bytes()


def with_matroska_seconds(data: bytes, seconds: float) -> bytes:
    """A Matroska file whose header says another duration."""
    at = data.index(b"\x44\x89\x88") + 3
    return data[:at] + struct.pack(">d", seconds * 1000) + data[at + 8 :]
