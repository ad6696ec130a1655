"""Which files run on which runtimes, and the reasons of the others."""

import json
from pathlib import Path

import numpy as np
import pytest

from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.bundle.manifest import Precision
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks import load_bundle
from export.verification import combinations as module
from export.verification.combinations import Combination, RuntimeChoice, combinations_of, files_of, start
from tests.bundle_factory import make_bundle, write_manifest


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """The same float32 graph under the names of two precisions."""
    folder = make_bundle(tmp_path / "bundle")
    content = json.loads((folder / "manifest.json").read_text())
    for precision in ("fp16", "bf16"):
        name = f"model.{precision}.onnx"
        (folder / name).write_bytes((folder / "model.onnx").read_bytes())
        content["files"][name] = content["files"]["model.onnx"] | {"precision": precision}
    write_manifest(folder, content)
    return load_bundle(folder)


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with all that OpenVINO can do, no GPU."""
    monkeypatch.setattr(module, "openvino_precisions", lambda: ("fp32", "bf16"))
    monkeypatch.setattr(module, "runner_problem", lambda name, precision: _problem(name, precision))


def _problem(name: str, precision: Precision) -> str | None:
    return "no bf16 there" if name == "onnxruntime" and precision == "bf16" else None


def run_on(found: list[Combination], file: str) -> dict[RuntimeChoice, Precision]:
    return {entry.runtime: entry.precision for entry in found if entry.file == file and entry.reason is None}


@pytest.mark.usefixtures("everything")
def test_every_file_is_on_every_runtime_that_takes_it_with_the_gate_of_what_it_computes_in(bundle: Bundle) -> None:
    found = combinations_of(bundle)
    assert run_on(found, "model.onnx") == {"onnxruntime": "fp32", "openvino": "fp32", "openvino-bf16": "bf16"}
    assert run_on(found, "model.fp16.onnx") == {"onnxruntime": "fp16", "openvino": "fp16"}
    assert run_on(found, "model.bf16.onnx") == {"openvino": "bf16"}


@pytest.mark.usefixtures("everything")
def test_what_cannot_be_run_has_its_reason_unless_that_is_evident(bundle: Bundle) -> None:
    reasons = {(entry.file, entry.runtime): entry.reason for entry in combinations_of(bundle) if entry.reason}
    assert reasons["model.bf16.onnx", "onnxruntime"] == "no bf16 there"
    assert "needs" in reasons["model.onnx", "cuda"] and "GPU" in reasons["model.onnx", "onnxruntime-tensorrt"]
    assert not any(runtime in ("tensorrt", "onnx-reference") for _, runtime in reasons)


def test_without_openvino_bf16_runs_in_the_reference_evaluator(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def problem(name: str, precision: Precision) -> str | None:
        return "OpenVINO is not installed" if name == "openvino" else _problem(name, precision)

    monkeypatch.setattr(module, "runner_problem", problem)
    monkeypatch.setattr(module, "openvino_precisions", tuple)
    assert run_on(combinations_of(bundle), "model.bf16.onnx") == {"onnx-reference": "bf16"}


def test_a_runtime_that_is_asked_for_and_can_run_nothing_is_refused_with_its_reason(bundle: Bundle) -> None:
    with pytest.raises(ConvMAEError, match=r"runtime cuda cannot run model.onnx here: device cuda needs"):
        combinations_of(bundle, ["model.onnx"], ["cuda"])
    with pytest.raises(ConvMAEError, match=r"runtime tensorrt cannot run .* here: TensorRT runs engines"):
        combinations_of(bundle, [], ["tensorrt"])


@pytest.mark.usefixtures("everything")
def test_a_runtime_that_is_asked_for_and_can_run_some_runs_those(bundle: Bundle) -> None:
    found = combinations_of(bundle, [], ["onnxruntime"])
    assert [entry.reason is None for entry in found] == [True, True, False]


def test_an_unknown_file_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ConvMAEError, match="has no file 'other.onnx'; choose from model.onnx, "):
        combinations_of(bundle, ["other.onnx"])


def test_an_engine_in_the_folder_is_a_file_and_one_without_a_record_is_refused(bundle: Bundle) -> None:
    (bundle.path / "model.engine").write_bytes(b"engine")
    with pytest.raises(ConvMAEError, match="has no record"):
        files_of(bundle)


def test_a_combination_runs_as_the_runtime_serves_it(bundle: Bundle) -> None:
    images = np.random.default_rng(0).standard_normal((2, 3, 64, 64), dtype=np.float32)
    runner, described = start(Combination(file="model.onnx", runtime="onnxruntime", precision="fp32"), bundle)
    found = runner(images)
    assert set(found) == set(bundle.manifest.outputs) and len(found["logits"]) == 2
    assert described.startswith("onnxruntime ") and "CPUExecutionProvider" in described
