"""From the bytes of a video to upright RGB frames, without trusting a single byte. Without torch; PyAV decodes.

The first bytes say which container it is and FFmpeg is held to it, so no playlist or script ever names another file.
The header is judged first; then the packets are read, which says without decoding when every frame is shown; only the
frames asked for, and those they are predicted from, are decoded. One packet is in memory at a time, and the frames that
the decoder refers to.

Legend: N frames of the video, H W its upright height and width in pixels.
"""

import os
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import open_regular
from convmae_deploy.media.video_container import (
    accepted_codec,
    import_av,
    max_pixels,
    open_container,
    raise_own,
    reason,
)
from convmae_deploy.media.video_errors import VideoError, VideoErrorCode, corrupt, truncated
from convmae_deploy.media.video_formats import identify
from convmae_deploy.media.video_limits import VideoLimits, check_length, check_size, check_time
from convmae_deploy.media.video_rotation import display_matrix, upright
from convmae_deploy.media.video_timeline import Timeline, check_promises, read_packets, read_timeline, video_packets

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = ["VideoError", "VideoErrorCode", "VideoFile", "VideoHeader", "VideoLimits", "import_av", "open_video"]

DECODING_THREADS = 1  # as several videos are decoded side by side
_DEFAULT_LIMITS = VideoLimits()


@dataclass(frozen=True, kw_only=True)
class VideoHeader:
    """What the container says of itself, before any frame is decoded; it may be wrong."""

    container: str  # FFmpeg's name, for instance "matroska"
    seconds: float | None  # None: not said
    frames: int | None  # None: not said
    rate: float | None  # frames a second on average; None: not said
    height: int  # in pixels as stored, before the rotation that the file asks for
    width: int


@dataclass(kw_only=True)
class VideoFile:
    """An open video. Frames are numbered from 0 in the order in which they are shown."""

    header: VideoHeader
    limits: VideoLimits
    deadline: float  # of `time.monotonic`
    decoded: int = 0  # frames, by the latest call of `frames`
    _data: bytes
    _timeline: Timeline

    @property
    def times(self) -> NDArray[np.float64]:
        """(N,) seconds from the first frame to each frame, as the packets say; ascending, however uneven."""
        return self._timeline.times

    @property
    def seconds(self) -> float:
        """From the first frame to the end of the last."""
        return self._timeline.seconds

    def __len__(self) -> int:
        """N."""
        return len(self._timeline.times)

    def on_screen(self, moments: NDArray[np.float64]) -> NDArray[np.intp]:
        """The frames shown at moments of the video.

        Args:
            moments: shares of its length in [0, 1), any shape.

        Returns:
            Frame numbers, same shape.
        """
        found = np.searchsorted(self.times, moments * self.seconds, side="right") - 1
        return np.clip(found, 0, len(self) - 1)

    def frames(self, wanted: Sequence[int] | NDArray[np.intp]) -> Iterator[NDArray[np.uint8]]:
        """Decodes frames: those asked for, in ascending order, a frame asked for twice only once.

        Frames are turned and mirrored as the file says; pixels are taken as square; alpha is dropped; a frame whose
        size differs from the first one's is scaled to it.

        Args:
            wanted: frame numbers in [0, N), any order.

        Yields:
            (H, W, 3), RGB.

        Raises:
            VideoError: the packets do not hold what they promise, or a limit is exceeded.
        """
        reformatter = import_av().video.reformatter.VideoReformatter()  # keeps its tables from frame to frame
        size: tuple[int, int] | None = None
        matrix: NDArray[np.int32] | None = None
        with open_container(self._data, self.header.container, self.limits) as (container, stream):
            decoder = _Decoder(self, container, stream)
            for number in np.unique(np.asarray(wanted)).tolist():
                if not 0 <= number < len(self):
                    raise ConvMAEError(f"frames must be in [0, {len(self)}); got {number}")
                frame = decoder.frame(number)
                if size is None:  # the first frame alone: one that was asked for its matrix stays in memory for long
                    size, matrix = (frame.width, frame.height), display_matrix(frame)
                yield upright(_to_rgb(frame, size, reformatter), matrix)


