"""Calibration: real photos or videos through the manifest's own preprocessing, and the ranges of what layers read.

Noise and blank pictures say little about the values that most models meet in use, so they are counted and told. They
are used all the same: pages of text, bar codes and a wafer without contrast look so too, and whose pictures they are
knows what the model will meet.
In a photo neighbouring pixels are alike at every scale, in noise they are not: shrunk to a short side of 64, the
correlation of neighbours was at least 0.55 in each of 1,100 photos (Imagenette, ImageNet, COCO, CamVid), and at most
0.12 in noise, be it uniform or normal, stored as JPEG, shrunk, or enlarged up to four times.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
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

from convmae_deploy.backends.base import InputArray
from convmae_deploy.bundle.preprocessing import AnyPreprocessing
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import atomic_file, sha256_of
from convmae_deploy.media.photo_files import find_photos, read_photo
from convmae_deploy.media.video_formats import find_videos
from convmae_deploy.printing import printable
from convmae_deploy.tasks.base import Predictor
from convmae_deploy.tasks.clips import read_clips
from convmae_deploy.tasks.preprocess import nearest_levels
from convmae_deploy.terminal import Terminal
from export.verification.task_data import spread

LEAST_SAMPLES = 4  # fewer say little
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
    odd: str = ""  # how many look like none, in words; empty: all are as they should be

    def inputs(self) -> Iterator[InputArray]:
        """What the graph takes, (1, 3, ...), one at a time."""
        for path in self.files:
            yield _read(path, self.task, self.preprocessing)[1][None]

    def digest(self, model: onnx.ModelProto, values: Collection[str]) -> str:
        """Of all that the ranges of a graph's values on these files depend on."""
        parts = [METHOD, self.preprocessing.model_dump_json(), *sorted(values), *map(sha256_of, self.files)]
        graph = hashlib.sha256("\n".join(parts).encode())
        for part in (*model.graph.node, *model.graph.initializer):  # one by one, as together they may be over 2 GB
            graph.update(part.SerializeToString(deterministic=True))
        return graph.hexdigest()


def read_calibration(
    folder: Path, task: type[Predictor], preprocessing: AnyPreprocessing, count: int, *, hold_out: bool = False
) -> CalibrationData:
    """Looks at the pictures below a folder; only what cannot be read is left out, what looks like no photo is told.

    Args:
        folder: with photos or videos, at any depth.
        task: of the model.
        preprocessing: the manifest's.
        count: how many to calibrate with, at most; they are spread evenly over the folder.
        hold_out: whether to put every other one aside to compare with, as many again at most.

    Raises:
        ConvMAEError: there is none that can be read.
    """
    if not folder.is_dir():
        raise ConvMAEError(
            f"--calibrate must be a folder of photos or videos as the model will meet; found "
            f"{'a file' if folder.exists() else 'nothing'} at {folder}"
        )
    kind = f"{task.MEDIUM}s"
    find: Callable[[Sequence[Path]], Sequence[Path]] = find_videos if kind == "videos" else find_photos
    files = spread(find([folder]), count * (2 if hold_out else 1))
    flaws: dict[str, list[Path]] = {}
    unreadable: list[str] = []
    good: list[Path] = []
    for path in track(files, f"Looking at the {kind} to calibrate with", console=Terminal(stderr=True), transient=True):
        try:
            picture = _read(path, task, preprocessing)[0]
        except ConvMAEError as error:
            unreadable.append(f"{printable(path)}: {printable(error)}")
            continue
        good.append(path)
        flaw = picture_flaw(picture)
        if flaw is not None:
            flaws.setdefault(flaw, []).append(path)
    least = 2 if hold_out else 1
    if len(good) < least:
        reason = f"; the first: {unreadable[0]}" if unreadable else ""
        raise ConvMAEError(
            f"--calibrate must be a folder of {kind} that can be read, and 100 are good; {folder} has {len(good)} of "
            f"{len(files)}{reason}"
        )
    _warn(folder, kind, good, flaws, unreadable)
    return CalibrationData(
        folder=folder,
        kind=kind,
        files=tuple(good[::2] if hold_out else good),
        others=tuple(good[1::2] if hold_out else ()),
        task=task,
        preprocessing=preprocessing,
        odd=", ".join(f"{len(paths)} of them {flaw}" for flaw, paths in sorted(flaws.items())),
    )


def _warn(
    folder: Path, kind: str, good: Sequence[Path], flaws: dict[str, list[Path]], unreadable: Sequence[str]
) -> None:
    """Says what is odd about the files of a folder, with its number and an example."""
    if unreadable:
        number = f"{len(unreadable)} of {len(good) + len(unreadable)} {kind}"
        logger.warning("%s to calibrate with cannot be read and are left out; the first: %s", number, unreadable[0])
    for flaw, paths in sorted(flaws.items()):
        logger.warning(
            "%d of %d %s to calibrate with look like %s, such as %s; they are used: see that the model will meet such",
            len(paths),
            len(good),
            kind,
            "noise" if flaw == "noise" else "blank pictures",
            printable(paths[0]),
        )
    if len(good) < LEAST_SAMPLES:
        logger.warning("%s has %d %s to calibrate with, which say little; 100 are good", folder, len(good), kind)


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


def cached_ranges(
    model: onnx.ModelProto, values: Collection[str], data: CalibrationData, cache: Path
) -> dict[str, tuple[float, float]]:
    """`activation_ranges` on the files of some data, taken from an earlier time where nothing has changed since.

    Args:
        model: in fp32.
        values: names of float32 values of the graph.
        data: whose inputs it is run on.
        cache: folder of the ranges of earlier times.
    """
    path = cache / f"{data.digest(model, values)}.json"
    try:
        kept = {name: (float(low), float(high)) for name, (low, high) in json.loads(path.read_bytes()).items()}
        if kept.keys() == set(values):
            logger.info("ranges of an earlier calibration on the same files: %s", path)
            return kept
    except (OSError, ValueError, TypeError, AttributeError):  # there is none, or none of ours
        pass
    found = activation_ranges(model, values, data.inputs(), len(data.files))
    with atomic_file(path) as file:
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def cache_folder() -> Path:
    """Where ranges are kept for the next time; not made here."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "convmae_deploy" / "calibration"


def activation_ranges(
    model: onnx.ModelProto, values: Collection[str], inputs: Iterable[InputArray], total: int
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

    def __init__(self, feeds: dict[str, InputArray]) -> None:
        self._feeds: dict[str, InputArray] | None = feeds

    def get_next(self) -> dict[str, InputArray] | None:
        """The input, then None."""
        feeds, self._feeds = self._feeds, None
        return feeds


def _read(path: Path, task: type[Predictor], preprocessing: Any) -> tuple[Image.Image, InputArray]:
    """A photo, or the middle frame of a video's clip, and what the graph takes, (3, ...)."""
    if task.MEDIUM == "photo":
        photo = read_photo(path).image
        return photo, task.pixels(photo, preprocessing)
    clip = read_clips(path, preprocessing)[0]
    levels = clip if preprocessing.dtype == "uint8" else nearest_levels(clip, preprocessing)
    return Image.fromarray(np.ascontiguousarray(levels[:, preprocessing.frames // 2].transpose(1, 2, 0))), clip


def _correlation(one: np.ndarray[Any, np.dtype[np.float64]], other: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])
