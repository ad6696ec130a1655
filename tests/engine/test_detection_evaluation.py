"""A detector is measured as it is served, on any number of processes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from convmae_deploy.data.coco import read_coco_split
from convmae_deploy.data.detection_datasets import EvaluationDetections
from convmae_deploy.engine.detection_evaluation import DetectionResult, detect, evaluate_detector
from convmae_deploy.errors import ConvMAEError
from tests.coco_folders import edit_annotations, make_coco_folder
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


def evaluate(root: Path, model: nn.Module | None = None) -> DetectionResult:
    photos = EvaluationDetections(read_coco_split(root, "val"), SPEC)
    return evaluate_detector(model or ColourDetector(), photos, Accelerator(cpu=True), batch_size=2, workers=0)


def test_a_detector_that_sees_everything_scores_one(root: Path) -> None:
    model = ColourDetector().train()
    result = evaluate(root, model)
    assert (result.images, result.unreadable) == (5, 0)
    assert result.metrics["box"]["ap"] == result.metrics["mask"]["ap"] == pytest.approx(1)
    assert model.training


def test_what_is_told_are_percentages(root: Path) -> None:
    validation = evaluate(root).validation()
    assert validation.scores["val_mask_ap"] == validation.scores["val_box_ar_small"] == pytest.approx(100)
    assert validation.told == "box AP 100.00 % (AP50 100.00 %), mask AP 100.00 % (AP50 100.00 %)"
    assert validation.summary.endswith("on 5 photos")


def test_a_detector_that_finds_nothing_scores_zero(root: Path) -> None:
    result = evaluate(root, BlindDetector())
    assert result.metrics["box"]["ap"] == result.metrics["mask"]["ar100"] == 0


def test_photos_that_cannot_be_decoded_are_counted_and_left_out(root: Path) -> None:
    for name in ("20", "30"):
        (root / "images" / "val" / f"{name}.png").write_bytes(b"not a photo")
    result = evaluate(root)
    assert (result.images, result.unreadable) == (3, 2)
    assert result.metrics["box"]["ap"] == pytest.approx(1)
    for photo in (root / "images" / "val").iterdir():
        photo.unlink()
    with pytest.raises(ConvMAEError, match="none of the 5 validation photos could be decoded"):
        evaluate(root)


def test_what_is_found_in_a_photo_without_objects_counts_against(root: Path) -> None:
    def forget(content: dict[str, Any]) -> None:
        content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != 10]

    edit_annotations(root, "val", forget)
    assert evaluate(root).metrics["box"]["ap"] < 0.95


def test_no_images_give_no_detections() -> None:
    assert detect(ColourDetector().eval(), torch.empty(0), Accelerator(cpu=True)) == []


@pytest.mark.slow
def test_two_processes_find_what_one_does(root: Path, run_processes: RunProcesses) -> None:
    (root / "images" / "val" / "20.png").write_bytes(b"not a photo")
    written = run_processes(2, "tests.engine.colour_detector", str(root))
    alone = evaluate(root)
    assert json.loads(written.splitlines()[-1]) == {"metrics": alone.metrics, "images": 4, "unreadable": 1}
