"""mIoU by hand, and the recorded evaluation of CamVid to the printed digits."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from convmae_deploy.data.segmentation_folder import IGNORE, read_levels, read_segmentation_folder
from convmae_deploy.data.segmentation_metrics import confusion_of, scores_of

DATA = os.environ.get("CONVMAE_DATA")


def test_scores_of_a_small_map_by_hand() -> None:
    labels = np.array([[0, 0, 0, 1], [1, 1, IGNORE, 2]])
    predicted = np.array([[0, 0, 1, 1], [1, 0, 2, 1]])
    confusion = confusion_of(labels, predicted, 4)
    assert confusion.tolist() == [[2, 1, 0, 0], [1, 2, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    scores = scores_of(confusion)
    assert scores.iou[:3] == pytest.approx([2 / 4, 2 / 5, 0 / 1]) and math.isnan(scores.iou[3])
    assert scores.accuracy[:3] == pytest.approx([2 / 3, 2 / 3, 0]) and math.isnan(scores.accuracy[3])
    assert scores.mean_iou == pytest.approx((1 / 2 + 2 / 5 + 0) / 3)
    assert scores.mean_accuracy == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert scores.pixel_accuracy == pytest.approx(4 / 7)


def test_a_class_that_is_only_predicted_counts_for_iou_and_not_for_accuracy() -> None:
    scores = scores_of(confusion_of(np.array([0, 0]), np.array([0, 1]), 2))
    assert scores.mean_iou == pytest.approx((1 / 2 + 0) / 2)
    assert scores.mean_accuracy == pytest.approx(1 / 2)


def test_nothing_but_ignored_pixels_gives_no_score_and_no_warning() -> None:
    scores = scores_of(confusion_of(np.full((2, 2), IGNORE), np.zeros((2, 2), np.int64), 3))
    assert all(math.isnan(value) for value in (scores.mean_iou, scores.mean_accuracy, scores.pixel_accuracy))


@pytest.mark.skipif(DATA is None, reason="CONVMAE_DATA does not name the folder of the data sets")
def test_the_recorded_evaluation_of_camvid_is_reproduced() -> None:
    root = Path(DATA or "") / "seg_camvid"
    expected = json.loads((root / "reference_eval" / "expected.json").read_text())
    split = read_segmentation_folder(root, expected["split"])
    names = [path.name for path in split.label_maps]
    confusion = np.zeros((11, 11), np.int64)
    for name in expected["files"]:
        predicted = read_levels(root / "reference_eval" / "pred" / name)
        confusion += confusion_of(split.read_labels(names.index(name)), predicted, 11)
    assert confusion.tolist() == expected["confusion_rows_gt"]
    scores = scores_of(confusion)
    assert scores.mean_iou == pytest.approx(expected["mIoU"], abs=1e-15)
    assert scores.mean_accuracy == pytest.approx(expected["mAcc"], abs=1e-15)
    assert scores.pixel_accuracy == pytest.approx(expected["pixel_acc"], abs=1e-15)
    assert scores.iou == pytest.approx(expected["per_class_IoU"], abs=1e-15)
