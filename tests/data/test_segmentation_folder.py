"""Photos with label maps: both layouts, and what is wrong with a data set in one sentence."""

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convmae_deploy.data.segmentation_folder import (
    IGNORE,
    LabelError,
    read_classes,
    read_levels,
    read_segmentation_folder,
    read_segmentation_splits,
)
from convmae_deploy.errors import ConvMAEError

DATA = os.environ.get("CONVMAE_DATA")


def write(path: Path, levels: list[list[int]], mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.array(levels, np.uint8))
    if mode == "P":
        picture.putpalette([7, 9, 11] * 256)  # colours that say nothing of the indices
    picture.save(path)


def write_photo(path: Path, width: int = 3, height: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (10, 20, 30)).save(path)


@pytest.fixture
def generic(tmp_path: Path) -> Path:
    (tmp_path / "classes.json").write_text(json.dumps({"classes": ["sky", "road", "car"], "ignore_index": 255}))
    for name in ("a", "b"):
        write_photo(tmp_path / "images" / "train" / f"{name}.jpg")
    write(tmp_path / "labels" / "train" / "a.png", [[0, 1, 2], [255, 0, 1]])
    write(tmp_path / "labels" / "train" / "b.png", [[2, 2, 2], [0, 255, 0]], mode="P")
    return tmp_path


def test_the_generic_layout_with_grey_levels_and_palettes(generic: Path) -> None:
    split = read_segmentation_folder(generic, "train")
    assert split.classes == ("sky", "road", "car") and len(split.photos) == 2
    photo, labels = split.read(0)
    assert (photo.mode, photo.size) == ("RGB", (3, 2))
    assert labels.dtype == np.uint8 and labels.tolist() == [[0, 1, 2], [IGNORE, 0, 1]]
    assert split.read_labels(1).tolist() == [[2, 2, 2], [0, IGNORE, 0]]


def test_the_layout_of_ade20k_takes_zero_for_no_class(tmp_path: Path) -> None:
    (tmp_path / "objectInfo150.txt").write_text("Idx\tRatio\tName\n1\t0.1\twall\n2\t0.1\tbuilding, edifice\n")
    for folder, level in (("training", 1), ("validation", 2)):
        write_photo(tmp_path / "images" / folder / "a.jpg")
        write(tmp_path / "annotations" / folder / "a.png", [[0, level, 1], [2, 0, 255]])
    for split, label in (("train", 0), ("val", 1)):
        folder_of_split = read_segmentation_folder(tmp_path, split)
        assert folder_of_split.classes == ("wall", "building") and folder_of_split.reduce_zero_label
        assert folder_of_split.read_labels(0).tolist() == [[IGNORE, label, 0], [1, IGNORE, IGNORE]]


def test_another_level_for_no_class_and_a_reduced_zero_can_be_named(generic: Path) -> None:
    names = ["sky", "road"]
    (generic / "classes.json").write_text(json.dumps({"classes": names, "ignore_index": 2, "reduce_zero_label": True}))
    write(generic / "labels" / "train" / "a.png", [[0, 1, 2], [1, 1, 2]])
    assert read_classes(generic) == (("sky", "road"), 2, True)
    labels = read_segmentation_folder(generic, "train").read_labels(0)
    assert labels.tolist() == [[IGNORE, 0, IGNORE], [0, 0, IGNORE]]


def test_a_level_of_no_class_is_named(generic: Path) -> None:
    write(generic / "labels" / "train" / "a.png", [[0, 1, 7], [0, 0, 0]])
    with pytest.raises(LabelError, match=r"a.png must hold the levels 0 to 2 of .* and 255 for none; found 7"):
        read_segmentation_folder(generic, "train").read(0)


def test_a_map_of_another_size_than_its_photo_is_refused(generic: Path) -> None:
    write(generic / "labels" / "train" / "a.png", [[0, 1], [0, 0]])
    with pytest.raises(LabelError, match=r"size of its photo, 3 x 2 pixels; found 2 x 2"):
        read_segmentation_folder(generic, "train").read(0)


