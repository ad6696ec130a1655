"""What is told of a data set before a training."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convmae_deploy.data.coco import read_coco_split
from convmae_deploy.data.data_check import (
    ALMOST_BLACK,
    AS_STORED,
    MAX_LINES,
    DataCheck,
    SplitCheck,
    check_coco,
    check_photos,
    check_segmentation,
    check_shards,
    check_unlabelled_photos,
    check_unlabelled_videos,
    check_videos,
)
from convmae_deploy.data.findings import Findings
from convmae_deploy.data.photo_folder import find_training_photos, read_photo_splits
from convmae_deploy.data.segmentation_folder import read_segmentation_folder
from convmae_deploy.data.video_folder import find_training_videos, read_video_splits
from convmae_deploy.errors import ConvMAEError
from tests.coco_folders import edit_annotations, make_coco_folder
from tests.photo_folders import make_photo_folder
from tests.segmentation_folders import make_segmentation_folder
from tests.video_files import make_video


def told(check: DataCheck) -> list[str]:
    return check.lines("run/data_check.json")


def photos_check(root: Path) -> DataCheck:
    return check_photos(root, *read_photo_splits(root))


def segmentation_check(root: Path) -> DataCheck:
    return check_segmentation(root, *(read_segmentation_folder(root, split) for split in ("train", "val")))


def test_a_good_folder_is_three_lines(tmp_path: Path) -> None:
    assert told(photos_check(make_photo_folder(tmp_path, per_class=12))) == [
        f"data {tmp_path}",
        "  train: 24 photos in 2 classes, 12 each; 16 tried: 48 x 48 pixels",
        "  val: 24 photos in 2 classes, 12 each; 16 tried: 48 x 48 pixels",
    ]


def test_a_bad_folder_is_told_in_ten_lines_and_written_whole(tmp_path: Path) -> None:
    root = make_photo_folder(tmp_path / "data", classes=("blue", "green", "red"))
    shutil.rmtree(root / "val" / "green")
    for number in range(9):
        (root / "train" / f"a.{number}").write_bytes(b"")
    Image.new("RGB", (90, 60), "red").save(root / "train" / "red" / "0.png")
    (root / "val" / "red" / "5.png").write_bytes(b"not a photo")
    check = photos_check(root)
    lines = told(check)
    assert len(lines) == MAX_LINES
    assert lines[1:6] == [
        "  train: 18 photos in 3 classes, 6 each; 16 tried: 48 x 48 to 90 x 60 pixels",
        "  val: 12 photos in 3 classes, from 0 (green) to 6 (blue) each; 12 tried: 48 x 48 pixels",
        "  look at val: classes without photos to validate on: 1, the first green",
        f"  look at val: files that cannot be used, of 12 that were tried: 1, the first {root}/val/red/5.png: "
        "expected an image file, found text; send the bytes of a photo",
        "  left out train: files that end in .0: 1, the first train/a.0",
    ]
    assert lines[-1] == "  and 5 more kinds, see run/data_check.json"
    check.write(tmp_path / "run.json")
    written = json.loads((tmp_path / "run.json").read_text())
    train, val = written["splits"]
    assert train["facts"]["classes"] == [["blue", 6], ["green", 6], ["red", 6]]
    assert val["findings"]["doubts"]["classes without photos to validate on"] == {"count": 1, "examples": ["green"]}
    assert len(train["findings"]["passed_over"]) == 9


def test_what_there_is_most_of_is_told_first() -> None:
    findings = Findings()
    findings.pass_over("few", "a")
    for _ in range(3):
        findings.pass_over("many", "b")
    check = DataCheck(data="x", splits=[SplitCheck(name="train", facts={}, words="", findings=findings)])
    assert told(check)[2:] == ["  left out train: many: 3, the first b", "  left out train: few: 1, the first a"]


@pytest.mark.parametrize("level, is_dark", [(4095, True), (40_000, False)])
def test_twelve_bits_in_a_16_bit_file_are_said_to_be_almost_black(tmp_path: Path, level: int, is_dark: bool) -> None:
    root = make_photo_folder(tmp_path, per_class=1)
    levels = np.linspace(0, level, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(levels).save(root / "train" / "blue" / "0.png")
    (train, _) = photos_check(root).splits
    assert (ALMOST_BLACK in train.findings.doubts) == is_dark


@pytest.mark.parametrize(
    ("stored", "orientation", "is_doubtful"), [((96, 80), 3, True), ((96, 80), 1, False), ((80, 96), 6, False)]
)
def test_a_photo_whose_size_does_not_tell_how_it_was_annotated_looks_wrong(
    tmp_path: Path, stored: tuple[int, int], orientation: int, is_doubtful: bool
) -> None:
    """Turned by a quarter its size tells."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    root = make_segmentation_folder(tmp_path / "maps", train=2, val=2)
    (photo,) = (root / "images" / "train").glob("0.*")
    photo.unlink()
    Image.new("RGB", stored, "red").save(photo.with_suffix(".jpg"), exif=exif)
    coco = make_coco_folder(tmp_path / "coco")
    train = read_coco_split(coco, "train")
    first = train.photos[0]
    size = (first.width, first.height) if stored == (96, 80) else (first.height, first.width)
    Image.new("RGB", size, "red").save(first.path, format="jpeg", exif=exif)
    for check in (segmentation_check(root), check_coco(coco, train, train)):
        assert (AS_STORED in check.splits[0].findings.doubts) == is_doubtful


