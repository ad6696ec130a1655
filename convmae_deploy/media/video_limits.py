"""What may be decoded of a video."""

import time
from dataclasses import dataclass

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.media.video_errors import VideoError, corrupt


@dataclass(frozen=True, kw_only=True)
class VideoLimits:
    """What may be decoded. The header is judged first; what it claims is judged again while reading and decoding."""

    max_bytes: int = 100_000_000  # the file's, which is held in memory; as many again for its packets, unpacked
    max_seconds: float = 300.0  # the video's length
    max_frames: int = 18_000  # in the video: 300 seconds at 60 a second
    max_pixels: int = 4096 * 2304  # width x height of a frame
    max_aspect: float = 20.0  # longer side / shorter side
    decoding_seconds: float = 30.0  # from opening to the last frame; checked between frames

    def __post_init__(self) -> None:
        smallest = min(self.max_bytes, self.max_seconds, self.max_frames, self.max_pixels, self.decoding_seconds)
        if smallest <= 0 or self.max_aspect < 1:
            raise ConvMAEError(f"video limits must be positive and max_aspect at least 1; got {self}")


# Of one's own data: only what would stop a training. A video is held in memory, so long ones are better cut.
DATASET_VIDEO_LIMITS = VideoLimits(
    max_bytes=2_000_000_000,
    max_seconds=4 * 3600,
    max_frames=1_000_000,
    max_pixels=8192 * 4608,
    decoding_seconds=300,
)


def check_length(seconds: float, frames: int, limits: VideoLimits) -> None:
    """Raises VideoError where a video is too long, in seconds or in frames; 0 where it is not known."""
    if seconds > limits.max_seconds:
        raise VideoError(
            "video_too_long",
            f"the video is {seconds:.1f} seconds long, at most {limits.max_seconds:g} are accepted; send a part of it",
        )
    if frames > limits.max_frames:
        raise VideoError(
            "video_too_long",
            f"the video has {frames} frames or more, at most {limits.max_frames} are accepted; send a part of it",
        )


def check_packet_bytes(size: int, limits: VideoLimits) -> None:
    """Raises VideoError where the packets hold more than a file may: containers can compress them once more."""
    if size > limits.max_bytes:
        raise VideoError(
            "video_too_large",
            f"the video's packets hold more than {limits.max_bytes} bytes once unpacked; store them as they are",
        )


def check_size(width: int, height: int, limits: VideoLimits) -> None:
    """Raises VideoError where frames are empty, too large or too narrow."""
    if width < 1 or height < 1:
        raise corrupt(f"its header says {width} x {height} pixels")
    if width * height > limits.max_pixels:
        raise VideoError(
            "video_too_large",
            f"the video's frames are {width} x {height} = {width * height} pixels, at most {limits.max_pixels} are "
            "accepted; send a smaller one",
        )
    if max(width, height) > limits.max_aspect * min(width, height):
        raise VideoError(
            "aspect_ratio",
            f"the video's frames are {width} x {height} pixels, at most {limits.max_aspect:g}:1 is accepted; crop them",
        )


def check_time(deadline: float, limits: VideoLimits) -> None:
    """Raises VideoError after the deadline, a value of `time.monotonic`."""
    if time.monotonic() > deadline:
        raise too_slow(limits.decoding_seconds)


def too_slow(seconds: float) -> VideoError:
    """The error for a video that cannot be decoded within so many seconds."""
    return VideoError(
        "decoding_too_slow",
        f"the video takes longer to decode than {seconds:g} seconds; send a shorter or smaller one",
    )
