"""The page's files: what is served, and what is not."""

import pathlib
import re

import pytest
from starlette.testclient import TestClient

from serving.page.files import PAGE, PageFiles


def test_the_files_of_a_folder_are_read_once_and_only_those_of_known_types(tmp_path: pathlib.Path) -> None:
    for name in ("a.js", "b.py", "c.css.bak"):
        (tmp_path / name).write_text("content")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "d.js").write_text("not looked into")
    (tmp_path.parent / "alone.jpg").write_text("content")
    files = PageFiles(tmp_path, tmp_path.parent / "alone.jpg")
    (tmp_path / "a.js").write_text("changed")
    answer = files.response("a.js")
    assert (answer.media_type, answer.body) == ("text/javascript", b"content")
    assert set(files._files) == {"a.js", "alone.jpg"}


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/", "text/html"),
        ("/docs", "text/html"),
        ("/page/style.css", "text/css"),
        ("/page/page.js", "text/javascript"),
        ("/page/cat.jpg", "image/jpeg"),
        ("/page/golf-ball.jpg", "image/jpeg"),
    ],
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


def test_the_samples_are_small_and_each_is_named_with_its_terms() -> None:
    terms = (PAGE / "samples" / "LICENSES.md").read_text(encoding="utf-8")
    script = (PAGE / "samples.js").read_text(encoding="utf-8")
    photos = [*(PAGE / "samples").glob("*.jpg"), PAGE.parent / "golf-ball.jpg"]
    assert len(photos) == 5
    for path in photos:
        assert path.stat().st_size <= 60_000
        assert f"{path.name}`" in terms and f'file: "{path.name}"' in script


def test_no_address_in_the_page_begins_at_the_root_so_that_a_proxy_may_give_it_a_path() -> None:
    rooted = re.compile(r"""(?:href|src)="/|(?:fetch|import|from|send)\(? ?["'`]/""")
    for path in PAGE.iterdir():
        if path.suffix in (".html", ".js", ".css"):
            assert not rooted.search(path.read_text(encoding="utf-8")), path.name
