import ctypes
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from convmae_deploy.backends import onnxruntime_backend
from convmae_deploy.backends.base import Device
from convmae_deploy.backends.gpu import Gpu
from convmae_deploy.backends.onnxruntime_backend import OnnxRuntimeBackend, open_graph
from convmae_deploy.backends.onnxruntime_lane import Lane
from convmae_deploy.backends.runtimes import RuntimeOptions, start_backend
from convmae_deploy.bundle.loading import Bundle, BundleError
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import sha256_of
from convmae_deploy.tasks import load_bundle
from tests.bundle_factory import make_bundle, write_manifest


def describe_graph_as_it_is(folder: Path) -> None:
    """Gives the manifest the digest of the graph that is there now."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    graph = folder / "model.onnx"
    manifest["files"]["model.onnx"].update(sha256=sha256_of(graph), bytes=graph.stat().st_size)
    write_manifest(folder, manifest)


def changed_bundle(folder: Path, **changes: Any) -> Bundle:
    """A bundle whose manifest fields are changed after export; `changes` are merged one level deep."""
    make_bundle(folder)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for field, change in changes.items():
        manifest[field] = {**manifest[field], **change}
    write_manifest(folder, manifest)
    return load_bundle(folder)


def refusal(bundle: Bundle, **options: Any) -> str:
    with pytest.raises(BundleError) as caught:
        OnnxRuntimeBackend(bundle, device="cpu", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_named_outputs_equal_those_of_onnxruntime_itself(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    image = np.random.default_rng(0).standard_normal((2, 3, 64, 64), dtype=np.float32)
    backend = OnnxRuntimeBackend(load_bundle(tmp_path), device="cpu", threads=1)
    results = backend.run(image, ["e2", "logits"])
    direct = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    assert list(results) == ["e2", "logits"]
    for name, values in results.items():
        assert np.array_equal(values, direct.run([name], {"image": image})[0])
    assert backend.providers == ("CPUExecutionProvider",)


def test_int8_products_do_not_saturate_on_any_cpu(capfd: pytest.CaptureFixture[str]) -> None:
    levels = np.full((64, 8), 127, np.int8)
    constants: dict[str, np.ndarray[Any, Any]] = {
        "scale": np.array(1 / 127, np.float32),
        "zero": np.array(0, np.int8),
        "weight": levels,
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["levels"]),
        helper.make_node("DequantizeLinear", ["levels", "scale", "zero"], ["left"]),
        helper.make_node("DequantizeLinear", ["weight", "scale", "zero"], ["right"]),
        helper.make_node("MatMul", ["left", "right"], ["y"]),
    ]
    shapes = {"x": [1, 64], "y": [1, 8]}
    entry, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
    weights = [numpy_helper.from_array(values, name) for name, values in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "product", [entry], [result], weights),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
    )
    found = open_graph(model.SerializeToString()).run(["y"], {"x": np.ones((1, 64), np.float32)})["y"]
    np.testing.assert_allclose(found, np.full((1, 8), 64), rtol=1e-5)
    # layers that share a weight run too, though ONNX Runtime 1.31 has no such products of them
    model.graph.node.append(helper.make_node("DequantizeLinear", ["weight", "scale", "zero"], ["right again"]))
    model.graph.node.append(helper.make_node("MatMul", ["left", "right again"], ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 8]))
    assert np.isfinite(open_graph(model.SerializeToString()).run(["z"], {"x": np.ones((1, 64), np.float32)})["z"]).all()
    assert not capfd.readouterr().err


def test_threads_share_one_backend(tmp_path: Path) -> None:
    backend = OnnxRuntimeBackend(load_bundle(make_bundle(tmp_path)), device="cpu", threads=1)
    images = np.random.default_rng(0).standard_normal((16, 1, 3, 64, 64), dtype=np.float32)
    expected = [backend.run(image, ["logits"])["logits"] for image in images]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda image: backend.run(image, ["logits"])["logits"], images))
    assert np.array_equal(found, expected)


def test_without_a_gpu_auto_runs_on_the_cpu_and_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def no_driver(name: str) -> ctypes.CDLL:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    assert OnnxRuntimeBackend(load_bundle(make_bundle(tmp_path))).providers == ("CPUExecutionProvider",)
    assert capfd.readouterr() == ("", "")


def test_cuda_without_a_gpu_is_refused_and_never_runs_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_driver(name: str) -> ctypes.CDLL:
        raise OSError(name)

    bundle = load_bundle(make_bundle(tmp_path))
    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    with pytest.raises(ConvMAEError, match="device cuda needs"):
        OnnxRuntimeBackend(bundle, device="cuda")


def test_cuda_that_does_not_start_is_refused_and_never_runs_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = load_bundle(make_bundle(tmp_path))
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    module = "convmae_deploy.backends.onnxruntime_backend"
    monkeypatch.setattr(f"{module}._gpu_is_present", lambda: True)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *args, **options: session)
    with pytest.raises(ConvMAEError, match="could not start"):
        OnnxRuntimeBackend(bundle, device="cuda")
    assert OnnxRuntimeBackend(bundle, device="auto").providers == ("CPUExecutionProvider",)


class OnCuda:
    """A session on the CPU that says it is on a GPU."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def run(self, *_: Any) -> None:
        raise AssertionError("its inputs and outputs are bound on a GPU")