def test_validation_without_a_labelled_pixel_is_refused(tmp_path: Path) -> None:
    root = make_segmentation_folder(tmp_path, train=2, val=2)
    for file in (root / "labels" / "val").iterdir():
        Image.new("L", (96, 80), 255).save(file)
    with pytest.raises(ConvMAEError, match="no pixel of the validation photos has a class"):
        segmentation_check(root)


def test_palettes_that_differ_look_wrong(tmp_path: Path) -> None:
    root = make_segmentation_folder(tmp_path, train=2, val=2)
    colours = [(0, 0, 0), (255, 0, 0), (0, 0, 255)]
    for split, palette in (("train", colours), ("val", colours)):
        for file in (root / "labels" / split).iterdir():
            labels = np.asarray(Image.open(file))
            picture = Image.fromarray(np.where(labels == 255, 0, labels).astype(np.uint8), "P")
            picture.putpalette([value for colour in palette for value in colour])
            picture.save(file)
    kind = "label maps whose palettes differ, of which the indices are taken"
    assert not any(kind in split.findings.doubts for split in segmentation_check(root).splits)
    picture.putpalette([255, 255, 255, 0, 0, 0, 0, 0, 255])
    picture.save(file)
    train, val = segmentation_check(root).splits
    assert kind not in train.findings.doubts
    assert f"{file} has (255, 255, 255) for the index 0" in val.findings.doubts[kind].examples[0]


def test_pretraining_on_folders_of_validation_or_labels_looks_wrong(tmp_path: Path) -> None:
    root = make_segmentation_folder(tmp_path, train=2, val=2)
    findings = Findings()
    check = check_unlabelled_photos(root, find_training_photos(root, findings), findings)
    assert told(check)[1:3] == [
        "  train: 8 photos; 8 tried: 96 x 80 pixels",
        "  look at train: files that are trained on, in folders named for validation or labels: 6, "
        "the first images/val/0.png",
    ]


@pytest.mark.parametrize(
    "folder", ["val2017", "SegmentationClass", "gtFine", "ground_truth", "masks_machine", "Test-A", "coco/annotations"]
)
def test_the_names_of_folders_are_read_word_by_word(tmp_path: Path, folder: str) -> None:
    root = make_photo_folder(tmp_path, per_class=1)
    (root / "train").rename(root / "photos")
    shutil.rmtree(root / "val")
    shutil.copytree(root / "photos", root / folder)
    findings = Findings()
    check = check_unlabelled_photos(root, find_training_photos(root, findings), findings)
    assert "folders named for validation or labels: 2, " in told(check)[2]


