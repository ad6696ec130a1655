"""From the bytes of a photo to upright RGB pixels, without trusting a single byte.

The header is judged first (format, dimensions), the pixels are decoded last. Only the decoders of the allowed formats
ever run, and nothing global is changed: neither Pillow's limits nor Python's warning filters.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.media.exif import UPRIGHT, read_orientation
from convmae_deploy.media.image_containers import (
    CheckSize,
    Container,
    check_jpeg_scans,
    jpeg_header_error,
    read_gif,
    read_png,
    read_webp,
)
from convmae_deploy.media.image_errors import ImageError, ImageErrorCode, corrupt, truncated
from convmae_deploy.media.image_formats import DECODABLE, identify
from convmae_deploy.media.tiff import read_tiff

__all__ = ["DecodedImage", "ImageError", "ImageErrorCode", "ImageLimits", "decode_image"]

_MAX_RUN_LENGTH_BMP_BYTES = 1_000_000  # Pillow decodes these in Python, a microsecond for each byte
_BMP_HEADER_BYTES = 54  # of the common version
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What may be decoded; everything here is judged from the header."""

    max_pixels: int = 50_000_000  # width x height; at most Pillow's own limit
    max_side: int = 16_384  # pixels
    max_aspect: float = 100.0  # longer side / shorter side
    formats: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # also possible: "AVIF"

    def __post_init__(self) -> None:
        unknown = sorted(set(self.formats) - set(DECODABLE))
        if unknown or not self.formats:
            raise ConvMAEError(f"image formats must be some of {', '.join(DECODABLE)}; got {unknown or 'none'}")
        if min(self.max_pixels, self.max_side) < 1 or self.max_aspect < 1:
            raise ConvMAEError(f"image limits must be at least 1; got {self}")
        if Image.MAX_IMAGE_PIXELS is not None and self.max_pixels > Image.MAX_IMAGE_PIXELS:
            raise ConvMAEError(
                f"max_pixels must be at most {Image.MAX_IMAGE_PIXELS}, Pillow's own limit; got {self.max_pixels}"
            )


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """A decoded photo and what is worth telling about its file."""

    image: Image.Image  # RGB, upright
    frames: int  # frames or pages in the file, of which `image` is the first
    orientation: int  # the EXIF orientation that was applied, 1 to 8; 1 when there was none or it was ignored
    format: str  # Pillow's name, for instance "JPEG"
    original_size: tuple[int, int]  # (width, height) in pixels as stored, before the orientation was applied


class _JpegFile(JpegImageFile):
    """A JPEG whatever else its file holds: the further pictures of a phone's MPO are previews and gain maps."""

    def _read_dpi_from_exif(self) -> None:
        """Does nothing: the resolution is not needed, and Pillow warns about broken EXIF while looking for it."""


_PILLOW_FILES: dict[str, Callable[[io.BytesIO], ImageFile]] = {
    "JPEG": _JpegFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "BMP": BmpImageFile,
    "GIF": GifImageFile,
    "TIFF": TiffImageFile,
    "AVIF": AvifImageFile,
}
_DEFAULT_LIMITS = ImageLimits()


def decode_image(data: bytes, *, limits: ImageLimits = _DEFAULT_LIMITS, apply_orientation: bool = True) -> DecodedImage:
    """Decodes the first frame of a photo to RGB.

    Alpha is dropped, not blended (as timm's loader does); 16-bit grey is scaled to 8 bits; CMYK is converted.

    Args:
        data: the content of an image file.
        limits: what may be decoded.
        apply_orientation: whether to turn the photo as its EXIF data says; otherwise it stays as stored.

    Raises:
        ImageError: with the reason in `code`; truncated files are refused, never filled with grey.
    """
    if not data:
        raise ImageError("empty_body", "expected an image, found no bytes at all; send the content of an image file")
    name = identify(data)
    if name not in limits.formats:
        accepted = ", ".join(limits.formats)
        remedy = "videos are for models of videos" if name.endswith("video") else "convert the image to one of these"
        raise ImageError("unsupported_format", f"found {name}, accepted are {accepted}; {remedy}")

    def check_size(width: int, height: int) -> None:
        _check_size(width, height, limits)

    container, tiff_orientation = _read_container(name, data, check_size)
    file = _open(name, container.data)
    check_size(*file.size)
    frames = container.frames if name not in ("WEBP", "AVIF") else int(getattr(file, "n_frames", 1))
    _load(name, file, container.data)
    size = file.size
    image = _to_rgb(file)
    orientation = UPRIGHT
    if apply_orientation:
        exif = file.info.get("exif")  # a text chunk of a PNG can also carry this name
        orientation = read_orientation(exif) if isinstance(exif, bytes) else tiff_orientation
        if orientation != UPRIGHT:
            image = image.transpose(_TRANSPOSITIONS[orientation])
    return DecodedImage(image=image, frames=frames, orientation=orientation, format=name, original_size=size)


