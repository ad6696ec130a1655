"""Files of features, and training and evaluation on them."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from convmae_deploy.bundle.preprocessing import standard_preprocessing
from convmae_deploy.data.determinism import StepSampler
from convmae_deploy.data.features import (
    EvaluationFeatures,
    Features,
    FeatureSource,
    has_features,
    read_features,
    write_features,
)
from convmae_deploy.data.photo_datasets import collate_readable
from convmae_deploy.data.photo_folder import PhotoFolder
from convmae_deploy.data.unreadable import UnreadableCount

LABELS = (0, 0, 1, 1, 2, 2)
FOLDER = PhotoFolder(photos=tuple(Path(f"{number}.png") for number in range(6)), labels=LABELS, classes=("a", "b", "c"))


def features(view: int) -> Features:
    """Feature i of view v is (v, i); photo 4 cannot be read."""
    values = torch.stack([torch.full((6,), float(view)), torch.arange(6.0)], dim=1)
    return Features(values=values, readable=torch.arange(6) != 4)


@pytest.fixture
def views(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"view-{view}.safetensors" for view in range(2)]
    for view, path in enumerate(paths):
        write_features(path, features(view), "made of this")
    return paths


def test_a_file_is_known_by_its_key_and_only_when_whole(views: list[Path]) -> None:
    assert has_features(views[0], "made of this")
    assert not has_features(views[0], "made of that")
    assert not has_features(views[0].with_name("none"), "made of this")
    views[0].write_bytes(views[0].read_bytes()[:-8])
    assert not has_features(views[0], "made of this")
    found = read_features(views[1])
    assert torch.equal(found.values, features(1).values) and torch.equal(found.readable, features(1).readable)


@pytest.mark.parametrize(
    "tensors",
    [
        {"values": torch.zeros(6, 2)},
        {"values": torch.zeros(6), "readable": torch.ones(6, dtype=torch.bool)},
        {"values": torch.zeros(5, 2), "readable": torch.ones(6, dtype=torch.bool)},
        {"values": torch.zeros(6, 2, dtype=torch.int8), "readable": torch.ones(6, dtype=torch.bool)},
        {"values": torch.zeros(6, 2), "readable": torch.ones(6)},
    ],
)
def test_a_file_of_the_key_that_holds_something_else_is_computed_again(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    save_file(tensors, tmp_path / "a.safetensors", metadata={"key": "made of this"})
    assert not has_features(tmp_path / "a.safetensors", "made of this")


def test_a_pipe_is_no_file_of_features_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.safetensors")
    assert not has_features(tmp_path / "a.safetensors", "made of this")


def test_every_epoch_takes_the_next_view_in_the_samplers_order_without_unreadable_photos(views: list[Path]) -> None:
    sampler = StepSampler(6, batch_size=4, micro_batch_size=2, seed=3)
    source = FeatureSource(views, FOLDER, sampler)
    assert (source.steps_per_epoch, source.micro_batches_per_step) == (1, 2)
    for epoch in range(3):
        sampler.start(epoch)
        expected = [[index for _, index in keys] for keys in sampler]
        (step,) = source.epoch(epoch, 0)
        for (values, labels, unreadable), indices in zip(step, expected, strict=True):
            readable = [index for index in indices if index != 4]
            assert values.tolist() == [[epoch % 2, index] for index in readable]
            assert labels.tolist() == [LABELS[index] for index in readable]
            assert unreadable == len(indices) - len(readable)
            assert isinstance(unreadable, UnreadableCount)
            assert [entry.file for entry in unreadable.files] == ["4.png"] * unreadable


def test_an_epoch_begins_at_any_step(views: list[Path]) -> None:
    source = FeatureSource(views, FOLDER, StepSampler(6, batch_size=2, micro_batch_size=2, seed=3))
    whole, rest = list(source.epoch(1, 0)), list(source.epoch(1, 2))
    assert len(rest) == 1 and torch.equal(rest[0][0][0], whole[2][0][0])


def test_evaluation_takes_features_in_place_of_photos() -> None:
    photos = EvaluationFeatures(FOLDER, standard_preprocessing((32, 32)), features(0))
    values, labels, unreadable = collate_readable([photos[index] for index in range(len(photos))])
    assert values[:, 1].tolist() == [0, 1, 2, 3, 5] and labels.tolist() == [0, 0, 1, 1, 2] and unreadable == 1
