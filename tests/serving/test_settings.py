"""Settings from the environment."""

import os
from pathlib import Path

import pytest

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.machine import available_cores
from serving.settings import PROTECTING, Settings, load_settings, markdown_table, warn_of_variables
from tests.serving.running_server import ROOT


def test_several_bundles_are_separated_by_colons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVMAE_BUNDLE", "a/b:c")
    assert load_settings().bundle == (Path("a/b"), Path("c"))


def test_the_defaults_are_a_local_server_on_all_cores_with_the_stated_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CONVMAE_{name.upper()}", raising=False)
    settings = load_settings()
    assert (settings.host, settings.port, settings.threads) == ("127.0.0.1", 3000, available_cores())
    assert (settings.max_body_bytes, settings.max_json_body_bytes) == (20_000_000, 28_000_000)
    assert (settings.max_image_pixels, settings.max_image_side) == (50_000_000, 16_384)
    assert (settings.max_images, settings.max_request_pixels) == (32, 100_000_000)
    assert settings.api_key is None
    assert settings.bundle[0].parts[-3:] == ("serving", "bundles", "imagenette-nano")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "70000"),
        ("THREADS", "0"),
        ("THREADS", "none"),
        ("DEVICE", "tpu"),
        ("RUNTIME", "torch"),
        ("PRECISION", "fp64"),
        ("HINT", "speed"),
        ("MAX_BATCH", "0"),
        ("API_KEY", ""),
        ("API_KEY", " \n"),
        ("API_KEY", "k"),
        ("API_KEY", "fifteen letters"),
        ("API_KEY", "Schlüssel, der in keinen Header passt"),
        ("API_KEY", "two lines of text\nas a file may have them"),
        ("ALLOWED_HOSTS", ""),
        ("ALLOWED_HOSTS", "https://models.example.org"),
        ("ALLOWED_HOSTS", "models.example.org:443"),
        ("ALLOWED_HOSTS", "a b"),
        ("MAX_CONNECTIONS", "0"),
        ("KEEP_ALIVE_SECONDS", "0"),
        ("CORS_ORIGINS", "app.example.org"),
        ("CORS_ORIGINS", "https://app.example.org/"),
        ("CORS_ORIGINS", "https://*.example.org"),
        ("CORS_ORIGINS", "https://a.example\r\nX: y"),
        ("FRAME_ANCESTORS", "none,self"),
        ("FRAME_ANCESTORS", "self; script-src *"),
        ("FRAME_ANCESTORS", "https://a.example https://b.example"),
        ("TRUSTED_PROXIES", "nginx"),
        ("TRUSTED_PROXIES", "10.0.0.1/8"),
        ("ROOT_PATH", "convmae"),
        ("ROOT_PATH", "https://example.org/convmae"),
        ("ROOT_PATH", "/a/../b"),
        ("ROOT_PATH", "/a?b"),
        ("ROOT_PATH", "//evil.example"),
        ("ROOT_PATH", "/v1"),
        ("ROOT_PATH", '/"><script>'),
        ("DRAIN_SECONDS", "-1"),
        ("SHUTDOWN_SECONDS", "inf"),
        ("MIN_BYTES_PER_SECOND", "0"),
        ("API_KEY_FILE", "/no/such/file"),
        ("API_KEY_FILE", "/"),
        ("PORT", "http://10.96.12.7:3000"),
        ("BUNDLE", ":"),
        ("MAX_IMAGES", "many"),
    ],
)
def test_a_bad_value_is_one_sentence_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"CONVMAE_{name}", value)
    with pytest.raises(ConvMAEError, match=f"CONVMAE_{name}") as caught:
        load_settings()
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("CONVMAE_") == str(caught.value).count(f"CONVMAE_{name}")  # no other is blamed
    assert "Value error" not in str(caught.value)


def test_what_is_empty_is_unset_as_templates_write_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONVMAE_DEVICE", raising=False)
    defaults = load_settings()
    for name in Settings.model_fields:
        if not name.startswith(PROTECTING):
            monkeypatch.setenv(f"CONVMAE_{name.upper()}", " ")
    assert load_settings() == defaults


@pytest.mark.parametrize("name", ["API_KEY", "API_KEY_FILE", "ADMIN_KEY", "ADMIN_KEY_FILE"])
def test_an_empty_key_is_never_no_key(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"CONVMAE_{name}", "")
    with pytest.raises(ConvMAEError, match=f"CONVMAE_{name}: "):
        load_settings()


def test_the_key_does_not_show_when_the_settings_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVMAE_API_KEY", "hidden-key-of-a-server")
    assert "hidden-key-of-a-server" not in repr(load_settings())


