"""OpenVINO gives ONNX Runtime's numbers for every task, from several threads, and refuses what it cannot do."""

import builtins
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from convmae_deploy.backends import openvino_backend
from convmae_deploy.backends.base import PerformanceHint
from convmae_deploy.backends.onnxruntime_backend import OnnxRuntimeBackend
from convmae_deploy.backends.openvino_backend import OpenVinoBackend, openvino_core
from convmae_deploy.backends.runtimes import RUNTIMES, RuntimeOptions
from convmae_deploy.bundle.loading import Bundle, BundleError
from convmae_deploy.bundle.manifest import Precision
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import sha256_of
from convmae_deploy.tasks import load_bundle, open_predictor
from convmae_deploy.tasks.classification import Classifier
from convmae_deploy.tasks.detection import Detector
from convmae_deploy.tasks.segmentation import Segmenter
from convmae_deploy.tasks.video import VideoClassifier
from tests.bundle_factory import (
    batch_for,
    make_bundle,
    make_detection_bundle,
    make_segmentation_bundle,
    make_video_bundle,
    open_as,
    write_manifest,
)
from tests.conftest import PLAIN_CPU, GiveOpenVino, ask_openvino
from tests.media.photo_files import photo

pytest.importorskip("openvino")
MAKERS: Mapping[str, Callable[[Path], Path]] = {
    "classification": make_bundle,
    "detection": make_detection_bundle,
    "segmentation": make_segmentation_bundle,
    "video-classification": make_video_bundle,
}
SHIPPED = Path(__file__).parents[2] / "serving" / "bundles" / "imagenette-nano"
OPENVINO = RuntimeOptions(runtime="openvino")
BF16_CPU = ("FP32", "BF16", "INT8")  # what OpenVINO finds on a CPU with bf16, by its own names


def computed() -> tuple[Precision, ...]:
    """What OpenVINO computes in here, of what it can be told to."""
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    return tuple(precision for precision in precisions if RUNTIMES["openvino"].problem("cpu", precision) is None)


def in_bf16(bundle: Bundle, give_openvino: GiveOpenVino) -> OpenVinoBackend | None:
    """A graph that OpenVINO really computes in bf16; None where it does not on this CPU, and says so."""
    give_openvino(*BF16_CPU)
    try:
        return OpenVinoBackend(bundle, threads=1, precision="bf16")
    except ConvMAEError as refused:
        assert "OpenVINO" in str(refused) and "\n" not in str(refused)
        return None


def assert_close(found: Any, expected: Any, name: str = "") -> None:
    """In fp32, where each runtime sums in an order of its own."""
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    root = tmp_path_factory.mktemp("bundles")
    return {task: load_bundle(make(root / task)) for task, make in MAKERS.items()}


@pytest.fixture(scope="module")
def backend(bundles: dict[str, Bundle]) -> OpenVinoBackend:
    return OpenVinoBackend(bundles["classification"], threads=1)


@pytest.mark.parametrize("task", MAKERS)
def test_every_output_equals_onnx_runtime_s_at_every_batch_size(bundles: dict[str, Bundle], task: str) -> None:
    bundle = bundles[task]
    candidate, reference = OpenVinoBackend(bundle, threads=1), OnnxRuntimeBackend(bundle, device="cpu", threads=1)
    for count in (2, 1, min(3, bundle.manifest.input.max_batch)):
        batch, names = batch_for(bundle, count), list(bundle.manifest.outputs)
        found, expected = candidate.run(batch, names), reference.run(batch, names)
        assert list(found) == names
        for name, values in expected.items():
            assert found[name].dtype == values.dtype
            assert_close(found[name], values, name)


@pytest.mark.slow
def test_a_trained_model_gives_the_same_classes_in_each_precision(give_openvino: GiveOpenVino) -> None:
    bundle = load_bundle(SHIPPED)
    batch, outputs = batch_for(bundle, 4), list(bundle.manifest.outputs)
    expected = OnnxRuntimeBackend(bundle, device="cpu", threads=1).run(batch, outputs)
    gates = ((OpenVinoBackend(bundle, threads=1), 1e-5), (in_bf16(bundle, give_openvino), 0.03))
    for backend, gate in gates:
        if backend is None:
            continue
        found = backend.run(batch, outputs)
        for name, values in expected.items():
            assert np.abs(found[name] - values).max() < gate * np.abs(values).max()
        assert np.array_equal(found["logits"].argmax(axis=1), expected["logits"].argmax(axis=1))