def test_what_lies_beside_the_photos_and_maps_is_counted(generic: Path) -> None:
    write_photo(generic / "images" / "val" / "a.jpg")
    write(generic / "labels" / "val" / "a.png", [[0, 1, 2], [255, 0, 1]])
    write_photo(generic / "images" / "test" / "a.jpg")
    (generic / "images" / "train.tar").write_bytes(b"")
    train, _ = read_segmentation_splits(generic)
    assert {kind: finding.examples for kind, finding in train.findings.passed_over.items()} == {
        "folders beside those that are read": ["images/test"],
        "archives, which are not looked into": ["images/train.tar"],
    }


def test_a_coloured_map_and_a_damaged_one_are_refused(generic: Path) -> None:
    split = read_segmentation_folder(generic, "train")
    Image.new("RGB", (3, 2)).save(generic / "labels" / "train" / "a.png")
    with pytest.raises(LabelError, match="found a picture of mode RGB: convert its colours"):
        split.read(0)
    (generic / "labels" / "train" / "a.png").write_bytes(b"no picture")
    with pytest.raises(LabelError, match="cannot be read"):
        split.read(0)


def test_a_photo_without_a_map_is_named_and_the_others_counted(generic: Path) -> None:
    for name in ("c", "d"):
        write_photo(generic / "images" / "train" / f"{name}.jpg")
    with pytest.raises(ConvMAEError, match=r"c.jpg has none at .*c.png, and 1 more have none"):
        read_segmentation_folder(generic, "train")


def test_a_missing_split_or_list_of_classes_is_named(generic: Path) -> None:
    with pytest.raises(ConvMAEError, match="found no .*images.val"):
        read_segmentation_folder(generic, "val")
    (generic / "classes.json").unlink()
    with pytest.raises(ConvMAEError, match="must say what its labels mean"):
        read_segmentation_folder(generic, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "a list of names"),
        ('{"classes": [1]}', "a list of names"),
        ('{"classes": ["a"], "ignore_index": "0"}', "must be a number of 32 bits"),
        ('{"classes": ["a"], "ignore_index": 99999999999}', "must be a number of 32 bits"),
        ('{"classes": ["a"], "ignore_index": NaN}', "NaN is no number"),
        ("[" * 100_000, "nested too deeply"),
        ('{"classes": ["a", "b\\u001b[31m"]}', "none of them for control"),
        ('{"classes": ["a", ""]}', "text of 1 to 1000 characters"),
        (json.dumps({"classes": ["a"] * 256}), "at most 255 classes; found 256"),
    ],
)
def test_a_damaged_list_of_classes_is_refused(content: str, message: str, generic: Path) -> None:
    (generic / "classes.json").write_text(content)
    with pytest.raises(ConvMAEError, match=message):
        read_segmentation_folder(generic, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Idx\tName\n1\t" + "a" * 200_000, "is no table"),
        ("Idx\tName\n1\ta\x07\n", "none of them for control"),
        ("Idx\tName\n" + "1\ta\n" * 256, "at most 255 classes; found 256"),
    ],
)
def test_a_damaged_list_of_ade20k_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "objectInfo150.txt").write_text(content)
    with pytest.raises(ConvMAEError, match=message):
        read_classes(tmp_path)


POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 3 2\n%%EndComments\n\n"
    b'%ImageData: 3 2 8 1 0 1 1 "x"\nshowpage\n%%EOF\n'
)


def test_a_map_in_postscript_runs_nothing(generic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = generic / "labels" / "train" / "a.png"
    path.write_bytes(POSTSCRIPT)
    with Image.open(path) as picture:  # Pillow takes it for a map of the right size
        assert (picture.mode, picture.size) == ("L", (3, 2))
    monkeypatch.setattr("PIL.EpsImagePlugin.has_ghostscript", lambda: pytest.fail("Ghostscript was looked for"))
    with pytest.raises(LabelError, match="a.png (must be a PNG|cannot be read)"):
        read_segmentation_folder(generic, "train").read(0)


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "GIF"])
def test_a_map_in_another_format_is_refused_by_its_name(generic: Path, kind: str) -> None:
    Image.fromarray(np.zeros((2, 3), np.uint8)).save(generic / "labels" / "train" / "a.png", format=kind)
    with pytest.raises(LabelError, match=f"must be a PNG; found {kind}: convert it"):
        read_segmentation_folder(generic, "train").read(0)


