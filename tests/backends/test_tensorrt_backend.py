"""Engines are refused where they do not fit; what runs them is tried on a stand-in for TensorRT and CUDA."""

import gc
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convmae_deploy.backends import tensorrt_backend
from convmae_deploy.backends.engine_record import EngineProfile, EngineRecord, read_record, record_path
from convmae_deploy.backends.gpu import Gpu
from convmae_deploy.backends.onnxruntime_backend import OnnxRuntimeBackend
from convmae_deploy.backends.runtimes import RuntimeOptions, start_backend
from convmae_deploy.backends.tensorrt_backend import TensorRtBackend
from convmae_deploy.backends.tensorrt_lane import Cuda
from convmae_deploy.backends.tensorrt_library import Flavour
from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import sha256_of
from convmae_deploy.tasks import load_bundle
from convmae_deploy.tasks.classification import Classifier
from tests.backends.fake_tensorrt import FakeContext, FakeCuda, FakeEngine, FakeTensorRt
from tests.bundle_factory import batch_for, make_bundle, make_detection_bundle, open_as
from tests.media.photo_files import photo
from tests.waiting import PATIENCE_SECONDS

GPU = Gpu(name="NVIDIA Test 4000", compute_capability="8.9", cuda="13.0")
VERSION = "10.9.0.34"
PROFILES = (EngineProfile(min_batch=1, max_batch=1), EngineProfile(min_batch=2, max_batch=4))


@dataclass
class Machine:
    """A bundle with an engine on a machine that has a GPU."""

    bundle: Bundle
    cuda: FakeCuda
    engine: FakeEngine
    tensorrt: FakeTensorRt

    @property
    def engine_path(self) -> Path:
        return self.bundle.path / "model.engine"

    def change_record(self, **changes: Any) -> None:
        record = read_record(self.engine_path).model_copy(update=changes)
        record_path(self.engine_path).write_text(record.model_dump_json(), encoding="utf-8")

    def refusal(self, **options: Any) -> str:
        with pytest.raises(ConvMAEError) as caught:
            TensorRtBackend(self.bundle, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)


def put_engine(bundle: Bundle, name: str = "model.engine", **changes: Any) -> Path:
    """Writes what stands for an engine, with its record."""
    engine = bundle.path / name
    engine.write_bytes(b"as TensorRT wrote it")
    fields: dict[str, Any] = {
        "flavour": "tensorrt",
        "tensorrt_version": VERSION,
        "compute_capabilities": ("8.9",),
        "engine_sha256": sha256_of(engine),
        "engine_bytes": engine.stat().st_size,
        "graph": "model.onnx",
        "graph_sha256": bundle.manifest.files["model.onnx"].sha256,
        "precision": "fp32",
        "profiles": PROFILES,
        "options": {},
        "gpu": GPU.name,
        "cuda": GPU.cuda,
        "build_seconds": 1.5,
        "peak_memory_bytes": 10**9,
    }
    record = EngineRecord.model_validate(fields | changes)
    record_path(engine).write_text(record.model_dump_json(), encoding="utf-8")
    return engine


def machine_with(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    flavour: Flavour = "tensorrt",
    profiles: tuple[EngineProfile, ...] = PROFILES,
) -> Machine:
    put_engine(bundle, flavour=flavour, profiles=profiles)
    cuda = FakeCuda()
    engine = FakeEngine(cuda, bundle.manifest, bundle.path / "model.onnx", profiles)
    tensorrt = FakeTensorRt(VERSION, engine)
    monkeypatch.setattr(tensorrt_backend, "find_gpu", lambda: GPU)
    monkeypatch.setattr(tensorrt_backend, "import_tensorrt", lambda found: {flavour: tensorrt}[found])
    monkeypatch.setattr(tensorrt_backend, "import_cuda", lambda: cuda)
    return Machine(bundle, cuda, engine, tensorrt)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return machine_with(load_bundle(make_bundle(tmp_path / "bundle")), monkeypatch)


