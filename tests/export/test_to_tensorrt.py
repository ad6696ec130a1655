"""Engines are really built, by TensorRT for RTX, which needs no GPU; what does not fit is refused in one sentence."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from rich.console import Console

from convmae_deploy import cli
from convmae_deploy.backends.engine_record import (
    EngineProfile,
    check_engine,
    engines_of,
    find_engine,
    read_record,
    record_path,
)
from convmae_deploy.backends.gpu import Gpu
from convmae_deploy.bundle.manifest import InputSpec
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import sha256_of
from convmae_deploy.program import run_program
from convmae_deploy.tasks import load_bundle
from export import to_tensorrt
from export.engines import builder as tensorrt_builder
from export.engines.builder import BuildRequest, build_engine
from export.to_tensorrt import EngineConfig, batch_profiles, choose_flavour, write_engine
from tests.bundle_factory import make_bundle, make_graph, write_manifest

rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")


def build(bundle: Path, **options: Any) -> Path:
    engine, _ = write_engine(EngineConfig(bundle=bundle, **options), Console(quiet=True))
    return engine


def refusal(bundle: Path, **options: Any) -> str:
    before = sorted(bundle.iterdir())
    with pytest.raises(ConvMAEError) as caught:
        build(bundle, **options)
    assert "\n" not in str(caught.value)
    assert sorted(bundle.iterdir()) == before
    return str(caught.value)


def bundle_with(folder: Path, graph: onnx.ModelProto) -> Path:
    """A bundle of another graph, which its manifest describes as one of `make_bundle`."""
    make_bundle(folder)
    onnx.save(graph, folder / "model.onnx")
    manifest = manifest_fields(folder)
    manifest["files"]["model.onnx"] |= {
        "sha256": sha256_of(folder / "model.onnx"),
        "bytes": (folder / "model.onnx").stat().st_size,
    }
    write_manifest(folder, manifest)
    return folder


def manifest_fields(folder: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return fields


@pytest.mark.slow
def test_an_engine_lands_beside_its_graph_with_a_record_of_how_it_was_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_bundle(tmp_path / "bundle")
    manifest = (folder / "manifest.json").read_bytes()
    with pytest.raises(SystemExit) as ended:
        run_program(lambda: to_tensorrt.main([str(folder), "--batch", "4,1", "--optimisation-level", "2"]))
    assert ended.value.code == 0
    assert "model.engine" in (printed := capsys.readouterr().out) and "were not compared" in printed
    bundle = load_bundle(folder)
    engine = find_engine(bundle, None)
    record = read_record(engine)
    check_engine(engine, record, bundle)
    assert sorted(path.name for path in folder.iterdir()) == [
        "LICENSE-WEIGHTS",
        "manifest.json",
        "model.engine",
        "model.engine.json",
        "model.onnx",
    ]
    assert (folder / "manifest.json").read_bytes() == manifest
    assert engine.read_bytes()[:4] != b'{"sc' and record.engine_bytes > 1000
    assert (record.flavour, record.tensorrt_version) == ("tensorrt-rtx", rtx.__version__)
    assert (record.compute_capabilities, record.newer_gpus) == (("8.0", "8.6", "8.9", "12.0", "12.1"), True)
    assert record.profiles == (EngineProfile(min_batch=1, max_batch=1), EngineProfile(min_batch=2, max_batch=4))
    assert record.options == {"optimisation_level": 2} and record.precision == "fp32"
    assert record.build_seconds > 0 and 10**7 < record.peak_memory_bytes < 10**10
    assert "Multiplications: 100.0% in fp32" in printed and {layer.computes_in for layer in record.layers} <= {
        "fp32",
        "",
    }
    cli.info(engine, layers=True)
    shown = capsys.readouterr().out
    assert "100.0% in fp32" in shown and all(layer.kind in shown for layer in record.layers)
    with pytest.raises(ConvMAEError, match="--layers is of a TensorRT engine"):
        cli.info(folder, layers=True)


@pytest.mark.slow
def test_an_engine_in_a_set_lies_in_a_folder_of_its_gpus_and_version(
    tmp_path: Path,
) -> None:
    folder = make_bundle(tmp_path / "bundle")
    engine = build(folder, batch=(1,), in_set=True, compute_capability=("8.9", "12.0"))
    assert engine == folder / "engines" / f"sm8.9_12.0-{rtx.__version__}" / "model.engine"
    assert find_engine(load_bundle(folder), None) == engine and "model.engine" in engines_of(load_bundle(folder))[0]
    with pytest.raises(ConvMAEError, match="--in-set and --out both say where the engine goes"):
        EngineConfig(bundle=folder, in_set=True, out=tmp_path)


@pytest.mark.slow
def test_an_engine_with_its_record_is_replaced_and_any_other_file_is_not(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle")
    out = tmp_path / "engines" / "fast.plan"
    assert build(folder, out=out, batch=(2,)) == out and read_record(out).batch_sizes == (2,)
    assert build(folder, out=out, batch=(3,)) == out and read_record(out).batch_sizes == (3,)
    record_path(out).unlink()
    assert "with no record of ours beside it" in refusal(folder, out=out)
    assert "must be a folder or a file that ends in .engine or .plan" in refusal(folder, out=folder / "manifest.json")
    assert sorted(path.name for path in folder.iterdir()) == ["LICENSE-WEIGHTS", "manifest.json", "model.onnx"]


@pytest.mark.slow
def test_the_record_names_the_gpus_that_were_asked_for(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle")
    record = read_record(build(folder, batch=(1,), compute_capability=("8.9", "12.0"), workspace_mb=64))
    assert (record.compute_capabilities, record.newer_gpus) == (("8.9", "12.0"), False)
    assert record.options == {"compute_capability": "8.9,12.0", "workspace_mb": 64}
    assert "cannot build for compute capability 5.0; it knows SM" in refusal(folder, compute_capability=("5.0",))


def test_profiles_cover_every_batch_up_to_the_last_size() -> None:
    spec = InputSpec(shape=(3, 64, 64), min_batch=2, max_batch=32)
    found = batch_profiles((32, 8, 8), spec)
    assert [(profile.min_batch, profile.max_batch) for profile in found] == [(2, 8), (9, 32)]
    assert [profile.max_batch for profile in batch_profiles((), spec)] == [2, 32]
    single = batch_profiles((), InputSpec(shape=(3, 64, 64), max_batch=1))
    assert single == (EngineProfile(min_batch=1, max_batch=1),)
    for size in (1, 33):
        with pytest.raises(ConvMAEError, match=f"smallest and largest, 2 and 32; got {size}"):
            batch_profiles((8, size), spec)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "fp16"}, "has no fp16 graph, it has fp32; export the model again with python -m export"),
        ({"batch": (1, 9)}, "--batch must be between the bundle's smallest and largest, 1 and 8; got 9"),
        ({"flavour": "tensorrt-rtx", "hardware_compatible": True}, "--hardware-compatible is not for flavour"),
        ({"flavour": "tensorrt-rtx", "version_compatible": True}, "--version-compatible is not for flavour"),
        ({"workspace_mb": 0}, "--workspace-mb must be at least 1; got 0"),
        ({"optimisation_level": 6}, "--optimisation-level must be between 0 and 5; got 6"),
    ],
)
def test_a_request_that_cannot_be_carried_out_is_one_sentence(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    assert words in refusal(make_bundle(tmp_path / "bundle"), **options)


def test_the_flavour_is_the_one_that_can_build_here(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"tensorrt", "tensorrt-rtx"}
    gpu = Gpu(name="NVIDIA L4", compute_capability="8.9", cuda="13.0")
    monkeypatch.setattr(to_tensorrt, "is_installed", lambda flavour: flavour in installed)
    monkeypatch.setattr(to_tensorrt, "find_gpu", lambda: gpu)
    assert choose_flavour("auto") == "tensorrt" and choose_flavour("tensorrt-rtx") == "tensorrt-rtx"
    monkeypatch.setattr(to_tensorrt, "find_gpu", lambda: None)
    assert choose_flavour("auto") == "tensorrt-rtx"
    with pytest.raises(ConvMAEError, match="found no NVIDIA GPU"):
        choose_flavour("tensorrt")
    installed.clear()
    with pytest.raises(ConvMAEError, match=r"needs TensorRT or TensorRT for RTX; .*\.\[tensorrt-rtx\]"):
        choose_flavour("auto")
    with pytest.raises(ConvMAEError, match=r"needs TensorRT; .*\.\[tensorrt\]"):
        choose_flavour("tensorrt")


def with_large_top_k() -> onnx.ModelProto:
    """A graph whose logits come from the 4,000 brightest values of the image."""
    graph = make_graph(3, (64, 64))
    graph.graph.initializer.append(numpy_helper.from_array(np.array([4000]), "how_many"))
    graph.graph.node.append(helper.make_node("Flatten", ["image"], ["flat"]))
    graph.graph.node.append(helper.make_node("TopK", ["flat", "how_many"], ["best", "places"], name="choosing"))
    graph.graph.node.append(helper.make_node("ReduceMax", ["best"], ["most"], keepdims=0))
    for node in graph.graph.node:
        node.output[:] = ["plain" if name == "logits" else name for name in node.output]
    graph.graph.node.append(helper.make_node("Add", ["plain", "most"], ["logits"]))
    return graph


@pytest.mark.slow
def test_a_forbidden_operator_is_named_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bundle_with(tmp_path / "bundle", with_large_top_k())
    assert "node choosing is a TopK, which is refused: it takes the best 4000, and TensorRT fewer" in refusal(folder)
    # TensorRT's own words, should our list be behind it
    monkeypatch.setattr(to_tensorrt, "refuse_operators", lambda model: None)
    sentence = refusal(folder)
    assert sentence.startswith(f"TensorRT for RTX {rtx.__version__} cannot") and str(folder / "model.onnx") in sentence


@pytest.mark.slow
def test_a_graph_that_the_manifest_does_not_describe_is_refused(tmp_path: Path) -> None:
    folder = bundle_with(tmp_path / "bundle", make_graph(4, (64, 64)))
    assert "output 'logits'" in refusal(folder, batch=(1,))


def request_for(folder: Path, **changes: Any) -> BuildRequest:
    fields: dict[str, Any] = {
        "graph": folder / "model.onnx",
        "engine": folder / "new.engine",
        "manifest": load_bundle(folder).manifest,
        "flavour": "tensorrt-rtx",
        "profiles": (EngineProfile(min_batch=1, max_batch=1),),
        "timing_cache": folder,
    }
    return BuildRequest(**(fields | changes))


@pytest.mark.slow
def test_a_missing_profile_is_tensorrt_s_reason_in_our_sentence(tmp_path: Path) -> None:
    request = request_for(make_bundle(tmp_path / "bundle"), profiles=())
    with pytest.raises(ConvMAEError, match=r"cannot build an engine of .*no optimization profile has been defined"):
        build_engine(request, lambda *_: None, lambda _: None)
    assert not request.engine.exists()


def die(request: BuildRequest, sender: Any) -> None:
    """Stands for a builder that ends its process."""
    sender.send(("error", "cannot reach the device"))
    os.kill(os.getpid(), signal.SIGSEGV)


@pytest.mark.slow
def test_a_crash_of_tensorrt_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_builder, "_build_and_send", die)
    sentence = refusal(make_bundle(tmp_path / "bundle"))
    assert "ended its process while it built an engine of" in sentence
    assert "(signal SIGSEGV); its last message was: cannot reach the device" in sentence


@pytest.mark.slow
def test_messages_and_progress_come_through(tmp_path: Path) -> None:
    messages: list[tuple[str, str]] = []
    phases: list[Any] = []
    request = request_for(make_bundle(tmp_path / "bundle"))
    built = build_engine(request, lambda *message: messages.append(message), phases.append)
    assert built.tensorrt_version == rtx.__version__ and built.gpu is None and request.engine.stat().st_size > 1000
    assert {severity for severity, _ in messages} >= {"info", "verbose"}
    outermost = [event for event in phases if event.parent is None]
    assert outermost[0].steps is not None
    steps = [event.step for event in outermost if event.step is not None]
    assert steps and steps == sorted(steps) and steps[-1] < outermost[0].steps
    assert any(event.parent is not None for event in phases)


def test_times_are_kept_for_one_version_on_one_gpu_and_not_by_tensorrt_for_rtx(tmp_path: Path) -> None:
    gpu = Gpu(name="NVIDIA GeForce RTX 4090", compute_capability="8.9", cuda="13.0")
    request = request_for(make_bundle(tmp_path / "bundle"), flavour="tensorrt")
    path = tensorrt_builder._timing_cache_path(request, rtx, gpu)
    assert path is not None and path.parent == request.timing_cache
    assert path.name == f"tensorrt-{rtx.__version__}-nvidia-geforce-rtx-4090-sm8.9-cuda13.0.timing"
    assert tensorrt_builder._timing_cache_path(request_for(tmp_path / "bundle"), rtx, gpu) is None


@pytest.mark.slow
def test_an_engine_that_computes_in_fp32_where_fp16_was_asked_for_is_refused(tmp_path: Path) -> None:
    """The manifest calls the fp32 graph fp16, which TensorRT then makes of it what it is."""
    folder = make_bundle(tmp_path / "bundle")
    fields = manifest_fields(folder)
    fields["files"]["model.onnx"]["precision"] = "fp16"
    write_manifest(folder, fields)
    sentence = refusal(folder, batch=(1,))
    assert (
        "must compute in fp16, and TensorRT computes 100% of its multiplications in fp32, most of them in layer"
        in sentence
    )


def test_a_version_compatible_engine_is_loaded_with_the_program_in_it_and_asked_for_its_layers(tmp_path: Path) -> None:
    """On a stand-in: nobody has run it on a GPU."""

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, content: bytes) -> Any:
            inspector = SimpleNamespace(get_engine_information=lambda kind: f"{kind} of {content!r}")
            engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
            return engine if self.engine_host_code_allowed else None

    formats = SimpleNamespace(ONELINE="oneline")
    fake = SimpleNamespace(Runtime=Runtime, LayerInformationFormat=formats, __version__="10.9.0")
    folder = make_bundle(tmp_path / "bundle")
    request = request_for(folder, flavour="tensorrt", version_compatible=True)
    assert tensorrt_builder._inspected(request, fake, None, b"engine", []) == "oneline of b'engine'"
    with pytest.raises(ConvMAEError, match="10.9.0 cannot load the engine that it built of .*: needs host code"):
        tensorrt_builder._inspected(request_for(folder, flavour="tensorrt"), fake, None, b"", ["needs host code"])
