"""Bundles whose graphs take levels in uint8 and normalise them themselves, held against those that take float32."""

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from rich.console import Console

from convmae_deploy.backends.base import FloatArray
from convmae_deploy.backends.runtimes import RuntimeOptions
from convmae_deploy.bundle.graph_metadata import read_metadata
from convmae_deploy.bundle.preprocessing import Preprocessing
from convmae_deploy.checkpoints.native import CheckpointRecord
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import sha256_of
from convmae_deploy.models.classifier import build_classifier, build_video_classifier
from convmae_deploy.models.convmae import ConvMAEConfig
from convmae_deploy.models.segmenter import SegmenterConfig, build_segmenter
from convmae_deploy.models.video import VideoConfig
from convmae_deploy.tasks import load_bundle, open_predictor
from convmae_deploy.tasks.preprocess import preprocess
from export.__main__ import ExportConfig, export_bundle
from export.graphs.to_onnx import ExportedGraph
from export.runtimes.runners import open_graph
from export.tasks import EXPORTS
from export.tasks.base import ExportTask, with_input
from export.to_triton import TritonConfig, write_model
from export.verification.samples import made_photos
from tests.export.conftest import CLASSES, SIZE
from tests.export.tiny_detectors import DETECTOR, ENCODER, little_suppression, tiny_detector

OUTPUTS = ("logits", "pooled", "e1", "e4")

pytestmark = pytest.mark.slow  # together


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "levels"
    export_bundle(ExportConfig(checkpoint=checkpoint, out=out, max_batch=2, input="uint8"), Console(quiet=True), [])
    return out


def normalised_photos(bundle: Path) -> FloatArray:
    spec = load_bundle(bundle).manifest.preprocessing
    assert isinstance(spec, Preprocessing)
    floats = spec.model_copy(update={"dtype": "float32"})
    return np.stack([preprocess(photo, floats) for photo in made_photos(2)])


def test_levels_give_the_numbers_that_normalised_values_give(bundle: Path, graph: ExportedGraph) -> None:
    predictor = open_predictor(bundle, device="cpu")
    normalised = normalised_photos(bundle)
    levels = np.stack([predictor.preprocess(photo) for photo in made_photos(2)])
    assert levels.dtype == np.uint8 and 4 * levels.nbytes == normalised.nbytes
    expected = open_graph("onnxruntime", graph.model.SerializeToString()).run(OUTPUTS, {"image": normalised})
    found = predictor.run(levels, OUTPUTS)
    for name in OUTPUTS:
        np.testing.assert_array_equal(found[name], expected[name])
    with pytest.raises(ConvMAEError, match=r"a batch must be uint8 \(B, 3, 64, 96\) .*; got float32"):
        predictor.run(normalised, OUTPUTS)
    openvino = open_predictor(bundle, device="cpu", options=RuntimeOptions(runtime="openvino"))
    in_openvino = openvino.run(levels, OUTPUTS)
    for name in OUTPUTS:  # it turns the divisions into one product
        np.testing.assert_allclose(in_openvino[name], expected[name], atol=1e-4, rtol=1e-3)


def test_the_bundle_says_what_clients_must_send(bundle: Path, tmp_path: Path) -> None:
    manifest = load_bundle(bundle).manifest
    assert (manifest.input.dtype, manifest.input.shape) == ("uint8", (3, *SIZE))
    assert manifest.preprocessing.steps()[-1].startswith("Give the levels 0 to 255 as they are, channels first.")
    folder = write_model(TritonConfig(bundle=bundle, out=tmp_path / "repository"))
    assert "data_type: TYPE_UINT8\n  dims: [3, 64, 96]" in (folder / "config.pbtxt").read_text(encoding="utf-8")
    assert "Send it as `image`, UINT8, shape (B, 3, 64, 96)" in (folder / "README.md").read_text(encoding="utf-8")