def test_each_size_runs_in_profiles_of_its_own_and_others_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = load_bundle(make_bundle(tmp_path / "bundle", largest=192))
    profiles = (*PROFILES, EngineProfile(min_batch=1, max_batch=2, size=(96, 160)))
    machine_with(bundle, monkeypatch, profiles=profiles)
    backend = TensorRtBackend(bundle)
    assert backend.batch_sizes == (1, 4)  # of the bundle's own size
    for size, count in (((64, 64), 3), ((96, 160), 1), ((96, 160), 5), ((64, 64), 1)):
        batch, names = batch_for(bundle.at(size), count), ["e1", "logits"]
        found, expected = backend.run(batch, names), on_cpu(bundle, batch, names)
        assert all(np.array_equal(found[name], expected[name]) for name in names)
    reason = r"\(B, 3, 64, 64\) or \(B, 3, 96, 160\); got \(1, 3, 32, 32\); build the engine with --size for others"
    with pytest.raises(ConvMAEError, match=reason):
        backend.run(batch_for(bundle.at((32, 32)), 1), ["logits"])


def on_cpu(bundle: Bundle, batch: Any, names: list[str]) -> dict[str, Any]:
    return OnnxRuntimeBackend(bundle, device="cpu", threads=1).run(batch, names)


@pytest.mark.parametrize("make", [make_bundle, make_detection_bundle])
def test_every_batch_gives_the_graph_s_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    bundle = load_bundle(make(tmp_path / "bundle"))
    machine_with(bundle, monkeypatch)
    backend = TensorRtBackend(bundle)
    assert (backend.name, backend.providers, backend.batch_sizes) == ("tensorrt fp32", (GPU.name,), (1, 4))
    names = list(bundle.manifest.outputs)[::-1]
    for count in (3, 1, 4, 9, 2):  # 9 is more than the engine takes at once
        batch = batch_for(bundle, count)
        found, expected = backend.run(batch, names), on_cpu(bundle, batch, names)
        assert list(found) == names
        for name, values in expected.items():
            assert found[name].dtype == values.dtype and found[name].shape == values.shape
            np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6)


def test_results_outlive_the_next_run(machine: Machine) -> None:
    backend = TensorRtBackend(machine.bundle)
    first = backend.run(batch_for(machine.bundle, 2), ["pooled"])["pooled"]
    kept = first.copy()
    backend.run(batch_for(machine.bundle, 3), ["pooled"])
    assert np.array_equal(first, kept)


def test_rows_that_fill_a_batch_up_are_zeros_whatever_ran_before(machine: Machine) -> None:
    backend = TensorRtBackend(machine.bundle)
    backend.run(np.ones((4, 3, 64, 64), np.float32), ["logits"])
    backend.run(np.ones((2, 3, 64, 64), np.float32), ["logits"])
    last = machine.engine.seen[-1]
    assert last.shape[0] == 4 and (last[:2] == 1).all() and not last[2:].any()


@pytest.mark.slow
def test_memory_is_taken_once_and_given_back_at_the_end(machine: Machine) -> None:
    backend = TensorRtBackend(machine.bundle)
    assert not machine.cuda.device
    names = list(machine.bundle.manifest.outputs)
    backend.run(batch_for(machine.bundle, 1), names)
    taken = machine.cuda.mallocs
    assert len(machine.cuda.device) == 2 + len(names)  # input, outputs and scratch
    for count in (4, 2, 8, 1):
        backend.run(batch_for(machine.bundle, count), names)
    assert machine.cuda.mallocs == taken and len(machine.cuda.streams) == 1
    del backend
    gc.collect()
    assert not machine.cuda.device and not machine.cuda.pinned and not machine.cuda.streams


