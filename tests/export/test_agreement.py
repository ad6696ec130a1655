"""Top-1 of a bundle next to a reference that is the bundle's own graph, so that only the preprocessing can differ."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.runtime.manifest import Preprocessing
from convmae_deploy.runtime.predictor import Classifier
from export.agreement import Agreement, measure_agreement, read_labelled
from export.runners import onnx_runner
from export.tasks import ExportTask, open_task
from tests.bundle_factory import make_bundle

CLASSES = ("red", "green", "blue")
RIGHT = {"resize": [73, 73], "crop": [64, 64]}


def make_photos(root: Path, per_class: int = 12) -> Path:
    """Plain pictures of random colours, spread over three classes."""
    generator = np.random.default_rng(0)
    for name in CLASSES:
        (root / "val" / name).mkdir(parents=True)
        for index in range(per_class):
            colour = tuple(int(level) for level in generator.integers(0, 256, 3))
            Image.new("RGB", (80, 80), colour).save(root / "val" / name / f"{index}.png")
    return root


def compare_with(checkpoint: Path, tmp_path: Path, preprocessing: dict[str, Any]) -> Agreement:
    """A bundle of some preprocessing against its own graph with the right one."""
    bundle = make_bundle(tmp_path / "bundle", classes=CLASSES, preprocessing=preprocessing)
    task: ExportTask = replace(
        open_task(checkpoint, None),
        preprocessing=Preprocessing.model_validate(RIGHT),
        reference=onnx_runner(bundle / "model.onnx", ("logits",)),
    )
    folder = read_labelled(make_photos(tmp_path / "photos"), CLASSES)
    assert folder is not None
    return measure_agreement(task, Classifier.open(bundle, device="cpu"), folder)


def test_equal_preprocessing_agrees_on_every_photo(checkpoint: Path, tmp_path: Path) -> None:
    agreement = compare_with(checkpoint, tmp_path, RIGHT)
    assert agreement.photos == 36 and agreement.decided > 30
    assert agreement.agreeing == agreement.decided
    assert agreement.found_right == agreement.reference_right > 0


@pytest.mark.parametrize("wrong", [{"mean": [0.1, 0.9, 0.5]}, {"std": [0.05, 2.0, 0.3]}])
def test_another_mean_or_deviation_makes_other_classes(
    checkpoint: Path, tmp_path: Path, wrong: dict[str, list[float]]
) -> None:
    agreement = compare_with(checkpoint, tmp_path, RIGHT | wrong)
    assert agreement.agreeing < agreement.decided


def test_labels_go_by_the_names_of_classes_and_not_by_their_order(checkpoint: Path, tmp_path: Path) -> None:
    agreement = compare_with(checkpoint, tmp_path, RIGHT)
    folder = read_labelled(tmp_path / "photos", CLASSES)
    assert folder is not None and folder.classes == ("blue", "green", "red")
    predictor = Classifier.open(tmp_path / "bundle", device="cpu")
    right = 0
    for photo, label in zip(folder.photos, folder.labels, strict=True):
        (best,) = predictor.classify([Image.open(photo)], top_k=1)[0]
        right += best.label == folder.classes[label]
    assert agreement.found_right == right


def test_the_sentence_gives_shares_and_their_change() -> None:
    agreement = Agreement(photos=8, unreadable=0, reference_right=6, found_right=5, decided=7, agreeing=6)
    assert agreement.sentence() == (
        "top-1 of PyTorch 75.00 %, of the bundle 62.50 % (change -12.50 points) on 8 photos; "
        "the same class on 6 of 7 that are no near tie"
    )
    assert "; 2 could not be decoded" in replace(agreement, unreadable=2).sentence()


def test_a_class_that_the_model_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConvMAEError, match="does not know, for instance 'blue'"):
        read_labelled(make_photos(tmp_path, per_class=1), ("red", "green"))


def test_a_folder_without_a_split_has_no_labels(tmp_path: Path) -> None:
    assert read_labelled(tmp_path, CLASSES) is None


def test_photos_of_which_none_can_be_decoded_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", classes=CLASSES)
    folder = read_labelled(make_photos(tmp_path / "photos", per_class=1), CLASSES)
    assert folder is not None
    for photo in folder.photos:
        photo.write_bytes(b"no photo")
    with pytest.raises(ConvMAEError, match="none of the 3 labelled photos can be decoded"):
        measure_agreement(open_task(checkpoint, None), Classifier.open(bundle, device="cpu"), folder)
