"""From the bytes of a video to upright RGB frames, without trusting a single byte. Without torch; PyAV decodes.

The container is told by its first bytes and FFmpeg is held to it, so no playlist or script ever names another file. The
header is judged first; then the packets are read, which says without decoding when every frame is shown; only the
frames asked for, and those they are predicted from, are decoded.

Legend: N frames of the video, H W its upright height and width in pixels.
"""

import io
import os
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import open_regular
from convmae_deploy.media.video_errors import VideoError, VideoErrorCode, corrupt, truncated
from convmae_deploy.media.video_formats import identify, mp4_has_index
from convmae_deploy.media.video_limits import VideoLimits, check_length, check_size, check_time
from convmae_deploy.media.video_rotation import display_matrix, upright

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = ["VideoError", "VideoErrorCode", "VideoFile", "VideoHeader", "VideoLimits", "open_video"]

# In these a packet's time is that of decoding, not of showing, or is missing: the order of decoded frames is all there
# is, and their rate is taken as constant.
_UNTIMED = ("avi", "mpeg")
_SEEKABLE = ("mov", "matroska")  # whose marks of keyframes can be relied upon
_USUAL_RATE = 25.0  # frames a second, where nothing says it

_DEFAULT_LIMITS = VideoLimits()


@dataclass(frozen=True, kw_only=True)
class VideoHeader:
    """What the container says of itself, before any frame is decoded; it may be wrong."""

    container: str  # FFmpeg's name, for instance "matroska"
    codec: str  # FFmpeg's name, for instance "h264"
    seconds: float | None  # None: not said
    frames: int | None  # None: not said
    rate: float | None  # frames a second on average; None: not said
    height: int  # in pixels as stored, before the rotation that the file asks for
    width: int


@dataclass(frozen=True, kw_only=True)
class _Timeline:
    """When frames are shown, in display order."""

    times: NDArray[np.float64]  # (N,) seconds since the first frame, ascending
    seconds: float  # until the end of the last frame
    shown: dict[int, int] | None  # presentation timestamp -> frame; None: frames are counted as they are decoded
    entries: tuple[tuple[int, int], ...]  # (frame, packet) of keyframes, ascending: where decoding can begin


@dataclass(kw_only=True)
class VideoFile:
    """An open video. Frames are numbered from 0 in the order in which they are shown."""

    header: VideoHeader
    limits: VideoLimits
    deadline: float  # of `time.monotonic`
    _stream: "VideoStream"
    _packets: Sequence["Packet[Any]"]
    _timeline: _Timeline
    _reformatter: Any  # av.video.reformatter.VideoReformatter, which keeps its tables from frame to frame
    _decoded: deque[tuple[int, "VideoFrame"]] = field(default_factory=deque)
    _next_packet: int = 0
    _count: int = 0  # frames decoded since the beginning

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
        self._rewind(0)
        size: tuple[int, int] | None = None
        matrix: NDArray[np.int32] | None = None
        for number in np.unique(np.asarray(wanted)).tolist():
            if not 0 <= number < len(self):
                raise ConvMAEError(f"frames must be in [0, {len(self)}); got {number}")
            frame = self._frame(number)
            if size is None:  # of the first frame alone, as one that was asked for its matrix stays in memory for long
                size, matrix = (frame.width, frame.height), display_matrix(frame)
            yield upright(self._to_rgb(frame, size), matrix)

    def _to_rgb(self, frame: "VideoFrame", size: tuple[int, int]) -> NDArray[np.uint8]:
        try:
            rgb = self._reformatter.reformat(frame, format="rgb24", width=size[0], height=size[1])
        except Exception as error:  # FFmpeg's errors have Python's for bases: of a value, of memory, of the system
            _raise_own(error)
            if isinstance(error, MemoryError):
                raise corrupt(f"frames of {frame.width} x {frame.height} for which there is no memory") from error
            # There are matrices of colours that FFmpeg does not convert.
            raise VideoError(
                "unsupported_format", f"the video's colours cannot be converted ({_reason(error)}); use H.264 in MP4"
            ) from error
        pixels: NDArray[np.uint8] = rgb.to_ndarray()
        return pixels

    def _frame(self, number: int) -> "VideoFrame":
        """Frame `number`, or the first after it that the decoder gives: some packets are never shown."""
        entries = self._timeline.entries
        before = bisect_right(entries, number, key=lambda entry: entry[0])
        if before and entries[before - 1][1] > self._next_packet:
            self._rewind(entries[before - 1][1])
        while not self._decoded or self._decoded[0][0] < number:
            if self._decoded:
                self._decoded.popleft()
            else:
                self._decode_packet()
        return self._decoded[0][1]

    def _rewind(self, packet: int) -> None:
        self._stream.codec_context.flush_buffers()
        self._decoded.clear()
        self._next_packet, self._count = packet, 0

    def _decode_packet(self) -> None:
        """Feeds one packet, or after the last one asks for what the decoder still holds."""
        if self._next_packet > len(self._packets):
            raise truncated(f"{len(self)} frames are promised, and the last ones cannot be decoded")
        check_time(self.deadline, self.limits)
        packet = self._packets[self._next_packet] if self._next_packet < len(self._packets) else None
        self._next_packet += 1
        try:
            decoded = self._stream.codec_context.decode(packet)
        except Exception as error:  # decoders raise anything on hostile bytes
            _raise_own(error)
            raise corrupt(f"{self.header.codec} that cannot be decoded ({_reason(error)})") from error
        for frame in decoded:
            check_size(frame.width, frame.height, self.limits)
            number = self._count
            if self._timeline.shown is not None:
                number = self._timeline.shown.get(-1 if frame.pts is None else frame.pts, -1)
            self._count += 1
            self._decoded.append((number, frame))