def test_each_profile_is_captured_once_and_launched_from_then_on(machine: Machine) -> None:
    backend = TensorRtBackend(machine.bundle)
    for _ in range(3):
        for count in (1, 2, 3, 4):
            backend.run(batch_for(machine.bundle, count), ["logits"])
    assert (machine.cuda.captures, machine.engine.executions) == (2, 2)
    assert machine.cuda.launches == 3 * 4 - 2


@pytest.mark.parametrize("which", ["can_begin_capture", "can_capture"])
def test_what_cannot_be_captured_runs_all_the_same_and_says_so_once(
    machine: Machine, caplog: pytest.LogCaptureFixture, which: str
) -> None:
    setattr(machine.cuda, which, False)
    backend = TensorRtBackend(machine.bundle)
    batch = batch_for(machine.bundle, 4)
    with caplog.at_level(logging.WARNING, "convmae_deploy"):
        for _ in range(3):
            found = backend.run(batch, ["logits"])["logits"]
    np.testing.assert_allclose(found, on_cpu(machine.bundle, batch, ["logits"])["logits"], rtol=1e-5, atol=1e-6)
    assert (machine.engine.executions, machine.cuda.launches) == (3, 0)
    (record,) = caplog.records
    assert "cannot be captured as a CUDA graph" in record.message


def test_tensorrt_for_rtx_is_told_to_capture_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = load_bundle(make_bundle(tmp_path / "bundle"))
    machine = machine_with(bundle, monkeypatch, "tensorrt-rtx")
    backend = TensorRtBackend(bundle)
    backend.run(batch_for(bundle, 2), ["logits"])
    backend.run(batch_for(bundle, 2), ["logits"])
    (config,) = machine.engine.strategies
    assert (config.strategy, config.cuda_graph_strategy) == ("user managed", "whole graph")
    assert (machine.cuda.captures, machine.engine.executions) == (0, 2)


def test_callers_run_side_by_side_on_as_many_streams_as_there_are(machine: Machine) -> None:
    backend = TensorRtBackend(machine.bundle, streams=2)
    both_run = threading.Barrier(2, timeout=PATIENCE_SECONDS)  # breaks where one waits for the other
    machine.engine.meet = both_run.wait
    batches = [batch_for(machine.bundle, 1) + index for index in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda batch: backend.run(batch, ["logits"])["logits"], batches))
    assert len(machine.cuda.streams) == 2
    for batch, logits in zip(batches, found, strict=True):
        expected = on_cpu(machine.bundle, batch, ["logits"])["logits"]
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_after_a_failed_run_the_next_one_has_memory_of_its_own(machine: Machine) -> None:
    backend = TensorRtBackend(machine.bundle, streams=1)
    machine.engine.broken = True
    for _ in range(2):  # the second would wait for ever if the first had kept its turn
        with pytest.raises(ConvMAEError, match="did not run the engine"):
            backend.run(batch_for(machine.bundle, 1), ["logits"])
    machine.engine.broken = False
    gc.collect()
    backend.run(batch_for(machine.bundle, 1), ["logits"])
    assert len(machine.cuda.streams) == 1


def test_a_gpu_without_memory_is_one_sentence_and_leaves_nothing(machine: Machine) -> None:
    backend = TensorRtBackend(machine.bundle)
    machine.cuda.out_of_memory = True
    with pytest.raises(ConvMAEError, match="CUDA failed in cudaMalloc .cudaErrorMemoryAllocation"):
        backend.run(batch_for(machine.bundle, 1), ["logits"])
    gc.collect()
    assert not machine.cuda.streams


def test_a_batch_of_another_shape_is_refused(machine: Machine) -> None:
    with pytest.raises(ConvMAEError, match=r"must be \(B, 3, 64, 64\); got \(1, 3, 32, 64\)"):
        TensorRtBackend(machine.bundle).run(np.zeros((1, 3, 32, 64), np.float32), ["logits"])


def test_photos_are_classified_as_on_the_cpu(machine: Machine) -> None:
    options = RuntimeOptions(runtime="tensorrt", file="model.onnx")
    found = open_as(Classifier, machine.bundle.path, options=options)([photo(seed=3)])[0]
    expected = open_as(Classifier, machine.bundle.path, device="cpu")([photo(seed=3)])[0]
    assert [entry.label for entry in found] == [entry.label for entry in expected]