def doubts(check: DataCheck) -> list[dict[str, list[str]]]:
    return [{kind: found.examples for kind, found in split.findings.doubts.items()} for split in check.splits]


@pytest.mark.parametrize("by_folders", [True, False])
def test_one_photo_under_two_names_looks_wrong(tmp_path: Path, by_folders: bool) -> None:
    root = make_photo_folder(tmp_path, classes=("a", "b"), per_class=1)
    shutil.rmtree(root / "val" / "b")
    for link, target in ((root / "train" / "c", root / "train" / "a"), (root / "val" / "b", root / "train" / "b")):
        if by_folders:
            link.symlink_to(target)
        else:
            link.mkdir()
            for photo in target.iterdir():
                (link / photo.name).symlink_to(photo)
    assert doubts(photos_check(root)) == [
        {"files that are of two classes": [str(root / "train" / "c" / "0.png")]},
        {
            "classes without photos to validate on": ["c"],
            "files to validate on that are trained on too": [str(root / "val" / "b" / "0.png")],
        },
    ]


def test_a_class_that_is_a_link_to_a_folder_around_it_looks_wrong(tmp_path: Path) -> None:
    root = make_photo_folder(tmp_path, classes=("a", "b"), per_class=1)
    (root / "train" / "c").symlink_to(".")
    assert doubts(photos_check(root))[0] == {
        "files that are of two classes": [str(root / "train" / "c" / name / "0.png") for name in ("a", "b")],
        "class folders with folders inside, whose files are of the one class": ["train/c"],
    }


def test_classes_of_nearly_one_name_look_wrong(tmp_path: Path) -> None:
    root = make_photo_folder(tmp_path / "photos", classes=("Cat", "cat ", "dog"), per_class=1)
    kind = "classes with the name of another one, but for case and blanks"
    assert doubts(photos_check(root)) == [{kind: ["cat "]}, {}]
    root = make_segmentation_folder(tmp_path / "maps", train=2, val=2)
    (root / "classes.json").write_text(json.dumps({"classes": ["a", "b", "B"]}))
    assert doubts(segmentation_check(root)) == [{kind: ["B"]}, {}]


