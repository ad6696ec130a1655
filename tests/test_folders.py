"""Files in folders: which are taken, and what is said of the others."""

import os
from pathlib import Path

import pytest

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.folders import PassedOver, find_files

SUFFIXES = frozenset((".png",))


def test_links_to_folders_are_followed_once_and_a_circle_ends(tmp_path: Path) -> None:
    for name in ("root/own/a.png", "elsewhere/class/b.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    root = tmp_path / "root"
    (root / "class").symlink_to(tmp_path / "elsewhere" / "class")
    (root / "again").symlink_to(root / "own")
    (root / "own" / "up").symlink_to(root)
    assert find_files([root], SUFFIXES, "photos") == [root / "class" / "b.png", root / "own" / "a.png"]
    assert find_files([root / "own"], SUFFIXES, "photos") == [root / "own" / "a.png"]


def test_only_regular_files_are_taken_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "none")
    assert find_files([tmp_path], SUFFIXES, "photos") == [tmp_path / "a.png"]


def test_what_else_lies_in_a_folder_is_counted_on_standard_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "b.heic", "deep/c.heic", "deep/.d.png", ".thumbs/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "none")
    assert find_files([tmp_path, Path("any.name")], SUFFIXES, "photos") == [tmp_path / "a.png", Path("any.name")]
    kinds = f"2 hidden (first: {tmp_path}/.thumbs/e.png), 2 .heic (first: {tmp_path}/b.heic)"
    assert capsys.readouterr().err == (
        f"passed over: {kinds}, 1 link to nothing, pipe or device (first: {tmp_path}/nowhere.png)\n"
    )
    with pytest.raises(
        ConvMAEError, match=r"expected videos \(.mp4\) in the folder .*, found none; passed over 2 hidden"
    ):
        find_files([tmp_path], frozenset((".mp4",)), "videos")


def test_what_is_passed_over_is_counted_by_kind_with_a_first_name() -> None:
    passed, other = PassedOver(), PassedOver()
    for name in ("a/x.heic", "b.HEIC", "README", ".hidden"):
        passed.add(name)
    other.add("c.heic")
    passed.merge([other])
    assert str(passed) == "3 .heic (first: a/x.heic), 1 no suffix (first: README), 1 hidden (first: .hidden)"
    for index in range(100):
        passed.add(f"x.kind{index}")
    assert str(passed).endswith("other (first: x.kind17)") and "83 other" in str(passed)
