"""Photos as files: found in folders, read, decoded."""

from collections.abc import Sequence
from pathlib import Path

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import read_regular
from convmae_deploy.folders import find_files
from convmae_deploy.media.images import DEFAULT_LIMITS, DecodedImage, ImageLimits, decode_image, stored_size

# What is taken from a folder; a file that is named itself may have any name.
IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff")
)

MAX_PHOTO_BYTES = 256 * 1024 * 1024  # largest file that is read

# Of one's own data: only what would stop a training. A crop may be the whole photo, and Pillow crops no more pixels
# without a warning; a JPEG of up to four times as many is decoded at half its width and height.
DATASET_PHOTO_LIMITS = ImageLimits(max_pixels=89_000_000, max_side=65_535, max_aspect=1000.0, halve=True)
# Where annotations are in the photo's own pixels.
ANNOTATED_PHOTO_LIMITS = ImageLimits(max_pixels=256_000_000, max_side=65_535, max_aspect=1000.0)


def find_photos(paths: Sequence[Path]) -> list[Path]:
    """The files among `paths`, and for each folder the photos in it, at any depth, sorted; hidden files are left out.

    Raises:
        ConvMAEError: a folder holds no photo.
    """
    return find_files(paths, IMAGE_SUFFIXES, "photos")


def read_photo(path: Path, *, apply_orientation: bool = True, limits: ImageLimits = DEFAULT_LIMITS) -> DecodedImage:
    """Reads and decodes one file.

    Args:
        path: the file.
        limits: what may be decoded.
        apply_orientation: whether to turn the photo as its EXIF data says; otherwise it stays as stored.

    Raises:
        ConvMAEError: the file cannot be read, or is no photo that can be decoded (`ImageError`).
    """
    return decode_image(_read(path), limits=limits, apply_orientation=apply_orientation)


def read_stored_size(path: Path, *, limits: ImageLimits = DEFAULT_LIMITS) -> tuple[int, int]:
    """(width, height) in pixels of a photo as it is stored, from its header alone; errors are those of `read_photo`."""
    return stored_size(_read(path), limits=limits)


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, MAX_PHOTO_BYTES)
    except OSError as error:
        raise ConvMAEError(f"the file cannot be read ({error.strerror}); check its path and permissions") from error
