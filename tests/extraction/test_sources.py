import gzip
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.extraction.sources import Plan, make_plan
from convmae_deploy.extraction.stores import StoreError
from tests.extraction.photos import contents, encoded, write_parquet, write_photos, write_tar

SUFFIXES = (".jpg", ".png")


@contextmanager
def planned(*sources: str | Path, rows: int = 100, column: str | None = None) -> Iterator[Plan]:
    plan = make_plan([str(source) for source in sources], SUFFIXES, "photos", shard_rows=rows, column=column)
    try:
        yield plan
    finally:
        plan.close()


def names_of(*sources: str | Path, rows: int = 100, column: str | None = None) -> list[list[str]]:
    """Names in each shard."""
    with planned(*sources, rows=rows, column=column) as plan:
        return [[name for name, _ in contents(plan.piece(shard))] for shard in range(plan.shards)]


def test_folders_are_searched_files_before_subfolders_and_files_are_taken_as_they_are(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/c.png", "a/b/d.png", "notes.txt", ".hidden.jpg", "z.jpeg/x.png", "a/B.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    first = tmp_path / "notes.txt"
    with planned(first, tmp_path, tmp_path / "missing.jpg", rows=3) as plan:
        found = [[name for name, _ in contents(plan.piece(shard))] for shard in range(plan.shards)]
        assert str(plan.passed_over) == f"1 hidden (first: {tmp_path}/.hidden.jpg), 1 .txt (first: {first})"
    expected = ["notes.txt", "b.JPG", "a/B.png", "a/c.png", "a/b/d.png", "z.jpeg/x.png", "missing.jpg"]
    paths = [str(tmp_path / name) for name in expected]
    assert found == [paths[:3], paths[3:6], paths[6:]]


def test_files_come_before_archives_which_are_cut_on_their_own(tmp_path: Path) -> None:
    files = write_photos(tmp_path / "photos", 3)
    tar = write_tar(tmp_path / "photos" / "x.tar", {f"{index}.png": b"x" for index in range(5)})
    table = write_parquet(tmp_path / "photos" / "y.parquet", {"bytes": [b"x"] * 3})
    found = names_of(tar, tmp_path / "photos", table, rows=2)
    in_tar = [f"{tar}/{index}.png" for index in range(5)]
    rows = [f"{table}/{index}" for index in range(3)]
    shards_of_tar, shards_of_table = [in_tar[:2], in_tar[2:4], in_tar[4:]], [rows[:2], rows[2:]]
    expected = [[str(file) for file in files[:2]], [str(files[2])]]
    assert found == [*expected, *shards_of_tar, *shards_of_tar, *shards_of_table, *shards_of_table]
    with planned(tar, tmp_path / "photos", table, rows=2) as plan:
        assert plan.rows(range(plan.shards)) == 3 + 2 * 5 + 2 * 3
        assert plan.rows([1, 4]) == 1 + 1


def test_tables_of_names_in_a_folder_are_passed_over(tmp_path: Path) -> None:
    write_photos(tmp_path, 1)
    table = write_parquet(tmp_path / "metadata.parquet", {"path": ["00.png"]})
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with planned(tmp_path) as plan:
        assert plan.names.count == 1 and not plan.containers
        assert str(plan.passed_over) == f"2 .parquet (first: {tmp_path}/broken.parquet)"
    assert names_of(table) == [["00.png"]]


@pytest.mark.parametrize("separator", ["\n", "\r\n", "\0"])
def test_lists_name_files_one_a_line_or_between_zero_bytes(tmp_path: Path, separator: str) -> None:
    names = ["a b.jpg", "no suffix", "ü.png"]
    (tmp_path / "list").write_bytes(separator.join([*names, ""]).encode())
    assert names_of(f"@{tmp_path}/list") == [names]


def test_a_list_may_come_on_standard_input_without_an_end_of_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a.jpg\n\nb\xff.jpg")))
    assert names_of("-") == [["a.jpg", "b\udcff.jpg"]]


def test_what_is_no_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"x" * 70_000)
    with pytest.raises(ConvMAEError, match=r"names of files in .*list.*a line of more than 65536 bytes, so it is no"):
        names_of(f"@{tmp_path}/list")
    with pytest.raises(ConvMAEError, match="the file cannot be read"):
        names_of(f"@{tmp_path}/missing")


