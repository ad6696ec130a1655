"""Segmentation: what each pixel of a photo shows."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from convmae_deploy.backends.base import FloatArray, InputArray
from convmae_deploy.bundle.manifest import SEGMENTER_STRIDE, OutputSpec
from convmae_deploy.bundle.preprocessing import SlidingWindow
from convmae_deploy.files import atomic_file
from convmae_deploy.program import readable
from convmae_deploy.tasks.base import (
    LOGITS,
    NO_OPTIONS,
    PHOTO_LIMITS,
    PredictOptions,
    Predictor,
    Prepared,
    Report,
    Row,
    Run,
    Source,
)
from convmae_deploy.tasks.drawing import drawing_scale, save_picture
from convmae_deploy.tasks.label_colours import class_areas, overlay, with_legend
from convmae_deploy.tasks.masks import label_png
from convmae_deploy.tasks.sliding_window import Segmentation, padded, resize, resize_and_normalise, segment_resized

MAX_LEGEND = 40  # classes
LEGEND_LENGTH = 900  # pixels of a picture's longer side that a legend of the usual size suits


class Segmenter(Predictor):
    """What each pixel of a photo shows."""

    TASK = "segmentation"
    MEDIUM = "photo"
    PREPROCESSING = SlidingWindow
    PREPROCESSED_BY = (
        "sliding_window.segment_photo(photo, spec, run)` does all of it and what follows for one RGB photo; `run` is "
        "to send windows and return their logits."
    )
    OPTIONS = PHOTO_LIMITS
    WRITES = True
    ONE_BY_ONE = True
    OUTPUT_WORDS = {LOGITS: "one for each class and cell of 4 x 4 pixels of the window"}
    CLIENT_STEPS = (
        "Resize the logits to the window bilinearly, average windows where they overlap, cut the padding off, resize "
        "the result bilinearly to the photo's size and take the largest of each pixel."
    )

    @classmethod
    def expected_outputs(cls, classes: int, axes: tuple[int, ...]) -> Mapping[str, OutputSpec | None]:
        height, width = (side // SEGMENTER_STRIDE for side in axes)
        return {LOGITS: OutputSpec(shape=(classes, height, width), stride=SEGMENTER_STRIDE)}

    @classmethod
    def pixels(cls, picture: Image.Image, spec: SlidingWindow) -> InputArray:
        """The window at the top left of an RGB photo, see `Predictor.pixels`."""
        height, width = spec.window
        return padded(resize_and_normalise(picture, spec)[:, :height, :width], spec)

    def prepare(self, source: Source, options: PredictOptions = NO_OPTIONS) -> Prepared:
        """See `Predictor.prepare`; `rows` is the photo in the size at which it is looked at, (h, w, 3) in uint8."""
        photo = self.open_photo(source, options)
        return Prepared(rows=np.asarray(resize(photo, self.windows)), size=(photo.height, photo.width))

    def interpret(
        self, prepared: Sequence[Prepared], options: PredictOptions = NO_OPTIONS, run: Run | None = None
    ) -> list[Segmentation]:
        """The label of each pixel of each photo; windows are cut and run a row or a column at a time."""

        def run_windows(windows: InputArray) -> FloatArray:
            return (run or self.run)(windows, (LOGITS,))[LOGITS]

        return [segment_resized(photo.rows, photo.size, self.windows, run_windows) for photo in prepared]

    def report(self, options: PredictOptions, out: Path | None) -> Report:
        """Shares of the classes in a table; labels and pictures where a folder is given."""
        self.check_options(options)
        return AreaReport(self, options, out)

    @property
    def windows(self) -> SlidingWindow:
        """How a photo is looked at."""
        assert isinstance(self.manifest.preprocessing, SlidingWindow)  # `check_manifest` says so
        return self.manifest.preprocessing


class AreaReport:
    """Labels of pixels: a map and a coloured picture with a legend for each photo."""

    columns = ("label", "share of the pixels", "score")

    def __init__(self, segmenter: Segmenter, options: PredictOptions, out: Path | None) -> None:
        self.segmenter, self.options, self.out = segmenter, options, out
        self.photos = 0

    def describe(self, file: Path) -> Row:
        """Runs a photo and draws its labels."""
        image = self.segmenter.open_photo(file, self.options)
        classes = self.segmenter.manifest.classes
        found = self.segmenter.predict(image)
        if self.out is not None:
            save_picture(draw_segmentation(image, found, classes), self.out / f"{file.stem}.overlay.jpg")
            with atomic_file(self.out / f"{file.stem}.labels.png") as temporary:
                temporary.write_bytes(label_png(found.labels))
            self.photos += 1
        areas = class_areas(found.labels, len(classes))
        shares = {index: area / found.labels.size for index, area in areas.items()}
        segments = [
            {"label": classes[index], "score": float(found.scores[index]), "share": share}
            for index, share in shares.items()
        ]
        rows = [(classes[index], f"{share:.4f}", f"{found.scores[index]:.4f}") for index, share in shares.items()]
        return Row(fields={"segments": segments}, rows=rows)

    def finish(self) -> list[str]:
        """Says where the files are."""
        return [] if self.out is None else [f"{readable(self.out)}: labels and pictures of {self.photos} photos"]


def draw_segmentation(photo: Image.Image, segmentation: Segmentation, classes: Sequence[str]) -> Image.Image:
    """An RGB photo under the colours of its labels, and below it the classes that it has, the largest first.

    Args:
        photo: upright; not changed.
        segmentation: of this photo.
        classes: names of the labels.
    """
    scale = drawing_scale(photo)
    size = round(photo.width * scale), round(photo.height * scale)
    labels = segmentation.labels
    if scale > 1:
        photo = photo.resize(size, Image.Resampling.BICUBIC)
        rows, columns = (np.arange(new) * old // new for new, old in zip(size[::-1], labels.shape, strict=True))
        labels = labels[rows[:, None], columns]
    picture = overlay(photo, labels, len(classes))
    areas, pixels = class_areas(segmentation.labels, len(classes)), segmentation.labels.size
    names = [f"{name} {_percent(areas.get(index, 0) / pixels)}" for index, name in enumerate(classes)]
    return with_legend(picture, names, list(areas)[:MAX_LEGEND], scale=max(1, round(max(size) / LEGEND_LENGTH)))


def _percent(share: float) -> str:
    return "< 1 %" if 0 < share < 0.005 else f"{share * 100:.0f} %"
