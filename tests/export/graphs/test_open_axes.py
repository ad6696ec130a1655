"""One graph for every height and width, and graphs for batches of one size."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from convmae_deploy.backends.runtimes import RuntimeOptions, start_backend
from convmae_deploy.bundle.loading import BundleError
from convmae_deploy.bundle.manifest import InputSpec, SideRange
from convmae_deploy.bundle.preprocessing import standard_preprocessing
from convmae_deploy.checkpoints.native import CheckpointRecord
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.classifier import ConvMAEClassifier
from convmae_deploy.models.convmae import ConvMAEConfig, DenseConfig, build_convmae
from convmae_deploy.tasks import load_bundle
from convmae_deploy.tasks.classification import CLASSIFIER_OUTPUTS, Classifier
from export.graphs.open_axes import resized_positions
from export.graphs.to_onnx import ExportedGraph, export_graph
from export.packaging import BundleContent, describe_file, write_manifest
from export.runtimes.runners import onnx_runner, torch_runner
from export.tasks.classification import ClassifierGraph
from export.verification.gates import GATES, compare
from tests.export.conftest import CLASSES, SIZE

LARGEST = 160
SIZES = (SIZE, (32, 32), (160, 64), (32, 160), (160, 160))  # the one that the position embedding is for comes first


@pytest.fixture(scope="module")
def any_size(classifier: ConvMAEClassifier) -> ExportedGraph:
    entry = InputSpec(shape=(3, *SIZE), sides=SideRange(largest=LARGEST), max_batch=4)
    return export_graph(ClassifierGraph(classifier).eval(), entry, CLASSIFIER_OUTPUTS)


@pytest.fixture(scope="module")
def bundle(any_size: ExportedGraph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("any-size")
    onnx.save(any_size.model, folder / "model.onnx")
    config = ConvMAEConfig(
        embed_dims=(16, 24, 32), depths=(1, 1, 2), mlp_ratios=(2, 2, 2), num_heads=2, image_size=SIZE
    )
    content = BundleContent(
        name="any-size",
        task="classification",
        record=CheckpointRecord(kind="classification", variant="custom", model=config, classes=CLASSES),
        checkpoint=None,
        preprocessing=standard_preprocessing(SIZE),
        max_batch=4,
        sides=SideRange(largest=LARGEST),
        licence_file=None,
    )
    cells = {"e1": (16, 16, 24), "e2": (24, 8, 12), "e3": (32, 4, 6), "e4": (32, 2, 3)}
    files = {"model.onnx": describe_file(folder / "model.onnx", "fp32")}
    write_manifest(folder, content, shapes={"logits": (5,), "pooled": (32,), **cells}, files=files)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_one_graph_gives_pytorchs_numbers_at_every_size_and_refuses_others(
    classifier: ConvMAEClassifier, bundle: Path, runtime: str
) -> None:
    opened = load_bundle(bundle)
    options = RuntimeOptions(runtime=runtime)  # type: ignore[arg-type]
    predictor = Classifier(opened, start_backend(opened, device="cpu", threads=1, options=options), options)
    reference = torch_runner(ClassifierGraph(classifier).eval(), CLASSIFIER_OUTPUTS)
    for number, size in enumerate((*SIZES, *SIZES)):  # twice: a runtime may remember what it was given before
        images = np.random.default_rng(number).standard_normal((1 + number % 3, 3, *size), dtype=np.float32)
        found, expected = predictor.at(size).run(images, CLASSIFIER_OUTPUTS), reference(images)
        for name in CLASSIFIER_OUTPUTS:
            assert found[name].shape == expected[name].shape
            assert compare(expected[name], found[name], GATES["fp32"]).problem is None, (size, name)
    for height, width in ((48, 64), (192, 64), (64, 0)):
        with pytest.raises(ConvMAEError, match="multiples of 32 from 32 to 160"):
            predictor.backend.run(np.zeros((1, 3, height, width), np.float32), ["logits"])
        with pytest.raises(ConvMAEError, match="any-size takes heights and widths of multiples of 32 from 32"):
            predictor.at((height, width))


def test_open_axes_are_called_what_they_are(any_size: ExportedGraph) -> None:
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*any_size.model.graph.input, *any_size.model.graph.output)
    }
    assert shapes["image"] == ["batch", 3, "height", "width"]
    assert shapes["e1"] == ["batch", 16, "height_4", "width_4"] and shapes["e4"][2:] == ["height_32", "width_32"]
    assert shapes["logits"] == ["batch", 5]


def test_a_graph_of_one_size_is_none_of_a_bundle_for_every_size(bundle: Path, graph: ExportedGraph) -> None:
    onnx.save(graph.model, bundle / "fixed.onnx")
    opened = load_bundle(bundle)
    files = {"fixed.onnx": describe_file(bundle / "fixed.onnx", "fp32")}
    fixed = type(opened)(bundle, opened.manifest.model_copy(update={"files": files}))
    with pytest.raises(BundleError, match="must take any height and width, found 64 x 96"):
        start_backend(fixed, device="cpu", threads=1)


def test_a_model_whose_positions_belong_to_one_size_is_refused() -> None:
    dense = DenseConfig(relative_position="shared", window_size=3, global_blocks=(0,))
    config = ConvMAEConfig(
        embed_dims=(8, 16, 32), depths=(1, 1, 2), mlp_ratios=(2, 2, 2), num_heads=2, image_size=(64, 64), dense=dense
    )
    with pytest.raises(ConvMAEError, match="which belong to one size"), resized_positions(build_convmae(config)):
        pass


@pytest.mark.slow
def test_a_fixed_batch_is_a_number_in_the_graph(tmp_path: Path) -> None:
    class Halved(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (image[:, :, ::2].flatten(1).mean(1),)

    graph = export_graph(Halved(), InputSpec(shape=(3, 32, 32), min_batch=3, max_batch=3), ("y",), fixed_batch=True)
    assert [axis.dim_value for axis in graph.model.graph.input[0].type.tensor_type.shape.dim] == [3, 3, 32, 32]
    onnx.save(graph.model, tmp_path / "fixed.onnx")
    images = np.ones((3, 3, 32, 32), np.float32)
    assert np.array_equal(onnx_runner(tmp_path / "fixed.onnx", ("y",))(images)["y"], np.ones(3, np.float32))