class _Decoder:
    """Decodes a video from its beginning to its end, and leaves out what no frame asked for is predicted from.

    Args:
        video: what is decoded.
        container: the same file, opened for this.
        stream: the video in it.
    """

    def __init__(self, video: VideoFile, container: "InputContainer", stream: "VideoStream") -> None:
        self._video = video
        self._timeline = video._timeline
        self._context: VideoCodecContext = accepted_codec(stream)
        self._context.thread_type, self._context.thread_count = "AUTO", DECODING_THREADS
        self._context.options = {"max_pixels": max_pixels(video.limits)}
        every = video_packets(container, stream, video.limits, video.deadline)
        self._packets = (packet for packet, is_video in every if is_video)
        self._next_packet = -self._timeline.skipped  # its number; below 0 before the first that can be decoded
        self._frames: deque[tuple[int, VideoFrame]] = deque()  # decoded and not passed yet, with their numbers
        video.decoded = 0

    def frame(self, number: int) -> "VideoFrame":
        """Frame `number`, or the first after it that the decoder gives: some packets are never shown."""
        entries = self._timeline.entries
        before = bisect_right(entries, number, key=lambda entry: entry[0])
        start = entries[before - 1][1] if before else 0
        if start > self._next_packet:
            self._skip_to(start)
        while not self._frames or self._frames[0][0] < number:
            if self._frames:
                self._frames.popleft()
            else:
                self._decode_packet()
        return self._frames[0][1]

    def _skip_to(self, packet: int) -> None:
        """Goes to a keyframe. Decoding can begin there: nothing after it is predicted from what is before it."""
        if self._next_packet > 0:
            self._context.flush_buffers()
        self._frames.clear()
        while self._next_packet < packet:
            self._read_packet()

    def _read_packet(self) -> "Packet[Any] | None":
        check_time(self._video.deadline, self._video.limits)
        self._next_packet += 1
        return next(self._packets, None)

    def _decode_packet(self) -> None:
        """Feeds one packet, or after the last one asks for what the decoder still holds."""
        if self._next_packet > self._timeline.packets:
            raise truncated(f"{len(self._video)} frames are promised, and the last ones cannot be decoded")
        packet = self._read_packet()
        try:
            decoded = self._context.decode(packet)
        except Exception as error:  # decoders raise anything on hostile bytes
            raise_own(error)
            raise corrupt(f"{self._context.name} that cannot be decoded ({reason(error)})") from error
        for frame in decoded:
            check_size(frame.width, frame.height, self._video.limits)
            number = self._video.decoded
            if self._timeline.shown is not None:
                number = self._timeline.shown.get(-1 if frame.pts is None else frame.pts, -1)
            self._video.decoded += 1
            self._frames.append((number, frame))


def _to_rgb(frame: "VideoFrame", size: tuple[int, int], reformatter: Any) -> NDArray[np.uint8]:
    try:
        rgb = reformatter.reformat(frame, format="rgb24", width=size[0], height=size[1], threads=DECODING_THREADS)
    except Exception as error:  # FFmpeg's errors have Python's for bases: of a value, of memory, of the system
        raise_own(error)
        if isinstance(error, MemoryError):
            raise corrupt(f"frames of {frame.width} x {frame.height} for which there is no memory") from error
        # There are matrices of colours that FFmpeg does not convert.
        raise VideoError(
            "unsupported_format", f"the video's colours cannot be converted ({reason(error)}); use H.264 in MP4"
        ) from error
    pixels: NDArray[np.uint8] = rgb.to_ndarray()
    return pixels


@contextmanager
def open_video(source: Path | bytes, *, limits: VideoLimits = _DEFAULT_LIMITS) -> Iterator[VideoFile]:
    """Opens a video: header, packets and times, no frame yet.

    A file cut off in the middle is refused even where the frames asked for could be decoded: a prediction from half a
    video is wrong without a word. Training counts and skips such files, a server answers 4xx. A file that promises
    neither frames nor seconds (a live recording, a transport stream) counts as whole.

    Args:
        source: a file, or the content of one.
        limits: what may be decoded.

    Raises:
        VideoError: with the reason in `code`.
        ConvMAEError: the file cannot be read, or PyAV is not installed.
    """
    deadline = time.monotonic() + limits.decoding_seconds
    import_av()
    data = _read(source, limits)
    name = identify(data[:4096])
    with open_container(data, name, limits) as (container, stream):
        header = _read_header(container, stream, name, limits)
        packets = read_packets(container, stream, limits, deadline)
        check_promises(container, stream, packets, data)
        timeline = read_timeline(stream, packets, name, header.rate, limits)
    yield VideoFile(header=header, limits=limits, deadline=deadline, _data=data, _timeline=timeline)


def _read(source: Path | bytes, limits: VideoLimits) -> bytes:
    if isinstance(source, Path):
        try:
            with open_regular(source) as file:
                size = os.fstat(file.fileno()).st_size
                data = file.read(size) if size <= limits.max_bytes else b""
        except OSError as error:
            raise ConvMAEError(f"the file cannot be read ({error.strerror}); check its path and permissions") from error
    else:
        data, size = source, len(source)
    if size > limits.max_bytes:
        raise VideoError(
            "video_too_large",
            f"the video has {size} bytes, at most {limits.max_bytes} are accepted; send a shorter or smaller one",
        )
    if not data:
        raise VideoError("empty_body", "expected a video, found no bytes at all; send the content of a video file")
    return data


def _read_header(container: "InputContainer", stream: "VideoStream", name: str, limits: VideoLimits) -> VideoHeader:
    context = accepted_codec(stream)
    if not context.width or not context.height:  # FFmpeg looks at the first frame, and decodes no larger one
        raise corrupt(f"its frames have no size, or more than {limits.max_pixels} pixels")
    check_size(context.width, context.height, limits)
    stream_seconds = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
    seconds = max(stream_seconds, (container.duration or 0) / 1_000_000)
    rate = stream.average_rate or stream.guessed_rate
    check_length(seconds, stream.frames, limits)
    return VideoHeader(
        container=name,
        seconds=seconds or None,
        frames=stream.frames or None,
        rate=float(rate) if rate and rate > 0 else None,
        height=context.height,
        width=context.width,
    )
