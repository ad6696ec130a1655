"""Who follows a choice, and when it is not followed."""

import logging
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from convmae_deploy import FeatureExtractor, load
from convmae_deploy.backends import choice as module
from convmae_deploy.backends.choice import Choice, Machine, choice_path, settle
from convmae_deploy.backends.runtimes import AUTO, RuntimeOptions
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks import load_bundle
from tests.bundle_factory import make_bundle
from tests.test_cli import convmae

HERE = Machine(processor="A CPU of some kind", cores=4, gpu=None)


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module.Machine, "this", classmethod(lambda cls: HERE))
    return make_bundle(tmp_path / "mine")


def write_choice(bundle: Path, **changes: Any) -> None:
    fields: dict[str, Any] = {
        "goal": "latency",
        "device": "cpu",
        "runtime": "openvino",
        "file": "model.onnx",
        "file_sha256": load_bundle(bundle).manifest.files["model.onnx"].sha256,
        "precision": "fp32",
        "hint": "latency",
        "machine": HERE,
        "figures": "1 ms",
        "versions": {},
    }
    choice_path(bundle).write_text(Choice.model_validate(fields | changes).model_dump_json())


def test_load_follows_the_choice_beside_the_bundle_and_says_so(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_choice(bundle)
    assert choice_path(bundle) == bundle.parent / "mine.choice.json"
    model = load(bundle, runtime="auto")
    assert model.runtime == RuntimeOptions(runtime="openvino", file="model.onnx", precision="fp32", hint="latency")
    assert model.backend.name == "openvino fp32"
    (line,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert "follows" in line and "model.onnx in OpenVINO, chosen for latency (1 ms)" in line


@pytest.mark.parametrize(
    ("changes", "device", "words"),
    [
        (None, "auto", "there is none"),
        ({"machine": HERE.model_copy(update={"cores": 8})}, "auto", "another machine, A CPU of some kind, 8 cores, no"),
        ({"machine": HERE.model_copy(update={"gpu": "A GPU"})}, "auto", "another machine"),
        ({"file_sha256": "0" * 64}, "auto", "another bundle, whose model.onnx is another file"),
        ({"file": "../model.onnx"}, "auto", "another bundle"),
        ({"file": "model.engine", "runtime": "tensorrt", "device": "cuda"}, "auto", "has no engine model.engine"),
        ({"runtime": "tensorrt", "device": "cuda"}, "cpu", "it is for device cuda, and cpu was asked for"),
        ({"precision": "bf16"}, "auto", "bf16"),  # which the CPU of the tests has not
    ],
)
def test_what_is_not_for_this_bundle_here_is_not_followed_and_it_is_said_why(
    changes: dict[str, Any] | None, device: Any, words: str, bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if changes is not None:
        write_choice(bundle, **changes)
    assert settle(load_bundle(bundle), RuntimeOptions(runtime=AUTO), device) == (RuntimeOptions(), device)
    assert words in caplog.text and "takes its first graph in ONNX Runtime" in caplog.text


@pytest.mark.parametrize("content", ["{", "[]", '{"schema_version": 2}', "x" * 70_000])
def test_a_choice_that_cannot_be_read_is_not_followed(
    content: str, bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    choice_path(bundle).write_text(content)
    assert settle(load_bundle(bundle), RuntimeOptions(runtime=AUTO)) == (RuntimeOptions(), "auto")
    assert "cannot be read" in caplog.text


def test_a_file_and_auto_contradict_each_other(bundle: Path) -> None:
    with pytest.raises(ConvMAEError, match="leave out file model.onnx, or name a runtime"):
        load(bundle, runtime="auto", file="model.onnx")


def test_commands_and_pipelines_follow_it_too(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    write_choice(bundle)
    photo = tmp_path / "a.png"
    Image.new("RGB", (40, 30), "red").save(photo)
    assert convmae("predict", bundle, photo, "--runtime", "auto") == 0
    assert convmae("features", bundle, photo, "--runtime", "auto", "--out", tmp_path / "a.npz") == 0
    assert FeatureExtractor(bundle, runtime="auto")({"path": [str(photo)]})["error"].to_pylist() == [None]
    assert caplog.text.count("model.onnx in OpenVINO, chosen for latency") == 3
    assert convmae("info", bundle, "--runtime", "auto", "--precision", "bf16") == 2
    assert "leave out precision bf16" in capsys.readouterr().err
