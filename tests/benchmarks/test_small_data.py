"""A few photos or videos of a data set: as many as asked for, with what belongs to them."""

import json
from pathlib import Path

import pytest

from benchmarks.small_data import copy_coco, copy_photos, copy_segmentation, copy_videos
from convmae_deploy.data.coco import read_coco_split
from convmae_deploy.data.photo_folder import read_photo_splits
from convmae_deploy.data.segmentation_folder import read_segmentation_folder
from convmae_deploy.data.video_folder import read_video_splits
from convmae_deploy.errors import ConvMAEError
from tests.coco_folders import make_coco_folder
from tests.photo_folders import make_photo_folder
from tests.segmentation_folders import make_segmentation_folder

COUNTS = {"train": 8, "val": 4}


def test_photos_are_of_four_classes_and_as_many_of_each(tmp_path: Path) -> None:
    data = make_photo_folder(tmp_path / "all", classes=tuple("abcdef"), per_class=3)
    copy_photos(data, tmp_path / "few", COUNTS)
    train, val = read_photo_splits(tmp_path / "few")
    assert [train.labels.count(label) for label in range(4)] == [2, 2, 2, 2] and len(train.photos) == 8
    assert len(val.photos) == 4 and len(val.classes) == 4
    assert train.photos[2].read_bytes() == (data / "train" / "b" / "0.png").read_bytes()


def test_too_few_photos_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    data = make_photo_folder(tmp_path / "all", classes=tuple("abcd"), per_class=1)
    with pytest.raises(ConvMAEError, match="needs 2 files of a class or split; found 1 in"):
        copy_photos(data, tmp_path / "few", COUNTS)
    with pytest.raises(ConvMAEError, match="needs 1 files of a class or split; found 0"):
        copy_photos(make_photo_folder(tmp_path / "two"), tmp_path / "few", {"train": 4, "val": 4})
    assert not (tmp_path / "few").exists()


def test_videos_are_copied_alike(tmp_path: Path) -> None:
    for split, name in ((split, name) for split in COUNTS for name in "abcde"):
        (tmp_path / "all" / split / name).mkdir(parents=True)
        for number in range(2):
            (tmp_path / "all" / split / name / f"{number}.mp4").write_text(f"{split} {name} {number}")
    copy_videos(tmp_path / "all", tmp_path / "few", COUNTS)
    train, val = read_video_splits(tmp_path / "few")
    assert [video.read_text() for video in train.videos[:3]] == ["train a 0", "train a 1", "train b 0"]
    assert len(train.videos) == 8 and len(val.videos) == 4


def test_annotations_are_those_of_the_photos_that_are_copied(tmp_path: Path) -> None:
    data = make_coco_folder(tmp_path / "all", photos=6)
    copy_coco(data, tmp_path / "few", {"train": 3, "val": 2})
    whole, few = (read_coco_split(folder, "train") for folder in (data, tmp_path / "few"))
    assert [photo.id for photo in few.photos] == [10, 20, 30]
    assert few.classes == whole.classes and few.category_ids == whole.category_ids
    assert [len(few.objects[index]) for index in range(3)] == [len(whole.objects[index]) for index in range(3)]
    assert len(read_coco_split(tmp_path / "few", "val").photos) == 2


def test_label_maps_keep_their_meaning(tmp_path: Path) -> None:
    data = make_segmentation_folder(tmp_path / "all")
    (data / "classes.json").write_text(json.dumps({"classes": ["a", "b", "c", "d"], "ignore_index": 2}))
    copy_segmentation(data, tmp_path / "few", {"train": 3, "val": 1})
    whole, few = (read_segmentation_folder(folder, "train") for folder in (data, tmp_path / "few"))
    assert len(few.photos) == 3 and few.classes == ("a", "b", "c", "d") and few.ignore_index == 2
    assert few.label_maps[1].read_bytes() == whole.label_maps[1].read_bytes()
