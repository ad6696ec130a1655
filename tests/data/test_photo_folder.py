"""Labelled photo folders."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from convmae_deploy.data.photo_folder import (
    AugmentedPhotos,
    EvaluationPhotos,
    collate_readable,
    read_photo_folder,
)
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.runtime.manifest import Preprocessing
from convmae_deploy.runtime.preprocess import preprocess
from tests.photo_folders import make_photo_folder


def random_crop(image: Image.Image) -> Tensor:
    cropped: Tensor = v2.functional.to_dtype(v2.functional.to_image(v2.RandomCrop(32)(image)), torch.float32)
    return cropped


def test_classes_are_folder_names_in_order(tmp_path: Path) -> None:
    folder = read_photo_folder(make_photo_folder(tmp_path, classes=("red", "blue"), per_class=2), "train")
    assert folder.classes == ("blue", "red")
    assert folder.labels == (0, 0, 1, 1)
    assert [photo.parent.name for photo in folder.photos] == ["blue", "blue", "red", "red"]


def test_class_names_come_unchanged_from_classes_json(tmp_path: Path) -> None:
    make_photo_folder(tmp_path, classes=("n01", "n02"), per_class=1)
    (tmp_path / "classes.json").write_text(json.dumps({"n02": "B ü_b", "n01": "A a", "n03": "unused"}))
    assert read_photo_folder(tmp_path, "val").classes == ("A a", "B ü_b")


def test_a_class_that_classes_json_leaves_out_is_named(tmp_path: Path) -> None:
    make_photo_folder(tmp_path, classes=("n01", "n02"), per_class=1)
    (tmp_path / "classes.json").write_text(json.dumps({"n01": "A"}))
    with pytest.raises(ConvMAEError, match="n02 is missing"):
        read_photo_folder(tmp_path, "train")


@pytest.mark.parametrize("content", ["[1, 2]", "{", '{"a": 3}'])
def test_a_classes_json_of_another_form_is_refused(tmp_path: Path, content: str) -> None:
    make_photo_folder(tmp_path, per_class=1)
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(ConvMAEError, match="classes.json"):
        read_photo_folder(tmp_path, "train")


def test_a_folder_without_photos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConvMAEError, match="must hold photos as train/<class>/"):
        read_photo_folder(tmp_path, "train")
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(ConvMAEError, match="holds no photo"):
        read_photo_folder(tmp_path, "train")


def test_a_sample_depends_on_seed_epoch_and_index_only(tmp_path: Path) -> None:
    folder = read_photo_folder(make_photo_folder(tmp_path), "train")

    def sample(seed: int, epoch: int, index: int) -> Tensor:
        torch.rand(3)  # whatever was drawn before
        drawn = AugmentedPhotos(folder, random_crop, seed)[epoch, index]
        assert drawn is not None
        return drawn[0]

    assert torch.equal(sample(0, 1, 2), sample(0, 1, 2))
    assert not torch.equal(sample(0, 1, 2), sample(0, 2, 2))
    assert not torch.equal(sample(0, 1, 2), sample(1, 1, 2))


def test_evaluation_uses_the_runtimes_preprocessing(tmp_path: Path) -> None:
    folder = read_photo_folder(make_photo_folder(tmp_path), "val")
    spec = Preprocessing(resize=(36, 36), crop=(32, 32))
    sample = EvaluationPhotos(folder, spec)[3]
    assert sample is not None
    with Image.open(folder.photos[3]) as image:
        assert np.array_equal(sample[0].numpy(), preprocess(image, spec))
    assert sample[1] == folder.labels[3]


def test_unreadable_photos_are_counted_and_left_out(tmp_path: Path) -> None:
    make_photo_folder(tmp_path, per_class=2)
    (tmp_path / "val" / "blue" / "0.png").write_bytes(b"not a photo")
    photos = EvaluationPhotos(read_photo_folder(tmp_path, "val"), Preprocessing(resize=(36, 36), crop=(32, 32)))
    images, labels, unreadable = collate_readable([photos[index] for index in range(4)])
    assert images.shape == (3, 3, 32, 32)
    assert labels.tolist() == [0, 1, 1]
    assert unreadable == 1
    with pytest.raises(ConvMAEError, match="none of the 2 photos of a batch"):
        collate_readable([None, None])
