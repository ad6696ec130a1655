"""The page's files: what is served, and what is not."""

import pathlib

import pytest
from starlette.testclient import TestClient

from serving.page.files import PageFiles


def test_the_files_of_a_folder_are_read_once_and_only_those_of_known_types(tmp_path: pathlib.Path) -> None:
    for name in ("a.js", "b.py", "c.css.bak"):
        (tmp_path / name).write_text("content")
    (tmp_path / "folder").mkdir()
    files = PageFiles(tmp_path)
    (tmp_path / "a.js").write_text("changed")
    answer = files.response("a.js")
    assert (answer.media_type, answer.body) == ("text/javascript", b"content")
    assert set(files._files) == {"a.js"}


@pytest.mark.parametrize(
    ("path", "media_type"),
    [("/", "text/html"), ("/docs", "text/html"), ("/page/style.css", "text/css"), ("/page/page.js", "text/javascript")],
)
def test_the_page_comes_with_its_type_and_a_strict_policy(client: TestClient, path: str, media_type: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(media_type)
    assert answer.headers["content-security-policy"] == (
        "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    )
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_names_of_any_length_and_kind_are_looked_up_and_never_become_a_path(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("is_file", "exists", "open", "stat", "resolve"):
        monkeypatch.setattr(pathlib.Path, name, lambda *arguments, **options: pytest.fail("the file system is asked"))
    monkeypatch.setattr("os.stat", lambda *arguments, **options: pytest.fail("the file system is asked"))
    for name in ("a" * 300 + ".js", "a" * 8000 + ".js", "%ed%a0%80.js", "a%00.js", "none.js", "."):
        answer = client.get(f"/page/{name}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert client.get("/page/page.js").status_code == 200


@pytest.mark.parametrize("wanted", ["bytes=x-y", "bytes=9-3", "bytes=999999999-", "bytes=0-3", "lines=1-2", ""])
def test_a_range_is_ignored_as_the_pages_files_are_small(client: TestClient, wanted: str) -> None:
    whole = client.get("/page/style.css").content
    answer = client.get("/page/style.css", headers={"Range": wanted})
    assert (answer.status_code, answer.content) == (200, whole)


@pytest.mark.parametrize(
    "name", ["none.js", "..%2Fapp.py", "..%2Fsettings.py", "style.css%00", "a%00.css", "%2e", "app.py", "files.py"]
)
def test_nothing_but_the_pages_files_is_served(client: TestClient, name: str) -> None:
    assert client.get(f"/page/{name}").status_code == 404
