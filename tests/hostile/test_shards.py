"""Shards that somebody else made: what is in them, and what they are called, is data."""

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from convmae_deploy.data.shards import find_shards, read_shard
from tests.data.tar_shards import encoded_photo, write_shard
from tests.hostile.bounds import MEGABYTE, Ending, bounded

pytestmark = pytest.mark.slow  # together

BLOCK = tarfile.BLOCKSIZE
HUGE = 1 << 40
NAMES = (
    "pipe:touch pwned #.tar",
    "pipe:touch pwned;.tar",
    "https:.tar",
    "${HOME}.tar",
    "$(touch pwned).tar",
    "`touch pwned`.tar",
    "{0..9999999999}.tar",
    "a::pipe:touch pwned #.tar",
    "--data=x.tar",
    "|touch pwned #.tar",
    "a\x1b]0;title\x07\n.tar",
    "\udcff.tar",
)


class Content(NamedTuple):
    """What reading shards gave."""

    photos: int
    size: int  # bytes of the photos
    problems: list[str]


def read_all(folder: str, data: str) -> Content:
    """All that a training program reads of `--data`, started in that folder; of each photo only its size is kept."""
    os.chdir(folder)
    photos, size, problems = 0, 0, []
    for shard in find_shards(data):
        for headers_only in (True, False):
            for item in read_shard(shard, headers_only=headers_only):
                if isinstance(item, str):
                    problems.append(item)
                else:
                    photos, size = photos + 1, size + len(item)
    return Content(photos // 2, size, problems)


def read_bounded(folder: Path, data: str = ".") -> tuple[Ending, Content]:
    """Reads within bounds, and sees that nothing was started and nothing outside of the folder opened."""
    ending = bounded(read_all, str(folder), data, memory=64 * MEGABYTE, processor_seconds=10)
    assert ending.how == "returned", ending
    assert not ending.started and not ending.connected
    assert ending.opened_outside(folder) == []
    assert all(problem.isprintable() for problem in ending.value.problems)
    return ending, ending.value


def test_the_names_of_files_in_a_folder_run_nothing(tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        write_shard(tmp_path / name, {"0.png": encoded_photo(number)})
    _, content = read_bounded(tmp_path)
    assert (content.photos, content.problems) == (len(NAMES), [])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_a_shell_typed_for_its_user_runs_nothing(tmp_path: Path, name: str) -> None:
    write_shard(tmp_path / name, {"0.png": encoded_photo(0)})
    _, content = read_bounded(tmp_path, name)
    assert (content.photos, content.problems) == (1, [])
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder", "a link to nothing", "a circle of links"])
def test_what_is_no_file_is_a_damaged_shard_and_never_waited_for(tmp_path: Path, kind: str) -> None:
    shard = tmp_path / "0.tar"
    if kind == "a pipe":
        os.mkfifo(shard)
    elif kind == "a folder":
        shard.mkdir()
    else:
        targets = {"a device": Path("/dev/zero"), "a link to nothing": tmp_path / "none", "a circle of links": shard}
        shard.symlink_to(targets[kind])
    _, content = read_bounded(tmp_path)
    assert content.photos == 0 and len(content.problems) == 2


def test_a_shard_that_is_a_hole_takes_no_memory(tmp_path: Path) -> None:
    with (tmp_path / "0.tar").open("wb") as file:
        file.truncate(1 << 33)
    ending, content = read_bounded(tmp_path)
    assert content.photos == 0 and ending.grown < 8 * MEGABYTE


@pytest.mark.parametrize("name", ["/etc/passwd.png", "../../outside.png", "a/../../outside.png", "C:\\outside.png"])
def test_a_member_is_its_bytes_whatever_path_it_names(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write_shard(folder / "0.tar", {name: encoded_photo(7)})
    _, content = read_bounded(folder)
    assert (content.photos, content.size) == (1, len(encoded_photo(7)))
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "0.tar"]


LINKS = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)


def test_a_member_that_is_a_link_or_a_device_is_no_photo(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded_photo(1))
    folder = tmp_path / "folder"
    folder.mkdir()
    with tarfile.open(folder / "0.tar", "w") as archive:
        for number, kind in enumerate(LINKS):
            header = tarfile.TarInfo(f"{number}.png")
            header.type, header.linkname = kind, str(secret)
            archive.addfile(header)
    _, content = read_bounded(folder)
    assert (content.photos, content.problems) == (0, [])


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """One block that says what it likes."""
    block = tarfile.TarInfo(name)
    block.size, block.type = size, kind
    return block.tobuf(tarfile.GNU_FORMAT)


def text_header(records: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """A pax header and its text."""
    return header("PaxHeader", len(records), kind) + records + b"\0" * (-len(records) % BLOCK)


def record(keyword: bytes, value: bytes) -> bytes:
    """A line of a pax header, which begins with its own length."""
    length = len(keyword) + len(value) + 3
    while len(b"%d" % length) + len(keyword) + len(value) + 3 != length:
        length += 1
    return b"%d %s=%s\n" % (length, keyword, value)


def pax_sparse(number: int) -> bytes:
    """A member of no bytes that says it is a photo of 200 MB of holes."""
    size = b"%d" % (200 * MEGABYTE)
    records = record(b"GNU.sparse.size", size) + record(b"GNU.sparse.map", b"0,0")
    return text_header(records) + header(f"{number}.jpg", 0)


def old_sparse(number: int) -> bytes:
    """The same in GNU's older form."""
    block = bytearray(header(f"{number}.jpg", 0, tarfile.GNUTYPE_SPARSE))
    block[386:410] = b"%011o\0" % 0 + b"%011o\0" % 0
    block[483:495] = b"%011o\0" % (200 * MEGABYTE)
    block[148:156] = b"%06o\0 " % (256 + sum(block[:148]) + sum(block[156:]))
    return bytes(block)


PHOTO = header("z.png", len(encoded_photo(1))) + encoded_photo(1).ljust(BLOCK, b"\0")
SHARDS: dict[str, Callable[[], bytes]] = {
    "forty photos of holes": lambda: b"".join(map(pax_sparse, range(40))) + PHOTO,
    "forty photos of holes, older": lambda: b"".join(map(old_sparse, range(40))) + PHOTO,
    "a photo of a terabyte": lambda: header("a.png", HUGE),
    "a photo that says 256 MB": lambda: header("a.png", 256 * MEGABYTE) + b"\1" * BLOCK,
    "a long name of a gigabyte": lambda: header("@LongLink", 1 << 30, tarfile.GNUTYPE_LONGNAME) + b"a" * BLOCK,
    "a long link of a gigabyte": lambda: header("@LongLink", 1 << 30, tarfile.GNUTYPE_LONGLINK) + b"a" * BLOCK,
    "a pax header of a gigabyte": lambda: header("Pax", 1 << 30, tarfile.XHDTYPE) + b"a" * BLOCK,
    "a global pax header of a gigabyte": lambda: header("Pax", 1 << 30, tarfile.XGLTYPE) + b"a" * BLOCK,
    "a size below zero": lambda: header("a.png", -BLOCK),
    "a pax size below zero": lambda: text_header(record(b"size", b"-1536")) + header("a.jpg", 0),
    "a pax size below zero for all": lambda: text_header(record(b"size", b"-512"), tarfile.XGLTYPE) + PHOTO,
    "a pax size beyond numbers": lambda: text_header(record(b"size", b"9" * 5000)) + header("a.jpg", 0),
    "ten thousand pax headers of one member": lambda: text_header(record(b"a", b"b")) * 10_000 + PHOTO,
    "ten thousand long names of one member": lambda: header("L", 0, tarfile.GNUTYPE_LONGNAME) * 10_000 + PHOTO,
    "a pax header of digits": lambda: text_header(b"1" * 10_000) + PHOTO,
    "a sparse map without end": lambda: (
        text_header(record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.minor", b"0"))
        + header("a.jpg", 1 << 20)
        + b"1\n"
        + b"1" * (1 << 20)
    ),
    "a name that drives the terminal": lambda: header("\x1b]0;title\x07\n.png", 1 << 40),
    "photos of no bytes": lambda: b"".join(header(f"{number}.png", 0) for number in range(1000)),
}


@pytest.mark.parametrize("kind", SHARDS)
@pytest.mark.parametrize("ended", [True, False])
def test_a_shard_of_lies_is_read_to_its_end_in_little_memory(tmp_path: Path, kind: str, ended: bool) -> None:
    (tmp_path / "0.tar").write_bytes(SHARDS[kind]() + (b"\0" * 2 * BLOCK if ended else b""))
    _, content = read_bounded(tmp_path)
    assert content.size <= (tmp_path / "0.tar").stat().st_size
    assert content.photos <= 1001 and len(content.problems) <= 90


def test_the_photo_after_a_photo_of_holes_is_read(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(pax_sparse(0) + old_sparse(1) + PHOTO + b"\0" * 2 * BLOCK)
    _, content = read_bounded(tmp_path)
    assert content.size == len(encoded_photo(1))
    assert [problem for problem in content.problems if "is stored with holes, as no photo is" in problem]


def test_an_archive_in_an_archive_is_no_photo_and_not_unpacked(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("0.png"))
    write_shard(tmp_path / "0.tar", {"a.tar.gz": inner.getvalue(), "b.tgz": inner.getvalue()})
    _, content = read_bounded(tmp_path)
    assert (content.photos, content.problems) == (0, [])
