"""Behind proxies: under a path that they take off or leave, and for whom they ask."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from serving.http.keys import FREE_KEYS
from serving.http.proxies import RootPath, TrustedProxies, root_path
from serving.page.files import PageFiles
from tests.serving.conftest import ClientFactory
from tests.serving.sample_images import jpeg

KEY = "correct horse battery staple"
PAGE = "index.html"


@pytest.mark.parametrize("taken_off", [True, False])
def test_under_a_path_all_is_found_whether_the_proxy_takes_the_path_off_or_not(
    make_client: ClientFactory, taken_off: bool
) -> None:
    client = make_client(root_path="/team/convmae", api_key=KEY)
    before = "" if taken_off else "/team/convmae"
    for path in ("/", "/docs", "/page/style.css", "/readyz", "/openapi.json"):  # those without a key too
        assert client.get(before + path).status_code == 200, path
    key = {"X-API-Key": KEY}
    assert client.post(f"{before}/v1/classify", content=jpeg(), headers=key).status_code == 200
    assert client.get(f"{before}/metrics", headers=key).text.count('route="/v1/classify"') > 0
    assert client.post(f"{before}/v1/classify", content=jpeg()).status_code == 401
    assert client.get(f"{before}/nothing", headers=key).status_code == 404
    assert client.get(f"{before}/openapi.json").json()["servers"] == [{"url": "/team/convmae"}]


@pytest.mark.parametrize("address", ["/convmae", "/convmae/", "/"])
def test_the_first_page_finds_its_files_with_and_without_a_slash_at_the_end_of_its_address(
    make_client: ClientFactory, address: str
) -> None:
    answer = make_client(root_path="/convmae").get(address)
    assert answer.text.count('<base href="/convmae/">') == 1
    assert answer.text.index("<base") < answer.text.index("<link")  # it holds for what follows it
    assert "base-uri 'self'" in answer.headers["content-security-policy"]


def test_without_a_path_nothing_is_added(make_client: ClientFactory) -> None:
    client = make_client()
    assert "<base" not in client.get("/").text
    assert "base-uri 'none'" in client.get("/").headers["content-security-policy"]
    assert client.get("/openapi.json").json()["servers"] == [{"url": "/"}]
    assert client.get("/convmae/livez").status_code == 404


def test_what_only_begins_like_the_path_is_another_path(make_client: ClientFactory) -> None:
    client = make_client(root_path="/convmae")
    assert client.get("/convmaelivez").status_code == 404
    assert client.get("/convmae/convmae/livez").status_code == 404


def test_a_prefix_is_believed_where_the_proxy_is_trusted_and_wins_over_the_setting(make_client: ClientFactory) -> None:
    said = {"X-Forwarded-Prefix": "/a/b/"}
    trusting = make_client(trusted_proxies="*", root_path="/c")
    assert trusting.get("/openapi.json", headers=said).json()["servers"] == [{"url": "/a/b"}]
    assert trusting.get("/openapi.json").json()["servers"] == [{"url": "/c"}]
    assert '<base href="/a/b/">' in trusting.get("/", headers=said).text
    assert trusting.get("/a/b/livez", headers=said).status_code == 200
    assert make_client().get("/openapi.json", headers=said).json()["servers"] == [{"url": "/"}]


@pytest.mark.parametrize(
    "prefix", ["", "/", "convmae", '/"><script>', "//evil.example", "/../..", "https://evil.example"]
)
def test_a_prefix_that_is_no_path_is_ignored(make_client: ClientFactory, prefix: str) -> None:
    answer = make_client(trusted_proxies="*").get("/", headers={"X-Forwarded-Prefix": prefix})
    assert (answer.status_code, "<base" in answer.text) == (200, False)


def seen(client: tuple[str, int] | None, trusted: list[str], *headers: tuple[str, str]) -> tuple[Any, str]:
    """The client and the root path that an application is told."""
    found: list[tuple[Any, str]] = []

    async def note(scope: Scope, receive: Receive, send: Send) -> None:
        found.append((scope["client"], root_path(scope)))

    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    scope = {"type": "http", "path": "/livez", "client": client, "headers": raw}
    application: Any = TrustedProxies(RootPath(note, ""), trusted)  # type: ignore[arg-type]
    asyncio.run(application(scope, None, None))
    return found[0]


def test_the_client_is_the_last_address_before_the_trusted_proxies() -> None:
    forwarded = ("X-Forwarded-For", "203.0.113.1, 198.51.100.7, 10.0.0.9"), ("X-Forwarded-Prefix", "/a")
    assert seen(("10.0.0.1", 5), ["10.0.0.0/8"], *forwarded) == (("198.51.100.7", 0), "/a")
    assert seen(("::ffff:10.0.0.1", 5), ["10.0.0.0/8"], *forwarded) == (("198.51.100.7", 0), "/a")  # on `::`
    assert seen(("192.0.2.1", 5), ["10.0.0.0/8"], *forwarded) == (("192.0.2.1", 5), "")
    assert seen(None, ["10.0.0.0/8"], *forwarded) == (None, "")  # a socket without addresses
    assert seen(None, ["*"], *forwarded)[1] == "/a"


def test_several_proxies_that_each_take_something_off_say_the_whole_path() -> None:
    assert seen(("10.0.0.1", 5), ["*"], ("X-Forwarded-Prefix", "/a, /b/"))[1] == "/a/b"
    assert seen(("10.0.0.1", 5), ["*"], ("X-Forwarded-Prefix", "/a"), ("X-Forwarded-Prefix", "/b"))[1] == "/a/b"


def test_wrong_keys_count_for_the_client_and_not_for_the_proxy(make_client: ClientFactory) -> None:
    client = make_client(trusted_proxies="*", api_key=KEY)

    def ask(address: str) -> int:
        headers = {"X-API-Key": "incorrect horse battery staple", "X-Forwarded-For": address}
        return client.get("/v1/models", headers=headers).status_code

    assert [ask("203.0.113.1") for _ in range(FREE_KEYS + 1)][-2:] == [401, 429]
    assert ask("203.0.113.2") == 401


@pytest.mark.parametrize(
    ("ancestors", "policy"),
    [
        (("none",), "frame-ancestors 'none'"),
        (("self", "https://app.example.org"), "frame-ancestors 'self' https://app.example.org"),
        (("*",), "frame-ancestors *"),
    ],
)
def test_pages_that_may_show_this_one_in_a_frame_are_a_setting(
    tmp_path: Path, ancestors: tuple[str, ...], policy: str
) -> None:
    (tmp_path / PAGE).write_text("<head>")
    headers = PageFiles(tmp_path, frame_ancestors=ancestors).response(PAGE).headers
    assert policy in headers["content-security-policy"].split("; ")
