"""A video's container, opened by FFmpeg within limits: no other file, few streams, only decoders that are let in."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from convmae_deploy.errors import ConvMAEError, missing_extra
from convmae_deploy.media.video_errors import VideoError, corrupt, truncated
from convmae_deploy.media.video_formats import ACCEPTED_CODECS, CODECS, mp4_has_index, mp4_overstates_its_frames
from convmae_deploy.media.video_limits import VideoLimits

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

_MAX_STREAMS = 64  # FFmpeg tries a decoder on each; films with many languages have some thirty


def import_av() -> Any:
    """PyAV, which only videos need.

    Raises:
        ConvMAEError: it is not installed.
    """
    try:
        import av
        import av.video.reformatter
    except ImportError as error:
        raise missing_extra("a video", "PyAV", "video") from error
    return av


@contextmanager
def open_container(data: bytes, name: str, limits: VideoLimits) -> Iterator[tuple["InputContainer", "VideoStream"]]:
    """Opens a file and finds its video.

    Args:
        data: the file.
        name: FFmpeg's name of its container, to which FFmpeg is held.
        limits: what may be decoded.

    Raises:
        VideoError: it claims what cannot be, FFmpeg cannot open it, or there is no video in it.
        ConvMAEError: PyAV is not installed.
    """
    options = {
        "protocol_whitelist": "",  # no other file
        "max_streams": str(_MAX_STREAMS),
        # FFmpeg decodes a little of each stream to learn what is in it.
        "codec_whitelist": ",".join(CODECS),
        "max_pixels": max_pixels(limits),
    }
    if name == "mov" and mp4_overstates_its_frames(data):
        raise truncated("an MP4 whose tables say that there is more in it than its bytes")
    try:
        container = import_av().open(io.BytesIO(data), format=name, options=options)
    except ConvMAEError:
        raise
    except Exception as error:  # demuxers raise anything on hostile bytes
        raise_own(error)
        if name == "mov" and not mp4_has_index(data):
            raise truncated("an MP4 without its index (moov)") from error
        raise corrupt(f"a {name} that cannot be opened ({reason(error)})") from error
    with container:
        yield container, _video_stream(container, name, data)


def accepted_codec(stream: "VideoStream") -> "VideoCodecContext":
    """The stream's decoder, not opened yet.

    Raises:
        VideoError: it is not one of those that are let in.
    """
    context = stream.codec_context
    if context is None or context.name not in CODECS:
        found = "a codec that is not known" if context is None else context.name
        raise VideoError(
            "unsupported_format",
            f"found video in {found}, accepted are {ACCEPTED_CODECS}; convert it to H.264 in MP4",
        )
    return context


def max_pixels(limits: VideoLimits) -> str:
    """The option of a decoder with which no frame beyond the limit is ever allocated."""
    return str(limits.max_pixels + 1)


def raise_own(error: Exception) -> None:
    """Raises the MemoryError of a process that has no more; FFmpeg's is that of a file that makes up sizes."""
    if type(error) is MemoryError:
        raise error


def reason(error: Exception) -> str:
    """What FFmpeg says, in a few words without a full stop."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()).rstrip(".") or type(error).__name__


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
