"""COCO's metrics."""

import json
from pathlib import Path
from typing import Any

import pytest
from pycocotools import mask as run_lengths

from convmae_deploy.data.coco import read_coco_split
from convmae_deploy.engine.coco_evaluation import METRICS, Kind, coco_metrics
from tests.coco_folders import DET_COCO, HEIGHT, WIDTH, edit_annotations, make_coco_folder, needs_det_coco

PRINTED = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
KINDS: tuple[Kind, ...] = ("box", "mask")


@pytest.fixture
def ground_truth(tmp_path: Path) -> dict[str, Any]:
    return read_coco_split(make_coco_folder(tmp_path), "val").ground_truth()


def detection(annotation: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """What a perfect detector finds of an object."""
    lengths = run_lengths.merge(run_lengths.frPyObjects(annotation["segmentation"], HEIGHT, WIDTH))
    found = {key: annotation[key] for key in ("image_id", "category_id", "bbox")}
    return found | {"score": 0.9, "segmentation": lengths} | changes


@pytest.mark.slow
@needs_det_coco
@pytest.mark.parametrize(("kind", "name"), [("box", "bbox"), ("mask", "segm")])
def test_the_reference_results_give_the_reference_numbers(kind: Kind, name: str) -> None:
    folder = DET_COCO / "reference_eval"
    expected = json.loads((folder / "expected.json").read_text())["expected"][name]
    results = json.loads((folder / "results.json").read_text())
    found = coco_metrics(read_coco_split(DET_COCO, "val").ground_truth(), results, kind)
    assert list(found.values()) == pytest.approx([expected[metric] for metric in PRINTED], abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_perfect_detections_score_one(ground_truth: dict[str, Any], kind: Kind) -> None:
    found = coco_metrics(ground_truth, [detection(entry) for entry in ground_truth["annotations"]], kind)
    assert found["ap"] == found["ar100"] == found["ap_small"] == pytest.approx(1)


@pytest.mark.parametrize("kind", KINDS)
def test_no_detections_at_all_score_zero(ground_truth: dict[str, Any], kind: Kind) -> None:
    assert set(coco_metrics(ground_truth, [], kind).values()) == {0.0}


def test_numbers_of_sizes_that_do_not_occur_are_left_out(ground_truth: dict[str, Any]) -> None:
    found = coco_metrics(ground_truth, [], "box")
    assert set(METRICS) - found.keys() == {"ap_medium", "ap_large", "ar_medium", "ar_large"}


def test_boxes_and_masks_are_judged_apart(ground_truth: dict[str, Any]) -> None:
    nothing = run_lengths.frPyObjects({"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}, HEIGHT, WIDTH)
    results = [detection(entry, segmentation=nothing) for entry in ground_truth["annotations"]]
    assert coco_metrics(ground_truth, results, "box")["ap"] == pytest.approx(1)
    assert coco_metrics(ground_truth, results, "mask")["ap"] == 0


def test_a_detection_of_another_class_counts_against(ground_truth: dict[str, Any]) -> None:
    results = [detection(entry, category_id=7) for entry in ground_truth["annotations"]]
    found = coco_metrics(ground_truth, results, "box")
    assert found["ap"] < 0.5


def test_what_is_found_on_a_crowd_counts_neither_way(tmp_path: Path) -> None:
    root = make_coco_folder(tmp_path)
    crowd = {"id": 900, "image_id": 10, "category_id": 3, "bbox": [32, 0, 32, 48], "iscrowd": 1}
    edit_annotations(
        root,
        "val",
        lambda content: content["annotations"].append(
            crowd | {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [32 * HEIGHT, 32 * HEIGHT]}}
        ),
    )
    truth = read_coco_split(root, "val").ground_truth()
    objects = [entry for entry in truth["annotations"] if not entry["iscrowd"]]
    inside = detection(objects[0], image_id=10, bbox=[34, 2, 12, 12], score=0.99)
    results = [inside, *(detection(entry) for entry in objects)]
    assert coco_metrics(truth, results, "box")["ap"] == pytest.approx(1)
    without_crowd = truth | {"annotations": objects}
    assert coco_metrics(without_crowd, results, "box")["ap"] < 0.95


def test_nothing_is_printed_and_the_ground_truth_stays_as_it_was(
    ground_truth: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.dumps(ground_truth)
    coco_metrics(ground_truth, [detection(entry) for entry in ground_truth["annotations"]], "mask")
    assert capsys.readouterr().out == ""
    assert json.dumps(ground_truth) == before


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_ids_of_annotations_may_begin_at_0(ground_truth: dict[str, Any], kind: Kind) -> None:
    for number, entry in enumerate(ground_truth["annotations"]):
        entry["id"] = number
    assert coco_metrics(ground_truth, [detection(entry) for entry in ground_truth["annotations"]], kind)[
        "ap"
    ] == pytest.approx(1)


def test_what_is_found_on_an_object_without_a_mask_counts_for_boxes_alone(ground_truth: dict[str, Any]) -> None:
    found = [detection(entry) for entry in ground_truth["annotations"]]
    for entry in ground_truth["annotations"][1:]:
        entry["segmentation"] = None
    assert coco_metrics(ground_truth, found, "box")["ap"] == pytest.approx(1)
    assert coco_metrics(ground_truth, found, "mask")["ap"] == pytest.approx(1)
    assert coco_metrics(ground_truth, found[1:], "box")["ap"] < 1
