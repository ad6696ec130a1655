"""From the bytes of a photo to upright RGB pixels, without trusting a single byte.

The header is judged first (format, dimensions), the pixels are decoded last. Only the decoders of the allowed formats
ever run, and nothing global is changed: neither Pillow's limits nor Python's warning filters.
"""

import contextlib
import ctypes
import io
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

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
from convmae_deploy.media.image_containers import CheckSize, Container, read_bmp, read_gif, read_png, read_webp
from convmae_deploy.media.image_errors import ImageError, ImageErrorCode, corrupt, truncated, unsupported
from convmae_deploy.media.image_formats import DECODABLE, identify
from convmae_deploy.media.jpeg import read_jpeg
from convmae_deploy.media.tiff import read_tiff

__all__ = [
    "DEFAULT_LIMITS",
    "DecodedImage",
    "ImageError",
    "ImageErrorCode",
    "ImageLimits",
    "decode_image",
    "decoding_bytes",
]

# Most memory that decoding takes for each pixel, beside the file: the canvas that a decoder works on, its coefficients
# or its strip, Pillow's picture (four bytes a pixel in any colour) and the RGB picture made of it, turned upright.
# Measured with the costliest kind of each format; tests/hostile holds them to it.
_BYTES_PER_PIXEL = {"JPEG": 13, "PNG": 10, "WEBP": 17, "BMP": 8, "GIF": 8, "TIFF": 14, "AVIF": 24}
_BYTES_PER_FILE_BYTE = 2  # the file without its metadata, and the copy that a decoder reads
_FIXED_BYTES = 1_000_000  # tables and buffers, which a tiny picture has too
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

    max_pixels: int = 50_000_000  # width x height
    max_side: int = 16_384  # pixels
    max_aspect: float = 100.0  # longer side / shorter side
    max_bytes: int | None = None  # memory that decoding a photo should take, see `decoding_bytes`; None: any
    # Whether a JPEG beyond these is decoded at half its width and height, where that is within them, and not refused.
    # It has to be in one scan, as cameras write it; others would take the memory of the whole picture.
    halve: bool = False
    formats: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # also possible: "AVIF"

    def __post_init__(self) -> None:
        unknown = sorted(set(self.formats) - set(DECODABLE))
        if unknown or not self.formats:
            raise ConvMAEError(f"image formats must be some of {', '.join(DECODABLE)}; got {unknown or 'none'}")
        if min(self.max_pixels, self.max_side) < 1 or self.max_aspect < 1:
            raise ConvMAEError(f"image limits must be at least 1; got {self}")


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """A decoded photo and what is worth telling about its file."""

    image: Image.Image  # RGB, upright
    frames: int  # frames or pages in the file, of which `image` is the first
    orientation: int  # the EXIF orientation that was applied, 1 to 8; 1 when there was none or it was ignored
    format: str  # Pillow's name, for instance "JPEG"
    original_size: tuple[int, int]  # (width, height) in pixels as stored, before the orientation was applied
    halved: bool = False  # whether `image` has half the width and height of the file, as `ImageLimits.halve` allows


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
_UNKNOWN_PIXELS = ("unknown pixel mode", "unknown data organization")  # as Pillow says of a TIFF that may be in order
_HOLDING = ("WEBP", "AVIF")  # whose objects keep their decoder and its canvas
DEFAULT_LIMITS = ImageLimits()