@contextmanager
def open_video(source: Path | bytes, *, limits: VideoLimits = _DEFAULT_LIMITS, threads: int = 1) -> Iterator[VideoFile]:
    """Opens a video: header, packets and times, no frame yet.

    A file cut off in the middle is refused even where the frames asked for could be decoded: a prediction from half a
    video is wrong without a word. Training counts and skips such files, a server answers 4xx. A file that promises
    neither frames nor seconds (a live recording, a transport stream) counts as whole.

    Args:
        source: a file, or the content of one.
        limits: what may be decoded.
        threads: that decode; one where several videos are decoded side by side.

    Raises:
        VideoError: with the reason in `code`.
        ConvMAEError: the file cannot be read, or PyAV is not installed.
    """
    deadline = time.monotonic() + limits.decoding_seconds
    av = import_av()
    data = _read(source, limits)
    name = identify(data[:4096])
    try:
        container = av.open(io.BytesIO(data), format=name, options={"protocol_whitelist": ""})  # no other file
    except Exception as error:  # demuxers raise anything on hostile bytes
        _raise_own(error)
        raise _unopenable(name, data, error) from error
    with container:
        stream = _video_stream(container, name, data)
        header = _read_header(container, stream, name, limits)
        packets, end = _read_packets(container, stream, limits, deadline)
        _check_promises(container, stream, packets, end, data)
        timeline = _read_timeline(stream, packets, header, limits)
        context = stream.codec_context
        context.thread_type, context.thread_count = "AUTO", threads
        context.options = {"max_pixels": str(limits.max_pixels + 1)}  # so that no frame beyond is ever allocated
        yield VideoFile(
            header=header,
            limits=limits,
            deadline=deadline,
            _stream=stream,
            _packets=packets,
            _timeline=timeline,
            _reformatter=av.video.reformatter.VideoReformatter(),
        )


def import_av() -> Any:
    """PyAV, which only videos need.

    Raises:
        ConvMAEError: it is not installed.
    """
    try:
        import av
        import av.video.reformatter
    except ImportError as error:
        raise ConvMAEError(
            "videos need PyAV, which is not installed; install it with: pip install 'convmae-deploy[video]'"
        ) from error
    return av


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


def _unopenable(name: str, data: bytes, error: Exception) -> VideoError:
    if name == "mov" and not mp4_has_index(data):
        return truncated("an MP4 without its index (moov)")
    return corrupt(f"a {name} that cannot be opened ({_reason(error)})")


def _video_stream(container: "InputContainer", name: str, data: bytes) -> "VideoStream":
    from av.stream import Disposition

    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if streams:
        return streams[0]
    if name == "mov" and not mp4_has_index(data):
        raise truncated("an MP4 without its index (moov)")
    names = {"video": "a cover picture"}
    kinds = ", ".join(sorted({names.get(stream.type, stream.type) for stream in container.streams})) or "nothing"
    raise VideoError("no_video_stream", f"expected a video, found a file that holds {kinds} only; send a video")