def test_a_map_larger_than_photos_may_be_is_not_decoded(generic: Path) -> None:
    Image.new("1", (70_000, 1_000)).save(generic / "labels" / "train" / "a.png")  # 20 kB
    with pytest.raises(LabelError, match="may have 256000000 pixels and 65535 a side; found 70000 x 1000"):
        read_levels(generic / "labels" / "train" / "a.png")
    with pytest.raises(LabelError, match="must have the size of its photo, 3 x 2 pixels; found 70000 x 1000"):
        read_segmentation_folder(generic, "train").read(0)


def test_maps_of_16_bits_keep_their_levels(generic: Path) -> None:
    path = generic / "labels" / "train" / "a.png"
    Image.fromarray(np.array([[0, 1, 2], [255, 300, 65_535]], np.uint16)).save(path)
    assert read_levels(path).tolist() == [[0, 1, 2], [255, 300, 65_535]]


@pytest.mark.skipif(DATA is None, reason="CONVMAE_DATA does not name the folder of the data sets")
def test_the_samples_of_ade20k_and_camvid_are_read() -> None:
    ade20k = read_segmentation_folder(Path(DATA or "") / "seg_ade_sample", "")
    assert len(ade20k.photos) == 3 and len(ade20k.classes) == 150
    assert ade20k.classes[:4] == ("wall", "building", "sky", "floor") and ade20k.reduce_zero_label
    photo, labels = ade20k.read(2)
    assert labels.shape == (photo.height, photo.width) == (300, 400)
    assert (np.unique(labels)[-1], labels.min()) == (IGNORE, 0)
    camvid = [read_segmentation_folder(Path(DATA or "") / "seg_camvid", split) for split in ("train", "val")]
    assert [len(split.photos) for split in camvid] == [367, 101]


@pytest.mark.parametrize(("stored", "orientation"), [((3, 2), 6), ((2, 3), 6), ((3, 2), 3)])
def test_a_map_that_fits_its_photo_as_it_is_seen_is_of_that(
    generic: Path, stored: tuple[int, int], orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", stored).save(generic / "images" / "train" / "a.jpg", exif=exif)
    split = read_segmentation_folder(generic, "train")  # whose map is 3 x 2
    photo, labels = split.read(0)
    assert photo.size == (3, 2) and labels.shape == split.read_labels(0).shape == (2, 3)


def test_a_map_that_fits_its_photo_in_no_way_is_refused(generic: Path) -> None:
    write_photo(generic / "images" / "train" / "a.jpg", 2, 3)
    split = read_segmentation_folder(generic, "train")
    for read in (split.read, split.read_labels):
        with pytest.raises(LabelError, match="must have the size of its photo, 2 x 3 pixels; found 3 x 2"):
            read(0)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_levels_of_few_bits_are_taken_as_they_are_stored(tmp_path: Path, bits: int) -> None:
    levels = [0, 1, 1, 0] if bits == 1 else [0, 1, 3, 2]
    row = sum(level << bits * (3 - place) for place, level in enumerate(levels)) << (-4 * bits % 8)
    file = tmp_path / "map.png"
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 4, 1, bits, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0" + row.to_bytes((4 * bits + 7) // 8, "big"))),
        (b"IEND", b""),
    )
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
    )
    assert read_levels(file).tolist() == [levels]


def test_the_ending_of_a_map_may_be_in_capitals(generic: Path) -> None:
    (generic / "labels" / "train" / "a.png").rename(generic / "labels" / "train" / "a.PNG")
    assert read_segmentation_folder(generic, "train").read_labels(0).shape == (2, 3)
