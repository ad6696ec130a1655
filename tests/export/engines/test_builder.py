"""Every task is exported in half precision, and each of its graphs becomes an engine, built by TensorRT for RTX."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from rich.console import Console

from convmae_deploy.backends import openvino_backend
from convmae_deploy.bundle.manifest import Precision
from convmae_deploy.bundle.preprocessing import standard_clips, standard_windows
from convmae_deploy.checkpoints.native import CheckpointRecord, save_checkpoint
from convmae_deploy.models.classifier import build_video_classifier
from convmae_deploy.models.convmae import ConvMAEConfig
from convmae_deploy.models.segmenter import SegmenterConfig, build_segmenter
from convmae_deploy.models.video import VideoConfig
from convmae_deploy.tasks import load_bundle
from export.__main__ import ExportConfig, export_bundle
from export.int8.quantisation import fold_weights, quantisable_layers, quantise
from export.packaging import describe_file
from export.precisions import GRAPHS, file_name
from export.to_tensorrt import EngineConfig, write_engine
from tests.bundle_factory import write_manifest
from tests.export.conftest import CLASSES
from tests.export.tiny_detectors import little_suppression

CONFIG = ConvMAEConfig(embed_dims=(8, 16, 32), depths=(1, 1, 1), mlp_ratios=(2, 2, 2), num_heads=2, image_size=(64, 64))
EXPORTED: tuple[Precision, ...] = ("fp32", "fp16", "bf16")


def segmenter() -> tuple[Any, dict[str, Any]]:
    parts = SegmenterConfig(channels=16, auxiliary_channels=8)
    fields = {"kind": "segmentation", "segmenter": parts, "preprocessing": standard_windows((64, 64), 80)}
    return build_segmenter(CONFIG, parts, num_classes=len(CLASSES)), fields


def video_classifier() -> tuple[Any, dict[str, Any]]:
    video = VideoConfig(frames=4)
    clips = standard_clips((64, 64), frames=4, stride=None)
    model = build_video_classifier(CONFIG, video, num_classes=len(CLASSES), head_init_std=0.5)
    return model, {"kind": "video-classification", "video": video, "preprocessing": clips}


MODELS: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "segmentation": segmenter,
    "video-classification": video_classifier,
}
TASKS = ("classification", "detection", *MODELS)


@pytest.fixture(scope="module", autouse=True)
def verified_in_openvino() -> Iterator[None]:
    """Half files are verified in OpenVINO, which computes them in fp32 where the CPU has nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino_backend, "openvino_capabilities", lambda: ("FP32", "FP16", "BF16"))
        yield


def export(checkpoint: Path, out: Path) -> Path:
    """A bundle as the program writes it."""
    config = ExportConfig(checkpoint=checkpoint, out=out, max_batch=2, precision=EXPORTED)
    with little_suppression():
        export_bundle(config, Console(quiet=True), ["test"])
    return out


@pytest.fixture(scope="module", params=TASKS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a tiny model of one task; what other tests have traced is not traced again."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "classification":
        return Path(shutil.copytree(request.getfixturevalue("three_precisions"), folder / "mine"))
    if request.param == "detection":
        graph = request.getfixturevalue("detector_graph")
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(GRAPHS, "fp32", lambda _: graph)
            return export(request.getfixturevalue("detector_checkpoint"), folder / "mine")
    torch.manual_seed(0)
    model, fields = MODELS[request.param]()
    record = CheckpointRecord(**{"variant": "custom", "model": CONFIG, "classes": CLASSES, **fields})
    save_checkpoint(folder / "run", model.state_dict(), record)
    return export(folder / "run", folder / "mine")


@pytest.fixture(scope="module")
def with_int8(bundle: Path) -> Path:
    """The bundle with an int8 graph too, made with ranges that nobody measured: they are numbers to the builder."""
    folded = fold_weights(onnx.load(bundle / "model.onnx"))
    layers = quantisable_layers(folded)
    path = bundle / file_name("int8")
    onnx.save(quantise(folded, layers, {value: (-3.0, 3.0) for layer in layers for value in layer.inputs}), path)
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"][path.name] = describe_file(path, "int8").model_dump(mode="json")
    write_manifest(bundle, manifest)
    return bundle


@pytest.mark.slow
def test_every_task_is_exported_in_both_half_precisions(bundle: Path) -> None:
    files = list(load_bundle(bundle).manifest.files.values())[: len(EXPORTED)]
    assert {file.precision for file in files} == set(EXPORTED)
    assert all(file.numerics is not None and file.numerics.passed for file in files)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_an_engine_is_built(with_int8: Path, precision: Precision) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    engine, record = write_engine(EngineConfig(bundle=with_int8, precision=precision, batch=(2,)), Console(quiet=True))
    assert record.precision == precision and record.graph == file_name(precision)
    assert engine.name == file_name(precision).replace(".onnx", ".engine") and engine.stat().st_size > 10_000
