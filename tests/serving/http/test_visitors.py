"""Host and Origin: who may ask a server that no key protects."""

from pathlib import Path
from typing import Any

import pytest

from serving.errors import ApiError
from serving.http.visitors import Visitors
from serving.settings import Settings

KEY = "0123456789abcdef"
LOCAL = ("127.0.0.1", 3000)
OUTSIDE = ("192.0.2.1", 3000)


def status(headers: dict[str, str], method: str = "GET", server: Any = LOCAL, **settings: Any) -> int:
    """The status of the refusal, 200 for none."""
    visitors = Visitors(Settings(bundle=(Path("none"),), threads=1, **settings))
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    try:
        visitors.check({"headers": raw, "method": method, "server": server}, dict(raw))
    except ApiError as error:
        return error.status
    return 200


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:3000", "LOCALHOST:1", "localhost.", "127.0.0.1:3000", "127.0.0.2", "[::1]:3000", ""],
)
def test_a_local_server_without_a_key_is_asked_for_by_local_names(host: str) -> None:
    assert status({"Host": host}) == 200
    assert status({}) == 200  # no browser leaves it out


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:3000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example:3000:1",
        "localhost@evil.example",
        "[::1",
        "[evil.example]",
        "192.0.2.1",
        "0.0.0.0",
        "local host",
        "localhost, evil.example",
        "\xff",
        "a" * 5000,
    ],
)
def test_a_local_server_without_a_key_refuses_other_names(host: str) -> None:
    for method in ("GET", "POST"):
        assert status({"Host": host}, method) == 421


@pytest.mark.parametrize(
    ("server", "settings"),
    [
        (LOCAL, {"host": "0.0.0.0"}),
        (LOCAL, {"host": "::"}),
        (OUTSIDE, {"host": "192.0.2.1"}),
        (OUTSIDE, {}),  # BentoML's command line says where it listens
        (LOCAL, {"api_key": KEY}),
        (LOCAL, {"allowed_hosts": "*"}),
        (None, {}),  # a socket without addresses
    ],
)
def test_a_server_for_others_or_with_a_key_answers_to_every_name(server: Any, settings: dict[str, Any]) -> None:
    assert status({"Host": "models.example.org"}, server=server, **settings) == 200
    page = {"Host": "models.example.org", "Origin": "https://elsewhere.example", "Sec-Fetch-Site": "cross-site"}
    assert status(page, "POST", server=server, **settings) == 200


@pytest.mark.parametrize("settings", [{}, {"host": "0.0.0.0"}, {"api_key": KEY}])
def test_with_the_setting_those_names_and_addresses_are_answered_and_no_other(settings: dict[str, Any]) -> None:
    def asked_for(host: str) -> int:
        return status({"Host": host}, allowed_hosts="models.example.org, convmae", **settings)

    assert [asked_for(host) for host in ("models.example.org", "Convmae:80", "localhost", "192.0.2.1")] == [200] * 4
    assert [asked_for(host) for host in ("evil.example", "x.models.example.org", "models.example.orgx")] == [421] * 3


@pytest.mark.parametrize(
    "headers",
    [
        {},  # curl and other programs
        {"Origin": "http://localhost:3000"},  # a browser that does not say more
        {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-origin"},
        {"Origin": "https://tunnel.example", "Sec-Fetch-Site": "same-origin"},  # a tunnel that changes Host
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_the_own_page_and_programs_may_send_work(headers: dict[str, str]) -> None:
    assert status({"Host": "localhost:3000"} | headers, "POST") == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "http://localhost:8080"},
        {"Origin": "http://localhost:3000.evil.example"},
        {"Origin": "null"},
        {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "anything else"},
    ],
)
def test_pages_elsewhere_may_not(headers: dict[str, str]) -> None:
    headers = {"Host": "localhost:3000"} | headers
    assert [status(headers, method) for method in ("POST", "PUT", "DELETE")] == [403] * 3
    assert [status(headers, method) for method in ("GET", "HEAD", "OPTIONS")] == [200] * 3  # a link leads here


def test_a_page_of_an_allowed_host_may() -> None:
    headers = {"Host": "localhost:3000", "Origin": "https://app.example.org:8443", "Sec-Fetch-Site": "cross-site"}
    assert status(headers, "POST", allowed_hosts="app.example.org") == 200


def test_two_hosts_are_refused() -> None:
    raw = [(b"host", b"localhost"), (b"host", b"evil.example")]
    visitors = Visitors(Settings(bundle=(Path("none"),), threads=1))
    with pytest.raises(ApiError) as caught:
        visitors.check({"headers": raw, "method": "GET", "server": LOCAL}, dict(raw))
    assert (caught.value.status, caught.value.code) == (400, "invalid_host")


def test_the_sentence_quotes_little_of_a_name_and_says_what_to_do() -> None:
    raw = [(b"host", b"e" * 60_000)]
    with pytest.raises(ApiError, match="CONVMAE_ALLOWED_HOSTS") as caught:
        Visitors(Settings(bundle=(Path("none"),), threads=1)).check(
            {"headers": raw, "method": "GET", "server": LOCAL}, dict(raw)
        )
    assert len(caught.value.message) < 400
