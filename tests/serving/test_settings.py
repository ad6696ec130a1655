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
    assert markdown_table() in (ROOT / "README.md").read_text(encoding="utf-8")