def _read_header(container: "InputContainer", stream: "VideoStream", name: str, limits: VideoLimits) -> VideoHeader:
    context = stream.codec_context
    if context is None:
        raise VideoError("unsupported_format", "the video's codec is not known; convert it to H.264 in MP4")
    check_size(context.width, context.height, limits)
    stream_seconds = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
    seconds = max(stream_seconds, (container.duration or 0) / 1_000_000)
    rate = stream.average_rate or stream.guessed_rate
    check_length(seconds, stream.frames, limits)
    return VideoHeader(
        container=name,
        codec=context.name,
        seconds=seconds or None,
        frames=stream.frames or None,
        rate=float(rate) if rate else None,
        height=context.height,
        width=context.width,
    )


def _read_packets(
    container: "InputContainer", stream: "VideoStream", limits: VideoLimits, deadline: float
) -> tuple[list["Packet[Any]"], float]:
    """The video's packets as stored, and the second at which the last packet of any stream ends."""
    packets, end = [], 0.0
    try:
        for packet in container.demux():
            check_time(deadline, limits)
            if packet.pts is not None and packet.time_base:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index == stream.index and packet.size:  # an empty one ends each stream
                packets.append(packet)
                check_length(0.0, len(packets), limits)
    except VideoError:
        raise
    except Exception as error:  # demuxers raise anything on hostile bytes
        _raise_own(error)
        raise corrupt(f"its packets cannot be read ({_reason(error)})") from error
    keyframes = [number for number, packet in enumerate(packets) if packet.is_keyframe]
    return packets[keyframes[0] if keyframes else 0 :], end  # what is before the first cannot be decoded


def _check_promises(
    container: "InputContainer",
    stream: "VideoStream",
    packets: Sequence["Packet[Any]"],
    end: float,
    data: bytes,
) -> None:
    """Raises VideoError where the file ends before what its header promises."""
    if container.format.name == "gif":
        if len(packets) == 1:
            raise VideoError("still_image", "expected a video, found a GIF of a single picture; send a video")
        if b"\0;" not in data[-1024:]:  # the end of the last picture's data and of the file
            raise truncated("a GIF without its end")
    elif len(packets) < stream.frames:
        raise truncated(f"its header promises {stream.frames} frames, it holds {len(packets)}")
    elif packets and packets[-1].is_corrupt:
        raise truncated("it ends inside a frame")
    promised = (container.duration or 0) / 1_000_000
    start = (container.start_time or 0) / 1_000_000
    if end - start < promised - max(0.5, 0.05 * promised):  # encoders round, and leave out what is silent
        raise truncated(f"its header promises {promised:.1f} seconds, it holds {max(end - start, 0.0):.1f}")
    if not packets:
        raise VideoError("no_frames", "the video has no frames; send one that has")


def _read_timeline(
    stream: "VideoStream", packets: Sequence["Packet[Any]"], header: VideoHeader, limits: VideoLimits
) -> _Timeline:
    shown = [(packet.pts, number) for number, packet in enumerate(packets) if not packet.is_discard]
    stamps = sorted(pts for pts, _ in shown if pts is not None)
    count = len(shown)
    if not count:
        raise VideoError("no_frames", "the video has no frames that are shown; send one that has")
    if header.container in _UNTIMED or len(set(stamps)) < count or not stream.time_base:
        rate = header.rate or _USUAL_RATE
        timeline = _Timeline(times=np.arange(count) / rate, seconds=count / rate, shown=None, entries=())
    else:
        ticks = np.array(stamps, dtype=np.float64) - stamps[0]
        gap = ticks[-1] / (count - 1) if count > 1 else 1.0
        last = next(packets[number].duration for pts, number in shown if pts == stamps[-1]) or gap
        numbers = {pts: number for number, pts in enumerate(stamps)}
        keyframes = [item for item in shown if packets[item[1]].is_keyframe and header.container in _SEEKABLE]
        timeline = _Timeline(
            times=ticks * float(stream.time_base),
            seconds=float((ticks[-1] + last) * stream.time_base),
            shown=numbers,
            entries=tuple(sorted((numbers[pts], packet) for pts, packet in keyframes if pts is not None)),
        )
    check_length(timeline.seconds, count, limits)
    return timeline


def _raise_own(error: Exception) -> None:
    """Raises the MemoryError of a process that has no more; FFmpeg's is that of a file that makes up sizes."""
    if type(error) is MemoryError:
        raise error


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split()).rstrip(".") or type(error).__name__
