import hashlib
import os
from pathlib import Path

import pytest

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import atomic_directory, atomic_file, existing_directory, sha256_of


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def test_a_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("new", encoding="utf-8")
        assert not path.exists() and temporary.parent == path.parent
    assert path.read_text(encoding="utf-8") == "new"
    assert names(path.parent) == ["file.txt"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(RuntimeError), atomic_file(path) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise RuntimeError
    assert path.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_folder_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    with atomic_directory(path) as temporary:
        (temporary / "a").touch()
        assert not path.exists()
    assert names(path) == ["a"] and names(path.parent) == ["folder"]


def test_an_existing_folder_is_kept_unless_it_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with atomic_directory(path) as temporary:
        (temporary / "old").touch()
    with pytest.raises(ConvMAEError, match="exists already"), atomic_directory(path):
        pass
    assert names(path) == ["old"]
    with atomic_directory(path, replace=True) as temporary:
        (temporary / "new").touch()
    assert names(path) == ["new"] and names(tmp_path) == ["folder"]


@pytest.mark.parametrize("replace", [False, True])
def test_a_failure_leaves_no_half_folder_and_keeps_the_old_one(tmp_path: Path, replace: bool) -> None:
    path = tmp_path / "folder"
    if replace:
        path.mkdir()
        (path / "old").touch()
    with pytest.raises(RuntimeError), atomic_directory(path, replace=replace) as temporary:
        (temporary / "half").touch()
        raise RuntimeError
    assert (names(path) if replace else names(tmp_path)) == (["old"] if replace else [])
    assert names(tmp_path) == (["folder"] if replace else [])


def test_after_a_crash_between_the_renames_the_previous_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder"
    with atomic_directory(path) as temporary:
        (temporary / "old").touch()
    rename = os.replace

    def crash_at_the_second_rename(source: Path, target: Path) -> None:
        if target == path:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "replace", crash_at_the_second_rename)
    with pytest.raises(KeyboardInterrupt), atomic_directory(path, replace=True) as temporary:
        (temporary / "new").touch()
    monkeypatch.undo()
    survivor = existing_directory(path)
    assert survivor is not None and names(survivor) == ["old"]
    with atomic_directory(path, replace=True) as temporary:
        (temporary / "newer").touch()
    assert existing_directory(path) == path and names(path) == ["newer"]


def test_a_folder_that_never_was_is_not_found(tmp_path: Path) -> None:
    assert existing_directory(tmp_path / "folder") is None


def test_the_digest_is_that_of_the_content(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()
