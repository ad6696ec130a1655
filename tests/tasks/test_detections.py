from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from convmae_deploy.bundle.manifest import Letterbox
from convmae_deploy.tasks.detection import coco_result, find_detections

SPEC = Letterbox(size=(64, 96))
PHOTO = (128, 150)  # halved, to 64 x 75
CLASSES = ("cat", "dog")


def outputs(*rows: tuple[tuple[float, float, float, float], float, int]) -> dict[str, Any]:
    """What a detector gives for one image that has room for five objects; every mask is full."""
    found: dict[str, Any] = {
        "boxes": np.zeros((5, 4), np.float32),
        "scores": np.zeros(5, np.float32),
        "labels": np.zeros(5, np.int64),
        "masks": np.zeros((5, 28, 28), np.float32),
        "num": np.int64(len(rows)),
        "converged": np.int64(1),
    }
    for index, (box, score, label) in enumerate(rows):
        found["boxes"][index], found["scores"][index], found["labels"][index] = box, score, label
        found["masks"][index] = 1
    return found


def test_objects_are_in_pixels_of_the_photo_and_have_names() -> None:
    first, second = find_detections(
        outputs(((10, 20, 30, 40), 0.9, 1), ((0, 0, 75, 64), 0.25, 0)), PHOTO, SPEC, CLASSES
    )
    assert (first.label, first.index, first.box) == ("dog", 1, (20, 40, 60, 80)) and first.score == pytest.approx(0.9)
    assert (second.label, second.box) == ("cat", (0, 0, 150, 128))
    mask = first.mask.pixels()
    assert mask.shape == PHOTO and mask[40:80, 20:60].all() and mask.sum() == 40 * 40


def test_rows_below_the_threshold_and_behind_the_number_are_no_objects() -> None:
    found = outputs(((10, 20, 30, 40), 0.9, 1), ((0, 0, 75, 64), 0.5, 0), ((0, 0, 75, 64), 0.25, 0))
    assert len(find_detections(found, PHOTO, SPEC, CLASSES)) == 3
    assert len(find_detections(found, PHOTO, SPEC, CLASSES, threshold=0.5)) == 2
    assert find_detections(outputs(), PHOTO, SPEC, CLASSES) == []


def test_without_a_number_every_row_is_an_object() -> None:
    found = {name: value[:2] for name, value in outputs(*[((1, 1, 9, 9), 0.5, 0)] * 5).items() if value.ndim}
    assert len(find_detections(found, PHOTO, SPEC, CLASSES)) == 2


def test_a_box_that_reaches_into_the_padding_ends_with_the_photo_and_its_mask_is_not_squeezed() -> None:
    row = outputs(((55, 10, 95, 30), 0.9, 1))
    row["masks"][0, :, 14:] = 0  # the object is the left half of the box: 55 to 75
    detection = find_detections(row, PHOTO, SPEC, CLASSES)[0]
    assert detection.box == (110, 20, 150, 60)
    mask = detection.mask.pixels()
    assert mask[20:60, 110:150].all() and mask.sum() == 40 * 40


def test_what_lies_in_the_padding_alone_is_left_out() -> None:
    assert find_detections(outputs(((76, 10, 95, 30), 0.9, 1)), PHOTO, SPEC, CLASSES) == []


def test_an_entry_of_coco_s_results_has_width_and_height_and_run_lengths() -> None:
    detection = find_detections(outputs(((10, 20, 30, 45), 0.9, 1)), PHOTO, SPEC, CLASSES)[0]
    entry = coco_result(detection, 42, 7)
    assert (entry["image_id"], entry["category_id"], entry["bbox"]) == (42, 7, [20, 40, 40, 50])
    assert entry["score"] == pytest.approx(0.9)
    assert np.array_equal(coco_mask.decode(entry["segmentation"]), detection.mask.pixels())
