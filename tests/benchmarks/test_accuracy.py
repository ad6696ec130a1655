"""What a bundle is worth by class, counted through the runtime."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.accuracy import measure, table_of
from convmae_deploy.data.segmentation_folder import IGNORE
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.media.photo_files import read_photo
from convmae_deploy.tasks.classification import Classifier
from convmae_deploy.tasks.segmentation import Segmenter
from tests.bundle_factory import make_bundle, make_segmentation_bundle, open_as
from tests.photo_folders import make_photo_folder
from tests.segmentation_folders import CLASSES, make_segmentation_folder


def test_counts_equal_a_look_at_every_prediction(tmp_path: Path) -> None:
    classes = tuple("abcdefg")
    photos = make_photo_folder(tmp_path / "photos", classes=classes, per_class=3)
    (photos / "val" / "b" / "0.png").write_bytes(b"damaged")
    predictor = open_as(Classifier, make_bundle(tmp_path / "bundle", classes=classes))
    accuracy = measure(predictor, photos, "val")
    ranks = []
    for path in sorted((photos / "val").rglob("*.png")):
        if path.read_bytes() != b"damaged":
            predictions = predictor([read_photo(path).image], top_k=7)[0]
            ranks.append([prediction.label for prediction in predictions].index(path.parent.name))
    assert accuracy.undecoded == 1
    assert list(accuracy.by_class) == [*classes, "all"]
    assert accuracy.by_class["all"] == {
        "photos": 20,
        "top-1 %": pytest.approx(100 * sum(rank < 1 for rank in ranks) / 20),
        "top-5 %": pytest.approx(100 * sum(rank < 5 for rank in ranks) / 20),
    }
    assert accuracy.by_class["b"]["photos"] == 2
    (top1,) = accuracy.metrics
    assert top1.value == accuracy.by_class["all"]["top-1 %"]
    assert table_of(accuracy.by_class).row_count == 8


def test_of_label_maps_it_is_the_share_of_pixels_that_true_and_predicted_class_have_in_common(tmp_path: Path) -> None:
    data = make_segmentation_folder(tmp_path / "data")
    predictor = open_as(Segmenter, make_segmentation_bundle(tmp_path / "bundle", classes=CLASSES))
    accuracy = measure(predictor, data, "val")
    common, either = np.zeros(len(CLASSES)), np.zeros(len(CLASSES))
    for path in sorted((data / "images" / "val").iterdir()):
        true = np.asarray(Image.open(data / "labels" / "val" / f"{path.stem}.png"))
        found = predictor([read_photo(path).image])[0].labels
        for label in range(len(CLASSES)):
            is_true, is_found = (true == label), (found == label) & (true != IGNORE)
            common[label] += (is_true & is_found).sum()
            either[label] += (is_true | is_found).sum()
    assert list(accuracy.by_class) == [*CLASSES, "mean"]
    for name, expected in zip(CLASSES, 100 * common / either, strict=True):
        assert accuracy.by_class[name]["IoU %"] == pytest.approx(expected)
    (mean_iou,) = accuracy.metrics
    assert mean_iou.value == accuracy.by_class["mean"]["IoU %"] == pytest.approx(100 * (common / either).mean())
    assert table_of(accuracy.by_class).row_count == len(CLASSES) + 1


def test_a_folder_with_other_classes_is_refused(tmp_path: Path) -> None:
    photos = make_photo_folder(tmp_path / "photos", classes=("a", "z"), per_class=1)
    predictor = open_as(Classifier, make_bundle(tmp_path / "bundle"))
    with pytest.raises(ConvMAEError, match="does not know, for instance 'z'"):
        measure(predictor, photos, "val")


def test_photos_without_labels_are_refused(tmp_path: Path) -> None:
    photos = make_photo_folder(tmp_path / "photos", classes=("a", "b"), per_class=1)
    predictor = open_as(Classifier, make_bundle(tmp_path / "bundle"))
    with pytest.raises(ConvMAEError, match="must hold labels of 'test' beside its photos"):
        measure(predictor, photos / "val", "test")
