"""Labelled videos, in folders and in lists."""

import json
import re
from pathlib import Path

import pytest

from convmae_deploy.data.findings import Findings
from convmae_deploy.data.video_folder import (
    find_training_videos,
    read_video_folder,
    read_video_list,
    read_video_splits,
)
from convmae_deploy.errors import ConvMAEError
from tests.video_packs import MOTION8, needs_motion8


def make_files(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")  # nothing is decoded here
    return root


def make_list(root: Path, text: str, name: str = "train.csv") -> Path:
    make_files(root, "clips/a.mp4", "clips/b c.webm", "clips/d.avi")
    (root / name).write_text(text, encoding="utf-8")
    return root / name


def test_class_folders_are_read_as_for_photos(tmp_path: Path) -> None:
    make_files(tmp_path, "train/up/1.mp4", "train/up/2.WEBM", "train/down/3.mkv", "train/down/notes.txt")
    folder = read_video_folder(tmp_path, "train")
    assert folder.classes == ("down", "up") and folder.labels == (0, 1, 1)
    assert [video.name for video in folder.videos] == ["3.mkv", "1.mp4", "2.WEBM"]
    (tmp_path / "classes.json").write_text(json.dumps({"up": "Going up", "down": "Going down"}))
    assert read_video_folder(tmp_path, "train").classes == ("Going down", "Going up")


@pytest.mark.parametrize(
    "text",
    [
        "clips/a.mp4,2\nclips/b c.webm,0\n\nclips/d.avi,2\n",
        "clips/a.mp4 2\nclips/b c.webm 0\nclips/d.avi\t2\n",
        '"clips/a.mp4", 2\n"clips/b c.webm", 0\n"clips/d.avi", 2\n',
    ],
)
def test_a_list_of_paths_and_class_indices(tmp_path: Path, text: str) -> None:
    found = read_video_list(make_list(tmp_path, text))
    assert found.labels == (2, 0, 2) and found.classes == ("0", "1", "2")
    assert found.videos == tuple(tmp_path / "clips" / name for name in ("a.mp4", "b c.webm", "d.avi"))


def test_a_list_of_paths_and_class_names(tmp_path: Path) -> None:
    text = "clips/a.mp4,riding a bike\nclips/d.avi,abseiling\n"
    found = read_video_list(make_list(tmp_path, text))
    assert found.classes == ("abseiling", "riding a bike") and found.labels == (1, 0)


def test_classes_json_names_the_labels_of_a_list(tmp_path: Path) -> None:
    file = make_list(tmp_path, "clips/a.mp4 1\nclips/d.avi 0\n", "train.txt")
    (tmp_path / "classes.json").write_text(json.dumps({"0": "up", "1": "down"}))
    assert read_video_folder(tmp_path, "train").classes == ("up", "down")
    file.write_text("clips/a.mp4 x\nclips/d.avi y\n")
    (tmp_path / "classes.json").write_text(json.dumps({"x": "up", "y": "down"}))
    assert read_video_folder(tmp_path, "train").classes == ("up", "down")
    assert read_video_folder(tmp_path, "train", classes=("down", "up")).labels == (1, 0)


@pytest.mark.slow
def test_paths_are_relative_to_the_list_s_folder(tmp_path: Path) -> None:
    file = make_list(tmp_path, "a.mp4 0\n")
    with pytest.raises(ConvMAEError, match=r"names 'a\.mp4', which is not in"):
        read_video_list(file)


def test_the_validation_list_may_lack_classes_but_not_add_any(tmp_path: Path) -> None:
    make_list(tmp_path, "clips/a.mp4 0\nclips/d.avi 2\n")
    make_list(tmp_path, "clips/d.avi 1\n", "val.txt")
    train, val = read_video_splits(tmp_path)
    assert train.classes == val.classes == ("0", "1", "2") and val.labels == (1,)
    make_list(tmp_path, "clips/d.avi 3\n", "val.txt")
    with pytest.raises(ConvMAEError, match="label '3', which is none of the 3 classes"):
        read_video_splits(tmp_path)
    make_list(tmp_path, "clips/d.avi up\n", "val.txt")
    with pytest.raises(ConvMAEError, match="label 'up'"):
        read_video_splits(tmp_path)


def test_folders_that_differ_in_their_classes_are_refused(tmp_path: Path) -> None:
    make_files(tmp_path, "train/up/1.mp4", "train/down/3.mkv", "val/up/1.mp4", "val/left/3.mkv")
    with pytest.raises(ConvMAEError, match="videos of 'left', of which there are none to train on"):
        read_video_splits(tmp_path)


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "found none"),
        ("clips/a.mp4,0,7\n", "line 1 has 3 columns"),
        ("clips/a.mp4 0\nclips/d.avi\n", r"that of d\.avi has no label"),
        ("clips/none.mp4 0\n", "which is not in"),
    ],
)
def test_lists_of_another_form_are_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConvMAEError, match=words):
        read_video_list(make_list(tmp_path, text))


def test_a_missing_split_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConvMAEError, match="must hold videos as train/<class>/"):
        read_video_folder(tmp_path, "train")