def _check_size(width: int, height: int, limits: ImageLimits) -> None:
    if width < 1 or height < 1:
        raise corrupt(f"its header says {width} x {height} pixels")
    if max(width, height) > limits.max_side:
        raise ImageError(
            "image_too_large",
            f"the image is {width} x {height} pixels, at most {limits.max_side} a side are accepted; "
            "send a smaller one",
        )
    if width * height > limits.max_pixels:
        raise ImageError(
            "image_too_large",
            f"the image has {width} x {height} = {width * height} pixels, at most {limits.max_pixels} are accepted; "
            "send a smaller one",
        )
    if max(width, height) > limits.max_aspect * min(width, height):
        raise ImageError(
            "aspect_ratio",
            f"the image is {width} x {height} pixels, at most {limits.max_aspect:g}:1 is accepted; crop it",
        )


def _read_container(name: str, data: bytes, check_size: CheckSize) -> tuple[Container, int]:
    """The container and the orientation that only a TIFF keeps outside EXIF."""
    if name == "TIFF":
        return read_tiff(data, check_size)
    readers = {"PNG": read_png, "GIF": read_gif, "WEBP": read_webp}
    # Pillow reads the headers of the others without allocating anything.
    return (readers[name](data, check_size) if name in readers else Container(data=data)), UPRIGHT


def _open(name: str, data: bytes) -> ImageFile:
    try:
        file = _PILLOW_FILES[name](io.BytesIO(data))
    except MemoryError:
        raise
    except Exception as error:  # decoders raise anything on hostile bytes
        if name == "JPEG":
            raise jpeg_header_error(data, str(error)) from error
        if name == "BMP" and len(data) < _BMP_HEADER_BYTES:
            raise truncated("a BMP that ends inside its header") from error
        raise _decoding_error(name, error) from error
    if name == "BMP" and file.info.get("compression") in (1, 2) and len(data) > _MAX_RUN_LENGTH_BMP_BYTES:
        raise ImageError("unsupported_format", "the image is a large run-length coded BMP; convert it to PNG")
    return file


def _load(name: str, file: ImageFile, data: bytes) -> None:
    if name == "JPEG":
        if not file.tile or file.fp is None:  # the header names the size, but no scan follows
            raise jpeg_header_error(data, "no picture data")
        # libjpeg is content without the end marker. Scans cannot contain it, and a thumbnail's lies before them.
        if data.rfind(b"\xff\xd9", file.fp.tell()) < 0:
            raise truncated("a JPEG without its end")
        check_jpeg_scans(data)
    try:
        file.load()
    except MemoryError:
        raise
    except Exception as error:  # decoders raise anything on hostile bytes
        raise _decoding_error(name, error) from error


def _decoding_error(name: str, error: Exception) -> ImageError:
    if isinstance(error, Image.DecompressionBombError):
        return ImageError("image_too_large", "the image is larger than Pillow decodes; send a smaller one")
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if "truncated" in reason.lower() or "not enough image data" in reason:
        return truncated(f"a {name} that ends too early ({reason})")
    return corrupt(f"a {name} that cannot be decoded ({reason})")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        image = _from_wide_integers(image)
    elif image.mode == "F":
        raise ImageError("unsupported_format", "the image has floating-point pixels; convert it to 8 bits a channel")
    # Dropped with the alpha channel; Pillow would warn about some forms of it.
    image.info.pop("transparency", None)
    try:
        return image.convert("RGB")
    except (ValueError, KeyError) as error:
        raise ImageError(
            "unsupported_format", f"the image has pixels of kind {image.mode}; convert it to 8-bit RGB"
        ) from error


def _from_wide_integers(image: Image.Image) -> Image.Image:
    """16-bit grey (modes I;16, I;16B, I) by its high byte; Pillow's own conversion would clip it to white."""
    values = np.asarray(image)
    if values.dtype.itemsize > 2 and (values.min() < 0 or values.max() > 0xFFFF):
        raise ImageError("unsupported_format", "the image has grey values beyond 16 bits; convert it to 8 or 16 bits")
    return Image.fromarray((values >> 8).astype(np.uint8))
