"""Calibration: real photos or videos through the manifest's own preprocessing, and the ranges of what layers read.

Noise, blank and made pictures say nothing about the values that a model meets in use, so a folder of such is refused.
In a photo neighbouring pixels are alike at every scale, in noise they are not: shrunk to a short side of 64, the
correlation of neighbours was at least 0.55 in each of 1,100 photos (Imagenette, ImageNet, COCO, CamVid), and at most
0.12 in noise, be it uniform or normal, stored as JPEG, shrunk, or enlarged up to four times.
"""

import contextlib
import io
import logging
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization.calibrate import MinMaxCalibrater
from PIL import Image
from rich.progress import track

from convmae_deploy.backends.base import FloatArray
from convmae_deploy.bundle.manifest import AnyPreprocessing
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.media.photo_files import find_photos, read_photo
from convmae_deploy.media.video_formats import find_videos
from convmae_deploy.printing import printable
from convmae_deploy.tasks.base import Predictor
from convmae_deploy.tasks.clips import read_clips
from convmae_deploy.terminal import Terminal
from export.verification.task_data import spread

LEAST_SAMPLES = 4  # so few say little, fewer nothing
SHORT_SIDE = 64  # in pixels, to which a picture is shrunk before it is judged
LEAST_CORRELATION = 0.35  # between neighbouring pixels of a photo
LEAST_DEVIATION = 1.0  # grey levels; a picture with less is blank
METHOD = "min-max"  # on the nano of Imagenette: see `activation_ranges`

logger = logging.getLogger("convmae_deploy")


@dataclass(frozen=True, kw_only=True)
class CalibrationData:
    """Photos or videos that are what they should be."""

    folder: Path
    kind: str  # "photos" or "videos"
    files: tuple[Path, ...]  # to calibrate with
    task: type[Predictor]
    others: tuple[Path, ...]  # from the same folder, to compare with; none where nobody asked for some
    preprocessing: AnyPreprocessing

    def inputs(self) -> Iterator[FloatArray]:
        """What the graph takes, (1, 3, ...), one at a time."""
        for path in self.files:
            yield _read(path, self.task, self.preprocessing)[1][None]


def read_calibration(
    folder: Path, task: type[Predictor], preprocessing: AnyPreprocessing, count: int, *, hold_out: bool = False
) -> CalibrationData:
    """Looks at the pictures below a folder and takes those that are photos.

    Args:
        folder: with photos or videos, at any depth.
        task: of the model.
        preprocessing: the manifest's.
        count: how many to calibrate with, at most; they are spread evenly over the folder.
        hold_out: whether to put every other one aside to compare with, as many again at most.

    Raises:
        ConvMAEError: there are too few, or most are noise or blank.
    """
    if not folder.is_dir():
        raise ConvMAEError(
            f"--calibrate must be a folder of photos or videos as the model will meet; found "
            f"{'a file' if folder.exists() else 'nothing'} at {folder}"
        )
    kind = f"{task.MEDIUM}s"
    find: Callable[[Sequence[Path]], Sequence[Path]] = find_videos if kind == "videos" else find_photos
    files = spread(find([folder]), count * (2 if hold_out else 1))
    flaws: dict[str, int] = {}
    good: list[Path] = []
    for path in track(files, f"Looking at the {kind} to calibrate with", console=Terminal(stderr=True), transient=True):
        try:
            picture = _read(path, task, preprocessing)[0]
        except ConvMAEError as error:
            logger.warning("%s is left out of the calibration: %s", printable(path), printable(error))
            continue
        flaw = picture_flaw(picture)
        if flaw is None:
            good.append(path)
        else:
            flaws[flaw] = flaws.get(flaw, 0) + 1
            logger.warning("%s is left out of the calibration: it is %s", printable(path), flaw)
    if sum(flaws.values()) > len(good):
        flaw = max(flaws, key=lambda name: flaws[name])
        raise ConvMAEError(
            f"--calibrate must be a folder of real {kind}; {flaws[flaw]} of {len(files)} looked at in {folder} are "
            f"{flaw}, whose ranges are not those of real {kind}: choose another folder"
        )
    if len(good) < LEAST_SAMPLES * (2 if hold_out else 1):
        raise ConvMAEError(
            f"--calibrate must be a folder of at least {LEAST_SAMPLES * (2 if hold_out else 1)} readable {kind}, and "
            f"100 are better; {folder} has {len(good)}"
        )
    return CalibrationData(
        folder=folder,
        kind=kind,
        files=tuple(good[::2] if hold_out else good),
        others=tuple(good[1::2] if hold_out else ()),
        task=task,
        preprocessing=preprocessing,
    )


