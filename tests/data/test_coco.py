"""COCO-format annotations."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convmae_deploy.checkpoints.coco_classes import COCO_CATEGORY_IDS, COCO_CLASSES
from convmae_deploy.data.coco import CocoSplit, read_coco_photo, read_coco_split
from convmae_deploy.errors import ConvMAEError
from tests.coco_folders import (
    DET_COCO,
    HEIGHT,
    WIDTH,
    annotation_file,
    edit_annotations,
    make_coco_folder,
    needs_det_coco,
    rectangle,
)

ORIENTATION = 0x0112


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_coco_folder(tmp_path)


def annotation(**changes: Any) -> dict[str, Any]:
    plain = {"id": 900, "image_id": 10, "category_id": 3, "bbox": [40, 30, 8, 4], "area": 32, "iscrowd": 0}
    return plain | {"segmentation": rectangle((40, 30, 8, 4))} | changes


def examples(split: CocoSplit) -> dict[str, list[str]]:
    """What was left out or looked wrong, by its kind."""
    return {kind: one.examples for kind, one in (split.findings.passed_over | split.findings.doubts).items()}


def with_annotation(root: Path, **changes: Any) -> CocoSplit:
    edit_annotations(root, "train", lambda content: content["annotations"].append(annotation(**changes)))
    return read_coco_split(root, "train")


def test_categories_with_gaps_become_labels_in_the_order_of_their_ids(root: Path) -> None:
    split = read_coco_split(root, "train")
    assert split.classes == ("red thing", "blue thing") and split.category_ids == (3, 7)
    assert [[item.label for item in split.objects[index]] for index in range(4)] == [[0], [0, 1], [0], [0, 1]]


def test_photos_come_in_the_order_of_their_ids(root: Path) -> None:
    split = read_coco_split(root, "train")
    assert [photo.id for photo in split.photos] == [10, 20, 30, 40]
    assert all(photo.path.is_file() for photo in split.photos)


def test_boxes_are_corners_and_the_mask_fills_its_polygon(root: Path) -> None:
    item = with_annotation(root).objects[0][-1]
    assert item.box == (40, 30, 48, 34)
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[30:34, 40:48] = 1
    assert np.array_equal(item.mask(HEIGHT, WIDTH), expected)


@pytest.mark.parametrize("counts", [[HEIGHT * WIDTH - 5, 5], "ko25"])
def test_run_lengths_are_masks_by_columns(root: Path, counts: Any) -> None:
    item = with_annotation(root, segmentation={"size": [HEIGHT, WIDTH], "counts": counts}).objects[0][-1]
    mask = item.mask(HEIGHT, WIDTH)
    assert mask.sum() == 5 and mask[-5:, -1].all()


def test_crowds_are_counted_and_kept_for_the_evaluation_alone(root: Path) -> None:
    lengths = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}
    split = with_annotation(root, iscrowd=1, segmentation=lengths)
    assert split.crowds == 1 and split.dropped == 0 and len(split.objects[0]) == 1
    crowds = [entry for entry in split.ground_truth()["annotations"] if entry["iscrowd"]]
    assert [entry["bbox"] for entry in crowds] == [[40, 30, 8, 4]]


@pytest.mark.parametrize(
    "changes",
    [
        {"bbox": [40, 30, 0, 4]},
        {"bbox": [40, 30, 8, -1]},
        {"bbox": [WIDTH, 30, 8, 4]},
        {"bbox": [40, -9, 8, 4]},
    ],
)
def test_a_box_without_extent_is_that_of_the_mask_and_without_a_mask_dropped(
    root: Path, changes: dict[str, Any]
) -> None:
    split = with_annotation(root, **changes)
    assert split.objects[0][-1].box == (40, 30, 48, 34) and split.dropped == 0
    assert split.ground_truth()["annotations"][-1]["bbox"] == [40, 30, 8, 4]
    kind = "boxes that are empty or outside of the photo, for which that of the mask is taken"
    assert examples(split)[kind][0].startswith("annotation 900 of instances_train.json with [")
    edit_annotations(root, "train", lambda content: content["annotations"].pop())
    split = with_annotation(root, **changes, segmentation=[])
    assert split.dropped == 1 and len(split.objects[0]) == 1 and not split.maskless
    assert examples(split)["objects whose box is empty or outside of the photo"] == ["annotation 900"]


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        [],
        [[40, 30, 44, 34]],
        rectangle((-40, 10, 10, 20)),
        rectangle((WIDTH + 5, 10, 10, 20)),
        {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]},
        {"size": [WIDTH, HEIGHT], "counts": [0, HEIGHT * WIDTH]},
        {"size": [60_000, 60_000], "counts": "0"},
    ],
)
def test_a_photo_with_an_object_without_a_mask_is_not_trained_on_and_counted(root: Path, segmentation: Any) -> None:
    split = with_annotation(root, segmentation=segmentation)
    assert split.maskless == {10} and len(split.objects[0]) == 1
    assert examples(split)["objects without a mask that lies in the photo and fits its size"] == ["annotation 900"]
    chosen = split.for_training()
    assert [photo.id for photo in chosen.photos] == [20, 30, 40]
    kind = "photos with an object without a mask, as it would be background"
    assert examples(chosen)[kind] == ["10.png"] and kind not in examples(split)
    (truth,) = (entry for entry in split.ground_truth()["annotations"] if entry["bbox"] == [40, 30, 8, 4])
    assert truth["segmentation"] is None and truth["area"] == 32


def test_a_box_that_leaves_the_photo_is_clipped(root: Path) -> None:
    assert with_annotation(root, bbox=[-5, 40, 80, 10]).objects[0][-1].box == (0, 40, WIDTH, HEIGHT)


def test_photos_without_objects_are_kept_and_left_out_of_training_unless_asked_for(root: Path) -> None:
    edit_annotations(root, "train", lambda content: content["annotations"].pop(0))
    split = read_coco_split(root, "train")
    assert len(split.photos) == 4 and split.objects[0] == []
    assert [photo.id for photo in split.for_training().photos] == [20, 30, 40]
    assert [photo.id for photo in split.for_training(empty_photos=True).photos] == [10, 20, 30, 40]


def test_training_takes_the_first_photos_of_some_licences(root: Path) -> None:
    split = read_coco_split(root, "train")
    assert [photo.id for photo in split.for_training(licences=(4, 5)).photos] == [20, 40]
    chosen = split.for_training(licences=(4,), limit=1)
    assert [photo.id for photo in chosen.photos] == [20]
    assert [item.label for item in chosen.objects[0]] == [0, 1]
    assert {entry["image_id"] for entry in chosen.ground_truth()["annotations"]} == {20}
    with pytest.raises(ConvMAEError, match=r"photos with objects of the licences \[5\]; the licences of .* \[1, 4\]"):
        split.for_training(licences=(5,))


def test_a_photo_whose_masks_would_fill_the_memory_is_refused_for_training(root: Path) -> None:
    def crowd_it(content: dict[str, Any]) -> None:
        content["images"][-1].update(width=8_000, height=6_000)  # image 10
        content["annotations"] += [annotation(id=1000 + number) for number in range(100)]

    edit_annotations(root, "train", crowd_it)
    split = read_coco_split(root, "train")
    with pytest.raises(
        ConvMAEError, match="image 10 has 101 objects, whose masks of 8000 x 6000 pixels take more than 4"
    ):
        split.for_training()
    assert len(split.for_training(licences=(4,)).photos) == 2


def test_an_area_that_is_not_given_is_that_of_the_mask(root: Path) -> None:
    edit_annotations(root, "train", lambda content: [entry.pop("area") for entry in content["annotations"]])
    annotations = read_coco_split(root, "train").ground_truth()["annotations"]
    assert all(entry["area"] == entry["bbox"][2] * entry["bbox"][3] for entry in annotations)


def test_cocos_own_layout_is_read_too(root: Path) -> None:
    (root / "images" / "train").rename(root / "train2017")
    annotation_file(root, "train").rename(root / "annotations" / "instances_train2017.json")
    split = read_coco_split(root, "train")
    assert split.photos[0].path == root / "train2017" / "10.png"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"category_id": 4}, "annotation 900 has the unknown category 4"),
        ({"image_id": 11}, "annotation 900 is of the unknown image 11"),
        ({"bbox": [1, 2, 3]}, r"is not COCO's format for instances: annotations.6.bbox.3: Field required"),
    ],
)
def test_broken_annotations_are_refused(root: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConvMAEError, match=message):
        with_annotation(root, **changes)


RUNS = {"size": [HEIGHT, WIDTH]}


@pytest.mark.parametrize("crowd", [0, 1])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"segmentation": RUNS | {"counts": [10, 5]}}, "run lengths must cover the 64 x 48 = 3072 pixels"),
        ({"segmentation": RUNS | {"counts": [10, 100_000]}}, "they cover 100010"),
        ({"segmentation": RUNS | {"counts": [-10, HEIGHT * WIDTH + 10]}}, "must not be negative"),
        ({"segmentation": RUNS | {"counts": [10**30, 5]}}, "far more"),
        ({"segmentation": RUNS | {"counts": "5"}}, "they cover 5"),
        ({"segmentation": RUNS | {"counts": "ooo"}}, "ends within a number"),
        ({"segmentation": [[0, 0, 1e8, 0, 0, 1e8]]}, "polygons must lie within 1000000 pixels"),
        ({"segmentation": [[0, 0, 900_000, 0, 0, 900_000]]}, "outlines of an object may be 1000000 pixels long"),
        ({"bbox": [0, 0, 1e300, 4]}, "a box must lie within 1000000 pixels"),
    ],
)
def test_masks_that_cannot_be_drawn_are_refused_at_the_start_and_named(
    root: Path, changes: dict[str, Any], words: str, crowd: int
) -> None:
    with pytest.raises(
        ConvMAEError, match=f"instances_train.json: annotation 900: .*{words}.*; mend it or take it out"
    ):
        with_annotation(root, iscrowd=crowd, **changes)


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../../secret.png",
        "deep/../../secret.png",
        "..\\secret.png",
        "C:\\a.png",
        "a\0.png",
        "\x1b[31m.png",
    ],
)
def test_a_photo_outside_of_the_folder_of_photos_is_refused_and_named(root: Path, name: str) -> None:
    edit_annotations(root, "train", lambda content: content["images"][0].update(file_name=name))
    with pytest.raises(
        ConvMAEError, match="instances_train.json: image 40: a file must be named by its path inside"
    ) as caught:
        read_coco_split(root, "train")
    assert str(caught.value).isprintable()


def test_photos_may_lie_in_folders_of_the_folder_and_behind_its_links(root: Path, tmp_path: Path) -> None:
    photos = root / "images" / "train"
    (photos / "deep").mkdir()
    (photos / "10.png").rename(photos / "deep" / "10.png")
    photos.rename(tmp_path / "elsewhere")
    photos.symlink_to(tmp_path / "elsewhere")
    edit_annotations(root, "train", lambda content: content["images"][-1].update(file_name="deep/10.png"))
    assert read_coco_photo(read_coco_split(root, "train").photos[0]).size == (WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("part", "changes", "place"),
    [
        ("images", {"width": 10**9}, "images.0.width"),
        ("images", {"height": 0}, "images.0.height"),
        ("images", {"id": 10**400}, "images.0.id"),
        ("categories", {"id": 2**60}, "categories.0.id"),
        ("annotations", {"bbox": [1, 2, 3, float("nan")]}, "annotations.0.bbox.3"),
        ("annotations", {"bbox": [1, 2, 3, float("inf")]}, "annotations.0.bbox.3"),
    ],
)
def test_numbers_that_no_data_set_has_are_refused(root: Path, part: str, changes: dict[str, Any], place: str) -> None:
    edit_annotations(root, "train", lambda content: content[part][0].update(changes))
    with pytest.raises(
        ConvMAEError, match=f"is not COCO's format for instances: {place}: (Input should|Unable to parse)"
    ):
        read_coco_split(root, "train")


@pytest.mark.parametrize("name", ["", "a\x1b]0;title\x07", "a\nb", "a" * 1001])
def test_a_category_whose_name_is_no_line_of_text_is_refused(root: Path, name: str) -> None:
    edit_annotations(root, "train", lambda content: content["categories"][0].update(name=name))
    with pytest.raises(ConvMAEError, match="the name of a class must be text of 1 to 1000 characters") as caught:
        read_coco_split(root, "train")
    assert str(caught.value).isprintable()


def test_a_file_that_is_no_json_is_refused(root: Path) -> None:
    annotation_file(root, "train").write_text('{"images": [')
    with pytest.raises(ConvMAEError, match="is not COCO's format for instances: the file: Invalid JSON"):
        read_coco_split(root, "train")


def test_a_missing_file_is_named(root: Path) -> None:
    annotation_file(root, "train").unlink()
    with pytest.raises(ConvMAEError, match=r"must hold annotations/instances_train.json and photos in images/train/"):
        read_coco_split(root, "train")


def test_annotations_without_any_mask_are_refused(root: Path) -> None:
    edit_annotations(root, "train", lambda content: [entry.pop("segmentation") for entry in content["annotations"]])
    with pytest.raises(ConvMAEError, match="must have objects with a box and a segmentation"):
        read_coco_split(root, "train")


def turned(root: Path, size: tuple[int, int]) -> tuple[Image.Image, Path]:
    """A photo of that size as stored, white above and black below, whose EXIF says to turn it by a quarter."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[: size[1] // 2] = 255
    photo = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = root / "images" / "train" / "10.png"
    photo.save(path, exif=exif)
    return photo, path


