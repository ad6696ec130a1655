"""Labelled photo folders."""

import json
import shutil
from pathlib import Path

import pytest

from convmae_deploy.data.findings import Findings
from convmae_deploy.data.photo_folder import PhotoFolder, find_training_photos, read_photo_folder, read_photo_splits
from convmae_deploy.errors import ConvMAEError
from tests.photo_folders import make_photo_folder

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"  # one word, as Linux and Windows write it and as macOS does


def test_classes_are_folder_names_in_order(tmp_path: Path) -> None:
    folder = read_photo_folder(make_photo_folder(tmp_path, classes=("red", "blue"), per_class=2), "train")
    assert folder.classes == ("blue", "red")
    assert folder.labels == (0, 0, 1, 1)
    assert [photo.parent.name for photo in folder.photos] == ["blue", "blue", "red", "red"]


def test_class_names_come_unchanged_from_classes_json(tmp_path: Path) -> None:
    make_photo_folder(tmp_path, classes=("n01", "n02"), per_class=1)
    (tmp_path / "classes.json").write_text(json.dumps({"n02": "B ü_b", "n01": "A a", "n03": "unused"}))
    assert read_photo_folder(tmp_path, "val").classes == ("A a", "B ü_b")


def test_a_class_that_classes_json_leaves_out_is_named(tmp_path: Path) -> None:
    make_photo_folder(tmp_path, classes=("n01", "n02"), per_class=1)
    (tmp_path / "classes.json").write_text(json.dumps({"n01": "A"}))
    with pytest.raises(ConvMAEError, match="n02 is missing"):
        read_photo_folder(tmp_path, "train")


@pytest.mark.parametrize("content", ["[1, 2]", "{", '{"a": 3}'])
def test_a_classes_json_of_another_form_is_refused(tmp_path: Path, content: str) -> None:
    make_photo_folder(tmp_path, per_class=1)
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(ConvMAEError, match="classes.json"):
        read_photo_folder(tmp_path, "train")


def test_a_folder_without_photos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConvMAEError, match="must hold photos as train/<class>/"):
        read_photo_folder(tmp_path, "train")
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(ConvMAEError, match="found none"):
        read_photo_folder(tmp_path, "train")


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    make_photo_folder(tmp_path, per_class=1)
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "blue" / "._0.png").write_bytes(b"")
    folder = read_photo_folder(tmp_path, "train")
    assert folder.classes == ("blue", "red") and len(folder.photos) == 2


def names(root: Path) -> list[str]:
    return [photo.relative_to(root).as_posix() for photo in find_training_photos(root)]


def put_photos(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")


def test_photos_without_labels_lie_flat_or_by_class(tmp_path: Path) -> None:
    put_photos(tmp_path, "b.jpg", "a.png", "cats/1.webp", "cats/deep/2.JPEG", "notes.txt")
    assert names(tmp_path) == ["a.png", "b.jpg", "cats/1.webp", "cats/deep/2.JPEG"]


def test_pretraining_on_a_folder_for_finetuning_never_touches_val(tmp_path: Path) -> None:
    put_photos(tmp_path, "train/b/0.png", "train/a/0.png", "val/a/0.png", "cover.png")
    assert names(tmp_path) == ["train/a/0.png", "train/b/0.png"]


def test_photos_in_hidden_folders_are_no_training_photos(tmp_path: Path) -> None:
    put_photos(tmp_path / ".data", "a/0.png", ".cache/1.png", "a/.thumbnails/2.png", "._3.png")
    assert names(tmp_path / ".data") == ["a/0.png"]  # the folder itself may be hidden
    with pytest.raises(ConvMAEError, match="in hidden folders only"):
        find_training_photos(tmp_path)


def test_no_photos_to_train_on_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConvMAEError, match="expected a folder of photos, found none at"):
        find_training_photos(tmp_path / "missing")
    with pytest.raises(ConvMAEError, match="found none; check the path"):
        find_training_photos(tmp_path)


def test_class_folders_may_be_links_for_labels_and_for_pretraining_alike(tmp_path: Path) -> None:
    make_photo_folder(tmp_path / "elsewhere", classes=("red", "blue"), per_class=3)
    (tmp_path / "root" / "train").mkdir(parents=True)
    for name in ("red", "blue"):
        (tmp_path / "root" / "train" / name).symlink_to(tmp_path / "elsewhere" / "train" / name)
    assert len(read_photo_folder(tmp_path / "root", "train").photos) == 6
    assert len(find_training_photos(tmp_path / "root")) == 6


