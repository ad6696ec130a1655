"""Photos as torch datasets."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from convmae_deploy.bundle.preprocessing import Preprocessing
from convmae_deploy.data.photo_datasets import (
    AugmentedPhotos,
    EvaluationPhotos,
    MaskedPhotos,
    MaskedSample,
    MaskedShardPhotos,
    collate_readable,
)
from convmae_deploy.data.photo_folder import find_training_photos, read_photo_folder
from convmae_deploy.data.shard_sampler import ShardPhoto
from convmae_deploy.data.unreadable import Unreadable
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.media.photo_files import read_photo
from convmae_deploy.tasks.preprocess import preprocess
from tests.photo_folders import make_photo_folder

BAD = Unreadable("a.jpg", "it is broken")


def random_crop(image: Image.Image) -> Tensor:
    cropped: Tensor = v2.functional.to_dtype(v2.functional.to_image(v2.RandomCrop(32)(image)), torch.float32)
    return cropped


def test_a_sample_depends_on_seed_epoch_and_index_only(tmp_path: Path) -> None:
    folder = read_photo_folder(make_photo_folder(tmp_path), "train")

    def sample(seed: int, epoch: int, index: int) -> Tensor:
        torch.rand(3)  # whatever was drawn before
        drawn = AugmentedPhotos(folder, random_crop, seed)[epoch, index]
        assert not isinstance(drawn, Unreadable)
        return drawn[0]

    assert torch.equal(sample(0, 1, 2), sample(0, 1, 2))
    assert not torch.equal(sample(0, 1, 2), sample(0, 2, 2))
    assert not torch.equal(sample(0, 1, 2), sample(1, 1, 2))


def test_evaluation_uses_the_runtimes_preprocessing(tmp_path: Path) -> None:
    folder = read_photo_folder(make_photo_folder(tmp_path), "val")
    spec = Preprocessing(resize=(36, 36), crop=(32, 32))
    sample = EvaluationPhotos(folder, spec)[3]
    assert not isinstance(sample, Unreadable)
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
    empty, none, unreadable = collate_readable([BAD, BAD])
    assert (len(empty), len(none), unreadable) == (0, 0, 2)


def test_image_and_mask_noise_depend_on_seed_epoch_and_index_only(tmp_path: Path) -> None:
    photos = find_training_photos(make_photo_folder(tmp_path))

    def sample(seed: int, epoch: int, index: int) -> MaskedSample:
        torch.rand(3)  # whatever was drawn before
        drawn = MaskedPhotos(photos, random_crop, seed, cells=4)[epoch, index]
        assert not isinstance(drawn, Unreadable)
        return drawn

    image, noise = sample(0, 1, 2)
    assert image.shape == (3, 32, 32) and noise.shape == (4,)
    assert torch.equal(image, sample(0, 1, 2)[0]) and torch.equal(noise, sample(0, 1, 2)[1])
    for other in (sample(1, 1, 2), sample(0, 2, 2), sample(0, 1, 3)):
        assert not torch.equal(noise, other[1])


def test_an_image_is_augmented_as_if_there_were_no_mask(tmp_path: Path) -> None:
    folder = read_photo_folder(make_photo_folder(tmp_path), "train")
    labelled = AugmentedPhotos(folder, random_crop, 0)[1, 2]
    masked = MaskedPhotos(folder.photos, random_crop, 0, cells=4)[1, 2]
    assert not isinstance(labelled, Unreadable) and not isinstance(masked, Unreadable)
    assert torch.equal(labelled[0], masked[0])


def test_unreadable_photos_without_labels_are_counted_and_left_out(tmp_path: Path) -> None:
    photos = find_training_photos(make_photo_folder(tmp_path, per_class=2))
    photos[1].write_bytes(b"not a photo")
    dataset = MaskedPhotos(photos, random_crop, 0, cells=4)
    images, noise, unreadable = collate_readable([dataset[0, index] for index in range(len(dataset))])
    assert (images.shape, noise.shape, unreadable) == ((3, 3, 32, 32), (3, 4), 1)


def test_a_photo_of_a_shard_depends_on_all_of_its_key(tmp_path: Path) -> None:
    data = find_training_photos(make_photo_folder(tmp_path))[0].read_bytes()
    key = ShardPhoto(epoch=1, shard=2, member=3, lap=0, data=data)
    dataset = MaskedShardPhotos(random_crop, 0, cells=4)

    def noise(key: ShardPhoto) -> Tensor:
        drawn = dataset[key]
        assert not isinstance(drawn, Unreadable)
        return drawn[1]

    assert torch.equal(noise(key), noise(key))
    others = key._replace(epoch=2), key._replace(shard=3), key._replace(member=2), key._replace(lap=1)
    assert not any(torch.equal(noise(key), noise(other)) for other in others)
    assert isinstance(dataset[key._replace(data=None)], Unreadable)
    assert isinstance(dataset[key._replace(data=data[:100])], Unreadable)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(17_000, 300), (7_200, 7_000)])
def test_photos_beyond_the_limits_of_a_server_are_trained_and_validated_on(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        Image.new("L", size, 90).save(tmp_path / split / "a" / "0.jpg")
    with pytest.raises(ConvMAEError):
        read_photo(tmp_path / "train" / "a" / "0.jpg")
    train, val = (read_photo_folder(tmp_path, split) for split in ("train", "val"))
    spec = Preprocessing(resize=(36, 36), crop=(32, 32))
    for sample in (AugmentedPhotos(train, random_crop, 0)[0, 0], EvaluationPhotos(val, spec)[0]):
        assert not isinstance(sample, Unreadable) and sample[0].shape == (3, 32, 32)


def test_an_unreadable_photo_says_which_and_why(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(b"not a photo")
    found = MaskedPhotos([tmp_path / "0.jpg"], lambda image: torch.empty(0), 0, cells=4)[0, 0]
    assert isinstance(found, Unreadable)
    assert found == (str(tmp_path / "0.jpg"), "expected an image file, found text; send the bytes of a photo")
