"""Which files are verified and measured on which runtimes, in which ways, and the reasons of the others."""

import json
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from convmae_deploy.backends import onnxruntime_backend, tensorrt_backend
from convmae_deploy.backends.engine_record import EngineProfile, EngineRecord, record_path
from convmae_deploy.backends.gpu import Gpu
from convmae_deploy.backends.runtimes import RUNTIMES, RuntimeName
from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.bundle.manifest import Precision
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks import load_bundle
from export.runtimes.combinations import MEASURED, Combination, files_of, to_measure, to_verify
from export.runtimes.runners import start
from tests.bundle_factory import make_bundle, make_detection_bundle, write_manifest
from tests.conftest import GiveOpenVino

GPU = Gpu(name="a GPU", compute_capability="8.9", cuda="13.0")


def bundle_of(directory: Path, *precisions: str) -> Bundle:
    """A bundle of a graph for each precision; they are all the same one."""
    make_bundle(directory)
    manifest = json.loads((directory / "manifest.json").read_text())
    graph = manifest["files"]["model.onnx"]
    for precision in precisions:
        (directory / f"model.{precision}.onnx").write_bytes((directory / "model.onnx").read_bytes())
        manifest["files"][f"model.{precision}.onnx"] = graph | {"precision": precision}
    write_manifest(directory, manifest)
    return load_bundle(directory)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return bundle_of(tmp_path / "bundle", "fp16", "bf16")


@pytest.fixture
def everything(give_openvino: GiveOpenVino) -> None:
    """A CPU with all that OpenVINO can do, no GPU."""
    pytest.importorskip("openvino")
    give_openvino("FP32", "FP16", "BF16", "INT8")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, everything: None) -> None:
    for module in (onnxruntime_backend, tensorrt_backend):
        monkeypatch.setattr(module, "find_gpu", lambda: GPU)
    providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: providers)


def run_on(found: list[Combination], file: str) -> dict[str, Precision]:
    return {entry.where: entry.gate for entry in found if entry.file == file and entry.reason is None}


def names(found: list[Combination]) -> list[str]:
    return [one.name for one in found]


def test_every_runtime_has_a_name_that_programs_take() -> None:
    assert set(get_args(RuntimeName)) == set(RUNTIMES)


@pytest.mark.usefixtures("everything")
def test_every_file_is_on_every_runtime_that_takes_it_with_the_gate_of_what_it_computes_in(bundle: Bundle) -> None:
    found = to_verify(bundle)
    assert run_on(found, "model.onnx") == {"ONNX Runtime": "fp32", "OpenVINO": "fp32", "OpenVINO, bf16": "bf16"}
    assert run_on(found, "model.fp16.onnx") == {"ONNX Runtime": "fp16", "OpenVINO": "fp16"}
    assert run_on(found, "model.bf16.onnx") == {"OpenVINO": "bf16"}


@pytest.mark.usefixtures("everything")
def test_what_cannot_be_run_has_its_reason_unless_that_is_evident(bundle: Bundle) -> None:
    reasons = {(entry.file, entry.where): entry.reason for entry in to_verify(bundle) if entry.reason}
    assert reasons["model.bf16.onnx", "ONNX Runtime"] == "ONNX Runtime's CPU provider has no bf16"
    cuda, tensorrt = (reasons["model.onnx", f"ONNX Runtime {name}"] for name in ("CUDA", "TensorRT"))
    assert cuda is not None and "needs" in cuda and tensorrt is not None and "GPU" in tensorrt
    assert not any(where in ("TensorRT", "ONNX reference") for _, where in reasons)


def test_without_openvino_bf16_runs_in_the_reference_evaluator(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert run_on(to_verify(bundle), "model.bf16.onnx") == {"ONNX reference": "bf16"}


def test_a_runtime_that_is_asked_for_and_can_run_nothing_is_refused_with_its_reason(bundle: Bundle) -> None:
    with pytest.raises(ConvMAEError, match=r"runtime onnxruntime-cuda cannot run model.onnx here: device cuda needs"):
        to_verify(bundle, ["model.onnx"], ["onnxruntime-cuda"])
    with pytest.raises(ConvMAEError, match=r"runtime tensorrt cannot run .* here: TensorRT runs engines"):
        to_verify(bundle, [], ["tensorrt"])


@pytest.mark.usefixtures("everything")
def test_a_runtime_that_is_asked_for_and_can_run_some_runs_those(bundle: Bundle) -> None:
    found = to_verify(bundle, [], ["onnxruntime"])
    assert [entry.reason is None for entry in found] == [True, True, False]


def test_an_unknown_file_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ConvMAEError, match="has no file 'other.onnx'; choose from model.onnx, "):
        to_verify(bundle, ["other.onnx"])


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


