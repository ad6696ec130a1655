"""Videos as torch datasets."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from convmae_deploy.bundle.preprocessing import standard_clips
from convmae_deploy.data.augmentation import AugmentationConfig
from convmae_deploy.data.determinism import StepSampler
from convmae_deploy.data.photo_datasets import MaskedSample, collate_readable
from convmae_deploy.data.sources import LoadedSource
from convmae_deploy.data.unreadable import Unreadable
from convmae_deploy.data.video_augmentation import (
    ClipCropConfig,
    Frames,
    clip_pretraining_transform,
    clip_training_transform,
    normalised_clip,
)
from convmae_deploy.data.video_datasets import (
    AugmentedVideos,
    EvaluationVideos,
    MaskedVideos,
    collate_copies,
    random_frames,
)
from convmae_deploy.data.video_folder import VideoFolder, read_video_splits
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.clips import ClipViews, read_clips
from tests.video_files import make_video, number_of
from tests.video_packs import MOTION8, needs_motion8

SPEC = standard_clips((32, 32), frames=4, stride=3)  # a clip spans ten frames
CROP = clip_pretraining_transform(ClipCropConfig(), (32, 32), SPEC)

BAD = Unreadable("a.jpg", "it is broken")


def make_folder(root: Path, count: int = 4, frames: int = 30) -> VideoFolder:
    data = make_video(frames=frames)
    videos = tuple(root / f"{index}.mp4" for index in range(count))
    for video in videos:
        video.write_bytes(data)
    return VideoFolder(videos=videos, labels=tuple(index % 2 for index in range(count)), classes=("a", "b"))


def as_they_are(frames: Frames) -> Tensor:
    return normalised_clip(np.stack(frames), SPEC)


def test_random_clips_begin_everywhere_and_keep_their_stride(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, count=1)
    starts = set()
    for _ in range(60):
        numbers = [number_of(frame, 30) for frame in random_frames(folder.videos[0], SPEC)]
        assert np.diff(numbers).tolist() == [3, 3, 3]
        starts.add(numbers[0])
    assert min(starts) <= 3 and max(starts) >= 17 and max(starts) <= 20


def test_random_segments_take_a_frame_of_each_part(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, count=1, frames=40)
    seen: list[set[int]] = [set(), set(), set(), set()]
    segments = standard_clips((32, 32), frames=4, stride=None)
    for _ in range(40):
        for part, frame in enumerate(random_frames(folder.videos[0], segments)):
            seen[part].add(number_of(frame, 40))
    for part, numbers in enumerate(seen):
        assert numbers <= set(range(10 * part, 10 * part + 10)) and len(numbers) > 5


def test_clip_and_mask_noise_depend_on_seed_epoch_and_index_only(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)

    def sample(seed: int, epoch: int, index: int) -> MaskedSample:
        torch.rand(3)  # whatever was drawn before
        drawn = MaskedVideos(folder.videos, SPEC, CROP, seed, cells=4)[epoch, index]
        assert not isinstance(drawn, Unreadable)
        return drawn

    clip, noise = sample(0, 1, 2)
    assert clip.shape == (3, 4, 32, 32) and noise.shape == (4,)
    assert torch.equal(clip, sample(0, 1, 2)[0]) and torch.equal(noise, sample(0, 1, 2)[1])
    for other in (sample(1, 1, 2), sample(0, 2, 2), sample(0, 1, 3)):
        assert not torch.equal(noise, other[1]) and not torch.equal(clip, other[0])


def test_labelled_clips_depend_on_seed_epoch_and_index_only(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)

    def clip(seed: int, epoch: int, index: int) -> Tensor:
        drawn = AugmentedVideos(folder, SPEC, CROP, seed)[epoch, index]
        assert not isinstance(drawn, Unreadable) and len(drawn) == 1 and drawn[0][1] == folder.labels[index]
        return drawn[0][0]

    assert torch.equal(clip(0, 1, 2), clip(0, 1, 2))
    for other in (clip(1, 1, 2), clip(0, 2, 2), clip(0, 1, 3)):
        assert not torch.equal(clip(0, 1, 2), other)


def test_repeated_augmentation_gives_different_copies_of_one_clip(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    same = AugmentedVideos(folder, SPEC, as_they_are, 0, copies=3)[0, 1]
    assert not isinstance(same, Unreadable) and all(torch.equal(clip, same[0][0]) for clip, _ in same)
    for transform in (CROP, clip_training_transform(AugmentationConfig(), (32, 32), SPEC)):
        copies = AugmentedVideos(folder, SPEC, transform, 0, copies=3)[0, 1]
        assert not isinstance(copies, Unreadable) and [label for _, label in copies] == [1, 1, 1]
        assert len({float(clip.sum()) for clip, _ in copies}) == 3
    clips, labels, unreadable = collate_copies([copies, BAD, copies])
    assert clips.shape == (6, 3, 4, 32, 32) and labels.tolist() == [1] * 6 and unreadable == 1
    clips, labels, unreadable = collate_copies([BAD, BAD])
    assert (len(clips), len(labels), unreadable) == (0, 0, 2)
    with pytest.raises(ConvMAEError, match="at least 1 copy"):
        AugmentedVideos(folder, SPEC, CROP, 0, copies=0)


def test_evaluation_uses_the_runtimes_clips(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    views = ClipViews(temporal=2, spatial=3)
    sample = EvaluationVideos(folder, SPEC, views)[3]
    assert not isinstance(sample, Unreadable) and sample[0].shape == (6, 3, 4, 32, 32) and sample[1] == 1
    assert np.array_equal(sample[0].numpy(), read_clips(folder.videos[3], SPEC, views=views))
    one = EvaluationVideos(folder, SPEC)[0]
    assert not isinstance(one, Unreadable) and one[0].shape == (1, 3, 4, 32, 32)


def test_videos_that_cannot_be_decoded_are_counted_and_left_out(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    folder.videos[1].write_bytes(folder.videos[1].read_bytes()[:900])
    folder.videos[2].unlink()
    masked = MaskedVideos(folder.videos, SPEC, CROP, 0, cells=4)
    clips, noise, unreadable = collate_readable([masked[0, index] for index in range(4)])
    assert (clips.shape, noise.shape, unreadable) == ((2, 3, 4, 32, 32), (2, 4), 2)
    augmented = AugmentedVideos(folder, SPEC, CROP, 0, copies=2)
    clips, labels, unreadable = collate_copies([augmented[0, index] for index in range(4)])
    assert len(clips) == 4 and labels.tolist() == [0, 0, 1, 1] and unreadable == 2
    evaluated = EvaluationVideos(folder, SPEC)
    assert collate_readable([evaluated[index] for index in range(4)])[2] == 2


@pytest.mark.slow
def test_workers_give_the_same_batches_as_none(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, count=8)
    batches = []
    for workers in (0, 2):
        source = LoadedSource(
            AugmentedVideos(folder, SPEC, CROP, 0, copies=2),
            StepSampler(8, batch_size=4, micro_batch_size=4, seed=0),
            workers=workers,
            pin_memory=False,
            collate=collate_copies,
        )
        batches.append([micro for step in source.epoch(0, 0) for micro in step])
    assert [len(clips) for clips, _, _ in batches[0]] == [8, 8]
    for (one, labels, _), (other, same, _) in zip(*batches, strict=True):
        assert torch.equal(one, other) and torch.equal(labels, same)


@needs_motion8
def test_clips_of_the_motion_pack_move(tmp_path: Path) -> None:
    train, val = read_video_splits(MOTION8)
    spec = standard_clips((64, 64), stride=1)
    sample = EvaluationVideos(val, spec)[0]
    assert not isinstance(sample, Unreadable) and sample[0].shape == (1, 3, 16, 64, 64)
    assert float((sample[0][0, :, 0] - sample[0][0, :, -1]).abs().mean()) > 0.05
    transform = clip_training_transform(replace(AugmentationConfig(), flip=0.0), (64, 64), spec)
    drawn = AugmentedVideos(train, spec, transform, 0)[0, 100]
    assert not isinstance(drawn, Unreadable) and drawn[0][0].shape == (3, 16, 64, 64)
