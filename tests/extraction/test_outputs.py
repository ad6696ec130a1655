import errno
from pathlib import Path
from typing import Any

import pytest

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.extraction.outputs import open_output
from convmae_deploy.extraction.stores import StoreError


def outputs(tmp_path: Path, store: Any) -> dict[str, str]:
    return {"folder": str(tmp_path / "deep" / "out"), "uri": f"file://{tmp_path}/uri", "store": "s3://bucket/deep/out/"}


@pytest.mark.parametrize("kind", ["folder", "uri", "store"])
def test_files_appear_whole_or_not_at_all(tmp_path: Path, store: Any, kind: str) -> None:
    output = open_output(outputs(tmp_path, store)[kind])
    assert output.names() == set()
    with output.writing("a.txt") as path:
        path.write_text("first")
    with pytest.raises(KeyError), output.writing("b.txt") as path:
        path.write_text("half")
        raise KeyError
    with pytest.raises(KeyError), output.writing("a.txt") as path:
        path.write_text("other")
        raise KeyError
    assert output.names() == {"a.txt"}
    assert output.read("a.txt", 100) == b"first"
    with output.opened("a.txt") as file:
        assert file.read() == b"first"
    with pytest.raises(ConvMAEError, match="more than 4 bytes|at most 4 are read"):
        output.read("a.txt", 4)
    with pytest.raises(ConvMAEError, match="cannot be read"):
        output.read("missing.txt", 4)
    for name in ("a.txt", "never there"):
        output.remove(name)
    assert output.names() == set()


def test_what_a_killed_process_left_goes_when_its_file_is_made_again(tmp_path: Path) -> None:
    output = open_output(str(tmp_path))
    left, other = tmp_path / ".a.txt.0123abcd.tmp", tmp_path / ".b.txt.0123abcd.tmp"
    left.touch()
    other.touch()
    assert output.create("c.txt", b"x") and not output.create("c.txt", b"y")
    with output.writing("a.txt") as path:
        path.write_text("x")
    assert sorted(file.name for file in tmp_path.iterdir()) == [other.name, "a.txt", "c.txt"], (
        "others may be being written"
    )


def test_of_two_that_make_the_same_file_both_are_content(tmp_path: Path) -> None:
    output = open_output(str(tmp_path))
    with output.writing("a.txt") as slow:
        slow.write_text("x")
        with output.writing("a.txt") as fast:
            fast.write_text("x")
        assert not slow.exists()
    assert output.names() == {"a.txt"}


@pytest.mark.parametrize("kind", ["folder", "store"])
def test_a_file_is_created_once(tmp_path: Path, store: Any, kind: str) -> None:
    output = open_output(outputs(tmp_path, store)[kind])
    assert [output.create("a.txt", content) for content in (b"first", b"second")] == [True, False]
    assert output.read("a.txt", 10) == b"first" and output.names() == {"a.txt"}
    assert output.exists("a.txt") and not output.exists("b.txt")


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    output = open_output(str(tmp_path / "out"))
    with pytest.raises(
        ConvMAEError, match=r"cannot be written to \(No space left on device; .* GB are free\); make room"
    ):
        with output.writing("a.txt") as path:
            path.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")
    assert output.names() == set()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(ConvMAEError, match="expected a folder to write shards to; .*out is a file"):
        open_output(str(tmp_path / "out"))


def test_a_store_that_takes_nothing_is_one_sentence(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="'s3://nobody/out/a.txt' cannot be reached .*(does not exist|Access Denied)"):
        with open_output("s3://nobody/out").writing("a.txt") as path:
            path.write_text("x")

    def refused(*arguments: Any, **options: Any) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(store, "put_file", refused)
    with pytest.raises(StoreError, match=r"cannot be reached \('Access Denied'\); check the address and your rights"):
        with open_output("s3://bucket/out").writing("a.txt") as path:
            path.write_text("x")
    assert open_output("s3://bucket/out").names() == set()
