"""What the graph is tried on: random numbers, photos or clips, and constants, in batches of several sizes."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from convmae_deploy.backends.base import FloatArray
from convmae_deploy.bundle.manifest import AnyPreprocessing, Letterbox, SlidingWindow, input_axes
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import read_json
from convmae_deploy.media.photo_files import find_photos, read_photo
from convmae_deploy.printing import printable
from convmae_deploy.tasks.letterbox import letterbox
from convmae_deploy.tasks.preprocess import preprocess
from convmae_deploy.tasks.sliding_window import resize_and_normalise
from convmae_deploy.terminal import Terminal

SEED = 20220508
RUN_RECORD = "run.json"  # of a training run: says which photos it used
VALIDATION_FOLDERS = ("val", "images/val", "images/validation", "val2017")  # where a run's data may have its photos
DETECTED_PHOTOS = 8  # photos that a detector is tried on, at most
PHOTO_SIZES = ((500, 375), (375, 500), (640, 427), (160, 240))  # (width, height) of the pictures made here

_SHARES = ("//", "\\\\")  # how the names of folders on other machines begin: to look is to connect
PICTURES = ("photos", "made pictures", "videos", "made clips")  # what `Samples` are called

Item = TypeVar("Item")

logger = logging.getLogger("convmae_deploy")


@dataclass(frozen=True)
class Batch:
    """One input of the graph with the name that reports use."""

    name: str
    images: FloatArray  # (B, 3, H, W) or (B, 3, T, H, W), normalised
    blank: bool = False  # all pixels of an image are alike


@dataclass(frozen=True)
class Samples:
    """What the model is for, at least one of it, with what reports call them."""

    name: str  # one of PICTURES: "photos", or "made pictures" for those of `made_photos`; of videos likewise
    images: Sequence[Image.Image | FloatArray]  # photos, or clips (3, T, H, W) as the graph takes them


def verification_batches(spec: AnyPreprocessing, photos: Samples, largest: int) -> list[Batch]:
    """Random numbers, photos and constants at batch 1, 2 and `largest`, and random numbers at sizes in between.

    Args:
        spec: preprocessing of the model; sets the size of the images and the range of normalised values.
        photos: or clips; repeated where a batch needs more.
        largest: the largest batch to try.
    """
    generator = np.random.default_rng(SEED)
    sizes = sorted({1, min(2, largest), largest})
    between = sorted({3, (3 + largest) // 2} & set(range(3, largest)))
    pixels = [graph_input(photo, spec) for photo in photos.images[:largest]]
    constants = constant_images(spec)
    batches = []
    for size in sizes:
        batches.append(_random_batch(generator, spec, size))
        chosen = [pixels[index % len(pixels)] for index in range(size)]
        batches.append(Batch(f"{photos.name} batch {size}", np.stack(chosen)))
        batches += _constant_batches(constants, size)
    batches += [_random_batch(generator, spec, size) for size in between]
    if isinstance(spec, Letterbox):  # a few photos have too few objects to count
        batches += _further_photos(spec, photos, largest)
    return batches


def graph_input(photo: Image.Image | FloatArray, spec: AnyPreprocessing) -> FloatArray:
    """An RGB photo as the graph takes it, (3, H, W); of a segmenter's windows the one at the top left."""
    if isinstance(photo, np.ndarray):  # a clip
        return photo
    if isinstance(spec, Letterbox):
        return letterbox(photo, spec)
    if isinstance(spec, SlidingWindow):
        height, width = spec.window
        resized = resize_and_normalise(photo, spec)[:, :height, :width]
        missing = height - resized.shape[1], width - resized.shape[2]
        return np.pad(resized, ((0, 0), (0, missing[0]), (0, missing[1])))
    return preprocess(photo, spec)


def constant_images(spec: AnyPreprocessing) -> dict[str, FloatArray]:
    """Images or clips of one value each: 0, 1, black and white, which are the extremes of the normalised range."""
    axes = input_axes(spec)
    mean, std = (np.array(values, np.float32).reshape(3, *(1 for _ in axes)) for values in (spec.mean, spec.std))
    levels = {"zeros": np.zeros_like(mean), "ones": np.ones_like(mean), "black": -mean / std, "white": (1 - mean) / std}
    return {name: np.broadcast_to(level, (3, *axes)).copy() for name, level in levels.items()}


def verification_photos(data: Path | None, checkpoint: Path, count: int) -> Samples:
    """Real photos where there are any: of the folder given, else the validation photos of the checkpoint's own run.

    Which folder the run names is said, as its user did not name it just now.

    Args:
        data: folder of photos; None looks for those of the run, and makes pictures where they are gone.
        checkpoint: run folder or checkpoint.
        count: how many at the most.

    Raises:
        ConvMAEError: `data` holds no readable photo.
    """
    if data is not None:
        return Samples("photos", read_photos(data, count))
    own = data_of_run(checkpoint)
    folder = next((own / part for part in VALIDATION_FOLDERS if own is not None and (own / part).is_dir()), None)
    photos = [] if folder is None else _readable_photos(folder, count)
    if not photos:
        return Samples("made pictures", made_photos(count))
    tell_of_run("photos", folder, checkpoint)
    return Samples("photos", photos)


