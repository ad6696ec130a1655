"""Tar shards: which there are, what is in them, and what is wrong with them."""

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from convmae_deploy.data.findings import Findings
from convmae_deploy.data.shards import Shard, Shards, ShardUrl, find_shards, read_shard
from convmae_deploy.errors import ConvMAEError
from tests.data.tar_shards import encoded_photo, make_shards, write_shard

QUIET = Console(quiet=True)


def problems(shard: Shard) -> list[str]:
    return [item for item in read_shard(shard) if isinstance(item, str)]


def piped(command: str) -> ShardUrl:
    (shard,) = find_shards(f"pipe:{command}")
    assert isinstance(shard, ShardUrl)
    return shard


def test_a_folder_gives_its_tar_files_in_order(tmp_path: Path) -> None:
    make_shards(tmp_path, [1, 1, 1])
    (tmp_path / "._000.tar").write_bytes(b"")
    (tmp_path / "index.json").write_bytes(b"{}")
    assert find_shards(str(tmp_path)) == tuple(tmp_path / name for name in ("000.tar", "001.tar", "002.tar"))


def test_a_pattern_is_expanded_whether_or_not_its_shards_exist(tmp_path: Path) -> None:
    pattern = f"{tmp_path}/imagenet-{{000009..000011}}.tar"
    assert find_shards(pattern) == tuple(tmp_path / f"imagenet-0000{number}.tar" for number in ("09", "10", "11"))
    assert find_shards("https://host/{b,a}.tar") == (ShardUrl("https://host/a.tar"), ShardUrl("https://host/b.tar"))


def names_in(root: Path, findings: Findings | None = None) -> list[str]:
    return [shard.name for shard in find_shards(str(root), findings) if isinstance(shard, Path)]


@pytest.mark.parametrize("photo", ["train/n01/0.png", "n01/0.png", "deep/n01/0.PNG"])
def test_folders_of_photos_win_over_the_archives_that_they_were_unpacked_from(tmp_path: Path, photo: str) -> None:
    for name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"):
        write_shard(tmp_path / name, {"0.png": encoded_photo(0)})
    (tmp_path / photo).parent.mkdir(parents=True)
    (tmp_path / photo).write_bytes(encoded_photo(0))
    (tmp_path / "val" / "n01").mkdir(parents=True)
    assert names_in(tmp_path) == []


def test_archives_of_validation_are_not_trained_on_where_there_are_others(tmp_path: Path) -> None:
    for name in ("imagenet-train-0.tar", "imagenet-val-0.tar", "val2017.tar", "interval.tar"):
        write_shard(tmp_path / name, {"0.png": encoded_photo(0)})
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "0.png").write_bytes(encoded_photo(0))
    findings = Findings()
    assert names_in(tmp_path, findings) == ["imagenet-train-0.tar", "interval.tar"]
    assert {kind: finding.examples for kind, finding in findings.passed_over.items()} == {
        "archives that are named for validation or tests": ["imagenet-val-0.tar", "val2017.tar"],
        "folders beside the shards": ["val"],
    }
    for name in ("imagenet-train-0.tar", "interval.tar"):
        (tmp_path / name).unlink()
    assert names_in(tmp_path) == ["imagenet-val-0.tar", "val2017.tar"]


def test_shards_of_training_may_lie_in_train(tmp_path: Path) -> None:
    for name in ("train", "val"):
        make_shards(tmp_path / name, [1])
    assert find_shards(str(tmp_path)) == (tmp_path / "train" / "000.tar",)


def test_archives_and_photos_side_by_side_are_refused(tmp_path: Path) -> None:
    make_shards(tmp_path, [1, 1])
    (tmp_path / "cover.png").write_bytes(encoded_photo(0))
    with pytest.raises(ConvMAEError, match=r"found 2 archives \(000.tar\) and 1 photo \(cover.png\) side by side"):
        find_shards(str(tmp_path))


def test_shards_without_photos_and_damaged_ones_look_wrong(tmp_path: Path) -> None:
    good = write_shard(tmp_path / "0.tar", {"0.png": encoded_photo(0)})
    nested = write_shard(tmp_path / "1.tar", {"n01.tar": b""})
    damaged = tmp_path / "2.tar"
    damaged.write_bytes(b"x" * 600)
    findings = Findings()
    assert Shards([good, nested, damaged]).count(QUIET, findings) == 2
    assert findings.doubts["shards without a photo"].examples == [str(nested)]
    assert findings.doubts["shards that are damaged or missing"].count == 1


