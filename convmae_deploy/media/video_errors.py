"""Why a video is refused: one exception with a code that programs can act on."""

from typing import Literal

from convmae_deploy.errors import ConvMAEError

VideoErrorCode = Literal[
    "empty_body",
    "not_a_video",
    "still_image",
    "unsupported_format",
    "no_video_stream",
    "no_frames",
    "video_corrupt",
    "video_truncated",
    "video_too_large",  # bytes or pixels
    "video_too_long",  # seconds or frames
    "aspect_ratio",
    "decoding_too_slow",
    "decoding_too_large",  # bytes of memory
]


class VideoError(ConvMAEError):
    """A video that is not decoded.

    Attributes:
        code: the reason in one word, stable across releases; the message is for people.
    """

    def __init__(self, code: VideoErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def corrupt(what: str) -> VideoError:
    """The error for bytes that break the rules of their own format."""
    return VideoError("video_corrupt", f"the video is broken: {what}; send an intact file")


def truncated(what: str) -> VideoError:
    """The error for a file that ends too early."""
    return VideoError("video_truncated", f"the video is incomplete: {what}; send the whole file")
