"""Settings from the environment."""

from pathlib import Path

import pytest

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.machine import available_cores
from serving.settings import Settings, load_settings, markdown_table
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


def test_every_setting_is_described_in_the_table() -> None:
    table = markdown_table()
    for name, field in Settings.model_fields.items():
        assert field.description
        assert f"| `CONVMAE_{name.upper()}` |" in table


def test_the_readme_has_the_table_as_it_is() -> None:
    assert markdown_table() in (ROOT / "serving" / "README.md").read_text(encoding="utf-8")
