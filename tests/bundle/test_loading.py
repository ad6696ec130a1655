import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convmae_deploy.bundle.loading import BundleError
from convmae_deploy.tasks import load_bundle
from tests.bundle_factory import make_bundle, write_manifest

Edit = Callable[[dict[str, Any]], object]


def edit_manifest(bundle: Path, edit: Edit) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    edit(manifest)
    write_manifest(bundle, manifest)


def refusal(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        load_bundle(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_bundle_loads_and_knows_its_default_graph(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundle = load_bundle(make_bundle(tmp_path / "bundle", classes=["tench", "église"]))
    assert bundle.manifest.classes == ("tench", "église")
    assert bundle.graph()[0] == tmp_path / "bundle" / "model.onnx"
    assert bundle.graph("model.onnx")[1].precision == "fp32"
    assert not caplog.records


def test_an_unknown_graph_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="'model.fp16.onnx'; choose one of model.onnx"):
        load_bundle(make_bundle(tmp_path)).graph("model.fp16.onnx")


def test_a_bundle_that_was_never_verified_loads_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "convmae_deploy"):
        load_bundle(make_bundle(tmp_path, verified=False))
    assert "was never verified" in caplog.text


def test_a_bundle_that_failed_its_verification_loads_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_bundle(tmp_path)
    edit_manifest(tmp_path, lambda manifest: manifest["files"]["model.onnx"]["numerics"].update(passed=False))
    with caplog.at_level(logging.WARNING, "convmae_deploy"):
        load_bundle(tmp_path)
    assert "failed its verification" in caplog.text


def test_what_is_no_bundle_folder_is_refused(tmp_path: Path) -> None:
    assert "found nothing at" in refusal(tmp_path / "missing")
    file = tmp_path / "file"
    file.touch()
    assert "found a file at" in refusal(file)
    (tmp_path / "empty").mkdir()
    assert "holds no manifest.json" in refusal(tmp_path / "empty")


@pytest.mark.parametrize("text", ["", "{", "\ufeff{}", "[" * 100_000])
def test_a_manifest_that_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
    assert "must be JSON" in refusal(tmp_path)


def test_a_manifest_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b'{"name": "\xff"}')
    assert "must be JSON" in refusal(tmp_path)


def test_a_newer_schema_asks_for_a_newer_release(tmp_path: Path) -> None:
    make_bundle(tmp_path, schema_version=2, something_new=1)
    assert "schema version 2, this release reads up to 1; install a newer" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda manifest: manifest.pop("name"), "name: Field required"),
        (lambda manifest: manifest.update(extra=1), "extra: Extra inputs are not permitted"),
        (lambda manifest: manifest["files"].clear(), "files must name at least one graph"),
        (lambda manifest: manifest["input"].update(shape=[3, 32, 32]), "input shape"),
        (lambda manifest: manifest["input"].update(shape=[]), "input shape"),
        (lambda manifest: manifest["input"].update(shape=[3, 7, 64, 64]), "input shape"),
        (lambda manifest: manifest["classes"].pop(), "logits must be float32"),
        (lambda manifest: manifest["preprocessing"].update(interpolation="nearest"), "crop.interpolation"),
        (lambda manifest: manifest.update(preprocessing="none"), "preprocessing"),
        (lambda manifest: manifest["files"]["model.onnx"].update(sha256="abc"), "files.model.onnx.sha256"),
    ],
)
def test_a_manifest_with_a_wrong_field_is_refused_by_the_fields_name(tmp_path: Path, edit: Edit, words: str) -> None:
    make_bundle(tmp_path)
    edit_manifest(tmp_path, edit)
    message = refusal(tmp_path)
    assert words in message and "export the bundle again" in message


def test_a_manifest_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("[]", encoding="utf-8")
    assert "not a valid manifest" in refusal(tmp_path)


def test_a_missing_graph_is_refused(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    (tmp_path / "model.onnx").unlink()
    assert "lacks model.onnx" in refusal(tmp_path)


def test_a_missing_licence_is_refused(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    (tmp_path / "LICENSE-WEIGHTS").unlink()
    assert "lacks LICENSE-WEIGHTS" in refusal(tmp_path)


def test_a_graph_with_one_changed_byte_is_refused(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    content = bytearray((tmp_path / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "model.onnx").write_bytes(content)
    assert "SHA-256" in refusal(tmp_path)


def test_a_graph_that_was_cut_is_refused_by_its_length(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    content = (tmp_path / "model.onnx").read_bytes()
    (tmp_path / "model.onnx").write_bytes(content[:-1])
    assert f"must have {len(content)} bytes, found {len(content) - 1}" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", "a/b.onnx", "..", "a\\b.onnx", "C:model.onnx", ""])
def test_file_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    (tmp_path / "model.onnx").write_bytes((bundle / "model.onnx").read_bytes())
    edit_manifest(bundle, lambda manifest: manifest.update(files={name: manifest["files"]["model.onnx"]}))
    assert "only plain file names" in refusal(bundle)
    make_bundle(bundle, licence={"name": "x", "file": name})
    assert "only plain file names" in refusal(bundle)


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "LICENSE-WEIGHTS"])
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    (bundle / name).rename(tmp_path / name)
    (bundle / name).symlink_to(Path("..") / name)
    assert f"{name} is a link out of its folder; copy the folder with what its links lead to" in refusal(bundle)


def test_a_link_within_the_folder_is_followed_and_so_is_one_to_the_folder(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    (bundle / "model.onnx").rename(bundle / "stored")
    (bundle / "model.onnx").symlink_to("stored")
    (tmp_path / "linked").symlink_to("bundle")
    assert load_bundle(tmp_path / "linked").graph()[0].is_file()


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "LICENSE-WEIGHTS"])
def test_a_pipe_or_a_folder_in_place_of_a_file_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    for kind, make in (("pipe", os.mkfifo), ("folder", os.mkdir), ("link", lambda path: os.symlink(name, path))):
        bundle = make_bundle(tmp_path / kind)
        (bundle / name).unlink()
        make(bundle / name)
        assert name in refusal(bundle)


def test_a_manifest_of_many_megabytes_is_not_read(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    with (tmp_path / "manifest.json").open("r+b") as file:
        file.truncate(10**12)  # takes no place on the disk
    assert "manifest.json cannot be read (it has 1000000000000 bytes, at most 16777216 are read)" in refusal(tmp_path)


def test_a_graph_that_claims_many_terabytes_is_not_hashed(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    with (tmp_path / "model.onnx").open("r+b") as file:
        file.truncate(10**12)
    edit_manifest(tmp_path, lambda manifest: manifest["files"]["model.onnx"].update(bytes=10**12))
    assert "files.model.onnx.bytes: Input should be less than or equal to 68719476736" in refusal(tmp_path)


def test_what_a_sentence_repeats_of_a_manifest_is_bounded(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    edit_manifest(tmp_path, lambda manifest: manifest.update({"x" * 100_000: 1}))
    assert len(refusal(tmp_path)) < 800


def test_half_a_character_is_refused(tmp_path: Path) -> None:
    make_bundle(tmp_path, variant="\ud800")
    assert "must be JSON" in refusal(tmp_path)
