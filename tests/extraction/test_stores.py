import sys
from pathlib import Path
from typing import Any

import pytest

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.extraction.stores import StoreError, is_remote, local_path, open_store, opened, read


def test_paths_and_file_uris_are_local_and_other_uris_are_not() -> None:
    for name in ("a/b.jpg", "/a", "file:///a/b", "c:/x", "a://".rstrip("/")):
        assert not is_remote(name)
    assert is_remote("s3://b/c") and is_remote("GS://b/c") and is_remote("http://b/c")
    assert local_path("file:///a/b.jpg") == Path("/a/b.jpg") and local_path("a/b") == Path("a/b")
    assert local_path("file://localhost/a%20b.jpg") == Path("/a b.jpg")
    with pytest.raises(ConvMAEError, match="of this machine; got 'file://other/a'"):
        local_path("file://other/a")


@pytest.mark.parametrize(
    "uri", ["http://host/x", "ftp://host/x", "s3://b/zip::file:///x", "memory://x", "simplecache::x://y"]
)
def test_other_kinds_of_stores_are_refused(uri: str) -> None:
    with pytest.raises(ConvMAEError, match="begins with file:// or s3://, gs://"):
        open_store(uri)


def test_a_store_without_its_package_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConvMAEError, match="gs:// needs the package gcsfs; run pip install gcsfs"):
        open_store("gs://bucket/x")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ConvMAEError, match=r"s3:// needs fsspec; run pip install '\.\[pipelines\]'"):
        open_store("s3://bucket/x")


def test_files_and_objects_are_read_within_bounds(tmp_path: Path, store: Any) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    store.pipe_file("bucket/x", b"12345")
    for name in (str(tmp_path / "x"), f"file://{tmp_path}/x", "s3://bucket/x"):
        assert read(name, 5) == b"12345"
        with pytest.raises(ConvMAEError, match="more than 4 bytes|at most 4 are read"):
            read(name, 4)
        with opened(name) as file:
            file.seek(2)
            assert (file.tell(), file.read(2)) == (2, b"34")


def test_an_empty_object_has_no_bytes_and_a_bucket_is_no_object(store: Any) -> None:
    store.pipe_file("bucket/empty", b"")
    assert read("s3://bucket/empty", 5) == b""
    for name in ("s3://bucket", "s3://In valid!/a.jpg"):
        with pytest.raises(ConvMAEError, match="name of a bucket|the file cannot be read") as caught:
            read(name, 5)
        assert not isinstance(caught.value, StoreError)


@pytest.mark.parametrize(
    ("code", "ends_the_work"),
    [("AccessDenied", False), ("NoSuchKey", False), ("ExpiredToken", True), ("NoSuchBucket", True), ("SlowDown", True)],
)
def test_what_is_wrong_with_one_object_is_told_from_what_is_wrong_with_all(
    store: Any, monkeypatch: pytest.MonkeyPatch, code: str, ends_the_work: bool
) -> None:
    class Answer(Exception):
        response = {"Error": {"Code": code}}

    def refuses(*arguments: Any, **options: Any) -> bytes:
        raise PermissionError(13, f"it says {code}") from Answer()  # as s3fs makes many of them

    monkeypatch.setattr(store, "cat_file", refuses)
    with pytest.raises(ConvMAEError, match=f"it says {code}") as caught:
        read("s3://bucket/x", 5)
    assert isinstance(caught.value, StoreError) == ends_the_work


def test_a_missing_object_is_one_bad_file_and_a_missing_server_ends_the_work(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("s3://bucket/missing", "s3://bucket/missing/deeper"):
        with pytest.raises(ConvMAEError, match="the file cannot be read") as caught:
            read(name, 5)
        assert not isinstance(caught.value, StoreError)
        with pytest.raises(ConvMAEError, match="the file cannot be read"), opened(name) as file:
            file.read()

    def unplugged(*arguments: Any, **options: Any) -> bytes:
        raise TimeoutError("nobody answers")

    monkeypatch.setattr(store, "cat_file", unplugged)
    with pytest.raises(
        StoreError, match=r"'s3://bucket/x' cannot be reached \('nobody answers'\); .* goes on where it"
    ):
        read("s3://bucket/x", 5)
