"""What the packets of a video say without being decoded: how many frames there are, when each is shown, what lacks.

Only notes of the packets are kept. Their content may be a thousand times as large as the file, where that is compressed
once more; it is read again, one packet at a time, when frames are decoded.

Legend: N frames of the video.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convmae_deploy.media.video_container import raise_own, reason
from convmae_deploy.media.video_errors import VideoError, corrupt, truncated
from convmae_deploy.media.video_limits import VideoLimits, check_length, check_packet_bytes, check_time

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

# In these a packet's time is that of decoding, not of showing, or is missing: the order of decoded frames is all there
# is, and their rate is taken as constant.
_UNTIMED = ("avi", "mpeg")
_SEEKABLE = ("mov", "matroska")  # whose marks of keyframes can be relied upon
_FEW_FRAMES = 10  # from so many on the count of a header may be wrong by one, as some writers' are
_USUAL_RATE = 25.0  # frames a second, where nothing says it


class _Note(NamedTuple):
    """Of one packet of the video."""

    pts: int | None
    dts: int | None
    duration: int  # 0: not said
    is_keyframe: bool
    is_discarded: bool
    is_corrupt: bool


@dataclass(frozen=True, kw_only=True)
class Packets:
    """Of the video, from the first keyframe on."""

    notes: Sequence[_Note]
    skipped: int  # packets before the first keyframe, which cannot be decoded
    end: float  # second at which the last packet of any stream ends


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """When frames are shown, in display order."""

    times: NDArray[np.float64]  # (N,) seconds since the first frame, ascending
    seconds: float  # until the end of the last frame
    shown: dict[int, int] | None  # presentation timestamp -> frame; None: frames are counted as they are decoded
    entries: tuple[tuple[int, int], ...]  # (frame, packet) of keyframes, ascending: where decoding can begin
    packets: int  # in the whole video
    skipped: int  # packets before those


def video_packets(
    container: "InputContainer", stream: "VideoStream", limits: VideoLimits, deadline: float
) -> Iterator[tuple["Packet[Any]", bool]]:
    """Every packet as stored, one at a time, and whether it is one of the video.

    Raises:
        VideoError: the file is broken, the time is over, or the packets hold more than a file may.
    """
    size = 0
    try:
        for packet in container.demux():
            check_time(deadline, limits)
            size += packet.size
            check_packet_bytes(size, limits)
            yield packet, packet.stream_index == stream.index and packet.size > 0  # an empty one ends each stream
    except VideoError:
        raise
    except Exception as error:  # demuxers raise anything on hostile bytes
        raise_own(error)
        raise corrupt(f"its packets cannot be read ({reason(error)})") from error


def read_packets(container: "InputContainer", stream: "VideoStream", limits: VideoLimits, deadline: float) -> Packets:
    """Reads all packets and takes notes.

    Raises:
        VideoError: as `video_packets`, or there are more frames than allowed.
    """
    notes: list[_Note] = []
    end = 0.0
    for packet, is_video in video_packets(container, stream, limits, deadline):
        if packet.pts is not None and packet.time_base:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if is_video:
            notes.append(
                _Note(
                    pts=packet.pts,
                    dts=packet.dts,
                    duration=packet.duration or 0,
                    is_keyframe=packet.is_keyframe,
                    is_discarded=packet.is_discard,
                    is_corrupt=packet.is_corrupt,
                )
            )
            check_length(0.0, len(notes), limits)
    first = next((number for number, note in enumerate(notes) if note.is_keyframe), 0)
    return Packets(notes=notes[first:], skipped=first, end=end)


def check_promises(container: "InputContainer", stream: "VideoStream", packets: Packets, data: bytes) -> None:
    """Raises VideoError where the file ends before what its header promises."""
    count = len(packets.notes)
    if container.format.name == "gif":
        if count == 1:
            raise VideoError("still_image", "expected a video, found a GIF of a single picture; send a video")
        if b"\0;" not in data[-1024:]:  # the end of the last picture's data and of the file
            raise truncated("a GIF without its end")
    elif stream.frames - count - _dropped(packets.notes) > max(stream.frames >= _FEW_FRAMES, stream.frames // 50):
        raise truncated(f"its header promises {stream.frames} frames, it holds {count}")
    elif count and packets.notes[-1].is_corrupt:
        raise truncated("it ends inside a frame")
    promised = (container.duration or 0) / 1_000_000
    found = packets.end - (container.start_time or 0) / 1_000_000
    if found < promised - max(0.5, 0.05 * promised):  # encoders round, and leave out what is silent
        raise truncated(f"its header promises {promised:.1f} seconds, it holds {max(found, 0.0):.1f}")
    if not count:
        raise VideoError("no_frames", "the video has no frames; send one that has")


def _dropped(notes: Sequence[_Note]) -> int:
    """Frames of an AVI that were dropped when it was recorded: their places are counted and hold nothing.

    At most as many as it holds: one of places alone is no recording.
    """
    if not notes or notes[0].dts is None or notes[-1].dts is None or notes[0].duration != 1:
        return 0
    return min(max(0, notes[-1].dts + 1 - len(notes)), len(notes))


def _places(notes: Sequence[_Note]) -> NDArray[np.intp]:
    """(N,) the place of each frame of an AVI among all, dropped ones included: the frame before stays on screen."""
    stamps = [note.dts for note in notes if note.dts is not None and note.duration == 1]
    places = np.array(stamps, dtype=np.intp)
    if len(places) < len(notes) or (np.diff(places) < 1).any():
        places = np.arange(len(notes))
    return np.asarray(places - places[0])


def read_timeline(
    stream: "VideoStream", packets: Packets, name: str, rate: float | None, limits: VideoLimits
) -> Timeline:
    """When each frame is shown.

    Args:
        stream: the video.
        packets: its packets.
        name: FFmpeg's name of the container.
        rate: frames a second that the header says; None: it does not.
        limits: what may be decoded.

    Raises:
        VideoError: no frame is shown, or the video is too long.
    """
    notes = packets.notes
    shown = [(note.pts, number) for number, note in enumerate(notes) if not note.is_discarded]
    stamps = sorted(pts for pts, _ in shown if pts is not None)
    count = len(shown)
    if not count:
        raise VideoError("no_frames", "the video has no frames that are shown; send one that has")
    if name in _UNTIMED or len(set(stamps)) < count or not (stream.time_base and stream.time_base > 0):
        rate = rate or _USUAL_RATE
        places = _places([notes[number] for _, number in shown]) if name == "avi" else np.arange(count)
        times, seconds, numbers, entries = places / rate, (int(places[-1]) + 1) / rate, None, []
    else:
        ticks = np.array(stamps, dtype=np.float64) - stamps[0]
        gap = ticks[-1] / (count - 1) if count > 1 else 1.0
        last = next(notes[number].duration for pts, number in shown if pts == stamps[-1]) or gap
        times, seconds = ticks * float(stream.time_base), float((ticks[-1] + last) * stream.time_base)
        numbers = {pts: number for number, pts in enumerate(stamps)}
        keyframes = [item for item in shown if notes[item[1]].is_keyframe and name in _SEEKABLE]
        entries = sorted((numbers[pts], packet) for pts, packet in keyframes if pts is not None)
    check_length(seconds, count, limits)
    return Timeline(
        times=times,
        seconds=seconds,
        shown=numbers,
        entries=tuple(entries),
        packets=len(notes),
        skipped=packets.skipped,
    )