def test_a_manifest_whose_graph_takes_another_type_is_refused(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    fields = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    fields["input"]["dtype"] = "float32"
    (copy / "manifest.json").write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(ConvMAEError, match="input dtype float32 must be uint8, as the preprocessing is"):
        open_predictor(copy, device="cpu")
    fields["preprocessing"]["dtype"] = "float32"
    (copy / "manifest.json").write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(ConvMAEError, match=r"must be float32 \(batch, 3, 64, 96\), found tensor\(uint8\)"):
        open_predictor(copy, device="cpu")


def test_an_engine_is_built_of_a_graph_that_takes_levels(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    from export.to_tensorrt import EngineConfig, write_engine

    engine, _ = write_engine(EngineConfig(bundle=bundle, out=tmp_path / "a.engine", batch=(2,)), Console(quiet=True))
    assert engine.stat().st_size > 1000


def test_a_graph_explains_itself_to_us_and_to_those_who_know_ultralytics_keys(bundle: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copy(bundle / "model.onnx", tmp_path / "alone.onnx"))
    manifest = load_bundle(bundle).manifest  # whose hash is that of the file with its metadata
    assert manifest.files["model.onnx"].sha256 == sha256_of(alone)
    found = read_metadata(alone).description
    assert found is not None and found.model_dump() == manifest.model_dump(exclude={"files", "conformance"})
    assert found.provenance["checkpoint_sha256"] == manifest.provenance["checkpoint_sha256"]
    session = onnxruntime.InferenceSession(alone, providers=["CPUExecutionProvider"])
    pairs = session.get_modelmeta().custom_metadata_map
    assert ast.literal_eval(pairs["names"]) == dict(enumerate(CLASSES))
    assert ast.literal_eval(pairs["imgsz"]) == list(SIZE)
    assert (pairs["task"], pairs["precision"], pairs["stride"], pairs["batch"]) == ("classification", "fp32", "32", "2")
    assert pairs["license"] == manifest.licence.name
    onnx.checker.check_model(onnx.load(alone), full_check=True)


def tiny_task(task: str) -> ExportTask:
    """A model with random weights and the preprocessing of its task."""
    torch.manual_seed(0)
    (kind, *_) = EXPORTS[task].kinds
    fields: dict[str, Any] = {"kind": kind, "variant": "custom", "classes": CLASSES}
    model: torch.nn.Module
    if task == "detection":
        model, fields["model"], fields["detector"] = tiny_detector(), ENCODER, DETECTOR
    else:
        fields["model"] = config = ConvMAEConfig(
            embed_dims=(8, 16, 32), depths=(1, 1, 1), mlp_ratios=(2, 2, 2), num_heads=2, image_size=SIZE
        )
        if task in ("classification", "features"):
            model = build_classifier(config, num_classes=len(CLASSES), head_init_std=0.5)
        elif task == "segmentation":
            fields["segmenter"] = heads = SegmenterConfig(channels=16)
            model = build_segmenter(config, heads, num_classes=len(CLASSES))
        else:
            fields["video"] = video = VideoConfig(frames=4)
            model = build_video_classifier(config, video, num_classes=len(CLASSES), head_init_std=0.5)
    return EXPORTS[task].assemble(model.eval(), CheckpointRecord(**fields))


@pytest.mark.parametrize("task", ["classification", "features", "detection", "segmentation", "video-classification"])
@little_suppression()
def test_models_of_every_task_make_of_levels_what_they_make_of_normalised_values(task: str) -> None:
    floats, levels = tiny_task(task), with_input(tiny_task(task), "uint8")
    spec = levels.preprocessing
    batch = np.random.default_rng(0).integers(0, 256, (1, 3, *spec.input_axes), np.uint8)
    mean, std = (
        np.array(values, np.float32).reshape(3, *(1 for _ in spec.input_axes)) for values in (spec.mean, spec.std)
    )
    values = ((batch.astype(np.float32) / 255 - mean) / std).astype(np.float32)
    expected, found = floats.reference(values), levels.reference(batch)
    assert all(np.array_equal(found[name], expected[name]) for name in floats.outputs)
    with torch.inference_mode():
        pairs = zip(floats.wrapper(torch.from_numpy(values)), levels.wrapper(torch.from_numpy(batch)), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
