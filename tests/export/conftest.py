"""One tiny classifier and one tiny detector, traced once for all tests of this folder, which run in one process."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx
import pytest
import torch
from rich.console import Console

from convmae_deploy.backends import openvino_backend
from convmae_deploy.bundle.manifest import InputSpec
from convmae_deploy.bundle.preprocessing import Letterbox
from convmae_deploy.checkpoints.native import CheckpointRecord, save_checkpoint
from convmae_deploy.models.classifier import ConvMAEClassifier, build_classifier
from convmae_deploy.models.convmae import ConvMAEConfig
from export import precisions
from export.__main__ import ExportConfig, export_bundle
from export.graphs.half_precision import HalfPrecision
from export.graphs.to_onnx import ExportedGraph
from export.precisions import GRAPHS, GraphRequest
from export.tasks import open_task
from tests.export.graphs_of import export_classifier
from tests.export.tiny_detectors import DETECTOR, ENCODER, little_suppression, tiny_detector
from tests.export.tiny_detectors import SIZE as DETECTOR_SIZE

SIZE = (64, 96)
CLASSES = ("ant", "bee", "cat", "dog", "eel")
MAX_BATCH = 4
HALF: tuple[HalfPrecision, ...] = ("fp16", "bf16")


def tiny_classifier() -> ConvMAEClassifier:
    """A classifier whose every parameter is random: equal ones would be merged in the graph."""
    config = ConvMAEConfig(
        embed_dims=(16, 24, 32), depths=(1, 1, 2), mlp_ratios=(2, 2, 2), num_heads=2, image_size=SIZE
    )
    model = build_classifier(config, num_classes=len(CLASSES), head_init_std=0.5).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="session")
def classifier() -> ConvMAEClassifier:
    torch.manual_seed(0)
    return tiny_classifier()


@pytest.fixture(scope="session")
def graph(classifier: ConvMAEClassifier) -> ExportedGraph:
    return export_classifier(classifier, SIZE, MAX_BATCH)


@pytest.fixture(scope="session")
def checkpoint(classifier: ConvMAEClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with one checkpoint, `best`."""
    run = tmp_path_factory.mktemp("run")
    config = ConvMAEConfig(
        embed_dims=(16, 24, 32), depths=(1, 1, 2), mlp_ratios=(2, 2, 2), num_heads=2, image_size=SIZE
    )
    record = CheckpointRecord(
        kind="classification", variant="custom", model=config, classes=CLASSES, provenance={"data": "none", "seed": "0"}
    )
    save_checkpoint(run / "best", classifier.state_dict(), record)
    return run


@pytest.fixture(scope="session")
def half_graphs(checkpoint: Path, graph: ExportedGraph) -> dict[HalfPrecision, ExportedGraph]:
    """The classifier's graphs in half precision, as the program makes them."""
    entry = InputSpec(shape=(3, *SIZE), max_batch=MAX_BATCH)
    request = GraphRequest(task=open_task(checkpoint, None), entry=entry, float32=graph)
    return {precision: GRAPHS[precision](request) for precision in HALF}


@pytest.fixture(scope="session")
def three_precisions(
    checkpoint: Path,
    graph: ExportedGraph,
    half_graphs: dict[HalfPrecision, ExportedGraph],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A bundle of the classifier in fp32, bf16 and fp16, for batches of up to 2; nobody changes it."""
    out = tmp_path_factory.mktemp("bundles") / "mine"
    config = ExportConfig(checkpoint=checkpoint, out=out, max_batch=2, precision=("bf16", "fp16"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GRAPHS, "fp32", lambda _: graph)
        for precision in HALF:
            patch.setitem(GRAPHS, precision, partial(made_before, half_graphs[precision]))
        patch.setattr(openvino_backend, "openvino_capabilities", lambda: ("FP32", "FP16", "BF16"))
        export_bundle(config, Console(quiet=True), ["test"])
    return out


@pytest.fixture(scope="session")
def detector_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny detector's checkpoint."""
    record = CheckpointRecord(
        kind="detection",
        variant="custom",
        model=ENCODER,
        detector=DETECTOR,
        classes=CLASSES,
        preprocessing=Letterbox(size=DETECTOR_SIZE),
    )
    path = tmp_path_factory.mktemp("run") / "best"
    save_checkpoint(path, tiny_detector().state_dict(), record)
    return path


@pytest.fixture(scope="session")
def detector_graph(detector_checkpoint: Path) -> ExportedGraph:
    """The tiny detector's graph in fp32, with few rounds of suppression."""
    entry = InputSpec(shape=(3, *DETECTOR_SIZE), max_batch=MAX_BATCH)
    with little_suppression():
        return GRAPHS["fp32"](GraphRequest(task=open_task(detector_checkpoint, None), entry=entry))


def made_before(graph: ExportedGraph, _: GraphRequest) -> ExportedGraph:
    """Stands in for what would make a graph."""
    return graph


@pytest.fixture
def export_gives(monkeypatch: pytest.MonkeyPatch) -> Callable[[ExportedGraph], None]:
    """Makes the program use a graph that is there already instead of tracing the model again."""

    def use(graph: ExportedGraph) -> None:
        monkeypatch.setattr(precisions, "export_graph", lambda *_: graph)

    return use


def copy_of(graph: ExportedGraph) -> ExportedGraph:
    """A graph that a test may break."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    return ExportedGraph(model, graph.program, graph.outputs)


def with_batch(model: onnx.ModelProto, size: int) -> None:
    """Makes a graph one for batches of one size."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = size


def node_of(model: onnx.ModelProto, module: str, operator: str) -> onnx.NodeProto:
    """The one node of an operator that was made from a module."""
    nodes: list[onnx.NodeProto] = [
        node
        for node in model.graph.node
        if node.op_type == operator and any(entry.value == module for entry in node.metadata_props)
    ]
    (node,) = nodes
    return node