def on_cuda(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> OnnxRuntimeBackend:
    """A backend that does all that it does on a GPU, with memory of the CPU."""
    start = onnxruntime_backend._start
    monkeypatch.setattr(onnxruntime_backend, "_start", lambda path, *_: OnCuda(start(path, "cpu", 1)))
    monkeypatch.setattr(onnxruntime_backend, "Lane", lambda session, name, _: Lane(session.session, name, "cpu"))
    return OnnxRuntimeBackend(bundle)


def test_bound_inputs_and_outputs_give_the_numbers_of_a_run_to_many_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = load_bundle(make_bundle(tmp_path))
    images = [np.random.default_rng(n).standard_normal((1 + n % 3, 3, 64, 64), dtype=np.float32) for n in range(12)]
    asked = [["logits"] if n % 2 else ["e4", "e1"] for n in range(12)]
    plain = OnnxRuntimeBackend(bundle, device="cpu", threads=1)
    expected = [plain.run(image, names) for image, names in zip(images, asked, strict=True)]
    backend = on_cuda(bundle, monkeypatch)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(backend.run, images, asked))
    for one, other, names in zip(found, expected, asked, strict=True):
        assert list(one) == names
        assert all(np.array_equal(one[name], other[name]) for name in names)


@pytest.mark.parametrize(
    ("least", "most", "sizes"),
    [(1, 8, (1, 2, 4, 8)), (1, 1, (1,)), (2, 24, (2, 4, 8, 16, 24)), (4, 4, (4,))],
)
def test_on_a_gpu_it_takes_two_batches_at_once_in_powers_of_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: int, most: int, sizes: tuple[int, ...]
) -> None:
    backend = on_cuda(changed_bundle(tmp_path, input={"min_batch": least, "max_batch": most}), monkeypatch)
    assert (backend.batch_sizes, backend.lanes) == (sizes, 2)


def test_on_the_cpu_it_says_nothing_of_batches(tmp_path: Path) -> None:
    backend = OnnxRuntimeBackend(load_bundle(make_bundle(tmp_path)), device="cpu")
    assert not any(hasattr(backend, name) for name in ("batch_sizes", "lanes", "host_buffer"))


@pytest.mark.gpu
def test_on_a_gpu_auto_and_cuda_run_there_with_the_cpus_numbers(tmp_path: Path) -> None:
    bundle = load_bundle(make_bundle(tmp_path))
    auto = OnnxRuntimeBackend(bundle)
    assert auto.providers[0] == "CUDAExecutionProvider"
    image = np.random.default_rng(0).standard_normal((2, 3, 64, 64), dtype=np.float32)
    on_cpu = OnnxRuntimeBackend(bundle, device="cpu").run(image, ["e4"])["e4"]
    for backend in (auto, OnnxRuntimeBackend(bundle, device="cuda")):
        np.testing.assert_allclose(backend.run(image, ["e4"])["e4"], on_cpu, rtol=1e-3, atol=1e-3)


def test_less_than_one_thread_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConvMAEError, match="threads must be from 1 to 1024; got 0"):
        OnnxRuntimeBackend(load_bundle(make_bundle(tmp_path)), threads=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input": {"name": "pixels"}}, "must have the one input 'pixels', found image"),
        (
            {"input": {"shape": [3, 32, 32]}, "preprocessing": {"resize": [32, 32], "crop": [32, 32]}},
            r"must be float32 (batch, 3, 32, 32), found tensor(float) (batch, 3, 64, 64)",
        ),
        ({"outputs": {"e1": {"shape": [4, 8, 8], "stride": 8}}}, "output 'e1'"),
        ({"outputs": {"e5": {"shape": [4]}}}, "must have an output 'e5', found logits"),
        ({"outputs": {"pooled": {"shape": [8, 1]}}}, "output 'pooled'"),
    ],
)
def test_a_graph_that_the_manifest_does_not_describe_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    assert words in refusal(changed_bundle(tmp_path, **changes))


