"""Bundles of a classifier with a file in each precision; see test_engines for the other tasks."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from rich.console import Console

from convmae_deploy.backends import openvino_backend
from convmae_deploy.bundle.manifest import Precision
from convmae_deploy.checkpoints.native import CheckpointRecord, save_checkpoint
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.classifier import ConvMAEClassifier
from convmae_deploy.tasks import load_bundle
from export.__main__ import ExportConfig, Written, export_bundle
from export.graphs.to_onnx import ExportedGraph
from export.packaging import describe_file
from export.precisions import GRAPHS, GraphRequest, file_name, parse_precision
from export.runtimes.runners import describe, runtimes_for
from export.verification.elementwise import VerificationError
from tests.conftest import GiveOpenVino
from tests.export.conftest import HALF, made_before, tiny_classifier


def export(checkpoint: Path, out: Path, *precision: Any) -> dict[str, Written]:
    config = ExportConfig(checkpoint=checkpoint, out=out, max_batch=2, precision=precision)
    return export_bundle(config, Console(quiet=True), ["test"])


@pytest.fixture(scope="module", autouse=True)
def half_precision_in_openvino() -> Iterator[None]:
    """Half files are verified in OpenVINO, which computes them in fp32 where the CPU has nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino_backend, "openvino_capabilities", lambda: ("FP32", "FP16", "BF16"))
        yield


@pytest.fixture
def bundle(three_precisions: Path) -> Path:
    """The tiny classifier in three precisions."""
    return three_precisions


def loaded(bundle: Path, precision: Precision) -> onnx.ModelProto:
    return onnx.load(bundle / file_name(precision))


def test_a_bundle_has_a_file_for_each_precision_and_fp32_comes_first(bundle: Path) -> None:
    files = load_bundle(bundle).manifest.files
    assert list(files) == ["model.onnx", "model.bf16.onnx", "model.fp16.onnx"]
    assert [file.precision for file in files.values()] == ["fp32", "bf16", "fp16"]
    full, *others = (file.bytes for file in files.values())
    assert all(0.5 < size / full < 0.8 for size in others)
    for file in files.values():
        assert file.cost is not None and file.cost.verification_seconds > 0 and file.cost.peak_bytes > 10**8


def test_every_file_is_valid_onnx_in_the_oldest_form_that_its_operators_allow(bundle: Path) -> None:
    found = {}
    for name in load_bundle(bundle).manifest.files:
        onnx.checker.check_model(str(bundle / name), full_check=True)
        model = onnx.load(bundle / name)
        found[name] = (model.ir_version, *((entry.domain, entry.version) for entry in model.opset_import))
    # bfloat16 has convolutions from opset 22 on, and that needs IR 10; ONNX Runtime 1.17 reads up to IR 9
    assert found == {"model.onnx": (9, ("", 20)), "model.bf16.onnx": (10, ("", 22)), "model.fp16.onnx": (9, ("", 20))}


def test_a_file_that_breaks_the_standard_is_refused_by_name(bundle: Path, tmp_path: Path) -> None:
    model = loaded(bundle, "bf16")
    model.opset_import[0].version = 20
    onnx.save(model, tmp_path / "model.bf16.onnx")
    with pytest.raises(ConvMAEError, match=r"^model\.bf16\.onnx is not valid ONNX .*Conv.*bfloat16") as error:
        describe_file(tmp_path / "model.bf16.onnx", "bf16")
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_every_file_was_held_against_fp32_with_the_gates_of_its_precision(bundle: Path) -> None:
    files = load_bundle(bundle).manifest.files
    for name, least in (("model.onnx", 90), ("model.fp16.onnx", 40), ("model.bf16.onnx", 28)):
        numerics = files[name].numerics
        assert numerics is not None and numerics.passed and "eager fp32" in numerics.reference
        decibels = [row.snr_db for row in numerics.outputs.values()]
        assert all(value is not None and least < value < 190 for value in decibels)
        assert (f">= {least} dB" in numerics.tolerance) is (name != "model.onnx")
        assert numerics.runtime == describe(runtimes_for(files[name].precision)[0], files[name].precision)