@pytest.mark.parametrize("name", ["a\x1b]0;title\x07", "a\nb", "\udcff"])
def test_a_class_folder_whose_name_is_no_line_of_text_is_refused(tmp_path: Path, name: str) -> None:
    make_photo_folder(tmp_path, classes=("red", name), per_class=1)
    with pytest.raises(ConvMAEError, match="the name of a class must be text of 1 to 1000 characters") as caught:
        read_photo_folder(tmp_path, "train")
    assert str(caught.value).isprintable()
    (tmp_path / "classes.json").write_text(json.dumps({"red": "Red", name: "Other"}))
    assert set(read_photo_folder(tmp_path, "train").classes) == {"Red", "Other"}


def test_a_classes_json_that_never_ends_inwards_is_refused(tmp_path: Path) -> None:
    make_photo_folder(tmp_path, per_class=1)
    (tmp_path / "classes.json").write_text("[" * 100_000)
    with pytest.raises(ConvMAEError, match="nested too deeply"):
        read_photo_folder(tmp_path, "train")


def left_out(findings: Findings) -> dict[str, list[str]]:
    """All that is told, by its kind."""
    return {kind: finding.examples for kind, finding in (findings.doubts | findings.passed_over).items()}


def told(folder: PhotoFolder) -> dict[str, list[str]]:
    return left_out(folder.findings)