@pytest.mark.parametrize("name", ["http://169.254.169.254/x.jpg", "ssh://host/x.jpg", "s3://b/x.jpg::file:///etc"])
def test_a_list_leads_to_no_other_kinds_of_stores(tmp_path: Path, name: str) -> None:
    (tmp_path / "list").write_text(name)
    with pytest.raises(ConvMAEError, match=r"a URI that begins with file:// or s3://, .*got"):
        names_of(f"@{tmp_path}/list")


def test_what_is_there_under_the_name_of_a_list_or_a_pattern_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["@list", "-", "{0..9}.tar"]
    for name in names[:2]:
        Path(name).write_bytes(b"other.jpg")
    write_tar(tmp_path / names[2], {"x.png": b""})
    assert names_of(*names) == [["@list", "-"], ["{0..9}.tar/x.png"]]


def test_patterns_are_expanded(tmp_path: Path) -> None:
    write_tar(tmp_path / "01.tar", {"x.png": b""})
    write_tar(tmp_path / "02.tar", {"y.png": b""})
    found = names_of(f"{tmp_path}/{{01..02}}.tar", f"{tmp_path}/{{a,b}}.jpg")
    assert found == [
        [f"{tmp_path}/{name}.jpg" for name in "ab"],
        [f"{tmp_path}/01.tar/x.png"],
        [f"{tmp_path}/02.tar/y.png"],
    ]
    with pytest.raises(ConvMAEError, match="at most 1000000 shards"):
        names_of("{0..999999999}.tar")


def test_an_archive_that_is_missing_or_compressed_is_refused_before_the_work_begins(tmp_path: Path) -> None:
    write_tar(tmp_path / "00.tar", {"x.png": b""})
    with pytest.raises(ConvMAEError, match="01.tar': the file cannot be read"):
        names_of(f"{tmp_path}/{{00..01}}.tar")
    for name in ("01.tar", "02.tar.gz", "03.tgz"):
        (tmp_path / name).write_bytes(gzip.compress((tmp_path / "00.tar").read_bytes()))
        with pytest.raises(ConvMAEError, match=f"{name}' is compressed, and is read as it is; unpack it"):
            names_of(tmp_path / name)


def test_what_is_not_there_at_all_is_refused(tmp_path: Path) -> None:
    for name in ("nothing", "*.jpg"):
        with pytest.raises(ConvMAEError, match="there is nothing at .*the path .of patterns {000..146} and {a,b}"):
            names_of(tmp_path / name)


def test_hidden_folders_and_links_that_lead_nowhere(tmp_path: Path) -> None:
    write_photos(tmp_path / ".cache", 1)
    write_photos(tmp_path / "shown", 1)
    (tmp_path / "shown" / "dead.png").symlink_to(tmp_path / "gone.png")
    assert names_of(tmp_path) == [[f"{tmp_path}/shown/00.png", f"{tmp_path}/shown/dead.png"]], "the link is a bad file"
    assert names_of(tmp_path / ".cache") == [[f"{tmp_path}/.cache/00.png"]], "what is named itself is searched"


def test_lists_of_windows_are_understood_or_refused(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes("\ufeffa.jpg\r\nb.jpg".encode())
    assert names_of(f"@{tmp_path}/list") == [["a.jpg", "b.jpg"]]
    (tmp_path / "list").write_bytes("a.jpg".encode("utf-16"))
    with pytest.raises(ConvMAEError, match="is in UTF-16, save it again as UTF-8"):
        names_of(f"@{tmp_path}/list")


def test_a_pattern_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "braceexpand", None)
    with pytest.raises(ConvMAEError, match=r"needs braceexpand; run pip install '\.\[pipelines\]'"):
        names_of("{0..1}.tar")