def test_a_photo_stays_as_it_is_stored_whatever_its_orientation(root: Path) -> None:
    photo, _ = turned(root, (WIDTH, HEIGHT))
    assert np.array_equal(np.asarray(read_coco_photo(read_coco_split(root, "train").photos[0])), np.asarray(photo))


def test_a_photo_that_fits_its_annotations_only_upright_is_turned(root: Path) -> None:
    photo, _ = turned(root, (HEIGHT, WIDTH))
    upright = photo.transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(np.asarray(read_coco_photo(read_coco_split(root, "train").photos[0])), np.asarray(upright))


def test_a_photo_of_another_size_than_annotated_is_refused(root: Path) -> None:
    _, path = turned(root, (30, 20))
    with pytest.raises(ConvMAEError, match=f"{path} must have the 64 x 48 pixels of its annotations; it has 30 x 20"):
        read_coco_photo(read_coco_split(root, "train").photos[0])


@pytest.mark.slow
@needs_det_coco
def test_reading_the_pack_finds_what_is_in_it() -> None:
    train, val = (read_coco_split(DET_COCO, split) for split in ("train", "val"))
    assert (len(train.photos), len(val.photos), len(train.classes)) == (343, 96, 80)
    assert train.classes == val.classes and (train.classes, train.category_ids) == (COCO_CLASSES, COCO_CATEGORY_IDS)
    assert (train.crowds, train.dropped) == (29, 0)
    assert len(train.for_training().photos) == 340
    assert len(train.for_training(licences=(4, 5, 7), empty_photos=True).photos) == 92
    assert json.loads(train.file.read_text())["images"][0]["id"] == train.photos[0].id == 9
