"""The two media that requests carry, with what a request of each may hold and take."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from convmae_deploy.media.video_errors import VideoError
from convmae_deploy.media.video_formats import identify
from convmae_deploy.tasks.base import MediumName
from serving.settings import Settings

IMAGE_MAGIC: Final = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")
ENVELOPES: Final = (b"-", b"{", b"[")  # how forms and JSON begin, and no video


@dataclass(frozen=True, kw_only=True)
class Medium:
    """What a request carries."""

    name: str  # in messages and metrics, and of a form's field
    types: tuple[str, ...]  # how the types of its data URIs begin
    recognise: Callable[[bytes], bool]  # whether a body is such a file itself
    most: int  # files of one request
    body_bytes: int  # for a body that is no JSON
    body_seconds: float  # that receiving the body may take
    seconds: float  # that a request may take once its body is there
    advice: str  # where that was not enough

    @property
    def fields(self) -> tuple[str, ...]:
        """Names that a form's field with such a file may have."""
        return ("file", "files", self.name, f"{self.name}s", "inputs")


def media_of(settings: Settings) -> dict[MediumName, Medium]:
    """Both media with the limits that the settings say."""
    return {
        "photo": Medium(
            name="image",
            types=("image/",),
            recognise=lambda body: body.startswith(IMAGE_MAGIC),
            most=settings.max_images,
            body_bytes=settings.max_body_bytes,
            body_seconds=settings.body_timeout_seconds,
            seconds=settings.request_timeout_seconds,
            advice="send fewer images",
        ),
        "video": Medium(
            name="video",
            types=("video/", "image/gif"),
            recognise=_is_video,
            most=1,
            body_bytes=settings.max_video_body_bytes,
            body_seconds=settings.video_body_timeout_seconds,
            seconds=settings.video_request_timeout_seconds,
            advice="ask for fewer views",
        ),
    }


def _is_video(body: bytes) -> bool:
    if not body or body.startswith(ENVELOPES):
        return False
    try:
        identify(body[:4096])
    except VideoError:
        return False
    return True