def test_photos_and_videos_get_the_same_answers(bundles: dict[str, Bundle]) -> None:
    for bundle in bundles.values():
        found = open_predictor(bundle.path, device="cpu", threads=1, options=OPENVINO)
        expected = open_predictor(bundle.path, device="cpu", threads=1)
        image = photo(seed=3)
        if isinstance(found, Classifier) and isinstance(expected, Classifier):
            ours, theirs = found([image])[0], expected([image])[0]
            assert [entry.label for entry in ours] == [entry.label for entry in theirs]
            assert [entry.score for entry in ours] == pytest.approx([entry.score for entry in theirs], abs=1e-5)
            assert open_as(Classifier, bundle.path, options=OPENVINO).backend.name == "openvino fp32"
        elif isinstance(found, Detector) and isinstance(expected, Detector):
            objects, others = found([image], threshold=0)[0], expected([image], threshold=0)[0]
            assert [item.label for item in objects] == [item.label for item in others] and objects
            for item, other in zip(objects, others, strict=True):
                np.testing.assert_allclose(item.box, other.box, atol=0.01)
        elif isinstance(found, Segmenter) and isinstance(expected, Segmenter):
            assert np.mean(found([image])[0].labels == expected([image])[0].labels) > 0.999
        else:
            assert isinstance(found, VideoClassifier) and isinstance(expected, VideoClassifier)
            clips = batch_for(bundle, 6)  # more than the graph takes at once
            assert_close(found.run(clips, ["logits"])["logits"], expected.run(clips, ["logits"])["logits"])


def test_outputs_come_in_the_order_asked_for_and_outlive_the_next_run(backend: OpenVinoBackend) -> None:
    first = np.zeros((2, 3, 64, 64), dtype=np.float32)
    results = backend.run(first, ["e2", "logits"])
    assert list(results) == ["e2", "logits"]
    kept = {name: values.copy() for name, values in results.items()}
    backend.run(first + 1, ["e2", "logits"])
    for name, values in kept.items():
        assert np.array_equal(results[name], values)


def test_threads_share_one_backend(backend: OpenVinoBackend, bundles: dict[str, Bundle]) -> None:
    batches = [batch_for(bundles["classification"], 1 + index % 3) for index in range(24)]
    expected = [backend.run(batch, ["logits"])["logits"] for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda batch: backend.run(batch, ["logits"])["logits"], batches))
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs)