def decode_image(
    data: bytes,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
    apply_orientation: bool = True,
    reserve: Callable[[int], None] = lambda size: None,
) -> DecodedImage:
    """Decodes the first frame of a photo to RGB.

    Alpha is dropped, not blended (as timm's loader does); 16-bit grey is scaled to 8 bits; CMYK is converted.

    Args:
        data: the content of an image file.
        limits: what may be decoded.
        apply_orientation: whether to turn the photo as its EXIF data says; otherwise it stays as stored.
        reserve: called once, before anything is allocated for the pixels, with the bytes that decoding may take at
            most. It may wait until there is so much memory, or raise.

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

    container, halved = _read_container(name, data, limits)
    pixels = -(-container.pixels // 4) if halved else container.pixels
    reserve(decoding_bytes(name, pixels, len(data)))
    try:
        file = _open(name, container.data)
        if file.width * file.height > container.pixels:
            raise corrupt(f"its header says two sizes, one of them {file.width} x {file.height} pixels")
        size = file.size
        if halved:
            file.draft(None, (max(1, size[0] // 2), max(1, size[1] // 2)))
        _load(name, file)
    except ImageError as error:
        raise (unsupported(container.unusual) if container.unusual else error) from error
    frames = max(container.frames, int(getattr(file, "n_frames", 1)) if name in _HOLDING else 1)
    orientation = container.orientation if apply_orientation else UPRIGHT
    if apply_orientation and name in _HOLDING:
        orientation = read_orientation(file.info.get("exif") or b"", file.info.get("xmp") or b"")
    image = _to_rgb(file)
    if name in _HOLDING:
        image = image.copy() if image is file else image
    del file  # before there is one more picture
    if orientation != UPRIGHT:
        image = image.transpose(_TRANSPOSITIONS[orientation])
    return DecodedImage(
        image=image, frames=frames, orientation=orientation, format=name, original_size=size, halved=halved
    )


def stored_size(data: bytes, *, limits: ImageLimits = DEFAULT_LIMITS) -> tuple[int, int]:
    """(width, height) in pixels of a photo as it is stored, from its header alone: what follows may be broken.

    Raises:
        ImageError: as `decode_image`, for what the header says.
    """
    sizes = []
    name = identify(data) if data else "nothing"
    if name not in limits.formats:
        raise ImageError("unsupported_format", f"found {name}, accepted are {', '.join(limits.formats)}")

    def check_size(width: int, height: int) -> None:
        _check_size(width, height, limits)
        sizes.append((width, height))

    _READERS[name](data, check_size)
    return sizes[-1]


def _read_container(name: str, data: bytes, limits: ImageLimits) -> tuple[Container, bool]:
    """What the outside of a file says, and whether it is decoded at half its size to be within the limits."""
    refused: ImageError | None = None

    def check_size(width: int, height: int) -> None:
        nonlocal refused
        try:
            _check_size(width, height, limits)
        except ImageError as error:
            if error.code != "image_too_large" or name != "JPEG" or not limits.halve:
                raise
            _check_size(-(-width // 2), -(-height // 2), limits, found=(width, height))
            refused = error

    container = _READERS[name](data, check_size)
    if refused is not None and not container.halves:
        raise refused
    too_costly = limits.max_bytes is not None and decoding_bytes(name, container.pixels, len(data)) > limits.max_bytes
    return container, refused is not None or (limits.halve and container.halves and too_costly)


def decoding_bytes(name: str, pixels: int, file_bytes: int) -> int:
    """Most memory in bytes that decoding a photo takes, beside the file itself.

    Args:
        name: of the format.
        pixels: that its decoder makes room for.
        file_bytes: length of the file.
    """
    return _BYTES_PER_PIXEL[name] * pixels + _BYTES_PER_FILE_BYTE * file_bytes + _FIXED_BYTES


def _check_size(width: int, height: int, limits: ImageLimits, found: tuple[int, int] | None = None) -> None:
    """Refuses a picture of a size that is not accepted; `found` is what the file says, where that is another."""
    said = " x ".join(map(str, found or (width, height)))
    if width < 1 or height < 1:
        raise corrupt(f"its header says {said} pixels")
    factor = 1 if found is None else 2
    if max(width, height) > limits.max_side:
        raise ImageError(
            "image_too_large",
            f"the image is {said} pixels, at most {factor * limits.max_side} a side are accepted; send a smaller one",
        )
    if width * height > limits.max_pixels:
        raise ImageError(
            "image_too_large",
            f"the image has {said} = {math.prod(found or (width, height))} pixels, "
            f"at most {factor**2 * limits.max_pixels} are accepted; send a smaller one",
        )
    if max(width, height) > limits.max_aspect * min(width, height):
        raise ImageError(
            "aspect_ratio",
            f"the image is {said} pixels, at most {limits.max_aspect:g}:1 is accepted; crop it",
        )


def _read_avif(data: bytes, check_size: CheckSize) -> Container:
    file = _open("AVIF", data)  # which allocates no pixels
    check_size(*file.size)
    return Container(data=data, pixels=file.width * file.height)


_READERS: dict[str, Callable[[bytes, CheckSize], Container]] = {
    "JPEG": read_jpeg,
    "PNG": read_png,
    "WEBP": read_webp,
    "BMP": read_bmp,
    "GIF": read_gif,
    "TIFF": read_tiff,
    "AVIF": _read_avif,
}


def _open(name: str, data: bytes) -> ImageFile:
    if name == "TIFF":
        _silence_libtiff()
    try:
        return _PILLOW_FILES[name](io.BytesIO(data))
    except MemoryError:
        raise
    except Exception as error:  # decoders raise anything on hostile bytes
        raise _decoding_error(name, error) from error


@lru_cache(maxsize=1)
def _silence_libtiff() -> None:
    """Turns off what Pillow's libtiff writes to standard error about broken files.

    It names neither the file nor the request, comes as often as a stranger likes, and the refusal says enough. Where
    libtiff cannot be found, in a Pillow that was built another way, it goes on writing.
    """
    with contextlib.suppress(OSError, AttributeError, KeyError):
        ctypes.CDLL(sys.modules["PIL._imaging"].__file__).TIFFSetErrorHandler(None)


def _load(name: str, file: ImageFile) -> None:
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
    if reason in _UNKNOWN_PIXELS:
        return unsupported(f"a {name} with pixels of a kind that is rare")
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