def test_whatever_is_not_taken_is_counted_by_its_kind(tmp_path: Path) -> None:
    make_photo_folder(tmp_path, per_class=2)
    put_photos(tmp_path / "train", "blue/a.HEIC", "blue/deep/b.heic", "red/.hidden/c.png", "red/README", "loose.png")
    put_photos(
        tmp_path, "train.tar", "ILSVRC2012_img_val.tar", "labels.csv", "test/a/0.png", ".DS_Store", "classes.json"
    )
    (tmp_path / "classes.json").write_text("{}")
    (tmp_path / "train" / "green").symlink_to(tmp_path / "gone")
    (tmp_path / "train" / "blue" / "x.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "train" / "empty").mkdir()
    put_photos(tmp_path / "train", ".ipynb_checkpoints/d.png", "blue/deep/e.png")
    train, val = read_photo_splits(tmp_path)
    assert (len(train.photos), len(val.photos)) == (5, 4) and train.classes == ("blue", "red")
    assert told(train) == {
        "links that lead nowhere": ["train/blue/x.png", "train/green"],
        "files that end in .heic (convert them to JPEG or PNG)": ["train/blue/a.HEIC", "train/blue/deep/b.heic"],
        "class folders without photos": ["train/empty"],
        "class folders with folders inside, whose files are of the one class": ["train/blue"],
        "hidden folders beside the class folders": ["train/.ipynb_checkpoints"],
        "hidden files": ["train/red/.hidden/c.png"],
        "files without an ending": ["train/red/README"],
        "photos in no class folder": ["train/loose.png"],
        "archives, which are not looked into": ["ILSVRC2012_img_val.tar", "train.tar"],
        "files that end in .csv": ["labels.csv"],
        "folders beside those that are read": ["test"],
    }
    assert told(val) == {}


def test_a_class_may_lack_validation_photos_and_is_named(tmp_path: Path) -> None:
    make_photo_folder(tmp_path, classes=("a", "b", "c"), per_class=2)
    shutil.rmtree(tmp_path / "val" / "b")
    for photo in (tmp_path / "val" / "c").iterdir():
        photo.unlink()
    train, val = read_photo_splits(tmp_path)
    assert train.classes == val.classes == ("a", "b", "c") and val.labels == (0, 0)
    assert told(val)["classes without photos to validate on"] == ["b", "c"]


def test_a_class_of_validation_alone_is_refused(tmp_path: Path) -> None:
    make_photo_folder(tmp_path, classes=("a", "b"), per_class=1)
    shutil.rmtree(tmp_path / "train" / "a")
    with pytest.raises(ConvMAEError, match="val has photos of 'a', of which there are none to train on"):
        read_photo_splits(tmp_path)


@pytest.mark.parametrize("name", ["valid", "validation", "Val"])
def test_validation_is_found_by_what_tools_call_it(tmp_path: Path, name: str) -> None:
    make_photo_folder(tmp_path, per_class=1)
    (tmp_path / "val").rename(tmp_path / name)
    train, val = read_photo_splits(tmp_path)
    assert len(val.photos) == 2 and told(train) == {}
    assert len(read_photo_folder(tmp_path, "val").photos) == 2


@pytest.mark.parametrize("of_train", [COMPOSED, DECOMPOSED])
def test_a_class_is_the_same_however_its_letters_are_written(tmp_path: Path, of_train: str) -> None:
    make_photo_folder(tmp_path, classes=("b", "c"), per_class=1)
    (tmp_path / "train" / "c").rename(tmp_path / "train" / of_train)
    (tmp_path / "val" / "c").rename(tmp_path / "val" / COMPOSED)
    train, val = read_photo_splits(tmp_path)
    assert train.classes == val.classes == ("b", COMPOSED) and val.labels == (0, 1)
    (tmp_path / "classes.json").write_text(json.dumps({"b": "B", DECOMPOSED: "C"}))
    assert read_photo_splits(tmp_path)[0].classes == ("B", "C")


def test_class_folders_in_a_second_folder_of_the_splits_name_are_refused(tmp_path: Path) -> None:
    make_photo_folder(tmp_path / "train", per_class=1)
    shutil.rmtree(tmp_path / "train" / "val")
    with pytest.raises(
        ConvMAEError, match="must hold class folders; found .*train/train: move what is in it one folder"
    ):
        read_photo_folder(tmp_path, "train")


def test_what_a_run_wrote_among_the_photos_is_none_of_them(tmp_path: Path) -> None:
    make_photo_folder(tmp_path, classes=("a", "b"), per_class=1)
    run = tmp_path / "train" / "run"
    shutil.copytree(tmp_path / "train" / "a", run / "pictures")
    (run / "run.json").write_text("{}")
    kind = "files of training runs, whose folders lie among the data"
    train, _ = read_photo_splits(tmp_path)
    assert train.classes == ("a", "b") and train.findings.passed_over[kind].count == 2
    findings = Findings()
    assert len(find_training_photos(tmp_path, findings)) == 2 and findings.passed_over[kind].count == 2
    assert len(find_training_photos(run / "pictures")) == 1


def test_of_two_folders_for_validation_the_one_that_is_not_read_is_told(tmp_path: Path) -> None:
    make_photo_folder(tmp_path, per_class=1)
    shutil.copytree(tmp_path / "val", tmp_path / "valid")
    train, _ = read_photo_splits(tmp_path)
    assert left_out(train.findings) == {"folders beside those that are read": ["valid"]}


def test_folders_without_train_say_what_is_there(tmp_path: Path) -> None:
    put_photos(tmp_path, "cats/0.jpg", "dogs/0.jpg")
    with pytest.raises(ConvMAEError, match=r"found no folder .*train \(folders beside those .*: 2, the first cats\)"):
        read_photo_folder(tmp_path, "train")
    with pytest.raises(ConvMAEError, match=r"found no folder .*nowhere$"):
        read_photo_folder(tmp_path / "nowhere", "train")


def test_a_folder_without_what_is_expected_says_what_it_holds(tmp_path: Path) -> None:
    put_photos(tmp_path, "train/a/0.heic", "train/a/1.heic")
    with pytest.raises(
        ConvMAEError,
        match=r"found none \(.*files that end in .heic \(convert them to JPEG or PNG\): 2, the first train/a/0.heic\)",
    ):
        read_photo_folder(tmp_path, "train")
    with pytest.raises(
        ConvMAEError,
        match=r"found none \(files that end in .heic \(convert them to JPEG or PNG\): 2, the first train/a/0.heic\)",
    ):
        find_training_photos(tmp_path)


def test_what_pretraining_leaves_out_is_counted(tmp_path: Path) -> None:
    make_photo_folder(tmp_path, per_class=1)
    put_photos(tmp_path, "train/blue/a.heic", "cover.png")
    findings = Findings()
    assert len(find_training_photos(tmp_path, findings)) == 2
    assert left_out(findings) == {
        "files that end in .heic (convert them to JPEG or PNG)": ["train/blue/a.heic"],
        "files that end in .png": ["cover.png"],
        "folders beside those that are read": ["val"],
    }