def data_of_run(checkpoint: Path) -> Path | None:
    """The folder that a run was trained on, as its run.json says; None: it names none that is here, or it is no run.

    A run may come from anyone, so what it says is data: the name of a folder of this machine, which is read like any
    folder that a user gives. A URL, a command, a file or the share of another machine is no such folder.

    Raises:
        ConvMAEError: its run.json cannot be read.
    """
    record = checkpoint / RUN_RECORD
    if not record.is_file():
        return None
    try:
        content = read_json(record)
    except ConvMAEError as error:
        raise ConvMAEError(f"{error}, or give --data FOLDER") from None
    config = content.get("config") if isinstance(content, dict) else None
    data = config.get("data") if isinstance(config, dict) else None
    if not isinstance(data, str) or data.startswith(_SHARES) or not os.path.isdir(data):
        return None
    return Path(data)


def tell_of_run(kind: str, folder: Path | None, checkpoint: Path) -> None:
    """Says which photos or videos are used without having been asked for."""
    Terminal(stderr=True).print(
        printable(
            f"Trying the graph on {kind} of {folder}, which {checkpoint / RUN_RECORD} names; --data takes others."
        ),
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def read_photos(folder: Path, count: int) -> list[Image.Image]:
    """Up to `count` photos spread evenly over those below `folder`; those that do not decode are logged and skipped.

    Raises:
        ConvMAEError: there is none.
    """
    if not folder.is_dir():
        raise ConvMAEError(
            f"--data must be a folder of photos; found {'a file' if folder.exists() else 'nothing'} at {folder}"
        )
    photos = read_some(find_photos([folder]), count, lambda path: read_photo(path).image)
    if not photos:
        raise ConvMAEError(f"--data {folder} holds no readable photo; choose another folder")
    return photos


def _readable_photos(folder: Path, count: int) -> list[Image.Image]:
    """The same, of a folder that nobody gave: none is no error."""
    try:
        return read_photos(folder, count)
    except ConvMAEError:
        return []


def read_some(files: Sequence[Path], count: int, read: Callable[[Path], Item]) -> list[Item]:
    """Up to `count` files, spread evenly; those that `read` refuses are logged and skipped."""
    items: list[Item] = []
    for index in range(min(count, len(files))):
        path = files[index * len(files) // min(count, len(files))]
        try:
            items.append(read(path))
        except ConvMAEError as error:
            logger.warning("%s is left out of the verification: %s", printable(path), printable(error))
    return items


def made_photos(count: int) -> list[Image.Image]:
    """`count` pictures with a photo's statistics (smooth areas, texture, sharp edges), the same on every machine."""
    generator = np.random.default_rng(SEED)
    return [_made_photo(generator, PHOTO_SIZES[index % len(PHOTO_SIZES)]) for index in range(count)]


def _made_photo(generator: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    width, height = size
    total = np.zeros((height, width, 3))
    for cells in (2, 4, 8, 16, 32, 64):  # amplitude falls with frequency, as in photos
        noise = generator.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        layer = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
        total += (np.asarray(layer, dtype=np.float64) - 127.5) / cells**0.75
    pixels = 127.5 + total
    for _ in range(4):
        left, top = int(generator.integers(width - 32)), int(generator.integers(height - 32))
        colour = generator.integers(0, 256, 3)
        pixels[
            top : top + int(generator.integers(16, height // 2)), left : left + int(generator.integers(16, width // 2))
        ] = colour
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _random_batch(generator: np.random.Generator, spec: AnyPreprocessing, size: int) -> Batch:
    return Batch(f"random batch {size}", generator.standard_normal((size, 3, *input_axes(spec)), dtype=np.float32))


def _further_photos(spec: Letterbox, photos: Samples, largest: int) -> Iterator[Batch]:
    """The photos after the first `largest`, up to DETECTED_PHOTOS, in batches of `largest` or what is left."""
    end = min(DETECTED_PHOTOS, len(photos.images))
    for start in range(largest, end, largest):
        chosen = photos.images[start : min(start + largest, end)]
        name = f"{photos.name} {start + 1} to {start + len(chosen)}"
        yield Batch(name, np.stack([graph_input(photo, spec) for photo in chosen]))


def _constant_batches(constants: dict[str, FloatArray], size: int) -> Iterator[Batch]:
    """All constants in batches of `size`, the last filled up by starting again."""
    names, images = list(constants), list(constants.values())
    for start in range(0, len(names), size):
        chosen = [(start + offset) % len(names) for offset in range(size)]
        label = names[start] if size == 1 else "constants"
        if size == 2:
            label = "+".join(names[index] for index in chosen)
        yield Batch(f"{label} batch {size}", np.stack([images[index] for index in chosen]), blank=True)
