"""Why a photo is refused: one exception with a code that programs can act on."""

from typing import Literal

from convmae_deploy.errors import ConvMAEError

ImageErrorCode = Literal[
    "empty_body",
    "not_an_image",
    "image_corrupt",
    "image_truncated",
    "image_too_large",
    "aspect_ratio",
    "unsupported_format",
]


class ImageError(ConvMAEError):
    """A photo that is not decoded.

    Attributes:
        code: the reason in one word, stable across releases; the message is for people.
    """

    def __init__(self, code: ImageErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def corrupt(what: str) -> ImageError:
    """The error for bytes that break the rules of their own format."""
    return ImageError("image_corrupt", f"the image is broken: {what}; send an intact file")


def truncated(what: str) -> ImageError:
    """The error for a file that ends too early."""
    return ImageError("image_truncated", f"the image is incomplete: {what}; send the whole file")


def unsupported(what: str) -> ImageError:
    """The error for a file that is in order, and of a kind that is not decoded here."""
    return ImageError(
        "unsupported_format", f"found {what}, which is not supported; convert it to an ordinary JPEG or PNG"
    )
