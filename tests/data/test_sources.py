"""Where training programs take their updates from."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from convmae_deploy.data.determinism import MicroBatch, StepSampler, StepSource
from convmae_deploy.data.photo_datasets import MaskedPhotos, MaskedShardPhotos
from convmae_deploy.data.photo_folder import find_training_photos
from convmae_deploy.data.shard_sampler import ShardSampler
from convmae_deploy.data.shards import Shards
from convmae_deploy.data.sources import LoadedSource, loaded
from convmae_deploy.errors import ConvMAEError
from tests.data.tar_shards import encoded_photo, make_shards, write_shard
from tests.photo_folders import make_photo_folder


def noisy(image: Image.Image) -> Tensor:
    pixels: Tensor = v2.functional.to_dtype(v2.functional.to_image(image), torch.float32)
    return pixels + torch.rand(())


def shard_source(
    names: Sequence[Path], samples: int, *, workers: int = 0, rank: int = 0, world_size: int = 1
) -> LoadedSource:
    steps = StepSampler(samples, batch_size=4, micro_batch_size=2, seed=3, rank=rank, world_size=world_size)
    photos = MaskedShardPhotos(noisy, 3, cells=9)
    batches = ShardSampler(Shards(names), steps, shuffle_buffer=3)
    return LoadedSource(photos, steps, batches, workers=workers, pin_memory=False)


def folder_source(root: Path, *, workers: int = 0) -> LoadedSource:
    photos = find_training_photos(root)
    steps = StepSampler(len(photos), batch_size=4, micro_batch_size=2, seed=3)
    return LoadedSource(MaskedPhotos(photos, noisy, 3, cells=9), steps, workers=workers, pin_memory=False)


def equal(left: Sequence[list[MicroBatch]], right: Sequence[list[MicroBatch]]) -> bool:
    pairs = [pair for updates in zip(left, right, strict=True) for pair in zip(*updates, strict=True)]
    return all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and a[2] == b[2] for a, b in pairs)


def test_a_folder_gives_updates_of_micro_batches_and_continues_exactly(tmp_path: Path) -> None:
    source: StepSource = folder_source(make_photo_folder(tmp_path))
    assert (source.steps_per_epoch, source.micro_batches_per_step) == (3, 2)
    whole = list(source.epoch(1, 0))
    assert [[images.shape for images, _, _ in update] for update in whole] == [[(2, 3, 48, 48)] * 2] * 3
    assert [noise.shape for _, noise, _ in whole[0]] == [(2, 9)] * 2
    assert equal(list(source.epoch(1, 1)), whole[1:])
    assert not equal(list(source.epoch(2, 0)), whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_the_number_of_workers_changes_nothing(tmp_path: Path, kind: str) -> None:
    names = make_shards(tmp_path / "shards", [3, 5, 4, 4])
    make_photo_folder(tmp_path)

    def source(workers: int) -> StepSource:
        return (
            folder_source(tmp_path, workers=workers) if kind == "folder" else shard_source(names, 16, workers=workers)
        )

    alone, helped = source(0), source(2)
    for epoch, first_step in ((0, 0), (1, 0), (1, 2)):
        assert equal(list(alone.epoch(epoch, first_step)), list(helped.epoch(epoch, first_step)))


@pytest.mark.slow
def test_an_epoch_left_in_the_middle_leaves_nothing_behind(tmp_path: Path) -> None:
    source = shard_source(make_shards(tmp_path, [8, 8]), 16, workers=2)
    whole = list(source.epoch(0, 0))
    next(source.epoch(0, 0))
    assert equal(list(source.epoch(0, 0)), whole)


def test_a_sample_of_a_shard_is_the_same_on_any_number_of_processes(tmp_path: Path) -> None:
    names = make_shards(tmp_path, [4, 4, 4, 4])

    def samples(world_size: int) -> dict[int, tuple[float, ...]]:
        found: dict[int, tuple[float, ...]] = {}
        for rank in range(world_size):
            for update in shard_source(names, 16, rank=rank, world_size=world_size).epoch(0, 0):
                for images, noise, _ in update:
                    for image, row in zip(images, noise, strict=True):
                        value = float(image[0, 0, 0])
                        found[int(value)] = (value, *row.tolist())
        return found

    alone = samples(1)
    assert sorted(alone) == list(range(16))
    assert samples(2) == alone


def test_augmentation_and_masks_change_from_epoch_to_epoch(tmp_path: Path) -> None:
    source = shard_source(make_shards(tmp_path, [4]), 4)
    first, second = (
        torch.cat([torch.cat([images[:, 0, 0, :1], noise], dim=1) for images, noise, _ in update])
        for update in (next(source.epoch(0, 0)), next(source.epoch(1, 0)))
    )
    assert not torch.isin(first % 1, second % 1).any()


def test_corrupt_photos_and_shards_cut_off_are_counted_and_skipped(tmp_path: Path) -> None:
    good = {f"{member}.png": encoded_photo(member) for member in range(4)}
    corrupt = write_shard(tmp_path / "0.tar", {**good, "4.png": b"not a photo", "5.png": encoded_photo(5)[:60]})
    cut = write_shard(tmp_path / "1.tar", good)
    cut.write_bytes(cut.read_bytes()[:1000])  # within the second of four members
    samples = 6 + 2  # the second is the end of the shard: its header is cut off
    updates = list(shard_source([corrupt, cut], samples).epoch(0, 0))
    assert sum(unreadable for update in updates for _, _, unreadable in update) == 3
    assert sum(len(images) for update in updates for images, _, _ in update) == 5


class Refusing(Dataset[Tensor]):
    """A data set that is wrong."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        raise ConvMAEError("x.png must hold the levels 0 to 2: found 7")


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_worker_refuses_is_its_sentence_alone(workers: int) -> None:
    with pytest.raises(ConvMAEError) as error:
        list(loaded(DataLoader(Refusing(), num_workers=workers)))
    assert str(error.value) == "x.png must hold the levels 0 to 2: found 7"