def test_sources_without_a_photo_are_refused_with_what_was_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.heic").touch()
    with pytest.raises(ConvMAEError, match=r"expected photos \(.jpg .png\) in the folder .* passed over 1 .heic"):
        names_of(tmp_path)
    tar = write_tar(tmp_path / "x.tar", {"a.heic": b""})
    with pytest.raises(ConvMAEError, match="expected photos in .*x.tar.*found none, passed over 1 .heic"):
        names_of(tar)


def test_the_digest_stands_for_names_and_cuts_on_every_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tar(tmp_path / "x.tar", {"a.png": b"", "b.png": b""})
    for name in ("a.jpg", "b.jpg"):
        Path(name).touch()
    digests = []
    for sources, rows in ((["a.jpg", "x.tar"], 2), (["a.jpg", "x.tar"], 1), (["b.jpg", "x.tar"], 2), (["a.jpg"], 2)):
        with planned(*sources, rows=rows) as plan:
            digests.append(plan.digest())
    assert len(set(digests)) == 4
    assert digests[0] == "d79badfda129d4f7b93c25092cafcfdb343d25528ce6dcdf07c789b523731fa6"


def test_objects_are_found_as_files_are(store: Any, tmp_path: Path) -> None:
    for name in ("photos/b.png", "photos/a/c.png", "photos/x.heic", "photos/a/B.jpg"):
        store.pipe_file(f"bucket/{name}", encoded(0))
    store.put_file(str(write_tar(tmp_path / "x.tar", {"0.png": b"zero"})), "bucket/shards/0.tar")
    table = write_parquet(tmp_path / "x.parquet", {"path": ["s3://bucket/photos/b.png"]})
    store.put_file(str(table), "bucket/table.parquet")
    store.pipe_file("bucket/list.txt", b"s3://bucket/photos/b.png\nlocal.jpg\n")
    with planned("s3://bucket/photos/", "s3://bucket/shards", "@s3://bucket/list.txt") as plan:
        assert plan.is_remote and plan.rows(range(plan.shards)) is None
        assert str(plan.passed_over) == "1 .heic (first: s3://bucket/photos/x.heic)"
        found = [contents(plan.piece(shard)) for shard in range(plan.shards)]
    folder = [f"s3://bucket/photos/{name}" for name in ("b.png", "a/B.jpg", "a/c.png")]
    assert [name for name, _ in found[0]] == [*folder, folder[0], "local.jpg"]
    assert found[1] == [("s3://bucket/shards/0.tar/0.png", b"zero")]
    assert names_of("s3://bucket/table.parquet") == [[folder[0]]]
    with pytest.raises(ConvMAEError, match="in the folder 's3://bucket/nothing/', found none"):
        names_of("s3://bucket/nothing/")
    with pytest.raises(ConvMAEError, match="expected the name of a bucket after s3://"):
        names_of("s3://")


def test_a_folder_of_a_store_that_cannot_be_listed_ends_the_work(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        store.pipe_file(f"bucket/photos/{name}/0.png", b"x")
    assert names_of("s3://bucket/photos/") == [[f"s3://bucket/photos/{name}/0.png" for name in "abc"]]
    listed = store.ls

    def overloaded(path: str, **options: Any) -> Any:
        if path.endswith("/b"):
            raise OSError(5, "SlowDown: please reduce your request rate")
        return listed(path, **options)

    monkeypatch.setattr(store, "ls", overloaded)
    with pytest.raises(StoreError, match=r"'s3://bucket/photos/ \(bucket/photos/b\)' cannot be reached .*request rate"):
        names_of("s3://bucket/photos/")


def test_a_table_in_a_folder_leads_nowhere_else(tmp_path: Path) -> None:
    rows = [{"bytes": b"x", "path": "0.png"}, {"bytes": None, "path": "/etc/hostname"}]
    table = write_parquet(tmp_path / "folder" / "x.parquet", {"image": rows})
    with planned(tmp_path / "folder") as plan:
        inside = contents(plan.piece(0))
    assert (
        inside[0] == (f"{table}/0", b"x")
        and inside[1][0] == f"{table}/1"
        and "the row holds no content" in inside[1][1]
    )
    assert names_of(table) == [[f"{table}/0", "/etc/hostname"]], "of a table that is named itself, paths are followed"
