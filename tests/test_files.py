import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import (
    atomic_directory,
    atomic_file,
    check_can_create,
    check_is_new,
    existing_directory,
    numbered_errors,
    path_inside,
    read_json,
    read_regular,
    sha256_of,
)

ROOT = Path(__file__).parents[1]


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


def crash_between_the_renames(path: Path, *, new: str) -> None:
    """Replaces the folder in a process that ends, as a killed one does, before the new folder is in its place."""
    code = (
        "import os\n"
        "from pathlib import Path\n"
        "from convmae_deploy.files import atomic_directory\n"
        f"path, rename = Path({str(path)!r}), os.replace\n"
        "os.replace = lambda source, target: os._exit(9) if target == path else rename(source, target)\n"
        "with atomic_directory(path, replace=True) as temporary:\n"
        f"    (temporary / {new!r}).touch()\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 9


def test_after_a_crash_between_the_renames_the_previous_folder_is_found(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with atomic_directory(path) as temporary:
        (temporary / "old").touch()
    crash_between_the_renames(path, new="new")
    survivor = existing_directory(path)
    assert survivor is not None and names(survivor) == ["old"]
    with atomic_directory(path, replace=True) as temporary:
        (temporary / "newer").touch()
    assert existing_directory(path) == path and names(path) == ["newer"] and names(tmp_path) == ["folder"]


def test_a_rename_that_fails_brings_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder"
    with atomic_directory(path) as temporary:
        (temporary / "old").touch()
    rename = os.replace

    def fail_to_place_the_new_one(source: Path, target: Path) -> None:
        if target == path and source.name == path.name:
            raise OSError
        rename(source, target)

    monkeypatch.setattr(os, "replace", fail_to_place_the_new_one)
    with pytest.raises(OSError), atomic_directory(path, replace=True) as temporary:
        (temporary / "new").touch()
    assert names(path) == ["old"] and names(tmp_path) == ["folder"]


KILLED = """
import os, sys
from pathlib import Path
from convmae_deploy import files
with getattr(files, sys.argv[1])(Path(sys.argv[2])) as temporary:
    (temporary / "half" if temporary.is_dir() else temporary).write_text("half")
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("kind", ["atomic_directory", "atomic_file"])
def test_what_a_killed_process_left_goes_with_the_next_and_what_a_live_one_writes_stays(
    tmp_path: Path, kind: str
) -> None:
    path, write = tmp_path / "out", {"atomic_directory": atomic_directory, "atomic_file": atomic_file}[kind]
    for name in ("out", "other"):
        subprocess.run([sys.executable, "-c", KILLED, kind, str(tmp_path / name)], cwd=ROOT)
    assert len(names(tmp_path)) == 2
    with write(path) as slow:
        (left,) = (name for name in names(tmp_path) if name.startswith(".other."))
        assert len(names(tmp_path)) == 2 and slow.exists()
        with write(path):
            assert slow.exists()
        if kind == "atomic_directory":  # two that write one output are no use to each other, and harm none
            shutil.rmtree(path)
    assert names(tmp_path) == [left, "out"], "another output's is not looked at"


def plant(tmp_path: Path, kind: str) -> None:
    """What somebody else who may write beside `folder` could put there for it to be taken for a survivor."""
    working, elsewhere = tmp_path / ".folder.0123abcd.tmp", tmp_path / "elsewhere"
    (elsewhere / "previous").mkdir(parents=True, mode=0o700)
    (elsewhere / "previous" / "evil").touch()
    elsewhere.chmod(0o700)
    if kind == "the name of old":
        elsewhere.rename(tmp_path / ".folder.previous")
    elif kind == "a link":
        working.symlink_to(elsewhere)
    else:
        elsewhere.rename(working)
        if kind == "a folder that others may enter":
            working.chmod(0o777)


@pytest.mark.parametrize("kind", ["the name of old", "a link", "a folder that others may enter", "another's folder"])
def test_a_planted_folder_is_neither_found_nor_removed_nor_in_the_way(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path, kind)
    if kind == "another's folder":
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    planted = names(tmp_path)
    path = tmp_path / "folder"
    assert existing_directory(path) is None
    for name in ("one", "two"):
        with atomic_directory(path, replace=True) as temporary:
            (temporary / name).touch()
    assert names(path) == ["two"] and names(tmp_path) == sorted([*planted, "folder"])


def test_what_is_being_written_is_closed_to_others_and_open_once_it_is_there(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "folder") as temporary:
        assert temporary.parent.stat().st_mode & 0o077 == 0
        usual = tmp_path / "usual"
        usual.mkdir()
    assert (tmp_path / "folder").stat().st_mode == usual.stat().st_mode


def test_a_folder_that_never_was_is_not_found(tmp_path: Path) -> None:
    assert existing_directory(tmp_path / "folder") is None


def test_the_digest_is_that_of_the_content(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("name", ["a.png", "deep/a.png", "./a.png", "a..png", "C++.png", "\u732b.png", "bb:c/d"])
def test_a_name_inside_its_folder_is_a_path(name: str) -> None:
    assert path_inside(Path("root"), name) == Path("root") / name


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "../a", "a/../../b", "..", "\\a", "..\\a", "a\\..\\b", "C:\\a", "c:a", "\\\\host\\share\\a"]
    + ["//host/share/a", "a\0b", "a\nb", "a\x1b[31mb", "a\x9b31mb"],
)
def test_a_name_that_leads_elsewhere_is_refused_and_escaped(name: str) -> None:
    with pytest.raises(ConvMAEError, match="must be named by its path inside root") as caught:
        path_inside(Path("root"), name)
    assert str(caught.value).isprintable()


def test_a_long_name_is_cut_in_a_sentence() -> None:
    with pytest.raises(ConvMAEError, match=r"a' \.\.\. \(1000001 characters\)$") as caught:
        path_inside(Path("root"), "/" + "a" * 1_000_000)
    assert len(str(caught.value)) < 300


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_regular(path, 5) == b"12345"
    with pytest.raises(OSError, match="it has 5 bytes, at most 4 are read"):
        read_regular(path, 4)
    with path.open("wb") as file:
        file.truncate(1 << 32)  # no byte of it on the disk
    with pytest.raises(OSError, match="at most 1000 are read"):
        read_regular(path, 1000)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "zero byte", "surrogate", "too long"])
def test_what_is_no_regular_file_is_an_error_and_never_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path = tmp_path / {"zero byte": "a\0b", "surrogate": "a\ud800b", "too long": "a" * 5000}[kind]
    with pytest.raises(OSError, match="not a file|cannot be one of a file|too long"):
        read_regular(path, 1000)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "is not valid JSON"),
        (b"[NaN]", "NaN is no number"),
        (b"[" * 100_000, "is not valid JSON .it is nested too deeply"),
        (b"1" * 10_000, "is not valid JSON"),
        (b"\xff\xfe", "must be text in UTF-8; byte 0 is not"),
        (b" " * 2000, "has 2000 bytes, at most 1000 are read"),
    ],
)
def test_json_that_is_none_is_one_sentence(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(ConvMAEError, match=words):
        read_json(path, limit=1000 if content.isspace() else 1_000_000)


def test_json_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text('\ufeff{"a": 1}', encoding="utf-8")
    assert read_json(tmp_path / "file.json") == {"a": 1}


@pytest.mark.parametrize("address", ["s3://bucket/folder", "gs://bucket/a.npz", "hf+x://models/a/b"])
def test_an_address_is_not_taken_for_a_path(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for check in (check_can_create, check_is_new):
        with pytest.raises(ConvMAEError, match=f"path on this machine to write to, got {re.escape(address)}"):
            check(Path(address))
    for write in (atomic_file, atomic_directory):
        with pytest.raises(ConvMAEError, match="path on this machine"), write(Path(address)):
            pass
    assert not list(tmp_path.iterdir())


def test_what_safetensors_says_of_a_disk_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error, numbered_errors(tmp_path / "model.safetensors"):
        save_file({"a": np.zeros(3)}, tmp_path / "gone" / "model.safetensors")
    assert error.value.filename == str(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="of another kind"), numbered_errors(tmp_path):
        raise ValueError("of another kind")


def test_a_tilde_that_the_shell_left_makes_no_folder_of_that_name() -> None:
    with pytest.raises(ConvMAEError, match="whose ~ the shell did not replace; write it out"):
        check_can_create(Path("~/runs/mine"))