def test_for_throughput_a_batch_is_cut_into_parts_that_run_side_by_side(
    bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundles["classification"]
    backend = OpenVinoBackend(bundle, threads=2, hint="throughput")
    monkeypatch.setattr(backend, "streams", 3)  # whatever OpenVINO finds good on this machine
    batch = batch_for(bundle, 8)
    expected = OnnxRuntimeBackend(bundle, device="cpu", threads=1).run(batch, ["e1", "logits"])
    with ThreadPoolExecutor(3) as pool:
        runs = list(pool.map(lambda _: backend.run(batch, ["e1", "logits"]), range(6)))
    for found in runs:
        for name, values in expected.items():
            assert_close(found[name], values)
    assert_close(backend.run(batch[:1], ["logits"])["logits"], expected["logits"][:1])


def test_a_run_that_fails_leaves_the_backend_usable(backend: OpenVinoBackend) -> None:
    image = np.zeros((1, 3, 64, 64), dtype=np.float32)
    expected = backend.run(image, ["logits"])["logits"]
    with pytest.raises(KeyError):
        backend.run(image, ["none"])
    for bad in (image[0], image[:, :2], np.zeros((1, 5, 64, 64), dtype=np.float32)):
        with pytest.raises(ConvMAEError, match=r"must be \(B, 3, 64, 64\); got"):
            backend.run(bad, ["logits"])
    assert np.array_equal(backend.run(image, ["logits"])["logits"], expected)


def test_the_number_of_threads_is_respected(backend: OpenVinoBackend, bundles: dict[str, Bundle]) -> None:
    assert (backend.threads, backend.streams, backend.providers) == (1, 1, ("CPU",))
    with pytest.raises(ConvMAEError, match="threads must be from 1 to 1024; got 0"):
        OpenVinoBackend(bundles["classification"], threads=0)


def test_bf16_is_close_to_fp32_and_not_the_same(
    bundles: dict[str, Bundle], backend: OpenVinoBackend, give_openvino: GiveOpenVino
) -> None:
    bundle = bundles["classification"]
    reduced = in_bf16(bundle, give_openvino)
    if reduced is None:
        return
    batch, names = batch_for(bundle, 4), list(bundle.manifest.outputs)
    found, expected = reduced.run(batch, names), backend.run(batch, names)
    for name, values in expected.items():
        assert found[name].dtype == np.float32
        assert np.abs(found[name] - values).max() < 0.03 * np.abs(values).max()
    assert any(not np.array_equal(found[name], expected[name]) for name in names)


@pytest.mark.parametrize("computes_in", ["bf16", "f32"])
def test_where_the_cpu_has_bf16_it_is_asked_for_and_what_openvino_made_of_that_is_checked(
    bundles: dict[str, Bundle], give_openvino: GiveOpenVino, monkeypatch: pytest.MonkeyPatch, computes_in: str
) -> None:
    asked: list[str] = []

    class Compiled:
        """Computes in fp32, and says what it was made for."""

        def __init__(self, core: Any, path: Path, settings: dict[str, Any], version: str) -> None:
            asked.append(settings["INFERENCE_PRECISION_HINT"])
            self._compiled = core.compile_model(path, "CPU", settings | {"INFERENCE_PRECISION_HINT": "f32"})

        def __getattr__(self, name: str) -> Any:
            return getattr(self._compiled, name)

        def get_property(self, name: str) -> Any:
            if name == "INFERENCE_PRECISION_HINT":
                return SimpleNamespace(to_string=lambda: computes_in)
            return self._compiled.get_property(name)

    give_openvino(*BF16_CPU)
    assert computed() == ("fp32", "bf16")
    monkeypatch.setattr(openvino_backend, "_compile", Compiled)
    if computes_in == "bf16":
        assert OpenVinoBackend(bundles["classification"], precision="bf16").name == "openvino bf16"
    else:
        with pytest.raises(ConvMAEError, match="OpenVINO was asked for bf16 and compiled .* in f32"):
            OpenVinoBackend(bundles["classification"], precision="bf16")
    assert asked == ["bf16"]


def test_bf16_where_the_cpu_has_none_is_one_sentence(bundles: dict[str, Bundle], give_openvino: GiveOpenVino) -> None:
    give_openvino("FP32", "INT8")
    assert computed() == ("fp32",)
    with pytest.raises(ConvMAEError, match="precision bf16 needs a CPU that has it, OpenVINO finds FP32, INT8 on "):
        OpenVinoBackend(bundles["classification"], precision="bf16")


def test_what_the_cpu_can_is_asked_of_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    class Core:
        def get_property(self, device: str, name: str) -> list[str]:
            return [device, name]

    monkeypatch.setattr(openvino_backend, "openvino_core", Core)
    assert ask_openvino() == ("CPU", "OPTIMIZATION_CAPABILITIES")


def test_without_the_package_one_sentence_names_the_extra(
    bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    real_import = builtins.__import__

    def no_openvino(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "openvino":
            raise ImportError("No module named 'openvino'")
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", no_openvino)
    monkeypatch.setattr(openvino_backend, "openvino_core", openvino_core.__wrapped__)  # as if not asked for before
    monkeypatch.setattr(openvino_backend, "openvino_capabilities", ask_openvino)
    assert computed() == ()
    with pytest.raises(ConvMAEError, match=r"pip install '\.\[openvino\]'") as caught:
        OpenVinoBackend(bundles["classification"])
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_child_process_may_end_after_models_have_come_and_gone(bundles: dict[str, Bundle]) -> None:
    """In a process of its own: where there is more than one `Core`, the signal of the child's end kills it."""
    program = f"""
import signal, subprocess, sys
from pathlib import Path
from convmae_deploy.tasks import load_bundle
from convmae_deploy.backends.openvino_backend import OPENVINO, OpenVinoBackend
signal.signal(signal.SIGCHLD, lambda *_: None)
bundle = load_bundle(Path({str(bundles["classification"].path)!r}))
first = OpenVinoBackend(bundle)
second = OpenVinoBackend(bundle)
del first
OPENVINO.problem("cpu", "bf16")
del second
subprocess.run([sys.executable, "-c", ""], check=True)
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2]).returncode == 0


def test_a_gpu_is_refused(bundles: dict[str, Bundle]) -> None:
    with pytest.raises(ConvMAEError, match="runs on the CPU, not on device cuda; use device cpu or auto"):
        OpenVinoBackend(bundles["classification"], device="cuda")


@pytest.mark.parametrize(
    ("options", "words"),
    [({"precision": "bf16"}, "precision bf16 is for runtime openvino"), ({"hint": "latency"}, "leave hint out")],
)
def test_options_of_openvino_alone_are_refused_elsewhere(
    bundles: dict[str, Bundle], options: dict[str, Any], words: str
) -> None:
    for runtime in (None, "onnxruntime"):
        with pytest.raises(ConvMAEError, match=words):
            open_predictor(bundles["classification"].path, options=RuntimeOptions(runtime=runtime, **options))


def changed(folder: Path, change: Callable[[onnx.ModelProto], None]) -> Bundle:
    """A bundle whose graph is changed, with a manifest that gives its digest."""
    make_bundle(folder)
    graph = folder / "model.onnx"
    model = onnx.load(graph)
    change(model)
    onnx.save(model, graph)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"]["model.onnx"].update(sha256=sha256_of(graph), bytes=graph.stat().st_size)
    write_manifest(folder, manifest)
    return load_bundle(folder)


def give_a_copy(model: onnx.ModelProto) -> None:
    """`pooled` comes out of an Identity, so that its tensor has two names."""
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["inner" if name == "pooled" else name for name in names]
    model.graph.node.append(onnx.helper.make_node("Identity", ["inner"], ["pooled"]))


def test_an_output_whose_tensor_has_two_names_is_found(tmp_path: Path, backend: OpenVinoBackend) -> None:
    image = np.ones((2, 3, 64, 64), dtype=np.float32)
    hints: tuple[PerformanceHint, ...] = ("latency", "throughput")
    for hint in hints:
        copied = OpenVinoBackend(changed(tmp_path / hint, give_a_copy), threads=2, hint=hint)
        assert_close(copied.run(image, ["pooled"])["pooled"], backend.run(image, ["pooled"])["pooled"])


def fix_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8


def forget_an_output(model: onnx.ModelProto) -> None:
    del model.graph.output[1]


def use_an_unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "NoSuchOperator"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (fix_batch, "batches of 1 to 8, found a fixed batch of 8"),
        (forget_an_output, "must have an output 'pooled', found logits, e1"),
        (use_an_unknown_operator, "cannot load"),
    ],
)
def test_a_graph_that_is_not_the_manifest_s_is_refused_in_one_sentence(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None], words: str
) -> None:
    with pytest.raises(BundleError) as caught:
        OpenVinoBackend(changed(tmp_path, change))
    assert words in str(caught.value) and "\n" not in str(caught.value)


class RefusingCore:
    """Of an OpenVINO that lacks an operator."""

    def get_property(self, device: str, name: str) -> Any:
        return list(PLAIN_CPU)

    def compile_model(self, *_: object) -> None:
        raise RuntimeError("Errors during ONNX translation: node_GridSample_1716")


@pytest.mark.parametrize(
    ("version", "advice"),
    [
        ("2026.2.1-21919-ede283a88e3", "install OpenVINO 2026.3, the first that runs every file"),
        ("2026.3.0-22000-0123456789a", "export it again"),
        ("2027.0.0-23000-0123456789a", "export it again"),
    ],
)
def test_an_openvino_from_before_2026_3_is_to_be_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, advice: str
) -> None:
    monkeypatch.setattr(openvino_backend.import_openvino(), "__version__", version)
    monkeypatch.setattr(openvino_backend, "openvino_core", RefusingCore)
    with pytest.raises(BundleError, match=f"OpenVINO {version} cannot load .*GridSample_1716.*; {advice}$"):
        OpenVinoBackend(load_bundle(make_detection_bundle(tmp_path)))
