"""What is measured of a bundle, and why the rest is not."""

import json
from pathlib import Path

import pytest

from convmae_deploy.backends.engine_record import EngineProfile, EngineRecord, record_path
from convmae_deploy.backends.gpu import Gpu
from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks import load_bundle
from export.benchmarking import contenders as module
from export.benchmarking.contenders import WAYS, Contender, Way, find_contenders
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
def no_gpu(monkeypatch: pytest.MonkeyPatch, give_openvino: GiveOpenVino) -> None:
    monkeypatch.setattr(module, "find_gpu", lambda: None)
    give_openvino("FP32", "BF16", "INT8")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, no_gpu: None) -> None:
    monkeypatch.setattr(module, "find_gpu", lambda: GPU)
    providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: providers)


def names(contenders: list[Contender]) -> list[str]:
    return [contender.name for contender in contenders]


def test_every_file_meets_every_runtime_that_is_there(tmp_path: Path, no_gpu: None) -> None:
    pytest.importorskip("openvino")
    found, left_out = find_contenders(bundle_of(tmp_path, "fp16", "bf16", "int8"), checkpoint=True)
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
    reasons = {entry.name: entry.reason for entry in left_out}
    assert list(reasons) == ["ONNX Runtime bf16", "ONNX Runtime CUDA", "ONNX Runtime TensorRT", "TensorRT"]
    assert reasons["ONNX Runtime bf16"] == "ONNX Runtime's CPU provider has no bf16"
    assert "NVIDIA GPU" in reasons["TensorRT"]


def test_names_are_one_each_and_only_full_precision_on_the_cpu_must_be_exact(tmp_path: Path, gpu: None) -> None:
    pytest.importorskip("openvino")
    found, _ = find_contenders(bundle_of(tmp_path, "fp16", "int8"), checkpoint=True)
    assert len(set(names(found))) == len(found)
    exact = [contender.name for contender in found if contender.exact]
    assert exact == [
        "PyTorch fp32",
        "torch.compile fp32",
        "ONNX Runtime fp32",
        "OpenVINO fp32",
        "OpenVINO fp32 throughput",
    ]


def test_without_a_checkpoint_pytorch_is_left_out_and_says_what_it_needs(tmp_path: Path, no_gpu: None) -> None:
    found, left_out = find_contenders(bundle_of(tmp_path), checkpoint=False, ways=("eager", "onnxruntime"))
    assert names(found) == ["ONNX Runtime fp32"]
    (entry,) = left_out
    assert entry.name == "PyTorch" and "--checkpoint" in entry.reason


def test_where_openvino_is_missing_its_sentence_is_the_reason(
    tmp_path: Path, no_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise ConvMAEError("runtime openvino needs OpenVINO, which is not installed")

    monkeypatch.setattr(module, "import_openvino", missing)
    found, left_out = find_contenders(bundle_of(tmp_path), checkpoint=False, ways=("openvino",))
    assert not found and [entry.reason for entry in left_out] == [
        "runtime openvino needs OpenVINO, which is not installed"
    ]


def test_a_cpu_without_bf16_runs_half_files_in_full_precision(
    tmp_path: Path, no_gpu: None, give_openvino: GiveOpenVino
) -> None:
    pytest.importorskip("openvino")
    give_openvino("FP32", "INT8")
    found, _ = find_contenders(
        bundle_of(tmp_path, "bf16"), checkpoint=False, ways=("openvino",), files=["model.bf16.onnx"]
    )
    assert names(found) == ["OpenVINO bf16 in fp32", "OpenVINO bf16 in fp32 throughput"]


def test_engines_of_the_files_chosen_are_found_and_others_are_told(tmp_path: Path, gpu: None) -> None:
    bundle = bundle_of(tmp_path, "fp16")
    found, left_out = find_contenders(bundle, checkpoint=False, ways=("tensorrt",))
    assert not found and "python -m export.to_tensorrt" in left_out[0].reason
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
    found, left_out = find_contenders(bundle, checkpoint=False, ways=("tensorrt",))
    assert [(contender.name, contender.file) for contender in found] == [("TensorRT model.fp16", "model.fp16.engine")]
    assert [entry.name for entry in left_out] == ["TensorRT other.engine"] and "record" in left_out[0].reason
    assert not find_contenders(bundle, checkpoint=False, ways=("tensorrt",), files=["model.onnx"])[0]


def test_a_gpu_brings_the_providers_of_onnx_runtime(tmp_path: Path, gpu: None) -> None:
    ways: tuple[Way, ...] = ("onnxruntime-cuda", "onnxruntime-tensorrt")
    found, _ = find_contenders(bundle_of(tmp_path), checkpoint=False, ways=ways)
    assert names(found) == ["ONNX Runtime CUDA fp32", "ONNX Runtime TensorRT fp32"]


def test_a_provider_that_onnx_runtime_lacks_is_named(
    tmp_path: Path, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    _, left_out = find_contenders(bundle_of(tmp_path), checkpoint=False, ways=("onnxruntime-cuda",))
    assert "CUDAExecutionProvider" in left_out[0].reason and "onnxruntime-gpu" in left_out[0].reason


def test_a_detector_is_neither_compiled_nor_cast(tmp_path: Path, no_gpu: None) -> None:
    bundle = load_bundle(make_detection_bundle(tmp_path))
    found, _ = find_contenders(bundle, checkpoint=True, ways=("eager", "compiled"))
    assert names(found) == ["PyTorch fp32"]


def test_a_file_that_the_bundle_lacks_is_refused(tmp_path: Path, no_gpu: None) -> None:
    with pytest.raises(ConvMAEError, match=r"no graph 'model.fp8.onnx'; choose one of model.onnx"):
        find_contenders(bundle_of(tmp_path), checkpoint=False, ways=WAYS, files=["model.fp8.onnx"])
