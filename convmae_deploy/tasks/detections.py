"""From a detector's outputs to objects in the photo.

Shapes: D rows of a detector's outputs, M cells a side of a mask. Boxes XYXY in pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convmae_deploy.bundle.manifest import Letterbox, Size
from convmae_deploy.tasks.letterbox import boxes_to_photo
from convmae_deploy.tasks.masks import ObjectMask

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One object in a photo."""

    label: str
    index: int  # of the label in the model's classes
    score: float  # in [0, 1]
    box: Box  # XYXY in pixels of the upright photo, within it
    mask: ObjectMask


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


def _box(values: NDArray[np.floating[Any]]) -> Box:
    left, top, right, bottom = (float(value) for value in values)
    return left, top, right, bottom