def test_without_openvino_fp16_is_verified_in_onnx_runtime_and_bf16_by_the_reference(
    checkpoint: Path,
    bundle: Path,
    graph: ExportedGraph,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    give_openvino: GiveOpenVino,
) -> None:
    monkeypatch.setitem(GRAPHS, "fp32", lambda _: graph)
    for precision in HALF:
        monkeypatch.setitem(GRAPHS, precision, partial(made_before, replace(graph, model=loaded(bundle, precision))))
    give_openvino("FP32")
    written = export(checkpoint, tmp_path / "mine", "fp16", "bf16")
    assert "computes most of fp16 in fp32" in written["model.fp16.onnx"].verification.report.runtime
    report = written["model.bf16.onnx"].verification.report
    assert report.runtime.endswith("reference evaluator") and report.passed
    assert all(name.endswith("batch 1") for name in report.inputs)


@pytest.fixture(scope="module")
def overflowing_graphs() -> Iterator[None]:
    """The graphs of an overflowing model are made once."""
    with pytest.MonkeyPatch.context() as patch:
        for precision in ("fp32", "fp16"):
            made: dict[str, ExportedGraph] = {}
            patch.setitem(GRAPHS, precision, partial(made_once, made, GRAPHS[precision]))
        yield


def made_once(
    made: dict[str, ExportedGraph], make: Callable[[GraphRequest], ExportedGraph], request: GraphRequest
) -> ExportedGraph:
    if not made:
        made["graph"] = make(request)
    return made["graph"]


@pytest.mark.slow
@pytest.mark.usefixtures("overflowing_graphs")
@pytest.mark.parametrize("runtime", ["onnx-reference", "onnxruntime"])
def test_a_layer_that_overflows_fails_the_export_and_is_named_whatever_runs_the_file(
    tmp_path: Path, runtime: str, monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    def first(precision: Precision) -> tuple[str, ...]:
        return (runtime,) if precision == "fp16" else runtimes_for(precision)

    monkeypatch.setattr("export.steps.runtimes_for", first)
    monkeypatch.setattr("export.__main__.runtimes_for", first)
    model = overflowing()
    record = CheckpointRecord.model_validate_json((checkpoint / "best" / "config.json").read_bytes())
    save_checkpoint(tmp_path / "run" / "best", model.state_dict(), record)
    with pytest.raises(VerificationError) as error:
        export(tmp_path / "run", tmp_path / "out" / "mine", "fp16")
    assert "in fp16, so no bundle was written" in str(error.value)
    assert "encoder.blocks2.0.conv1 overflows float16 on " in str(error.value)
    assert "export bf16 instead" in str(error.value)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.failed"]
    report = json.loads((tmp_path / "out" / "mine.failed" / "report.json").read_text(encoding="utf-8"))
    assert not report["report"]["passed"]
    assert "encoder.blocks2.0.conv1" in report["first_diverging_layer"]


def overflowing() -> ConvMAEClassifier:
    """A classifier of which one layer gives more than float16 holds, which the next two take back."""
    torch.manual_seed(0)
    model = tiny_classifier()
    block = model.get_submodule("encoder.blocks2.0")
    with torch.no_grad():
        for parameter in block.get_submodule("conv1").parameters():
            parameter.mul_(1e5)
        for layer in ("attn", "conv2"):
            block.get_submodule(layer).get_parameter("weight").mul_(1e-5**0.5)
    return model


def test_noise_beyond_the_gate_fails_the_export_and_its_layer_is_named(
    checkpoint: Path, bundle: Path, graph: ExportedGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = loaded(bundle, "bf16")
    add = next(
        node
        for node in half.graph.node
        if node.op_type == "Add" and any(entry.value == "encoder.blocks2.0.mlp.fc1" for entry in node.metadata_props)
    )
    add.op_type = "Sub"  # its bias with the wrong sign
    monkeypatch.setitem(GRAPHS, "fp32", lambda _: graph)
    monkeypatch.setitem(GRAPHS, "bf16", lambda _: replace(graph, model=half))
    with pytest.raises(VerificationError, match=r"first diverging layer: encoder\.blocks2\.0\.mlp\.fc1"):
        export(checkpoint, tmp_path / "mine", "bf16")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.failed"]
    report = json.loads((tmp_path / "mine.failed" / "report.json").read_text(encoding="utf-8"))
    assert report["runs_in"] == runtimes_for("bf16")[0]
    assert report["gate"]["snr_db"] == 28


def test_a_precision_that_cannot_be_exported_is_one_sentence() -> None:
    assert parse_precision("bf16") == "bf16"
    with pytest.raises(ConvMAEError, match="must be some of fp32, fp16, bf16.* got 'fp64'"):
        parse_precision("fp64")