def test_a_folder_of_photos_is_no_shards(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(encoded_photo(0))
    assert find_shards(str(tmp_path)) == ()
    assert find_shards(str(tmp_path / "missing")) == ()


NAMES_OF_OTHER_THINGS = (
    "pipe:touch pwned #.tar",
    "https:.tar",
    "gs:x.tar",
    "data-{0..9}.tar",
    "${HOME}.tar",
    "a::b.tar",
    "--out.tar",
)


@pytest.mark.parametrize("name", NAMES_OF_OTHER_THINGS)
def test_a_name_from_a_folder_is_a_file_whatever_it_looks_like(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_shard(tmp_path / name, {"0.png": encoded_photo(0)})
    monkeypatch.chdir(tmp_path)
    for typed in (".", str(tmp_path), name):  # the last is what a shell makes of *.tar
        (shard,) = find_shards(typed)
        assert shard == tmp_path / name
        assert list(read_shard(shard)) == [encoded_photo(0)]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_whose_name_looks_like_a_url_or_a_pattern_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("pipe:cat", "{0..9}", "x.tar"):
        (shard,) = make_shards(tmp_path / name, [1])
        assert find_shards(name) == (shard,)
    (tmp_path / "https:").mkdir()
    (shard,) = make_shards(tmp_path / "https:" / "host", [1])
    assert find_shards("https://host") == (shard,)


@pytest.mark.parametrize("typed", ["pipe:cat x.tar", "https://host/0.tar", "gs://bucket/0.tar"])
def test_a_url_is_one_because_it_was_typed(typed: str) -> None:
    assert find_shards(typed) == (ShardUrl(typed),)


@pytest.mark.parametrize("typed", ["s3://bucket/0.tar", "file:///0.tar", "htgs://0.tar", "x://{0..3}.tar"])
def test_a_url_that_cannot_be_opened_is_refused_before_any_work(typed: str) -> None:
    with pytest.raises(ConvMAEError, match="expected shards in files, behind URLs of http, .*'pipe:aws s3 cp"):
        find_shards(typed)


@pytest.mark.parametrize(
    "pattern",
    [
        "x-{0..9999999999}.tar",
        "x-{0..999}{0..999}{0..9}.tar",
        "{x,{y-{0..9999999},z}}.tar",
        "{a..z}" * 5 + ".tar",
        "{0,1}" * 40 + ".tar",
    ],
)
def test_a_pattern_of_too_many_names_is_refused_before_they_are_made(pattern: str) -> None:
    with pytest.raises(ConvMAEError, match="may name at most 1000000 shards"):
        find_shards(pattern)


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("x-{0000..1281}.tar", 1282),
        ("{{0000..1281},{2000..3281}}.tar", 2564),
        ("x-{9..0..3}.tar::y-{0..9999}.tar", 10_004),
        ("{x}-{a,b}-{0..1}.tar", 4),
    ],
)
def test_patterns_of_many_names_are_expanded(pattern: str, count: int) -> None:
    assert len(find_shards(pattern)) == count


@pytest.mark.parametrize("pattern", ["data/{000..}{.tar", "data/${CONVMAE_NOT_SET}.tar"])
def test_a_pattern_that_cannot_be_expanded_is_one_sentence(pattern: str) -> None:
    with pytest.raises(ConvMAEError, match="expected a pattern such as"):
        find_shards(pattern)


def test_samples_are_the_photos_by_webdatasets_rules_for_names(tmp_path: Path) -> None:
    photos = [encoded_photo(value) for value in range(4)]
    shard = write_shard(
        tmp_path / "mixed.tar",
        {
            "a/0.jpg": photos[0],
            "a/0.cls": b"7",
            "a/0.pickle": b"cos\nsystem\n(S'true'\ntR.",
            "a/0.png": photos[1],  # the same sample again
            "a/1.seg.png": photos[1],
            "a/1.JPEG": photos[2],
            "a/._2.jpg": photos[1],
            "b/1.webp": photos[3],
            "3.gif": photos[1],
        },
    )
    assert list(read_shard(shard)) == [photos[0], photos[2], photos[3]]


def test_a_pipe_is_read_like_a_file(tmp_path: Path) -> None:
    (shard,) = make_shards(tmp_path, [3])
    assert list(read_shard(piped(f"cat {shard}"))) == list(read_shard(shard))
    assert len(problems(piped(f"cat {tmp_path}/missing.tar 2> /dev/null"))) == 1


@pytest.mark.parametrize("where", ["in the data", "between two members", "in a header"])
@pytest.mark.parametrize("through_a_pipe", [False, True])
def test_a_shard_that_is_cut_off_gives_what_is_before_and_says_so(
    tmp_path: Path, where: str, through_a_pipe: bool
) -> None:
    (shard,) = make_shards(tmp_path, [3])
    with tarfile.open(shard) as archive:
        last = archive.getmembers()[2]
    length = {"in the data": last.offset_data + 10, "between two members": last.offset, "in a header": last.offset + 99}
    shard.write_bytes(shard.read_bytes()[: length[where]])
    source = piped(f"cat {shard}") if through_a_pipe else shard
    found = list(read_shard(source))
    assert found[:2] == [encoded_photo(0), encoded_photo(1)]
    assert found[2:] and all(isinstance(item, str) for item in found[2:])
    assert len(list(read_shard(source, headers_only=True))) == len(found)  # so that resuming counts right