def test_a_version_compatible_engine_runs_on_later_versions_with_its_own_runtime(machine: Machine) -> None:
    machine.change_record(version_compatible=True, tensorrt_version="10.3.0.1")
    TensorRtBackend(machine.bundle, trust_engine_code=True)
    assert machine.tensorrt.runtimes[0].engine_host_code_allowed is True
    machine.change_record(tensorrt_version="10.9.1.0")
    assert "or a later one of the same major version, found 10.9.0.34" in machine.refusal()
    machine.change_record(tensorrt_version="9.9.1.0")
    assert "needs that version or a later one" in machine.refusal()


def test_the_program_inside_an_engine_runs_only_where_its_user_said_so(machine: Machine) -> None:
    machine.change_record(version_compatible=True)
    message = machine.refusal()
    assert "model.engine holds a program that runs with your rights" in message
    assert "--trust-engine-code (server: CONVMAE_TRUST_ENGINE_CODE=true)" in message
    assert not machine.tensorrt.runtimes
    options = RuntimeOptions(runtime="tensorrt", trust_engine_code=True)
    assert start_backend(machine.bundle, options=options).name == "tensorrt fp32"


def test_an_engine_that_hides_its_program_is_not_allowed_to_run_it(machine: Machine) -> None:
    machine.change_record(version_compatible=False)
    TensorRtBackend(machine.bundle, trust_engine_code=True)
    assert machine.tensorrt.runtimes[0].engine_host_code_allowed is False


def test_trusting_engines_says_nothing_to_other_runtimes(machine: Machine) -> None:
    with pytest.raises(ConvMAEError, match="trust_engine_code is for runtime tensorrt"):
        start_backend(machine.bundle, options=RuntimeOptions(trust_engine_code=True))