def test_pretraining_takes_a_list_with_or_without_labels_or_a_folder(tmp_path: Path) -> None:
    file = make_list(tmp_path, "clips/a.mp4\nclips/b c.webm\n", "train.txt")
    wanted = (tmp_path / "clips" / "a.mp4", tmp_path / "clips" / "b c.webm")
    assert find_training_videos(file) == find_training_videos(tmp_path) == wanted
    file.write_text("clips/a.mp4 5\nclips/b c.webm 6\n")
    assert find_training_videos(file) == wanted
    assert len(find_training_videos(tmp_path / "clips")) == 3
    make_files(tmp_path, "train/up/1.mp4")  # a folder goes before a list
    assert find_training_videos(tmp_path) == (tmp_path / "train" / "up" / "1.mp4",)
    with pytest.raises(ConvMAEError, match="expected a folder of videos"):
        find_training_videos(tmp_path / "nowhere")


@needs_motion8
def test_the_motion_pack_is_read() -> None:
    train, val = read_video_splits(MOTION8)
    assert (len(train.videos), len(val.videos), len(train.classes)) == (384, 128, 8)


def test_blank_lines_and_a_byte_order_mark_are_no_part_of_a_list(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"")
    (tmp_path / "train.csv").write_text("\ufeffa.mp4,0\n\na.mp4,1\n", encoding="utf-8")
    assert read_video_folder(tmp_path, "train").labels == (0, 1)
    (tmp_path / "train.csv").write_text("a.mp4,0\n\na.mp4,1,2\n", encoding="utf-8")
    with pytest.raises(ConvMAEError, match="line 3 has 3 columns"):
        read_video_folder(tmp_path, "train")


def test_a_split_that_lacks_a_class_keeps_the_indices_of_the_others(tmp_path: Path) -> None:
    for name in ("b", "c"):
        (tmp_path / "val" / name).mkdir(parents=True)
        (tmp_path / "val" / name / "1.mp4").write_bytes(b"")
    folder = read_video_folder(tmp_path, "val", classes=("a", "b", "c"))
    assert (folder.labels, folder.classes) == ((1, 2), ("a", "b", "c"))
    with pytest.raises(ConvMAEError, match="has the class 'c', which is none of the 2 classes"):
        read_video_folder(tmp_path, "val", classes=("a", "b"))


OUTSIDE = (
    "/etc/passwd",
    "../a.mp4",
    "clips/../../a.mp4",
    "C:\\a.mp4",
    "\\\\host\\share\\a.mp4",
    "//host/share/a.mp4",
    "a\x1b.mp4",
)


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("line", [1, 2])
def test_a_list_that_leads_out_of_its_folder_is_refused_and_the_line_named(
    tmp_path: Path, name: str, line: int
) -> None:
    lines = ["clips/a.mp4,0", f"{name},0"] if line == 2 else [f"{name},0", "clips/a.mp4,0"]
    file = make_list(tmp_path, "\n".join(lines))
    for read in (read_video_list, find_training_videos):
        with pytest.raises(ConvMAEError, match=f"train.csv, line {line}: a file must be named by its path inside"):
            read(file)


@pytest.mark.parametrize(
    "name",
    ["concat:clips/a.mp4|b", "subfile,,start,0:clips/a.mp4", "http://host/a.mp4", "pipe:touch pwned", "file:a.mp4"],
)
def test_what_looks_like_a_url_in_a_list_is_the_name_of_a_file(tmp_path: Path, name: str) -> None:
    file = make_list(tmp_path, f'clips/a.mp4,0\n"{name}",0\n')
    found = read_video_list(file)
    assert [video.name for video in found.videos] == ["a.mp4"]
    assert found.findings.passed_over["videos of train.csv that are not there"].examples == [name.replace("//", "/")]
    file.write_text(f'"{name}",0\n')
    with pytest.raises(ConvMAEError, match="which is not in"):
        read_video_list(file)


def test_a_link_in_the_folder_reaches_videos_that_lie_elsewhere(tmp_path: Path) -> None:
    make_files(tmp_path / "elsewhere", "a.mp4")
    file = make_list(tmp_path / "root", "linked/a.mp4,0\n")
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "elsewhere")
    assert read_video_list(file).videos[0].is_file()


@pytest.mark.parametrize("label", ["100000", "9999999999", "9" * 5000])
def test_a_label_that_would_make_millions_of_classes_is_refused(tmp_path: Path, label: str) -> None:
    with pytest.raises(ConvMAEError, match="the labels of .* must be below 100000; found '"):
        read_video_list(make_list(tmp_path, f"clips/a.mp4,{label}\n"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('clips/a.mp4,"' + "a" * 200_000 + "\n", "cannot be read"),
        ("clips/a.mp4,\x1b[31mred\n", "none of them for control"),
        ("a" * 5000 + ".mp4,0\n", "which is not in"),
    ],
)
def test_lines_that_nobody_writes_are_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConvMAEError, match=words):
        read_video_list(make_list(tmp_path, text))


