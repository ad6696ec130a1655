"""The module of an engine that goes wrong: engines are really built, ONNX Runtime runs in the place of a GPU."""

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto

from convmae_deploy.backends.base import FloatArray, Outputs
from convmae_deploy.backends.engine_record import EngineProfile, EngineRecord, check_engine, read_record
from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.bundle.manifest import InputSpec
from convmae_deploy.tasks import load_bundle
from export.runtimes.combinations import Combination
from export.runtimes.runners import open_graph
from export.verification import engine_bisection
from export.verification.engine_bisection import EngineProbe, Search, find_in_engine
from tests.bundle_factory import make_bundle
from tests.export.verification.test_layer_errors import IMAGES, damage, three_layers


class InPlaceOfTheGpu:
    """Runs the graph that an engine was built from."""

    def __init__(self, combination: Combination, bundle: Bundle) -> None:
        engine = bundle.path / combination.file
        check_engine(engine, read_record(engine), bundle)
        self.graph = open_graph("onnxruntime", bundle.path / "probe.onnx", optimised=False)

    def run(self, images: FloatArray, outputs: list[str]) -> Outputs:
        return self.graph.run(outputs, {"image": images})


def probe_of(model: onnx.ModelProto, folder: Path) -> EngineProbe:
    bundle = load_bundle(make_bundle(folder))
    manifest = bundle.manifest.model_copy(update={"input": InputSpec(shape=IMAGES.shape[1:], max_batch=4)})
    record = EngineRecord(
        flavour="tensorrt-rtx",
        tensorrt_version="1.7.1",
        compute_capabilities=("8.9",),
        engine_sha256="0" * 64,
        engine_bytes=1,
        graph="model.onnx",
        graph_sha256="0" * 64,
        precision="fp16",
        profiles=(EngineProfile(min_batch=1, max_batch=4),),
        options={"compute_capability": "8.9", "workspace_mb": 64},
        gpu=None,
        cuda=None,
        build_seconds=1.0,
        peak_memory_bytes=1,
    )
    one = Combination(runtime="tensorrt", precision="fp16", file="model.fp16.engine")
    return EngineProbe(
        bundle=Bundle(bundle.path, manifest), record=record, combination=one, model=model, images=IMAGES[:1]
    )


@pytest.mark.slow
def test_the_damaged_module_is_named_by_engines_that_give_its_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    monkeypatch.setattr(engine_bisection, "open_backend", InPlaceOfTheGpu)
    damaged = three_layers(TensorProto.FLOAT16)
    damage(damaged, "second")
    found = find_in_engine(three_layers(), probe_of(damaged, tmp_path / "bundle"))
    assert found.explanation.startswith("second, whose value in the engine has a signal-to-noise ratio of ")
    assert "; first before it has " in found.explanation and "(3 engines built)" in found.explanation


def test_an_engine_that_holds_everywhere_is_said_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EngineProbe, "value", lambda self, name, expected: expected)
    found = find_in_engine(three_layers(), probe_of(three_layers(TensorProto.FLOAT16), tmp_path / "bundle"))
    assert found.explanation.startswith("none: in engines that give the value of whole as well it holds with 200 dB")


@pytest.mark.parametrize("first", range(12))
def test_the_search_finds_the_first_that_is_off_in_few_steps(first: int) -> None:
    names = [f"module{place}" for place in range(12)]
    measured: list[Any] = []

    def measure(module: str) -> float:
        measured.append(module)
        return 20.0 if int(module.removeprefix("module")) >= first else 60.0

    words = Search(modules=names, least=40.0, measure=measure).explanation()
    assert words.startswith(f"module{first}, whose value in the engine has a signal-to-noise ratio of 20 dB; ")
    assert ("it is the first of all" if first == 0 else f"module{first - 1} before it has 60 dB") in words
    assert len(measured) == len(set(measured)) <= 5
    assert Search(modules=[], least=40.0, measure=measure).explanation().startswith("unknown")