def picture_flaw(picture: Image.Image) -> str | None:
    """What keeps a picture from being a photo: "blank" or "noise"; None: nothing.

    Args:
        picture: RGB, of any size.
    """
    grey = picture.convert("L")
    if np.asarray(grey).std() < LEAST_DEVIATION:
        return "blank"
    scale = SHORT_SIDE / min(grey.size)
    if scale < 1:
        size = max(2, round(grey.width * scale)), max(2, round(grey.height * scale))
        grey = grey.resize(size, Image.Resampling.BOX)
    pixels = np.asarray(grey, dtype=np.float64)
    if not all(line.std() for line in (pixels[:, 1:], pixels[:, :-1], pixels[1:], pixels[:-1])):
        return "noise"  # shrunk a lot it is even
    correlation = min(_correlation(pixels[:, 1:], pixels[:, :-1]), _correlation(pixels[1:], pixels[:-1]))
    return "noise" if correlation < LEAST_CORRELATION else None


def activation_ranges(
    model: onnx.ModelProto, values: Collection[str], inputs: Iterable[FloatArray], total: int
) -> dict[str, tuple[float, float]]:
    """The smallest and the largest entry of each value over all inputs.

    Both are taken within the graph, so that what is in memory is one run of one input, however large its maps are.

    Args:
        model: in fp32.
        values: names of float32 values of the graph.
        inputs: (1, 3, ...) each.
        total: how many there are, for the progress bar.
    """
    (entry,) = model.graph.input
    with tempfile.TemporaryDirectory(prefix="convmae-calibration-") as folder:
        source = Path(folder) / "model.onnx"
        onnx.save(model, source)
        calibrater = _ChosenValues(source, frozenset(values), str(Path(folder) / "augmented.onnx"))
        calibrater.augment_graph()
        calibrater.create_inference_session()
        for image in track(inputs, "Calibrating", total=total, console=Terminal(stderr=True), transient=True):
            with contextlib.redirect_stdout(io.StringIO()):
                calibrater.collect_data(_One({entry.name: image}))
        found = calibrater.compute_data()
    return {name: (float(np.min(data.lowest)), float(np.max(data.highest))) for name, data in found.items()}


class _ChosenValues(MinMaxCalibrater):  # type: ignore[misc]  # ONNX Runtime has no type hints
    """ONNX Runtime's calibration, of some values instead of all that layers of some kind read and give."""

    def __init__(self, path: Path, values: frozenset[str], augmented: str) -> None:
        super().__init__(path, augmented_model_path=augmented)
        self._values = values

    def select_tensors_to_calibrate(self, model: onnx.ModelProto) -> tuple[set[str], dict[str, onnx.ValueInfoProto]]:
        """The values, and what is known about them."""
        _, infos = super().select_tensors_to_calibrate(model)
        return set(self._values), infos


class _One:
    """One input, in the form that the calibration asks for."""

    def __init__(self, feeds: dict[str, FloatArray]) -> None:
        self._feeds: dict[str, FloatArray] | None = feeds

    def get_next(self) -> dict[str, FloatArray] | None:
        """The input, then None."""
        feeds, self._feeds = self._feeds, None
        return feeds


def _read(path: Path, task: type[Predictor], preprocessing: Any) -> tuple[Image.Image, FloatArray]:
    """A photo, or the middle frame of a video's clip, and what the graph takes, (3, ...)."""
    if task.MEDIUM == "photo":
        photo = read_photo(path).image
        return photo, task.pixels(photo, preprocessing)
    clip = read_clips(path, preprocessing)[0]
    frame = clip[:, preprocessing.frames // 2].transpose(1, 2, 0)  # (H, W, 3)
    levels = 255 * (frame * np.array(preprocessing.std) + np.array(preprocessing.mean))
    return Image.fromarray(levels.round().clip(0, 255).astype(np.uint8)), clip


def _correlation(one: np.ndarray[Any, np.dtype[np.float64]], other: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])