def test_what_is_checked_of_an_engine_is_what_is_loaded(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read once: a file that is put in its place after the check is not looked at."""
    content = machine.engine_path.read_bytes()

    def swap(flavour: str) -> FakeTensorRt:
        machine.engine_path.write_bytes(b"another engine")
        return machine.tensorrt

    monkeypatch.setattr(tensorrt_backend, "import_tensorrt", swap)
    TensorRtBackend(machine.bundle)
    assert machine.tensorrt.runtimes[0].deserialized == content


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tensorrt_version": "10.8.0.43"}, "built by TensorRT 10.8.0.43 and needs that version, found 10.9.0.34"),
        ({"compute_capabilities": ("8.6", "9.0")}, "compute capability 8.6 or 9.0, found NVIDIA Test 4000 with 8.9"),
        ({"compute_capabilities": ("12.0",), "newer_gpus": True}, "compute capability 12.0 or more, found"),
        ({"engine_sha256": "0" * 64}, "it was changed"),
        ({"engine_bytes": 7}, "must have 7 bytes"),
        ({"graph_sha256": "1" * 64}, "was built from a model.onnx of the SHA-256 1111"),
        ({"graph": "model.fp16.onnx"}, "the bundle has no model.fp16.onnx"),
        ({"profiles": PROFILES[:1]}, "must have 1 profiles, found 2"),
    ],
)
def test_an_engine_that_does_not_fit_is_refused_with_what_to_do(
    machine: Machine, changes: dict[str, Any], words: str
) -> None:
    machine.change_record(**changes)
    sentence = machine.refusal()
    assert words in sentence
    assert "build it on this machine in fp32" in sentence


def test_an_engine_for_older_gpus_runs_on_newer_ones_where_it_says_so(machine: Machine) -> None:
    machine.change_record(compute_capabilities=("8.0",), newer_gpus=True)
    TensorRtBackend(machine.bundle)


def test_an_engine_that_tensorrt_does_not_load_is_refused(machine: Machine) -> None:
    machine.tensorrt.engine = None
    assert "TensorRT 10.9.0.34 does not load" in machine.refusal()


def test_without_a_gpu_it_never_runs_on_the_cpu(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not on device cpu" in machine.refusal(device="cpu")
    monkeypatch.setattr(tensorrt_backend, "find_gpu", lambda: None)
    assert "needs an NVIDIA GPU with its driver, found none" in machine.refusal()
    options = RuntimeOptions(runtime="tensorrt")
    with pytest.raises(ConvMAEError, match="found none"):
        start_backend(machine.bundle, options=options)


@pytest.mark.gpu
def test_on_a_gpu_an_engine_gives_the_cpu_s_numbers(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.runtime")
    from rich.console import Console

    from export.to_tensorrt import EngineConfig, write_engine

    bundle = load_bundle(make_bundle(tmp_path / "bundle"))
    write_engine(EngineConfig(bundle=bundle.path, batch=(1, 4)), Console())
    backend = TensorRtBackend(bundle)
    for count in (1, 3, 4, 4, 6):
        batch, names = batch_for(bundle, count), list(bundle.manifest.outputs)
        for name, values in on_cpu(bundle, batch, names).items():
            np.testing.assert_allclose(backend.run(batch, names)[name], values, rtol=1e-3, atol=1e-4)


def test_the_stand_in_has_nothing_that_the_real_libraries_lack() -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    for fake, real in ((FakeEngine, rtx.ICudaEngine), (FakeContext, rtx.IExecutionContext)):
        methods = {name for name in vars(fake) if not name.startswith("_")}
        assert {name for name in methods if not hasattr(real, name)} == set()
    for name in ("num_io_tensors", "num_optimization_profiles", "device_memory_size_v2"):
        assert hasattr(rtx.ICudaEngine, name)
    assert rtx.ExecutionContextAllocationStrategy.USER_MANAGED and rtx.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    assert hasattr(rtx.IRuntimeConfig, "set_execution_context_allocation_strategy")
    assert hasattr(rtx.IRuntimeConfig, "cuda_graph_strategy") and hasattr(rtx.Runtime, "engine_host_code_allowed")
    assert (rtx.nptype(rtx.DataType.FLOAT), rtx.nptype(rtx.DataType.INT64)) == (np.float32, np.int64)
    assert (rtx.DataType.FLOAT.name, rtx.DataType.INT64.name) == ("FLOAT", "INT64")
    assert [rtx.TensorIOMode.INPUT.name, rtx.TensorIOMode.OUTPUT.name] == ["INPUT", "OUTPUT"]


def test_cuda_takes_the_lane_s_calls_and_fails_for_want_of_a_driver() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    stream, graph, executable = runtime.cudaStream_t(0), runtime.cudaGraph_t(0), runtime.cudaGraphExec_t(0)
    kinds, modes = runtime.cudaMemcpyKind, runtime.cudaStreamCaptureMode
    calls: list[tuple[Any, ...]] = [
        ("cudaMalloc", 16),
        ("cudaMallocHost", 16),
        ("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking),
        ("cudaMemcpyAsync", 0, 0, 16, kinds.cudaMemcpyHostToDevice, stream),
        ("cudaMemcpyAsync", 0, 0, 16, kinds.cudaMemcpyDeviceToHost, stream),
        ("cudaMemsetAsync", 0, 0, 16, stream),
        ("cudaStreamSynchronize", stream),
        ("cudaStreamBeginCapture", stream, modes.cudaStreamCaptureModeThreadLocal),
        ("cudaStreamEndCapture", stream),
        ("cudaGraphInstantiate", graph, 0),
        ("cudaGraphLaunch", executable, stream),
    ]
    for name, *arguments in calls:
        with pytest.raises(ConvMAEError, match=f"CUDA failed in {name} .cudaError"):
            Cuda(runtime).call(name, *arguments)
    assert int(stream) == 0
