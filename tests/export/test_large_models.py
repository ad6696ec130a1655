"""A model whose weights one file does not hold: a tiny one, with the limit lowered."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from rich.console import Console

from convmae_deploy.backends.base import FloatArray
from convmae_deploy.backends.runtimes import RuntimeOptions, start_backend
from convmae_deploy.bundle.loading import BundleError
from convmae_deploy.bundle.manifest import BundleFile, Precision, StoredFile
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.classifier import ConvMAEClassifier
from convmae_deploy.tasks import load_bundle
from export import to_triton
from export.__main__ import ExportConfig, export_bundle
from export.graph_files import files_of_weights, read_model
from export.graphs import to_onnx
from export.runtimes.runners import open_graph
from export.to_triton import TritonConfig
from export.verification.gates import EXACT_DB
from export.verification.layer_errors import layer_errors
from tests.export.conftest import SIZE

GRAPH = ["model.fp16.onnx", "model.fp16.onnx.data"]

pytestmark = pytest.mark.slow  # together


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """In half precision alone."""
    out = tmp_path_factory.mktemp("large") / "mine"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(to_onnx, "ONNX_LIMIT_BYTES", 1000)
        config = ExportConfig(checkpoint=checkpoint, out=out, max_batch=2, precision=("fp16",), without_fp32=True)
        export_bundle(config, Console(quiet=True), ["test"])
        yield out


@pytest.fixture
def images() -> FloatArray:
    return np.random.default_rng(0).standard_normal((2, 3, *SIZE), dtype=np.float32)


def test_the_weights_are_in_a_second_file_and_every_runtime_gives_the_models_numbers(
    bundle: Path, classifier: ConvMAEClassifier, images: FloatArray
) -> None:
    assert sorted(path.name for path in bundle.glob("*.onnx*")) == GRAPH
    onnx.checker.check_model(str(bundle / "model.fp16.onnx"), full_check=True)
    (file,) = load_bundle(bundle).manifest.files.values()
    assert list(file.weights) == ["model.fp16.onnx.data"] and file.numerics is not None and file.numerics.passed
    assert file.all_bytes == sum((bundle / name).stat().st_size for name in GRAPH)
    with torch.inference_mode():
        expected = classifier(torch.from_numpy(images)).numpy()
    for runtime in ("onnxruntime", "openvino"):
        options = RuntimeOptions(runtime=runtime)
        found = start_backend(load_bundle(bundle), device="cpu", options=options).run(images, ("logits",))["logits"]
        np.testing.assert_allclose(found, expected, atol=0.01 * np.abs(expected).max())


def test_a_graph_with_changed_nodes_finds_its_weights_and_leaves_nothing_beside_them(
    bundle: Path, images: FloatArray
) -> None:
    model = read_model(bundle / "model.fp16.onnx")
    assert files_of_weights(model) == [(bundle / "model.fp16.onnx.data").resolve()]
    assert len(model.SerializeToString()) < (bundle / "model.fp16.onnx.data").stat().st_size
    errors = layer_errors(model, model, images[:1], precision="fp16", runtime="onnxruntime")
    assert errors.modules and all(module.built_up_db == EXACT_DB for module in errors.modules)
    assert sorted(path.name for path in bundle.glob("*.onnx*")) == GRAPH


@pytest.mark.parametrize("change", ["shorter", "other bytes", "gone"])
def test_weights_that_are_not_those_of_the_manifest_are_refused_by_name(
    bundle: Path, tmp_path: Path, change: str
) -> None:
    shutil.copytree(bundle, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "model.fp16.onnx.data"
    content = weights.read_bytes()
    weights.unlink()
    if change != "gone":
        weights.write_bytes(content[:-1] if change == "shorter" else bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(BundleError, match=r"model\.fp16\.onnx\.data"):
        load_bundle(tmp_path)


def test_a_digest_covers_the_weights(bundle: Path) -> None:
    (file,) = load_bundle(bundle).manifest.files.values()
    other = {"model.fp16.onnx.data": StoredFile(sha256="0" * 64, bytes=1)}
    assert len({file.digest, file.model_copy(update={"weights": other}).digest, file.sha256}) == 3
    assert BundleFile(sha256="1" * 64, bytes=1, precision="fp32", opset=20).digest == "1" * 64


def test_triton_gets_both_files(bundle: Path, tmp_path: Path, images: FloatArray) -> None:
    model = to_triton.write_model(TritonConfig(bundle=bundle, out=tmp_path / "repository"))
    assert sorted(path.name for path in (model / "1").iterdir()) == ["model.fp16.onnx.data", "model.onnx"]
    graph = open_graph("onnxruntime", model / "1" / "model.onnx")
    assert np.isfinite(graph.run(["logits"], {"image": images})["logits"]).all()


@pytest.mark.parametrize("precision", ["int8", "int8-fp16"])
def test_int8_of_such_a_model_is_refused_before_any_work(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    monkeypatch.setattr("export.__main__.ONNX_LIMIT_BYTES", 1000)
    config = ExportConfig(checkpoint=checkpoint, out=tmp_path / "b", precision=(precision,), calibrate=tmp_path)
    with pytest.raises(ConvMAEError, match="int8 is made of a graph in one file"):
        export_bundle(config, Console(quiet=True), ["test"])
