"""What a classifier's bundle makes of labelled photos, next to PyTorch: top-1 of both, and where they disagree."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from convmae_deploy.data.photo_folder import PhotoFolder, read_photo_folder
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.runtime.extraction import read_photo
from convmae_deploy.runtime.predictor import Classifier
from export.gates import FP32, FloatArray, compare
from export.inputs import graph_input
from export.tasks import ExportTask
from export.verify import LOGITS

SPLIT = "val"
BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Counts over a split."""

    photos: int
    unreadable: int
    reference_right: int  # photos whose top class of PyTorch is the label
    found_right: int  # the same of the bundle
    decided: int  # photos whose best two classes of PyTorch lie further apart than rounding may move them
    agreeing: int  # those of them with the same top class in the bundle

    def sentence(self) -> str:
        """Top-1 of both, the change, and the agreement."""
        before, after = (100 * right / self.photos for right in (self.reference_right, self.found_right))
        left_out = f"; {self.unreadable} could not be decoded" if self.unreadable else ""
        return (
            f"top-1 of PyTorch {before:.2f} %, of the bundle {after:.2f} % (change {after - before:+.2f} points) on "
            f"{self.photos} photos{left_out}; the same class on {self.agreeing} of {self.decided} that are no near tie"
        )


def read_labelled(data: Path, classes: tuple[str, ...]) -> PhotoFolder | None:
    """The photos of `data/val/<class>/*`; None where `data` has no such folder.

    Raises:
        ConvMAEError: a class there is none of the model's.
    """
    if not (data / SPLIT).is_dir():
        return None
    folder = read_photo_folder(data, SPLIT)
    unknown = sorted(set(folder.classes) - set(classes))
    if unknown:
        raise ConvMAEError(f"--data {data} has classes that the model does not know, for instance {unknown[0]!r}")
    return folder


def measure_agreement(task: ExportTask, predictor: Classifier, folder: PhotoFolder) -> Agreement:
    """Classifies every photo twice, each side with its own preprocessing: the checkpoint's and the manifest's.

    Raises:
        ConvMAEError: no photo can be decoded.
    """
    counts = dict.fromkeys(("photos", "reference_right", "found_right", "decided", "agreeing"), 0)
    for labels, expected_pixels, found_pixels in _batches(task, predictor, folder):
        expected = task.reference(expected_pixels)[LOGITS]
        found = predictor.run(found_pixels, (LOGITS,))[LOGITS]
        comparison = compare(expected, found, FP32, top1=True)
        counts["photos"] += len(labels)
        counts["reference_right"] += int((expected.argmax(axis=1) == labels).sum())
        counts["found_right"] += int((found.argmax(axis=1) == labels).sum())
        counts["decided"] += comparison.images_decided
        counts["agreeing"] += comparison.images_agreeing
    if not counts["photos"]:
        raise ConvMAEError(f"none of the {len(folder.photos)} labelled photos can be decoded; choose another --data")
    return Agreement(unreadable=len(folder.photos) - counts["photos"], **counts)


def _batches(
    task: ExportTask, predictor: Classifier, folder: PhotoFolder
) -> Iterator[tuple[list[int], FloatArray, FloatArray]]:
    """Indices of the labels in the model's classes, and the photos (B, 3, H, W) as either side takes them."""
    indices = [predictor.manifest.classes.index(name) for name in folder.classes]
    rows: list[tuple[int, FloatArray, FloatArray]] = []
    pairs = list(zip(folder.photos, folder.labels, strict=True))
    for path, label in track(pairs, "Classifying", console=Console(stderr=True), transient=True):
        try:
            photo = read_photo(path).image
        except ConvMAEError:
            continue
        rows.append((indices[label], graph_input(photo, task.preprocessing), predictor.preprocess(photo)))
        if len(rows) == BATCH:
            yield _stacked(rows)
            rows = []
    if rows:
        yield _stacked(rows)


def _stacked(rows: list[tuple[int, FloatArray, FloatArray]]) -> tuple[list[int], FloatArray, FloatArray]:
    labels, expected, found = zip(*rows, strict=True)
    return list(labels), np.stack(expected), np.stack(found)
