"""Annotations as CVAT, Roboflow, Label Studio, FiftyOne and detectron2 lay them out and write them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convmae_deploy.data.coco import CocoSplit, read_coco_photo, read_coco_split
from convmae_deploy.data.coco_file import has_annotations, note_unread
from convmae_deploy.errors import ConvMAEError
from tests.coco_folders import annotation_file, edit_annotations, make_coco_folder

SIZE = {"width": 64, "height": 48}
OUTLINE = [8.0, 8.0, 24.0, 8.0, 24.0, 20.0, 8.0, 20.0]


def write(root: Path, file: str, content: dict[str, Any], *photos: str) -> None:
    """A file of annotations, and photos of 64 x 48 pixels."""
    for path in (root / file, *(root / photo for photo in photos)):
        path.parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(content))
    for photo in photos:
        Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(root / photo)


def thing(**changes: Any) -> dict[str, Any]:
    return {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 16, 12], "iscrowd": 0} | changes


def passed_over(split: CocoSplit) -> dict[str, list[str]]:
    return {kind: finding.examples for kind, finding in split.findings.passed_over.items()}


def roboflow(split: str) -> dict[str, Any]:
    """Ids from 0, and a category that only stands for the others."""
    return {
        "info": {"year": "2026", "version": "1", "description": "Exported from roboflow.com"},
        "licenses": [{"id": 1, "url": "https://creativecommons.org/licenses/by/4.0/", "name": "CC BY 4.0"}],
        "categories": [
            {"id": 0, "name": "objects", "supercategory": "none"},
            {"id": 1, "name": "cat", "supercategory": "objects"},
            {"id": 2, "name": "dog", "supercategory": "objects"},
        ],
        "images": [
            {"id": 0, "license": 1, "file_name": f"{split}_jpg.rf.1a.png", "date_captured": "2026-01-01T00:00:00"}
            | SIZE
        ],
        "annotations": [thing(id=0, image_id=0, area=192, segmentation=[OUTLINE])],
    }


def test_roboflows_folders_are_read_as_they_are(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        write(tmp_path, f"{split}/_annotations.coco.json", roboflow(split), f"{split}/{split}_jpg.rf.1a.png")
    train = read_coco_split(tmp_path, "train")
    val = read_coco_split(tmp_path, "val", like=train)
    assert has_annotations(tmp_path)
    assert train.classes == val.classes == ("cat", "dog") and train.category_ids == (1, 2)
    assert passed_over(train)["categories without objects that only stand for the others"] == ["objects"]
    assert train.findings.doubts["classes without objects"].examples == ["dog"]
    assert read_coco_photo(val.photos[0]).size == (64, 48) and "valid" in str(val.photos[0].path)
    assert [entry["id"] for entry in val.ground_truth()["annotations"]] == [1]


def cvat(**changes: Any) -> dict[str, Any]:
    """An empty licence with the id 0, attributes, masks of the brush as uncompressed run lengths."""
    return {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {"contributor": "", "date_created": "", "description": "", "url": "", "version": "", "year": ""},
        "categories": [{"id": 1, "name": "cat", "supercategory": ""}],
        "images": [
            {"id": 1, "file_name": "a.png", "license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0} | SIZE
        ],
        "annotations": [
            thing(area=192.0, segmentation=[OUTLINE], attributes={"occluded": False}),
            thing(id=2, segmentation={"counts": [0, 10, 64 * 48 - 10], "size": [48, 64]}, area=10) | changes,
        ],
    }


@pytest.mark.parametrize("photo", ["images/Train/a.png", "images/a.png"])
def test_cvats_subsets_are_read_as_they_are(tmp_path: Path, photo: str) -> None:
    write(tmp_path, "annotations/instances_Train.json", cvat(bbox=[0, 0, 1, 10]), photo)
    write(tmp_path, "annotations/instances_Validation.json", cvat(), photo.replace("Train", "Validation"))
    train, val = read_coco_split(tmp_path, "train"), read_coco_split(tmp_path, "val")
    assert len(train.objects[0]) == 2 and train.photos[0].licence == 0
    assert val.file.name == "instances_Validation.json"
    contradiction = val.findings.doubts["boxes that contradict their masks"]
    assert contradiction.examples == ["annotation 2 has the box [8.0, 8.0, 16.0, 12.0], its mask [0, 0, 1, 10]"]
    assert "boxes that contradict their masks" not in train.findings.doubts


def test_a_file_in_which_everything_is_a_crowd_is_refused_by_that_name(tmp_path: Path) -> None:
    content = cvat(iscrowd=1)
    content["annotations"][0]["iscrowd"] = 1
    write(tmp_path, "annotations/instances_train.json", content, "images/train/a.png")
    with pytest.raises(ConvMAEError, match="2 of its annotations have iscrowd 1, .*: set iscrowd to 0 where"):
        read_coco_split(tmp_path, "train")


def test_some_crowds_are_counted(tmp_path: Path) -> None:
    write(tmp_path, "annotations/instances_train.json", cvat(iscrowd=1), "images/train/a.png")
    split = read_coco_split(tmp_path, "train")
    assert passed_over(split)["annotations of crowds (iscrowd 1), which are neither learnt nor missed"] == [
        "annotation 2"
    ]


def test_a_file_of_boxes_alone_says_that_masks_are_needed(tmp_path: Path) -> None:
    content = roboflow("train")
    content["annotations"][0]["segmentation"] = []
    write(tmp_path, "train/_annotations.coco.json", content, "train/train_jpg.rf.1a.png")
    with pytest.raises(ConvMAEError, match="1 have a box and no mask that fits, and Mask R-CNN needs masks"):
        read_coco_split(tmp_path, "train")


@pytest.mark.parametrize("name", ["images/p.png", "images\\1\\p.png", "../../label-studio/media/upload/1/p.png"])
def test_label_studios_export_is_read_as_it_is(tmp_path: Path, name: str) -> None:
    content = {
        "images": [{"id": 0, "file_name": name} | SIZE],
        "categories": [{"id": 0, "name": "cat"}],
        "annotations": [thing(id=0, image_id=0, category_id=0, segmentation=[OUTLINE], ignore=0, area=192)],
        "info": {"year": 2026, "version": "1.0", "contributor": "Label Studio"},
    }
    write(tmp_path, "train/result.json", content, "train/images/p.png")
    split = read_coco_split(tmp_path, "train")
    assert split.photos[0].path == tmp_path / "train" / "images" / "p.png" and split.category_ids == (0,)


def test_detectron2s_absolute_paths_mean_the_photos_of_the_folder(tmp_path: Path) -> None:
    content = {
        "info": {"date_created": "2026-01-01", "description": "Automatically generated COCO json file for Detectron2."},
        "images": [{"id": 1, "file_name": "/home/me/datasets/cats/deep/a.png"} | SIZE],
        "categories": [{"id": 0, "name": "cat"}],
        "annotations": [thing(category_id=0, segmentation=[OUTLINE], area=192.0)],
        "licenses": None,
    }
    write(tmp_path, "annotations/instances_train.json", content, "images/train/deep/a.png")
    assert read_coco_split(tmp_path, "train").photos[0].path == tmp_path / "images" / "train" / "deep" / "a.png"


def test_fiftyones_export_is_read_as_it_is(tmp_path: Path) -> None:
    content = cvat() | {"info": {"year": "", "url": "https://voxel51.com/fiftyone"}}
    write(tmp_path, "validation/labels.json", content, "validation/data/a.png")
    assert read_coco_split(tmp_path, "val").photos[0].path == tmp_path / "validation" / "data" / "a.png"


def test_photos_that_are_not_there_are_named_and_left_out(tmp_path: Path) -> None:
    root = make_coco_folder(tmp_path)
    (root / "images" / "train" / "20.png").unlink()
    split = read_coco_split(root, "train")
    assert [photo.id for photo in split.photos] == [10, 30, 40]
    assert passed_over(split)["photos of instances_train.json that are not in train/"] == ["20.png"]
    assert {entry["image_id"] for entry in split.ground_truth()["annotations"]} == {10, 30, 40}
    for photo in split.photos:
        photo.path.unlink()
    with pytest.raises(ConvMAEError, match=r"names 4 photos, the first '10.png'; none of them is in .*train: put them"):
        read_coco_split(root, "train")


def test_a_photo_that_its_folder_lacks_is_no_other_of_the_same_name(tmp_path: Path) -> None:
    root = make_coco_folder(tmp_path)
    (root / "images" / "train" / "b").mkdir()
    edit_annotations(root, "train", lambda content: content["images"][-1].update(file_name="b/10.png"))
    split = read_coco_split(root, "train")
    assert [photo.id for photo in split.photos] == [20, 30, 40]
    assert passed_over(split)["photos of instances_train.json that are not in train/"] == ["b/10.png"]


def test_two_names_that_end_in_the_same_file_are_none_of_it(tmp_path: Path) -> None:
    root = make_coco_folder(tmp_path)
    edit_annotations(root, "train", lambda content: content["images"][0].update(file_name="other/10.png"))  # image 40
    split = read_coco_split(root, "train")
    assert [photo.id for photo in split.photos] == [20, 30]
    assert (
        split.findings.doubts[
            "photos of instances_train.json whose names fit one file, so that none of them is taken"
        ].count
        == 2
    )


@pytest.mark.parametrize("licence", ["", None, "CC BY", {"id": 3}])
def test_a_licence_that_is_no_number_is_none(tmp_path: Path, licence: Any) -> None:
    root = make_coco_folder(tmp_path)
    edit_annotations(root, "train", lambda content: content["images"][-1].update(license=licence))
    assert read_coco_split(root, "train").photos[0].licence is None


@pytest.mark.parametrize("area", ["", None, "192", True])
def test_an_area_that_is_no_number_is_that_of_the_mask(tmp_path: Path, area: Any) -> None:
    root = make_coco_folder(tmp_path)
    edit_annotations(root, "train", lambda content: content["annotations"][0].update(area=area, bbox=[0, 0, 64, 48]))
    truth = read_coco_split(root, "train").ground_truth()["annotations"][0]
    assert truth["bbox"] == [0, 0, 64, 48] and 16 * 16 <= truth["area"] <= 24 * 24


@pytest.mark.parametrize("number", [100, None, "a", 10**400, 0.5])
def test_ids_of_annotations_may_be_anything(tmp_path: Path, number: Any) -> None:
    root = make_coco_folder(tmp_path)
    edit_annotations(root, "train", lambda content: content["annotations"][1].update(id=number, iscrowd=1))
    split = read_coco_split(root, "train")
    assert [entry["id"] for entry in split.ground_truth()["annotations"]] == [1, 2, 3, 4, 5, 6]
    assert len(passed_over(split)["annotations of crowds (iscrowd 1), which are neither learnt nor missed"]) == 1
    repeated = split.findings.doubts.get("annotations of instances_train.json whose id is that of another one")
    assert (repeated is not None) == (number == 100)


def test_the_classes_of_a_validation_file_are_those_of_training_by_their_names(tmp_path: Path) -> None:
    root = make_coco_folder(tmp_path)

    def renumber(content: dict[str, Any]) -> None:
        content["categories"] = [{"id": 1, "name": "blue thing"}, {"id": 2, "name": "red thing"}]
        for entry in content["annotations"]:
            entry["category_id"] = {3: 2, 7: 1}[entry["category_id"]]

    edit_annotations(root, "val", renumber)
    train = read_coco_split(root, "train")
    plain = read_coco_split(make_coco_folder(tmp_path / "plain"), "val", like=train)
    val = read_coco_split(root, "val", like=train)
    assert val.category_ids == (3, 7) and val.objects[1] == plain.objects[1]
    assert val.ground_truth() == plain.ground_truth()


def test_a_validation_file_may_lack_classes_and_name_more_without_objects(tmp_path: Path) -> None:
    root = make_coco_folder(tmp_path)

    def change(content: dict[str, Any]) -> None:
        content["categories"] = [{"id": 3, "name": "red thing"}, {"id": 9, "name": "green thing"}]
        content["annotations"] = [entry for entry in content["annotations"] if entry["category_id"] == 3]

    edit_annotations(root, "val", change)
    val = read_coco_split(root, "val", like=read_coco_split(root, "train"))
    assert val.classes == ("red thing", "blue thing")
    assert val.findings.doubts["classes without objects"].examples == ["blue thing"]
    assert passed_over(val)["categories without objects that are not trained on"] == ["green thing"]


def test_annotations_with_scores_look_wrong(tmp_path: Path) -> None:
    content = vgg() | {"annotations": [thing(segmentation=[OUTLINE], score=0.5)]}
    write(tmp_path, "annotations/instances_train.json", content, "images/train/1.png")
    doubts = read_coco_split(tmp_path, "train").findings.doubts
    assert doubts["annotations of instances_train.json with a score, as predictions have"].examples == ["annotation 1"]


def test_what_lies_beside_the_splits_of_coco_s_own_folders_is_counted(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write(tmp_path, f"annotations/instances_{split}.json", vgg(), f"images/{split}/1.png")
    (tmp_path / "images" / "test").mkdir()
    for name in ("images/loose.jpg", "annotations/captions_train.json"):
        (tmp_path / name).write_bytes(b"")
    train, val = (read_coco_split(tmp_path, split) for split in ("train", "val"))
    photos = [photo.path for split in (train, val) for photo in split.photos]
    note_unread(tmp_path, ("train", "val"), photos, train.findings)
    assert (
        passed_over(train).items()
        >= {
            "files that end in .json": ["annotations/captions_train.json"],
            "files that end in .jpg": ["images/loose.jpg"],
            "folders beside those that are read": ["images/test"],
        }.items()
    )


def test_what_is_not_read_beside_annotations_is_counted(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        write(tmp_path, f"{split}/_annotations.coco.json", roboflow(split), f"{split}/{split}_jpg.rf.1a.png")
    (tmp_path / "train" / "b.png").write_bytes(b"")
    (tmp_path / "train" / "c.heic").write_bytes(b"")
    train = read_coco_split(tmp_path, "train")
    note_unread(tmp_path, ("train", "val"), [photo.path for photo in train.photos], train.findings)
    found = passed_over(train)
    assert found["folders beside those that are read"] == ["test"]
    assert found["photos that the annotations do not name"] == ["train/b.png", "valid/valid_jpg.rf.1a.png"]
    assert found["files that end in .heic (convert them to JPEG or PNG)"] == ["train/c.heic"]


def test_one_file_of_all_photos_is_named(tmp_path: Path) -> None:
    write(tmp_path, "result.json", roboflow("train"), "images/train_jpg.rf.1a.png")
    with pytest.raises(ConvMAEError, match="found result.json: divide a file of all photos into one for each split"):
        read_coco_split(tmp_path, "train")


def test_a_split_that_is_not_there_names_what_is(tmp_path: Path) -> None:
    root = make_coco_folder(tmp_path)
    annotation_file(root, "val").rename(root / "annotations" / "instances_default.json")
    with pytest.raises(ConvMAEError, match=r"must hold annotations/instances_val.json .*instances_default.json"):
        read_coco_split(root, "val")


def test_a_name_of_many_folders_is_looked_for_by_its_end(tmp_path: Path) -> None:
    root = make_coco_folder(tmp_path)
    edit_annotations(root, "train", lambda content: content["images"][-1].update(file_name="a/" * 50_000 + "10.png"))
    assert read_coco_split(root, "train").photos[0].path == root / "images" / "train" / "10.png"


def vgg() -> dict[str, Any]:
    """One polygon without a list around it, and a point, which has no box."""
    return {
        "categories": [{"id": 1, "name": "cat"}],
        "images": [{"id": 1, "file_name": "1.png"} | SIZE],
        "annotations": [thing(segmentation=OUTLINE), thing(id=2, bbox=[], area=[], segmentation=[])],
    }


def test_a_polygon_by_itself_is_one_and_a_point_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, "annotations/instances_train.json", vgg(), "images/train/1.png")
    split = read_coco_split(tmp_path, "train")
    assert [item.segmentation for item in split.objects[0]] == [[OUTLINE]]
    assert passed_over(split) == {"objects whose box is empty or outside of the photo": ["annotation 2"]}


@pytest.mark.parametrize("changes", [{"bbox": None}, {"bbox": []}])
def test_an_object_without_a_box_has_that_of_its_mask(tmp_path: Path, changes: dict[str, Any]) -> None:
    content = vgg() | {"annotations": [thing(segmentation=[OUTLINE]) | changes]}
    write(tmp_path, "annotations/instances_train.json", content, "images/train/1.png")
    split = read_coco_split(tmp_path, "train")
    assert split.objects[0][0].box == (8, 8, 24, 20) and split.findings.doubts == {}
    assert split.ground_truth()["annotations"][0]["bbox"] == [8, 8, 16, 12]


def test_a_byte_order_mark_before_annotations_is_no_part_of_them(tmp_path: Path) -> None:
    write(tmp_path, "annotations/instances_train.json", vgg(), "images/train/1.png")
    file = tmp_path / "annotations/instances_train.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(read_coco_split(tmp_path, "train").photos) == 1


@pytest.mark.parametrize(
    ("file", "photo"),
    [
        ("annotations/train.json", "images/train/1.png"),
        ("annotations/train.json", "images/1.png"),
        ("annotations/train.json", "train/1.png"),
        ("annotations/instances_train.json", "train/1.png"),
        ("annotations/instances_train2014.json", "train2014/1.png"),
    ],
)
def test_other_places_of_the_same_files(tmp_path: Path, file: str, photo: str) -> None:
    write(tmp_path, file, vgg(), photo)
    assert read_coco_split(tmp_path, "train").photos[0].path == tmp_path / photo


@pytest.mark.parametrize(
    ("name", "photo"),
    [
        ("1.PNG", "1.png"),
        ("caf\u00e9.png", "cafe\u0301.png"),
        ("cafe\u0301.png", "caf\u00e9.png"),
        ("my%20photo.png", "my photo.png"),
        ("https://bucket/set/my%20photo.png?X-Signature=a/b.png", "my photo.png"),
        ("/data/local-files/?d=set/my%20photo.png", "my photo.png"),
    ],
)
def test_a_name_as_another_system_or_a_url_spells_it(tmp_path: Path, name: str, photo: str) -> None:
    content = vgg()
    content["images"][0]["file_name"] = name
    write(tmp_path, "annotations/instances_train.json", content, f"images/train/{photo}")
    assert read_coco_split(tmp_path, "train").photos[0].path == tmp_path / "images" / "train" / photo


@pytest.mark.parametrize("name", ["1.png", "./1.png"])
def test_a_photo_under_two_ids_has_the_objects_of_both(tmp_path: Path, name: str) -> None:
    content = vgg()
    content["images"].append({"id": 7, "file_name": name} | SIZE)
    right = [value + 30 * (place % 2 == 0) for place, value in enumerate(OUTLINE)]
    content["annotations"] = [
        thing(segmentation=[OUTLINE]),
        thing(id=2, image_id=7, bbox=[38, 8, 16, 12], segmentation=[right]),
        thing(id=3, image_id=7, segmentation=[OUTLINE]),
    ]
    write(tmp_path, "annotations/instances_train.json", content, "images/train/1.png")
    split = read_coco_split(tmp_path, "train")
    assert [photo.id for photo in split.photos] == [1] and len(split.objects[0]) == 3
    assert len(split.ground_truth()["annotations"]) == 3
    assert {kind: finding.examples for kind, finding in split.findings.doubts.items()} == {
        "photos of instances_train.json under a second id, whose objects are put together": [name],
        "annotations of instances_train.json with the photo, class and box of another one": ["annotation 3"],
    }
    content["images"][1]["width"] = 32
    write(tmp_path, "annotations/instances_train.json", content)
    with pytest.raises(ConvMAEError, match="1.png' as image 1 of 64 x 48 pixels and as image 7 of 32 x 48"):
        read_coco_split(tmp_path, "train")


def test_shares_of_the_photo_in_the_place_of_pixels_look_wrong(tmp_path: Path) -> None:
    shares = [0.1, 0.1, 0.4, 0.1, 0.4, 0.4, 0.1, 0.4]
    content = vgg() | {"annotations": [thing(bbox=[0.1, 0.1, 0.3, 0.3], segmentation=[shares])]}
    write(tmp_path, "annotations/instances_train.json", content, "images/train/1.png")
    doubts = read_coco_split(tmp_path, "train").findings.doubts
    assert list(doubts) == ["objects smaller than a pixel (their numbers must be pixels, not shares)"]


def test_two_categories_of_one_name_look_wrong(tmp_path: Path) -> None:
    content = vgg() | {"categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}]}
    write(tmp_path, "annotations/instances_train.json", content, "images/train/1.png")
    doubts = read_coco_split(tmp_path, "train").findings.doubts
    assert doubts["categories of instances_train.json of one name, which are classes of their own"].examples == ["cat"]
