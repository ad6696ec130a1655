"""What a graph's file says of itself is data of a stranger."""

from pathlib import Path

import onnx
import pytest

from convmae_deploy.bundle.graph_metadata import KEY, metadata_of, read_metadata
from convmae_deploy.bundle.loading import BundleError
from convmae_deploy.cli import main
from convmae_deploy.tasks import load_bundle
from tests.bundle_factory import make_bundle, make_graph


def file_with(path: Path, pairs: dict[str, str]) -> Path:
    model = make_graph(3, (64, 64))
    onnx.helper.set_model_props(model, pairs)
    onnx.save(model, path)
    return path


def shown(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(["info", str(path)])
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out + printed.err


def test_info_shows_the_description_of_a_graph_without_its_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = load_bundle(make_bundle(tmp_path / "bundle", name="mine")).manifest
    status, text = shown(file_with(tmp_path / "a.onnx", metadata_of(manifest, "fp32")), capsys)
    assert status == 0
    for part in ("mine", "classification", "centre crop 64 x 64", manifest.licence.name, "SHA-256", "e4"):
        assert part in text


def test_what_others_wrote_is_shown_as_text_that_drives_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = {"names": "__import__('os').abort()", "author": "\x1b]0;owned\x07x", "description": "d" * 9000}
    status, text = shown(file_with(tmp_path / "a.onnx", pairs), capsys)
    assert status == 0 and "__import__" in text and "\\x1b]0;owned" in text
    assert "\x1b" not in text and text.count("d" * 20) < 9000 / 20 / 2
    status, text = shown(file_with(tmp_path / "b.onnx", {}), capsys)
    assert status == 0 and "It says nothing else of itself" in text


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[" * 100_000, "must be JSON, but it is not"),
        ('{"name": NaN}', "must be JSON, but it is not"),
        ('{"name": "\\ud800"}', "must be JSON, but it is not"),
        ('{"schema_version": 1}', "is no description that this release reads"),
        ('{"schema_version": 2}', "install a newer convmae_deploy"),
    ],
)
def test_a_description_that_is_none_is_refused_in_a_sentence(tmp_path: Path, value: str, said: str) -> None:
    with pytest.raises(BundleError, match=said) as caught:
        read_metadata(file_with(tmp_path / "a.onnx", {KEY: value}))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_a_file_that_is_no_graph_or_all_metadata_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"\x89PNG not a graph")
    with pytest.raises(BundleError, match="must be an ONNX model"):
        read_metadata(tmp_path / "a.onnx")
    with pytest.raises(BundleError, match="more than 1000 entries of metadata"):
        read_metadata(file_with(tmp_path / "b.onnx", {str(number): "" for number in range(1001)}))
    with pytest.raises(BundleError, match="16777216 bytes"):
        read_metadata(file_with(tmp_path / "c.onnx", {KEY: " " * (17 * 2**20)}))