@pytest.mark.usefixtures("everything")
def test_every_file_meets_every_runtime_that_is_there(tmp_path: Path) -> None:
    found, left_out = to_measure(bundle_of(tmp_path, "fp16", "bf16", "int8"), checkpoint=True)
    assert names(found) == [
        "PyTorch fp32",
        "PyTorch bf16",
        "torch.compile fp32",
        "torch.compile bf16",
        "ONNX Runtime fp32",
        "ONNX Runtime fp16",
        "ONNX Runtime int8",
        "OpenVINO fp32",
        "OpenVINO fp32 throughput",
        "OpenVINO fp32 in bf16",
        "OpenVINO fp32 in bf16 throughput",
        "OpenVINO fp16 in bf16",  # in fp32 it would only be a slower fp32
        "OpenVINO fp16 in bf16 throughput",
        "OpenVINO bf16",
        "OpenVINO bf16 throughput",
        "OpenVINO int8 in fp32",
        "OpenVINO int8 in fp32 throughput",
        "OpenVINO int8 in bf16",
        "OpenVINO int8 in bf16 throughput",
    ]
    assert list(left_out) == ["ONNX Runtime bf16", "ONNX Runtime CUDA", "ONNX Runtime TensorRT", "TensorRT"]
    assert left_out["ONNX Runtime bf16"] == "ONNX Runtime's CPU provider has no bf16"
    assert "NVIDIA GPU" in left_out["TensorRT"]


def test_names_are_one_each_and_only_full_precision_on_the_cpu_must_be_exact(tmp_path: Path, gpu: None) -> None:
    found, _ = to_measure(bundle_of(tmp_path, "fp16", "int8"), checkpoint=True)
    assert len(set(names(found))) == len(found)
    exact = [one.name for one in found if one.exact]
    assert exact == [
        "PyTorch fp32",
        "torch.compile fp32",
        "ONNX Runtime fp32",
        "OpenVINO fp32",
        "OpenVINO fp32 throughput",
    ]


def test_without_a_checkpoint_pytorch_is_left_out_and_says_what_it_needs(tmp_path: Path) -> None:
    found, left_out = to_measure(bundle_of(tmp_path), checkpoint=False, runtimes=("eager", "onnxruntime"))
    assert names(found) == ["ONNX Runtime fp32"]
    assert list(left_out) == ["PyTorch"] and "--checkpoint" in left_out["PyTorch"]


def test_where_openvino_is_missing_its_sentence_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    found, left_out = to_measure(bundle_of(tmp_path), checkpoint=False, runtimes=("openvino",))
    assert not found and list(left_out) == ["OpenVINO"]
    assert left_out["OpenVINO"].startswith("runtime openvino needs OpenVINO")


def test_a_cpu_without_bf16_runs_half_files_in_full_precision(tmp_path: Path, give_openvino: GiveOpenVino) -> None:
    pytest.importorskip("openvino")
    give_openvino("FP32")
    found, _ = to_measure(
        bundle_of(tmp_path, "bf16"), checkpoint=False, runtimes=("openvino",), files=["model.bf16.onnx"]
    )
    assert names(found) == ["OpenVINO bf16 in fp32", "OpenVINO bf16 in fp32 throughput"]


def test_engines_of_the_files_chosen_are_found_and_others_are_told(tmp_path: Path, gpu: None) -> None:
    bundle = bundle_of(tmp_path, "fp16")
    found, left_out = to_measure(bundle, checkpoint=False, runtimes=("tensorrt",))
    assert not found and "python -m export.to_tensorrt" in left_out["TensorRT"]
    engine = tmp_path / "model.fp16.engine"
    engine.write_bytes(b"engine")
    (tmp_path / "other.engine").write_bytes(b"without a record")
    record = EngineRecord(
        flavour="tensorrt",
        tensorrt_version="10.13.0",
        compute_capabilities=("8.9",),
        engine_sha256="0" * 64,
        engine_bytes=6,
        graph="model.fp16.onnx",
        graph_sha256="0" * 64,
        precision="fp16",
        profiles=(EngineProfile(min_batch=1, max_batch=8),),
        options={},
        gpu=None,
        cuda=None,
        build_seconds=1,
        peak_memory_bytes=1,
    )
    record_path(engine).write_text(record.model_dump_json())
    found, left_out = to_measure(bundle, checkpoint=False, runtimes=("tensorrt",))
    assert [(one.name, one.file) for one in found] == [("TensorRT model.fp16", "model.fp16.engine")]
    assert list(left_out) == ["TensorRT other.engine"] and "record" in left_out["TensorRT other.engine"]
    assert not to_measure(bundle, checkpoint=False, runtimes=("tensorrt",), files=["model.onnx"])[0]


def test_a_gpu_brings_the_providers_of_onnx_runtime(tmp_path: Path, gpu: None) -> None:
    runtimes = ("onnxruntime-cuda", "onnxruntime-tensorrt")
    found, _ = to_measure(bundle_of(tmp_path), checkpoint=False, runtimes=runtimes)
    assert names(found) == ["ONNX Runtime CUDA fp32", "ONNX Runtime TensorRT fp32"]


def test_a_provider_that_onnx_runtime_lacks_is_named(
    tmp_path: Path, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    _, left_out = to_measure(bundle_of(tmp_path), checkpoint=False, runtimes=("onnxruntime-cuda",))
    assert "without CUDA" in left_out["ONNX Runtime CUDA"] and "onnxruntime-gpu" in left_out["ONNX Runtime CUDA"]


def test_a_detector_is_neither_compiled_nor_cast(tmp_path: Path) -> None:
    bundle = load_bundle(make_detection_bundle(tmp_path))
    found, _ = to_measure(bundle, checkpoint=True, runtimes=("eager", "compiled"))
    assert names(found) == ["PyTorch fp32"]


def test_a_file_that_the_bundle_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConvMAEError, match=r"no graph 'model.fp8.onnx'; choose one of model.onnx"):
        to_measure(bundle_of(tmp_path), checkpoint=False, runtimes=MEASURED, files=["model.fp8.onnx"])
