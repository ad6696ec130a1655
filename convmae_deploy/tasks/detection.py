"""Detection: objects in a photo, each with its class, its box and its mask.

Shapes: D rows of a detector's outputs, M cells a side of a mask. Boxes XYXY in pixels.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convmae_deploy.backends.base import InputArray
from convmae_deploy.bundle.manifest import OutputSpec
from convmae_deploy.bundle.preprocessing import Letterbox, Size
from convmae_deploy.files import atomic_file
from convmae_deploy.program import readable
from convmae_deploy.tasks.base import (
    NO_OPTIONS,
    PHOTO_LIMITS,
    ModelOutputError,
    PredictOptions,
    Predictor,
    Prepared,
    Report,
    Row,
    Run,
    all_rows,
    file_id,
)
from convmae_deploy.tasks.drawing import draw_detections, save_picture
from convmae_deploy.tasks.letterbox import boxes_to_photo, letterbox
from convmae_deploy.tasks.masks import ObjectMask
from convmae_deploy.tasks.objects import Box, Detection

MAX_DETECTIONS = 100  # in each image
MASK_SIDE = 28  # cells of a detection's mask, which covers its box
DETECTOR_OUTPUTS = {
    "boxes": OutputSpec(shape=(MAX_DETECTIONS, 4)),  # XYXY in pixels of the input, best first
    "scores": OutputSpec(shape=(MAX_DETECTIONS,)),
    "labels": OutputSpec(shape=(MAX_DETECTIONS,), dtype="int64"),  # index into classes
    "masks": OutputSpec(shape=(MAX_DETECTIONS, MASK_SIDE, MASK_SIDE)),  # probabilities
    "num": OutputSpec(shape=(), dtype="int64"),  # detections; what comes behind them is zeros
    "converged": OutputSpec(shape=(), dtype="int64"),  # 1, or 0 where suppression needed more rounds than it has
}
RESULTS_NAME = "results.json"
DEFAULT_THRESHOLD = 0.5

logger = logging.getLogger("convmae_deploy")


class Detections(list[Detection]):
    """The objects in one photo, best first.

    Args:
        found: the objects.
        converged: whether suppression came to its end; else boxes that overlap may have been left.
    """

    def __init__(self, found: Iterable[Detection], *, converged: bool) -> None:
        super().__init__(found)
        self.converged = converged


class Detector(Predictor):
    """Objects in a photo: their class, their box, their mask."""

    TASK = "detection"
    MEDIUM = "photo"
    PREPROCESSING = Letterbox
    PREPROCESSED_BY = "letterbox.letterbox(photo, spec)` does it for one RGB photo."
    OPTIONS = ("threshold", *PHOTO_LIMITS)
    WRITES = True
    KEY_OUTPUT = "scores"
    KEY_WORDS = "Scores of detections, best first,"
    GIVES_LISTS = True
    OUTPUT_WORDS = {
        "boxes": "left, top, right, bottom in pixels of the input, best first",
        "labels": "line of labels.txt, the first is 0",
        "masks": "probabilities on a grid within the box",
        "num": "rows in use; those behind are zeros",
        "converged": "0 where boxes that overlap may have been left",
    }
    CLIENT_STEPS = (
        "Divide the boxes by the ratios of the resize, one an axis, to get pixels of the photo; resize each mask to "
        "its box and take what is over 0.5. `num` and `converged` are scalars of the graph; Triton gives them an axis "
        "of length 1."
    )
    OUTPUTS = tuple(DETECTOR_OUTPUTS)

    @classmethod
    def expected_outputs(cls, classes: int, axes: tuple[int, ...]) -> Mapping[str, OutputSpec | None]:
        return dict(DETECTOR_OUTPUTS)

    @classmethod
    def pixels(cls, picture: Image.Image, spec: Letterbox) -> InputArray:
        """See `Predictor.pixels`."""
        return letterbox(picture, spec)

    def report(self, options: PredictOptions, out: Path | None) -> Report:
        """Objects in a table; pictures and COCO's results where a folder is given."""
        self.check_options(options)
        return ObjectReport(self, options, out)

    def interpret(
        self, prepared: Sequence[Prepared], options: PredictOptions = NO_OPTIONS, run: Run | None = None
    ) -> list[Detections]:
        """The objects in each photo, best first.

        Where overlapping boxes may have been left, as suppression needed more rounds than the graph has, a warning
        through the logger "convmae_deploy" says so; the other objects are as good as ever.

        Raises:
            ModelOutputError: a label or the number of objects is out of range.
        """
        outputs = (run or self.run)(all_rows(prepared), self.OUTPUTS)
        self._check_outputs(outputs)
        threshold = DEFAULT_THRESHOLD if options.threshold is None else options.threshold
        results = []
        for index, photo in enumerate(prepared):
            own = {name: values[index] for name, values in outputs.items()}
            found = find_detections(own, photo.size, self._letterbox, self.manifest.classes, threshold=threshold)
            results.append(Detections(found, converged=bool(own["converged"])))
        return results

    def _check_outputs(self, outputs: Mapping[str, NDArray[Any]]) -> None:
        """Refuses numbers out of range, and warns where suppression did not end."""
        for name, limit in (("num", outputs["scores"].shape[1] + 1), ("labels", len(self.manifest.classes))):
            if outputs[name].min() < 0 or outputs[name].max() >= limit:
                raise ModelOutputError(f"output {name!r} must be between 0 and {limit - 1}")
        if not outputs["converged"].all():
            logger.warning(
                "%s may have left boxes that overlap: suppression did not come to its end", self.manifest.name
            )

    @property
    def _letterbox(self) -> Letterbox:
        assert isinstance(self.manifest.preprocessing, Letterbox)  # `check_manifest` says so
        return self.manifest.preprocessing


