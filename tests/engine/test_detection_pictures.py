"""Pictures of detections beside annotations."""

from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator

from convmae_deploy.data.coco import read_coco_split
from convmae_deploy.data.detection_datasets import EvaluationDetections
from convmae_deploy.engine.detection_pictures import TILE, as_found, detection_picture
from convmae_deploy.engine.pictures import CAPTION_HEIGHT, GAP
from tests.coco_folders import HEIGHT, WIDTH, make_coco_folder
from tests.engine.colour_detector import SPEC, ColourDetector
from tests.engine.test_detection_evaluation import BlindDetector


@pytest.fixture
def photos(tmp_path: Path) -> EvaluationDetections:
    return EvaluationDetections(read_coco_split(make_coco_folder(tmp_path), "val"), SPEC)


def columns(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    left, right = (GAP + column * (TILE[0] + GAP) for column in range(2))
    return picture[CAPTION_HEIGHT:, left : left + TILE[0]], picture[CAPTION_HEIGHT:, right : right + TILE[0]]


def test_a_row_for_each_photo_shows_what_is_annotated_and_what_is_found(photos: EvaluationDetections) -> None:
    model = ColourDetector().train()
    picture = detection_picture(model, photos, range(3), Accelerator(cpu=True))
    assert picture is not None and model.training
    assert picture.size == (GAP + 2 * (TILE[0] + GAP), CAPTION_HEIGHT + 3 * (TILE[1] + GAP))
    annotated, found = columns(np.asarray(picture).astype(int))
    assert np.abs(annotated - found).mean() < 10  # the same objects, with another score on the label
    blind = detection_picture(BlindDetector(), photos, range(3), Accelerator(cpu=True))
    same, nothing = columns(np.asarray(blind).astype(int))
    assert np.array_equal(annotated, same)
    assert np.abs(annotated - nothing).mean() > np.abs(annotated - found).mean()


def test_photos_that_cannot_be_decoded_are_left_out(photos: EvaluationDetections) -> None:
    photos.split.photos[0].path.write_bytes(b"not a photo")
    picture = detection_picture(ColourDetector(), photos, range(2), Accelerator(cpu=True))
    assert picture is not None and picture.height == CAPTION_HEIGHT + TILE[1] + GAP
    assert detection_picture(ColourDetector(), photos, range(1), Accelerator(cpu=True)) is None


def test_the_mask_of_an_annotation_is_drawn_as_it_is(photos: EvaluationDetections) -> None:
    split = photos.split
    item = split.objects[1][1]
    detection = as_found(item, split.photos[1], split.classes)
    assert np.array_equal(detection.mask.pixels(), item.mask(HEIGHT, WIDTH))
    assert (detection.label, detection.index, detection.box) == ("blue thing", 1, item.box)
