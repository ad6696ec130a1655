"""Features are computed once, of every photo, and anew when anything they depend on has changed."""

import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor

from convmae_deploy.bundle.preprocessing import standard_preprocessing
from convmae_deploy.data.features import read_features
from convmae_deploy.data.photo_datasets import EvaluationPhotos
from convmae_deploy.data.photo_folder import read_photo_folder
from convmae_deploy.data.unreadable import Unreadable
from convmae_deploy.engine.feature_cache import FeatureCache, photos_digest, weights_digest
from tests.photo_folders import make_photo_folder


def test_features_of_all_photos_are_computed_once_for_the_same_key(tmp_path: Path) -> None:
    folder = read_photo_folder(make_photo_folder(tmp_path / "photos"), "val")
    folder.photos[3].write_bytes(b"not a photo")
    photos = EvaluationPhotos(folder, standard_preprocessing((32, 32)))
    calls = []

    def colour(images: Tensor) -> Tensor:
        calls.append(len(images))
        return images.mean(dim=(2, 3))

    def cache(**made_of: Any) -> FeatureCache:
        return FeatureCache(
            folder=tmp_path / "features",
            accelerator=Accelerator(cpu=True),
            features=colour,
            width=3,
            made_of=made_of,
            batch_size=2,
            workers=0,
            console=Console(quiet=True),
        )

    path = cache(encoder="a").computed("val", photos, range(12), "photos")
    assert calls == [2, 1, 2, 2, 2, 2]
    found = read_features(path)
    for index in range(12):
        sample = photos[index]
        assert bool(found.readable[index]) == (not isinstance(sample, Unreadable))
        expected = torch.zeros(3) if isinstance(sample, Unreadable) else sample[0].mean(dim=(1, 2))
        torch.testing.assert_close(found.values[index], expected)

    assert cache(encoder="a").computed("val", photos, range(12), "photos") == path
    assert len(calls) == 6
    cache(encoder="b").computed("val", photos, range(12), "photos")
    cache(encoder="b").computed("val", photos, range(12), "other photos")
    assert len(calls) == 18


def test_photos_none_of_which_is_readable_have_features_too(tmp_path: Path) -> None:
    folder = read_photo_folder(make_photo_folder(tmp_path / "photos", per_class=1), "val")
    for photo in folder.photos:
        photo.write_bytes(b"")
    cache = FeatureCache(
        folder=tmp_path,
        accelerator=Accelerator(cpu=True),
        features=lambda images: images.mean(dim=(2, 3)),
        width=3,
        made_of={},
        batch_size=4,
        workers=0,
        console=Console(quiet=True),
    )
    photos = EvaluationPhotos(folder, standard_preprocessing((32, 32)))
    found = read_features(cache.computed("val", photos, range(2), "photos"))
    assert found.values.shape == (2, 3) and not found.readable.any()


def test_the_digest_of_photos_changes_with_names_sizes_and_times_but_not_with_the_root(tmp_path: Path) -> None:
    root = make_photo_folder(tmp_path / "photos", per_class=2)
    before = photos_digest(read_photo_folder(root, "val"), root)
    moved = root.rename(tmp_path / "moved")
    folder = read_photo_folder(moved, "val")
    assert photos_digest(folder, moved) == before
    os.utime(folder.photos[0], (1, 1))
    touched = photos_digest(folder, moved)
    assert touched != before
    folder.photos[0].unlink()
    assert photos_digest(folder, moved) not in (before, touched)


def test_the_digest_of_weights_changes_with_any_name_shape_or_value() -> None:
    weights = {"a": torch.zeros(2, 3), "b": torch.ones(2)}
    same = {"b": torch.ones(2), "a": torch.zeros(2, 3)}
    others = [
        weights | {"a": torch.zeros(3, 2)},
        weights | {"b": torch.tensor([1.0, 1.0000001])},
        {"a": weights["a"], "c": weights["b"]},
    ]
    assert weights_digest(same) == weights_digest(weights)
    assert weights_digest(weights) not in [weights_digest(other) for other in others]