def find_detections(
    outputs: Mapping[str, NDArray[Any]],
    photo: Size,
    spec: Letterbox,
    classes: Sequence[str],
    *,
    threshold: float = 0.0,
) -> list[Detection]:
    """The objects of one photo, best first.

    What lies in the padding alone is no object of the photo and left out. Masks belong to the boxes as predicted;
    the boxes given back end with the photo.

    Args:
        outputs: of one image, without the batch axis: `boxes` (D, 4) in pixels of the input, `scores` (D,), `labels`
            (D,), `masks` (D, M, M), and where there are rows without an object `num`, how many have one.
        photo: (height, width) of the upright photo in pixels.
        spec: how it became the input.
        classes: names of the labels.
        threshold: scores below it are left out.
    """
    count = int(outputs["num"]) if "num" in outputs else len(outputs["scores"])
    predicted = boxes_to_photo(outputs["boxes"][:count], photo, spec)
    boxes = np.clip(predicted, 0, [photo[1], photo[0]] * 2)
    kept = (outputs["scores"][:count] >= threshold) & (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
    return [
        Detection(
            label=classes[outputs["labels"][row]],
            index=int(outputs["labels"][row]),
            score=float(outputs["scores"][row]),
            box=_box(boxes[row]),
            mask=ObjectMask(probabilities=outputs["masks"][row], box=_box(predicted[row]), size=photo),
        )
        for row in np.flatnonzero(kept)
    ]


def coco_result(detection: Detection, image_id: int | str, category_id: int) -> dict[str, object]:
    """An entry of COCO's results format.

    Args:
        detection: the object.
        image_id: of the photo, in the file that the results are for.
        category_id: of the label, likewise.
    """
    left, top, right, bottom = detection.box
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [left, top, right - left, bottom - top],
        "score": detection.score,
        "segmentation": detection.mask.run_lengths(),
    }


class ObjectReport:
    """Objects with boxes and masks: a picture for each photo, and all of them in COCO's results format.

    In that file `image_id` is the name of the photo without its suffix, as a number where it is one, as in COCO's
    photos; `category_id` is the one of the annotations that the model learnt from; boxes and masks are in pixels of the
    upright photo.
    """

    columns = ("label", "score", "box: left, top, right, bottom")

    def __init__(self, detector: Detector, options: PredictOptions, out: Path | None) -> None:
        self.detector, self.options, self.out = detector, options, out
        manifest = detector.manifest
        self.category_ids = manifest.category_ids or range(1, len(manifest.classes) + 1)
        self.results: list[dict[str, object]] = []
        self.photos = 0

    def describe(self, file: Path) -> Row:
        """Runs a photo and draws what was found."""
        image = self.detector.open_photo(file, self.options)
        found = self.detector.predict(image, self.options)
        if self.out is not None:
            picture = draw_detections(image, found, len(self.detector.manifest.classes))
            save_picture(picture, self.out / f"{file.stem}.objects.jpg")
            self.results += [coco_result(item, file_id(file), self.category_ids[item.index]) for item in found]
            self.photos += 1
        rows = [(item.label, f"{item.score:.4f}", _box_text(item)) for item in found]
        return Row(fields={"detections": [_object_fields(item) for item in found]}, rows=rows)

    def finish(self) -> list[str]:
        """Writes the file of results."""
        if self.out is None:
            return []
        path = self.out / RESULTS_NAME
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(self.results), encoding="utf-8")
        objects = f"{len(self.results)} objects in {self.photos} photos"
        return [f"{readable(path)}: {objects}; their pictures beside it"]


def _box(values: NDArray[np.floating[Any]]) -> Box:
    left, top, right, bottom = (float(value) for value in values)
    return left, top, right, bottom


def _object_fields(item: Detection) -> dict[str, object]:
    return {
        "label": item.label,
        "score": item.score,
        "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), item.box, strict=True)),
    }


def _box_text(item: Detection) -> str:
    return ", ".join(f"{edge:.0f}" for edge in item.box)