def test_a_graph_of_another_opset_is_refused(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    model = onnx.load(tmp_path / "model.onnx")
    model.opset_import[0].version = 17
    onnx.save(model, tmp_path / "model.onnx")
    describe_graph_as_it_is(tmp_path)
    assert "of opset 20, found opset 17" in refusal(load_bundle(tmp_path))


def test_an_output_of_another_type_is_refused(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    model = onnx.load(tmp_path / "model.onnx")
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["vector" if name == "pooled" else name for name in names]
    model.graph.node.append(onnx.helper.make_node("Cast", ["vector"], ["pooled"], to=onnx.TensorProto.FLOAT16))
    model.graph.output[1].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(model, tmp_path / "model.onnx")
    describe_graph_as_it_is(tmp_path)
    assert "output 'pooled'" in refusal(load_bundle(tmp_path)) and "tensor(float16)" in refusal(load_bundle(tmp_path))


def test_a_graph_with_a_fixed_batch_must_be_described_as_such(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    model = onnx.load(tmp_path / "model.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8
    onnx.save(model, tmp_path / "model.onnx")
    describe_graph_as_it_is(tmp_path)
    assert "batches of 1 to 8, found a fixed batch of 8" in refusal(load_bundle(tmp_path))


def test_a_file_that_is_no_onnx_model_is_refused(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"\xff" * 1000)
    describe_graph_as_it_is(tmp_path)
    assert "found no ONNX model" in refusal(load_bundle(tmp_path))


def test_a_graph_that_onnxruntime_refuses_is_refused_in_one_sentence(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    model = onnx.load(tmp_path / "model.onnx")
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "model.onnx")
    describe_graph_as_it_is(tmp_path)
    assert "cannot load" in refusal(load_bundle(tmp_path))


@pytest.mark.parametrize("alone", [True, False])
def test_a_bf16_file_is_refused_with_what_runs_it_instead(tmp_path: Path, alone: bool) -> None:
    make_bundle(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    whole = manifest["files"]["model.onnx"]
    (tmp_path / "model.bf16.onnx").write_bytes((tmp_path / "model.onnx").read_bytes())
    half = {"model.bf16.onnx": {**whole, "precision": "bf16"}}
    write_manifest(tmp_path, manifest | {"files": half if alone else half | {"model.onnx": whole}})
    with pytest.raises(ConvMAEError) as caught:
        start_backend(load_bundle(tmp_path), device="cpu")
    sentence = str(caught.value)
    assert "model.bf16.onnx is bf16" in sentence and "use runtime openvino" in sentence
    assert sentence.endswith("or export it in fp16" if alone else "or choose another file: model.onnx")


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A machine where ONNX Runtime seems to have TensorRT; gives what sessions were asked for."""
    asked: dict[str, Any] = {}
    module = "convmae_deploy.backends.onnxruntime_backend"
    session_class = onnxruntime.InferenceSession

    def start(path: str, sess_options: Any, providers: Any) -> Any:
        asked["providers"] = providers
        session = session_class(path, providers=["CPUExecutionProvider"])
        monkeypatch.setattr(session, "get_providers", lambda: asked["started"])
        return session

    asked["started"] = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(f"{module}.find_gpu", lambda: Gpu(name="NVIDIA L4", compute_capability="8.9", cuda="13.0"))
    monkeypatch.setattr(f"{module}.import_tensorrt", lambda flavour: asked.setdefault("imported", flavour))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(asked["started"]))
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", start)
    return asked


def test_onnxruntime_s_tensorrt_takes_the_graph_s_types_and_keeps_its_engines(
    tmp_path: Path, with_gpu: dict[str, Any]
) -> None:
    bundle = load_bundle(make_bundle(tmp_path / "bundle"))
    options = RuntimeOptions(runtime="onnxruntime-tensorrt")
    backend = start_backend(bundle, options=options)
    assert backend.name == "onnxruntime-tensorrt" and backend.providers[0] == "TensorrtExecutionProvider"
    assert with_gpu["imported"] == "tensorrt"
    (tensorrt, engines), (cuda, cuda_options), cpu = with_gpu["providers"]
    assert (tensorrt, cuda, cpu) == tuple(with_gpu["started"])
    assert cuda_options == {"use_tf32": "0"}
    assert (engines["trt_fp16_enable"], engines["trt_int8_enable"]) == ("0", "0")
    assert engines["trt_profile_min_shapes"] == "image:1x3x64x64"
    assert engines["trt_profile_max_shapes"] == "image:8x3x64x64"
    folder = Path(engines["trt_engine_cache_path"])
    assert folder.is_dir() and folder.is_relative_to(tmp_path / "cache")
    assert folder.name == bundle.manifest.files["model.onnx"].sha256[:16] and "nvidia-l4" in str(folder)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_onnxruntime_s_tensorrt_that_does_not_start_never_runs_elsewhere(
    tmp_path: Path, with_gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch, device: Device
) -> None:
    bundle, available = load_bundle(make_bundle(tmp_path / "bundle")), list(with_gpu["started"])
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    for started in (["CUDAExecutionProvider", "CPUExecutionProvider"], ["CPUExecutionProvider"]):
        with_gpu["started"] = started
        with pytest.raises(ConvMAEError, match="could not start TensorRT"):
            OnnxRuntimeBackend(bundle, device=device, tensorrt=True)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(ConvMAEError, match="needs onnxruntime-gpu"):
        OnnxRuntimeBackend(bundle, device=device, tensorrt=True)
    monkeypatch.setattr("convmae_deploy.backends.onnxruntime_backend.find_gpu", lambda: None)
    with pytest.raises(ConvMAEError, match="found none; use runtime onnxruntime"):
        OnnxRuntimeBackend(bundle, device=device, tensorrt=True)