def test_paths_as_windows_writes_them_are_found(tmp_path: Path) -> None:
    found = read_video_list(make_list(tmp_path, "clips\\a.mp4,0\nclips\\d.avi,1\n"))
    assert found.videos == (tmp_path / "clips" / "a.mp4", tmp_path / "clips" / "d.avi")


def test_videos_of_a_list_that_are_not_there_are_named_and_left_out(tmp_path: Path) -> None:
    file = make_list(tmp_path, "clips/a.mp4 0\nclips/gone.mp4 1\nclips/d.avi 0\n", "train.txt")
    found = read_video_list(file)
    assert [video.name for video in found.videos] == ["a.mp4", "d.avi"]
    assert found.labels == (0, 0) and found.classes == ("0", "1")
    assert found.findings.passed_over["videos of train.txt that are not there"].examples == ["clips/gone.mp4"]
    findings = Findings()
    assert len(find_training_videos(file, findings)) == 2
    assert findings.passed_over["videos of train.txt that are not there"].count == 1


@pytest.mark.parametrize("titles", ["path,label", "Video,Class", "#vid, class", "video_id\tclip"])
def test_a_line_of_titles_is_no_video(tmp_path: Path, titles: str) -> None:
    lines = f"{titles}\nclips/a.mp4,1\nclips/d.avi,0\n"
    found = read_video_list(make_list(tmp_path, lines.replace(",", "\t") if "\t" in titles else lines))
    assert found.labels == (1, 0) and found.classes == ("0", "1")
    assert found.findings.passed_over["lines of train.csv that are titles"].count == 1
    with pytest.raises(ConvMAEError, match="which is not in"):
        read_video_list(make_list(tmp_path, f"{titles}\n"))


@pytest.mark.parametrize("label", ["-1", "1.0", "+2"])
def test_a_number_that_is_no_class_index_is_refused_among_numbers(tmp_path: Path, label: str) -> None:
    with pytest.raises(
        ConvMAEError, match=re.escape(f"must be class indices (0, 1, 2), or else names; found '{label}'")
    ):
        read_video_list(make_list(tmp_path, f"clips/a.mp4,10\nclips/d.avi,{label}\nclips/b c.webm,9\n"))


def test_a_number_among_names_looks_wrong(tmp_path: Path) -> None:
    found = read_video_list(make_list(tmp_path, "clips/a.mp4,run\nclips/d.avi,24\n"))
    assert found.classes == ("24", "run")
    assert found.findings.doubts["labels of train.csv that are numbers among names"].examples == ["24"]


def test_classes_without_videos_to_validate_on_are_named(tmp_path: Path) -> None:
    make_list(tmp_path, "clips/a.mp4 0\nclips/d.avi 2\n")
    make_list(tmp_path, "clips/d.avi 2\n", "validation.txt")
    _, val = read_video_splits(tmp_path)
    assert val.findings.doubts["classes without videos to validate on"].examples == ["0", "1"]


def test_a_class_after_a_tab_may_have_spaces(tmp_path: Path) -> None:
    found = read_video_list(make_list(tmp_path, "clips/a.mp4\tplaying guitar\nclips/b c.webm\trunning\n"))
    assert found.classes == ("playing guitar", "running") and found.labels == (0, 1)


def test_numbers_are_no_labels_where_the_classes_are_names(tmp_path: Path) -> None:
    make_list(tmp_path, "clips/a.mp4,walk\nclips/d.avi,run\n")
    make_list(tmp_path, "clips/d.avi,0\n", "val.csv")
    with pytest.raises(
        ConvMAEError, match="labels of .*val.csv are numbers, and the classes are names, the first 'run'"
    ):
        read_video_splits(tmp_path)
    make_list(tmp_path, "clips/a.mp4,1\nclips/d.avi,0\n")
    (tmp_path / "classes.json").write_text(json.dumps({"0": "run", "1": "walk"}))
    assert read_video_splits(tmp_path)[1].classes == ("run", "walk")


def test_a_video_that_a_list_names_twice_looks_wrong(tmp_path: Path) -> None:
    found = read_video_list(make_list(tmp_path, "clips/a.mp4,0\nclips/d.avi,1\nclips/a.mp4,0\n"))
    assert found.findings.doubts["videos of train.csv that are there more than once"].examples == ["clips/a.mp4"]


def test_a_list_counts_beside_the_folder_of_its_videos_and_not_beside_class_folders(tmp_path: Path) -> None:
    make_files(tmp_path, "train/a.mp4", "train/b.mp4", "val/c.mp4")
    for split, lines in (("train", "train/a.mp4,0\ntrain/b.mp4,1\n"), ("val", "val/c.mp4,1\n")):
        (tmp_path / f"{split}.csv").write_text(lines)
    train, val = read_video_splits(tmp_path)
    assert train.labels == (0, 1) and val.labels == (1,)
    make_files(tmp_path / "classes", "train/up/a.mp4", "train/down/b.mp4", "val/up/c.mp4")
    (tmp_path / "classes" / "train.csv").write_text("train/up/a.mp4,0\n")
    assert read_video_splits(tmp_path / "classes")[0].classes == ("down", "up")