def test_what_video_lists_do_not_name_is_counted(tmp_path: Path) -> None:
    for name in ("a.avi", "b.avi", "c.avi", "deep/d.avi", "test.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(make_video(frames=4))
    for name in ("train.csv", "train.txt"):
        (tmp_path / name).write_text("a.avi,0\nb.avi,1\n")
    (tmp_path / "val.csv").write_text("c.avi,1\n")
    found = read_video_splits(tmp_path)[0].findings
    assert {kind: finding.examples for kind, finding in found.passed_over.items()} == {
        "videos that the lists do not name": ["deep/d.avi"],
        "files that end in .csv": ["test.csv"],
        "files that end in .txt": ["train.txt"],
    }


def test_lists_beside_class_folders_look_wrong(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for part in ("part_0", "part_1"):
            (tmp_path / split / part).mkdir(parents=True)
            (tmp_path / split / part / "a.avi").write_bytes(make_video(frames=4))
    (tmp_path / "train.csv").write_text("train/part_0/a.avi,0\n")
    train, val = read_video_splits(tmp_path)
    kind = "lists that are not read, as there are class folders"
    assert train.findings.doubts[kind].examples == ["train.csv"] and kind not in val.findings.doubts


def test_a_class_of_a_list_without_a_video_to_train_on_is_named(tmp_path: Path) -> None:
    for name in ("a.avi", "b.avi"):
        (tmp_path / name).write_bytes(make_video(frames=4))
    for split in ("train", "val"):
        (tmp_path / f"{split}.csv").write_text("a.avi,1\nb.avi,2\n")  # as UCF101 counts them
    assert read_video_splits(tmp_path)[0].findings.doubts["classes without videos to train on"].examples == ["0"]


def test_label_pictures_beside_photos_look_wrong_in_pretraining(tmp_path: Path) -> None:
    for name in (
        "c0.jpg",
        "c0_mask.png",
        "ADE_1.jpg",
        "ADE_1_seg.png",
        "ADE_1_parts_2.png",
        "my_mask.jpg",
        "depth/x.png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), "red").save(tmp_path / name)
    findings = Findings()
    check_unlabelled_photos(tmp_path, find_training_photos(tmp_path, findings), findings)
    assert {kind: finding.count for kind, finding in findings.doubts.items()} == {
        "files that are trained on, named as the labels of a photo beside them": 3,
        "files that are trained on, in folders named for validation or labels": 1,
    }


def test_a_video_of_two_classes_looks_wrong(tmp_path: Path) -> None:
    for name in ("a.avi", "b.avi"):
        (tmp_path / name).write_bytes(make_video(frames=4))
    (tmp_path / "train.csv").write_text("a.avi,0\nb.avi,1\na.avi,1\n")
    (tmp_path / "val.csv").write_text("b.avi,1\n")
    assert doubts(check_videos(tmp_path, *read_video_splits(tmp_path))) == [
        {"files that are of two classes": [str(tmp_path / "a.avi")]},
        {
            "classes without videos to validate on": ["0"],
            "files to validate on that are trained on too": [str(tmp_path / "b.avi")],
        },
    ]


def test_validation_of_a_segmenter_by_links_to_what_is_trained_on_looks_wrong(tmp_path: Path) -> None:
    root = make_segmentation_folder(tmp_path, train=2, val=2)
    for folder in ("images", "labels"):
        shutil.rmtree(root / folder / "val")
        (root / folder / "val").symlink_to("train")
    assert "files to validate on that are trained on too: 2" in told(segmentation_check(root))[3]


def test_photos_that_cannot_be_read_are_said_and_not_their_label_maps(tmp_path: Path) -> None:
    root = make_segmentation_folder(tmp_path, train=2, val=2)
    for photo in (root / "images" / "train").iterdir():
        photo.write_bytes(b"")
    with pytest.raises(ConvMAEError, match="train: none of the 2 files that were tried can be used"):
        segmentation_check(root)


def test_shards_are_told_by_their_counts() -> None:
    assert told(check_shards("a-{0..1}.tar", 2, 40, Findings()))[1] == "  train: 40 photos in 2 shards"


def test_objects_are_counted_by_class(tmp_path: Path) -> None:
    root = make_coco_folder(tmp_path)
    edit_annotations(root, "val", lambda content: content["annotations"][0].update(bbox=[8, 8, 1, 1]))
    train = read_coco_split(root, "train")
    check = check_coco(root, train, read_coco_split(root, "val", like=train))
    lines = told(check)
    assert lines[1] == (
        "  train: 4 photos, 6 objects in 2 classes, from 2 (blue thing) to 4 (red thing) each; 4 tried: 64 x 48 pixels"
    )
    assert lines[3].startswith("  look at val: boxes that contradict their masks: 1, the first annotation 100 has the")
    assert [split.name for split in check_coco(root, train, train).splits] == ["train"]
    again = read_coco_split(root, "train")
    assert (
        check_coco(root, train, again).splits[1].findings.doubts["files to validate on that are trained on too"].count
    )


def test_pixels_are_counted_by_class_in_every_map(tmp_path: Path) -> None:
    root = make_segmentation_folder(tmp_path, train=20, val=2)
    (root / "classes.json").write_text(json.dumps({"classes": ["left", "right", "square", "bird"]}))
    lines = told(segmentation_check(root))
    assert lines[1] == "  train: 20 photos with label maps, 3 of 4 classes have pixels; 16 tried: 96 x 80 pixels"
    assert lines[3] == "  look at train: classes without a pixel: 1, the first bird"


def binary(root: Path, level: int, description: dict[str, object]) -> Path:
    """Label maps of 0 and one other level."""
    make_segmentation_folder(root, train=2, val=2)
    for path in (root / "labels").rglob("*.png"):
        Image.fromarray((np.asarray(Image.open(path)) == 2).astype(np.uint8) * level).save(path)
    (root / "classes.json").write_text(json.dumps({"classes": ["ground", "thing"]} | description))
    return root


def test_binary_masks_of_0_and_255_are_refused_as_one_class(tmp_path: Path) -> None:
    with pytest.raises(
        ConvMAEError, match=r"all have the class 'ground', and \d+ % of all have the level 255, the ignore"
    ):
        segmentation_check(binary(tmp_path / "default", 255, {}))
    with pytest.raises(ConvMAEError, match=r"all have the class 'ground', and \d+ % of all have the level 0 with"):
        segmentation_check(binary(tmp_path / "reduced", 1, {"reduce_zero_label": True}))
    segmentation_check(binary(tmp_path / "indices", 1, {}))


def test_a_wrong_label_map_is_refused_before_training(tmp_path: Path) -> None:
    root = make_segmentation_folder(tmp_path, train=20, val=2)
    Image.new("L", (96, 80), 7).save(root / "labels" / "train" / "13.png")
    with pytest.raises(ConvMAEError, match=r"13.png must hold the levels 0 to 2"):
        segmentation_check(root)


def test_a_label_map_of_another_size_is_refused_before_training(tmp_path: Path) -> None:
    root = make_segmentation_folder(tmp_path, train=20, val=2)
    Image.new("L", (80, 96), 1).save(root / "labels" / "train" / "13.png")
    (root / "images" / "train" / "12.png").write_bytes(b"")  # is left out in training
    with pytest.raises(ConvMAEError, match=r"13.png must have the size of its photo, 96 x 80 pixels; found 80 x 96"):
        segmentation_check(root)


def test_data_of_which_nothing_can_be_used_is_refused_before_training(tmp_path: Path) -> None:
    root = make_photo_folder(tmp_path)
    for photo in (root / "val").rglob("*.png"):
        photo.write_bytes(b"not a photo")
    with pytest.raises(ConvMAEError, match=r"val: none of the 12 files that were tried can be used, the first: .*png"):
        photos_check(root)


def test_one_class_alone_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConvMAEError, match="expected photos of two classes or more in .*, found 'blue' alone"):
        photos_check(make_photo_folder(tmp_path, classes=("blue",)))


def test_mostly_ignored_pixels_look_wrong(tmp_path: Path) -> None:
    root = make_segmentation_folder(tmp_path, train=2, val=2)
    for path in (root / "labels" / "val").iterdir():
        levels = np.array(Image.open(path))
        levels[10:] = 255
        Image.fromarray(levels).save(path)
    assert "pixels of no class are most of all: 1, the first 90 % with the level 255" in "\n".join(
        told(segmentation_check(root))
    )


def test_videos_are_tried_too(tmp_path: Path) -> None:
    for name in ("train/up/0.mp4", "train/down/0.mp4", "val/up/0.mp4"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(make_video(frames=4))
    (tmp_path / "train" / "up" / "1.mp4").write_bytes(make_video(frames=4)[:-500])
    (tmp_path / "train" / "up" / "clip.mpg2").write_bytes(b"")
    train, val = read_video_splits(tmp_path)
    check = check_videos(tmp_path, train, val)
    assert told(check)[1:3] == [
        "  train: 3 videos in 2 classes, from 1 (down) to 2 (up) each; 3 tried: 64 x 48 pixels",
        "  val: 1 video in 2 classes, from 0 (down) to 1 (up) each; 1 tried: 64 x 48 pixels",
    ]
    assert {*check.splits[0].findings.doubts} == {"files that cannot be used, of 3 that were tried"}
    assert [split.name for split in check_videos(tmp_path, train, train).splits] == ["train"]
    findings = Findings()
    unlabelled = check_unlabelled_videos(tmp_path, find_training_videos(tmp_path, findings), findings)
    assert told(unlabelled)[1] == "  train: 3 videos; 3 tried: 64 x 48 pixels"


def test_names_out_of_the_data_never_drive_the_terminal() -> None:
    check = DataCheck(data="a\x1b[2J", splits=[SplitCheck(name="t", facts={}, words="\n", findings=Findings())])
    assert all(line.isprintable() for line in told(check))
