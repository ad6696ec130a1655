"""Segmentation: what each pixel of a photo shows."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convmae_deploy.bundle.manifest import SEGMENTER_STRIDE, OutputSpec, SlidingWindow
from convmae_deploy.files import atomic_file
from convmae_deploy.program import readable
from convmae_deploy.tasks.base import (
    LOGITS,
    NO_OPTIONS,
    PredictOptions,
    Predictor,
    Report,
    Row,
    Source,
    open_photo,
)
from convmae_deploy.tasks.drawing import draw_segmentation, save_picture
from convmae_deploy.tasks.label_colours import class_areas
from convmae_deploy.tasks.masks import label_png
from convmae_deploy.tasks.sliding_window import Segmentation, segment_photo


class Segmenter(Predictor):
    """What each pixel of a photo shows."""

    TASK = "segmentation"
    MEDIUM = "photo"
    PREPROCESSING = SlidingWindow
    WRITES = True
    OUTPUT_WORDS = {LOGITS: "one for each class and cell of 4 x 4 pixels of the window"}
    CLIENT_STEPS = (
        "Resize the logits to the window bilinearly, average windows where they overlap, cut the padding off, resize "
        "the result bilinearly to the photo's size and take the largest of each pixel."
    )

    @classmethod
    def expected_outputs(cls, classes: int, axes: tuple[int, ...]) -> Mapping[str, OutputSpec | None]:
        """See `Predictor.expected_outputs`."""
        height, width = (side // SEGMENTER_STRIDE for side in axes)
        return {LOGITS: OutputSpec(shape=(classes, height, width), stride=SEGMENTER_STRIDE)}

    def predict(self, source: Source, options: PredictOptions = NO_OPTIONS) -> Segmentation:
        """The label of each pixel of a photo."""
        self.check_options(options)
        return self.segment([open_photo(source)])[0]

    def report(self, options: PredictOptions, out: Path | None) -> Report:
        """Shares of the classes in a table; labels and pictures where a folder is given."""
        self.check_options(options)
        return AreaReport(self, out)

    @property
    def windows(self) -> SlidingWindow:
        """How a photo is looked at."""
        assert isinstance(self.manifest.preprocessing, SlidingWindow)  # `check_manifest` says so
        return self.manifest.preprocessing

    def segment(self, images: Sequence[Image.Image]) -> list[Segmentation]:
        """The labels of each RGB photo, in its own size."""
        return [segment_photo(image, self.windows, self.run_windows) for image in images]

    def run_windows(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (B, K, h / 4, w / 4) of windows (B, 3, h, w)."""
        return self.run(windows, (LOGITS,))[LOGITS]


class AreaReport:
    """Labels of pixels: a map and a coloured picture with a legend for each photo."""

    columns = ("label", "share of the pixels", "score")

    def __init__(self, segmenter: Segmenter, out: Path | None) -> None:
        self.segmenter, self.out = segmenter, out
        self.photos = 0

    def describe(self, file: Path) -> Row:
        """Runs a photo and draws its labels."""
        image = open_photo(file)
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
