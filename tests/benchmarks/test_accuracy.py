"""Accuracy of a bundle, counted through the runtime."""

from pathlib import Path

import pytest

from benchmarks.accuracy import measure
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.media.photo_files import read_photo
from convmae_deploy.tasks.classification import Classifier
from tests.bundle_factory import make_bundle, open_as
from tests.photo_folders import make_photo_folder


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
    assert accuracy.unreadable == 1
    assert accuracy.photos.total() == len(ranks) == 20
    assert accuracy.percent(accuracy.first) == pytest.approx(100 * sum(rank < 1 for rank in ranks) / 20)
    assert accuracy.percent(accuracy.five) == pytest.approx(100 * sum(rank < 5 for rank in ranks) / 20)
    assert accuracy.photos["b"] == 2


def test_a_folder_with_other_classes_is_refused(tmp_path: Path) -> None:
    photos = make_photo_folder(tmp_path / "photos", classes=("a", "z"), per_class=1)
    predictor = open_as(Classifier, make_bundle(tmp_path / "bundle"))
    with pytest.raises(ConvMAEError, match="does not know, for instance 'z'"):
        measure(predictor, photos, "val")
