"""What a model is for, to try a graph on: photos or clips, of a user's folder, of the run's own data, or made here."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from convmae_deploy.backends.base import InputArray
from convmae_deploy.bundle.preprocessing import AnyPreprocessing, ClipPreprocessing
from convmae_deploy.data.video_folder import read_video_folder
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import RUN_RECORD, read_json
from convmae_deploy.media.photo_files import find_photos, read_photo
from convmae_deploy.media.video_formats import find_videos
from convmae_deploy.printing import printable
from convmae_deploy.tasks.base import Predictor
from convmae_deploy.tasks.clips import read_clips
from convmae_deploy.tasks.preprocess import preprocess
from convmae_deploy.terminal import Terminal

SEED = 20220508
PICTURES = ("photos", "made pictures", "videos", "made clips")  # what `Samples` are called
PHOTOS, CLIPS = 32, 8  # at most by default; clips are held in memory as the graph takes them
PANNED = 3 / 4  # share of a made picture's sides that is in a frame at a time
VALIDATION_FOLDERS = (
    "val",
    "valid",
    "validation",
    "images/val",
    "images/validation",
    "val2017",
)  # where a run's data may have its photos
PHOTO_SIZES = ((500, 375), (375, 500), (640, 427), (160, 240))  # (width, height) of the pictures made here

_SHARES = ("//", "\\\\")  # how the names of folders on other machines begin: to look is to connect

Item = TypeVar("Item")

logger = logging.getLogger("convmae_deploy")


@dataclass(frozen=True)
class Samples:
    """What the model is for, at least one of it, with what reports call them."""

    name: str  # one of PICTURES: "photos", or "made pictures" for those of `made_photos`; of videos likewise
    images: Sequence[Image.Image | InputArray]  # photos, or clips (3, T, H, W) as the graph takes them

    def inputs(self, task: type[Predictor], spec: AnyPreprocessing, start: int, end: int) -> list[InputArray]:
        """Some of them as the graph of a task takes them, (3, H, W) or (3, T, H, W)."""
        chosen = self.images[start:end]
        return [each if isinstance(each, np.ndarray) else task.pixels(each, spec) for each in chosen]


def verification_samples(
    task: type[Predictor], spec: Any, data: Path | None, run: Path | None, count: int | None = None
) -> Samples:
    """What a model is for; see `verification_photos` and `verification_clips`, whose arguments these are."""
    if task.MEDIUM == "video":
        return verification_clips(spec, data, run, count or CLIPS)
    return verification_photos(data, run, count or PHOTOS)


def verification_photos(data: Path | None, run: Path | None, count: int) -> Samples:
    """Real photos where there are any: of the folder given, else the validation photos of the checkpoint's own run.

    Which folder the run names is said, as its user did not name it just now.

    Args:
        data: folder of photos; None looks for those of the run, and makes pictures where they are gone.
        run: run folder or checkpoint; None: there is none.
        count: how many at the most.

    Raises:
        ConvMAEError: `data` holds no readable photo.
    """
    if data is not None:
        return Samples("photos", read_photos(data, count))
    own = None if run is None else data_of_run(run)
    folder = next((own / part for part in VALIDATION_FOLDERS if own is not None and (own / part).is_dir()), None)
    photos = [] if folder is None else _readable_photos(folder, count)
    if run is None or not photos:
        return Samples("made pictures", made_photos(count))
    announce_run("photos", folder, run)
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


def announce_run(kind: str, folder: Path | None, checkpoint: Path) -> None:
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
    """Up to `count` photos of those below `folder`; see `read_folder`."""
    return read_folder(folder, "photo", find_photos, lambda path: read_photo(path).image, count)


def read_videos(folder: Path, spec: ClipPreprocessing, count: int) -> list[InputArray]:
    """Clips (3, T, H, W) of up to `count` videos of those below `folder`; see `read_folder`."""
    return read_folder(folder, "video", find_videos, lambda path: read_clips(path, spec)[0], count)


def read_folder(
    folder: Path, kind: str, find: Callable[[Sequence[Path]], Sequence[Path]], read: Callable[[Path], Item], count: int
) -> list[Item]:
    """Up to `count` files of a kind, spread evenly over those of a folder; what does not decode is logged and skipped.

    Raises:
        ConvMAEError: there is none.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise ConvMAEError(f"--data must be a folder of {kind}s; found {found} at {folder}")
    items = read_some(find([folder]), count, read)
    if not items:
        raise ConvMAEError(f"--data {folder} holds no readable {kind}; choose another folder")
    return items


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


def verification_clips(spec: ClipPreprocessing, data: Path | None, run: Path | None, count: int) -> Samples:
    """The middle clips of real videos where there are any: of the folder given, else of the run's validation.

    Args:
        spec: preprocessing of the model.
        data: folder of videos; None looks for those of the run, and makes clips where they are gone.
        run: run folder or checkpoint; None: there is none.
        count: how many at the most.

    Raises:
        ConvMAEError: `data` holds no readable video, or PyAV is not installed.
    """
    if data is not None:
        return Samples("videos", read_videos(data, spec, count))
    own = None if run is None else data_of_run(run)
    if run is not None and own is not None:
        try:
            videos = read_video_folder(own, "val").videos
        except ConvMAEError:  # they were moved or removed
            videos = ()
        clips = read_some(videos, count, lambda path: read_clips(path, spec)[0])
        if clips:
            announce_run("videos", own, run)
            return Samples("videos", clips)
    return Samples("made clips", made_clips(spec, count))


def made_clips(spec: ClipPreprocessing, count: int) -> list[InputArray]:
    """`count` clips (3, T, H, W), each a pan from one corner of a made picture to the opposite one."""
    clips = []
    for picture in made_photos(count):
        width, height = (round(PANNED * side) for side in picture.size)
        frames = []
        for share in np.linspace(0, 1, spec.frames):
            left, top = round(share * (picture.width - width)), round(share * (picture.height - height))
            frames.append(preprocess(picture.crop((left, top, left + width, top + height)), spec))
        clips.append(np.stack(frames, axis=1))
    return clips