@pytest.mark.parametrize("end", [" ", "\n", "\r\n", "\t \n\n"])
def test_blanks_around_a_value_that_came_from_a_file_are_not_part_of_it(
    monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    values = {"API_KEY": "0123456789 abcdef", "HOST": "0.0.0.0", "PORT": "80", "BUNDLE": "a/b", "DEVICE": "cpu"}
    for name, value in values.items():
        monkeypatch.setenv(f"CONVMAE_{name}", end + value + end)
    settings = load_settings()
    assert settings.api_key is not None and settings.api_key.get_secret_value() == "0123456789 abcdef"
    assert (settings.host, settings.port, settings.device) == ("0.0.0.0", 80, "cpu")
    assert settings.bundle == (Path("a/b"),)


def test_a_key_that_is_too_short_is_told_how_to_make_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVMAE_API_KEY", "short-key")
    with pytest.raises(ConvMAEError, match="at least 16 characters, got 9;.*secrets.token_urlsafe") as caught:
        load_settings()
    assert "short-key" not in str(caught.value)


def test_allowed_hosts_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVMAE_ALLOWED_HOSTS", "Models.Example.org, convmae,convmae.default.svc")
    assert load_settings().allowed_hosts == ("models.example.org", "convmae", "convmae.default.svc")


def test_an_idle_connection_outlives_the_60_seconds_of_balancers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONVMAE_KEEP_ALIVE_SECONDS", raising=False)
    assert load_settings().keep_alive_seconds > 60


def test_a_bad_key_is_not_repeated_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVMAE_API_KEY", "hidden-key-of-a-server")
    monkeypatch.setenv("CONVMAE_PORT", "hidden-port")
    with pytest.raises(ConvMAEError) as caught:
        load_settings()
    assert "hidden" not in str(caught.value)


SERVICE_LINKS = {  # what Kubernetes sets in every pod beside a Service called `convmae`
    "SERVICE_HOST": "10.96.12.7",
    "SERVICE_PORT": "3000",
    "SERVICE_PORT_HTTP": "3000",
    "PORT_3000_TCP": "tcp://10.96.12.7:3000",
    "PORT_3000_TCP_PROTO": "tcp",
    "PORT_3000_TCP_PORT": "3000",
    "PORT_3000_TCP_ADDR": "10.96.12.7",
}


@pytest.mark.parametrize("address", ["tcp://10.96.12.7:3000", "udp://10.96.12.7:53", "tcp://[fd00::7]:3000"])
def test_the_address_of_a_service_called_convmae_is_no_port_and_is_said_to_be_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, address: str
) -> None:
    for name, value in (SERVICE_LINKS | {"PORT": address}).items():
        monkeypatch.setenv(f"CONVMAE_{name}", value)
    with caplog.at_level("WARNING", "convmae_serving"):
        assert load_settings().port == 3000
        warn_of_variables(os.environ)
    (record,) = caplog.records
    assert all(word in record.getMessage() for word in ("Kubernetes", "enableServiceLinks: false", "CONVMAE_PORT"))


def test_a_port_that_the_pod_sets_itself_is_that_port(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in (SERVICE_LINKS | {"PORT": "8080"}).items():
        monkeypatch.setenv(f"CONVMAE_{name}", value)
    assert load_settings().port == 8080
    warn_of_variables(os.environ)
    assert not caplog.records


def test_a_variable_that_is_nearly_a_setting_is_said_to_be_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("WARNING", "convmae_serving"):
        warn_of_variables({"CONVMAE_CORS_ORIGIN": "*", "CONVMAE_DATA": "another program's", "CONVMAE_PORT": "80"})
    (record,) = caplog.records
    assert "CONVMAE_CORS_ORIGIN is no setting" in record.getMessage()
    assert "did you mean CONVMAE_CORS_ORIGINS?" in record.getMessage()


@pytest.mark.parametrize("which", ["api_key", "admin_key"])
def test_a_key_may_be_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, which: str) -> None:
    name = f"CONVMAE_{which.upper()}"
    (tmp_path / "key").write_text("0123456789 abcdef\r\n")
    monkeypatch.setenv(f"{name}_FILE", f"{tmp_path / 'key'}\n")
    key = getattr(load_settings(), which)
    assert key is not None and key.get_secret_value() == "0123456789 abcdef"
    monkeypatch.setenv(name, "another key of a server")
    with pytest.raises(ConvMAEError, match=f"{name} and {name}_FILE are both set"):
        load_settings()


@pytest.mark.parametrize("content", ["", "\n", "short", "a" * 20 + "\n" + "b" * 20, "\x00" * 20])
def test_a_file_without_a_usable_key_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str
) -> None:
    (tmp_path / "key").write_text(content)
    monkeypatch.setenv("CONVMAE_API_KEY_FILE", str(tmp_path / "key"))
    with pytest.raises(ConvMAEError, match="CONVMAE_API_KEY: "):
        load_settings()


def test_lists_are_separated_by_commas_with_or_without_blanks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVMAE_CORS_ORIGINS", "https://App.example.org, http://localhost:5173")
    monkeypatch.setenv("CONVMAE_FRAME_ANCESTORS", "'self',https://*.example.org")
    monkeypatch.setenv("CONVMAE_TRUSTED_PROXIES", "10.0.0.0/8, ::1")
    monkeypatch.setenv("CONVMAE_ROOT_PATH", "/models/convmae/")
    settings = load_settings()
    assert settings.cors_origins == ("https://app.example.org", "http://localhost:5173")
    assert settings.frame_ancestors == ("self", "https://*.example.org")
    assert settings.trusted_proxies == ("10.0.0.0/8", "::1")
    assert settings.root_path == "/models/convmae"


def test_a_photo_that_may_be_larger_makes_room_for_itself_in_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVMAE_MAX_IMAGE_PIXELS", "200000000")  # a phone's
    assert load_settings().max_request_pixels == 400_000_000
    monkeypatch.setenv("CONVMAE_MAX_REQUEST_PIXELS", "200000000")
    assert load_settings().max_request_pixels == 200_000_000


def test_every_setting_is_described_in_the_table() -> None:
    table = markdown_table()
    for name, field in Settings.model_fields.items():
        assert field.description
        assert f"| `CONVMAE_{name.upper()}` |" in table


def test_the_readme_has_the_table_as_it_is() -> None:
    assert markdown_table() in (ROOT / "serving" / "README.md").read_text(encoding="utf-8")
