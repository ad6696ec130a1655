"""Every task's graph becomes an engine in every precision: read and built for real by TensorRT for RTX."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
import pytest
import torch
from rich.console import Console
from torch import nn

from convmae_deploy.bundle.manifest import Precision, input_axes
from convmae_deploy.checkpoints.native import CheckpointRecord
from convmae_deploy.models.classifier import build_classifier, build_video_classifier
from convmae_deploy.models.convmae import ConvMAEConfig
from convmae_deploy.models.detector import DetectorConfig, build_detector
from convmae_deploy.models.segmenter import SegmenterConfig, build_segmenter
from convmae_deploy.models.video import VideoConfig
from export.graphs.half_precision import in_half_precision
from export.graphs.precisions import file_name
from export.graphs.to_onnx import export_graph
from export.int8.quantisation import fold_weights, quantisable_layers, quantise
from export.packaging import BundleContent, describe_file, write_manifest
from export.tasks import EXPORTS
from export.tasks.base import ExportTask
from export.to_tensorrt import EngineConfig, write_engine

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")

SIZE = (64, 64)
ENCODER = ConvMAEConfig(embed_dims=(8, 16, 32), depths=(1, 1, 1), mlp_ratios=(2, 2, 2), num_heads=2, image_size=SIZE)
CLASSES = ("ant", "bee", "cat")
MAX_BATCH = 2
Model = TypeVar("Model", bound=nn.Module)


def classifier() -> ExportTask:
    record = CheckpointRecord(kind="classifier", variant="custom", model=ENCODER, classes=CLASSES)
    return EXPORTS["classification"].assemble(scattered(build_classifier(ENCODER, num_classes=3)), record)


def detector() -> ExportTask:
    config = DetectorConfig(channels=16, fc_width=32, norm="layer")
    record = CheckpointRecord(kind="detector", variant="custom", model=ENCODER, detector=config, classes=CLASSES)
    return EXPORTS["detection"].assemble(scattered(build_detector(ENCODER, config, num_classes=3)), record)


def segmenter() -> ExportTask:
    config = SegmenterConfig(channels=8, auxiliary_channels=8)
    record = CheckpointRecord(kind="segmenter", variant="custom", model=ENCODER, segmenter=config, classes=CLASSES)
    return EXPORTS["segmentation"].assemble(scattered(build_segmenter(ENCODER, config, num_classes=3)), record)


def video_classifier() -> ExportTask:
    video = VideoConfig(frames=4)
    record = CheckpointRecord(kind="video_classifier", variant="custom", model=ENCODER, video=video, classes=CLASSES)
    return EXPORTS["video-classification"].assemble(
        scattered(build_video_classifier(ENCODER, video, num_classes=3)), record
    )


def scattered(model: Model) -> Model:
    """A model in evaluation mode whose parameters all differ; equal ones would be merged in the graph."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


TASKS: dict[str, Callable[[], ExportTask]] = {
    "classification": classifier,
    "detection": detector,
    "segmentation": segmenter,
    "video-classification": video_classifier,
}


PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")


def graph_of(task: ExportTask, precision: Precision) -> onnx.ModelProto:
    """The graph of a precision, int8 with ranges that nobody measured: they are numbers to the builder."""
    wrapper = in_half_precision(task.wrapper, "fp16") if precision == "fp16" else task.wrapper
    model = export_graph(wrapper, input_axes(task.preprocessing), MAX_BATCH, task.outputs).model
    if precision != "int8":
        return model
    folded = fold_weights(model)
    layers = quantisable_layers(folded)
    return quantise(folded, layers, {value: (-3.0, 3.0) for layer in layers for value in layer.inputs})


@pytest.fixture(scope="module", params=TASKS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a tiny model of one task, with a file in every precision; nothing in it was verified."""
    task = TASKS[request.param]()
    folder = tmp_path_factory.mktemp(request.param)
    files = {}
    for precision in PRECISIONS:
        path = folder / file_name(precision)
        onnx.save(graph_of(task, precision), path)
        files[path.name] = describe_file(path, precision)
    content = BundleContent(
        name="tiny",
        task=task.task,
        record=task.record,
        checkpoint=None,
        preprocessing=task.preprocessing,
        max_batch=MAX_BATCH,
        licence_file=None,
    )
    image = np.zeros((1, 3, *input_axes(task.preprocessing)), dtype=np.float32)
    shapes = {name: values.shape[1:] for name, values in task.reference(image).items()}
    write_manifest(folder, content, shapes=shapes, files=files)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_engine_is_built(bundle: Path, precision: Precision) -> None:
    engine, record = write_engine(EngineConfig(bundle=bundle, precision=precision, batch=(2,)), Console(quiet=True))
    assert record.precision == precision and record.graph == file_name(precision)
    assert engine.name == file_name(precision).replace(".onnx", ".engine") and engine.stat().st_size > 10_000
