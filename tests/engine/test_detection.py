"""A detector is measured as it is served, on any number of processes, and drawn beside what is annotated."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from convmae_deploy.data.coco import read_coco_split
from convmae_deploy.data.detection_datasets import EvaluationDetections
from convmae_deploy.engine.detection import TILE, as_found, detection_picture, evaluate_detector
from convmae_deploy.engine.evaluation import Validation
from convmae_deploy.engine.pictures import CAPTION_HEIGHT, GAP
from convmae_deploy.errors import ConvMAEError
from tests.coco_folders import HEIGHT, WIDTH, edit_annotations, make_coco_folder
from tests.engine.colour_detector import SPEC, ColourDetector
from tests.processes import RunProcesses


class BlindDetector(nn.Module):
    """Finds nothing."""

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        shapes = {"boxes": (0, 4), "scores": (0,), "masks": (0, 28, 28)}
        nothing = {name: torch.zeros(shape) for name, shape in shapes.items()}
        return [nothing | {"labels": torch.zeros(0, dtype=torch.int64)} for _ in images]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_coco_folder(tmp_path / "data", photos=5)


@pytest.fixture
def photos(root: Path) -> EvaluationDetections:
    return EvaluationDetections(read_coco_split(root, "val"), SPEC)


def evaluate(root: Path, model: nn.Module | None = None) -> Validation:
    photos = EvaluationDetections(read_coco_split(root, "val"), SPEC)
    return evaluate_detector(model or ColourDetector(), photos, Accelerator(cpu=True), batch_size=2, workers=0)


def test_a_detector_that_sees_everything_scores_one(root: Path) -> None:
    model = ColourDetector().train()
    result = evaluate(root, model)
    assert (result.images, result.unreadable) == (5, 0)
    assert result.scores["box_ap"] == result.scores["mask_ap"] == pytest.approx(100)
    assert model.training


def test_what_is_told_are_percentages(root: Path) -> None:
    validation = evaluate(root)
    assert validation.numbers["val_mask_ap"] == validation.numbers["val_box_ar_small"] == pytest.approx(100)
    assert validation.summary == "box AP 100.00 % (AP50 100.00 %), mask AP 100.00 % (AP50 100.00 %)"


def test_a_detector_that_finds_nothing_scores_zero(root: Path) -> None:
    result = evaluate(root, BlindDetector())
    assert result.scores["box_ap"] == result.scores["mask_ar100"] == 0


def test_photos_that_cannot_be_decoded_are_counted_and_left_out(root: Path) -> None:
    for name in ("10", "20"):  # a whole batch
        (root / "images" / "val" / f"{name}.png").write_bytes(b"not a photo")
    result = evaluate(root)
    assert (result.images, result.unreadable) == (3, 2)
    assert result.scores["box_ap"] == pytest.approx(100)
    for photo in (root / "images" / "val").iterdir():
        photo.write_bytes(b"not a photo")
    with pytest.raises(ConvMAEError, match="none of the 5 validation files could be decoded"):
        evaluate(root)


def test_what_is_found_in_a_photo_without_objects_counts_against(root: Path) -> None:
    def forget(content: dict[str, Any]) -> None:
        content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != 10]

    edit_annotations(root, "val", forget)
    assert evaluate(root).scores["box_ap"] < 95


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


@pytest.mark.slow
def test_two_processes_find_what_one_does(root: Path, run_processes: RunProcesses) -> None:
    (root / "images" / "val" / "20.png").write_bytes(b"not a photo")
    written = run_processes(2, "tests.engine.colour_detector", str(root))
    alone = evaluate(root)
    assert json.loads(written.splitlines()[-1]) == {"scores": alone.scores, "images": 4, "unreadable": 1}