def test_a_damaged_header_ends_a_shard_and_says_so(tmp_path: Path) -> None:
    (shard,) = make_shards(tmp_path, [3])
    with tarfile.open(shard) as archive:
        second = archive.getmembers()[1].offset
    content = bytearray(shard.read_bytes())
    content[second : second + 64] = b"\xff" * 64
    shard.write_bytes(content)
    first, problem = read_shard(shard)
    assert first == encoded_photo(0)
    assert isinstance(problem, str) and "cut off or damaged" in problem and str(shard) in problem


@pytest.mark.parametrize("content", [None, b"", b"not a tar file" * 100])
def test_a_missing_or_foreign_file_is_one_problem(tmp_path: Path, content: bytes | None) -> None:
    shard = tmp_path / "0.tar"
    if content is not None:
        shard.write_bytes(content)
    assert len(problems(shard)) == 1
    assert list(read_shard(shard, headers_only=True)) == problems(shard)


@pytest.mark.parametrize(
    ("compress", "program"), [(gzip.compress, "gzip"), (lzma.compress, "xz"), (bz2.compress, "bzip2")]
)
def test_a_compressed_shard_is_to_be_unpacked(tmp_path: Path, compress: Callable[[bytes], bytes], program: str) -> None:
    (shard,) = make_shards(tmp_path, [1])
    shard.write_bytes(compress(shard.read_bytes()))
    (problem,) = problems(shard)
    assert f"it is compressed with {program}; unpack it" in problem


def test_a_member_that_claims_a_huge_size_is_not_read(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "0.tar", {"0.png": encoded_photo(0)})
    with tarfile.open(shard, "w", format=tarfile.GNU_FORMAT) as archive:
        header = tarfile.TarInfo("1.png")
        header.size = 1 << 40
        archive.addfile(header)
    first, *_ = read_shard(shard)
    assert isinstance(first, str) and "are too many" in first


def test_counting_goes_through_all_shards_once_and_reports_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = make_shards(tmp_path, [2, 3])
    console = Console(record=True, file=io.StringIO(), width=1000)
    shards = Shards([*names, tmp_path / "missing.tar"])
    assert shards.count(console) == 6
    assert "5 photos in 3 shards (1 damaged or missing, the first: " in console.export_text()
    monkeypatch.setattr("convmae_deploy.data.shards.read_shard", None)
    assert [shards.samples(shard) for shard in range(3)] == [2, 3, 1]


def test_no_readable_shard_at_all_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConvMAEError, match=r"expected photos in 2 shards, found none; 2 damaged or missing, .*0\.tar"):
        Shards([tmp_path / "0.tar", tmp_path / "1.tar"]).count(QUIET)
    shard = write_shard(tmp_path / "0.tar", {"0.txt": b""})
    with pytest.raises(ConvMAEError, match="found none; samples are members with the extensions jpeg, jpg, png, webp"):
        Shards([shard]).count(QUIET)


def test_further_pictures_links_and_archives_in_a_shard_are_counted(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "0.tar", {name: encoded_photo(0) for name in ("0.jpg", "0.png", "1.png", "n1.tar")})
    with tarfile.open(shard, "a") as archive:
        for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE):
            link = tarfile.TarInfo(f"2{kind!r}.jpg")
            link.type, link.linkname = kind, "0.jpg"
            archive.addfile(link)
    findings = Findings()
    assert Shards([shard]).count(QUIET, findings) == 2
    assert {kind: (found.count, found.examples[0]) for kind, found in findings.passed_over.items()} == {
        "further pictures of a sample, of which the first is taken": (1, "0.png"),
        "archives inside of shards (unpack them)": (1, "n1.tar"),
        "links inside of shards (store what they lead to)": (2, "2b'1'.jpg"),
    }


def test_pictures_that_are_no_samples_are_counted(tmp_path: Path) -> None:
    names = [
        "1.png",
        "1.seg.png",
        "IMG.2024.01.jpg",
        "a_jpg.rf.1b.jpg",
        "y.tif",
        "w.heic",
        "1.txt",
        "2.json",
        "sub/1.jpg",
    ]
    write_shard(tmp_path / "0.tar", {name: encoded_photo(0) for name in names})
    write_shard(tmp_path / "1.tar", {"a.b.jpg": encoded_photo(0), "2.png": encoded_photo(0)})
    findings = Findings()
    assert Shards(find_shards(str(tmp_path))).count(QUIET, findings) == 3
    dots = "pictures whose names have further dots, as webdataset names what belongs to a photo"
    assert {kind: (found.count, found.examples[0]) for kind, found in findings.passed_over.items()} == {
        dots: (4, "1.seg.png"),
        "pictures in shards that end in .tif (convert them to JPEG or PNG)": (1, "y.tif"),
        "pictures in shards that end in .heic (convert them to JPEG or PNG)": (1, "w.heic"),
    }
    with pytest.raises(ConvMAEError, match="found none; pictures whose names have further dots"):
        Shards([write_shard(tmp_path / "2.tar", {"a.b.jpg": encoded_photo(0)})]).count(QUIET)
