from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from convmae_deploy.bundle.manifest import InputSpec
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.attention import RelativePosition
from convmae_deploy.models.classifier import ConvMAEClassifier, build_classifier
from convmae_deploy.models.convmae import ConvMAEConfig, DenseConfig
from convmae_deploy.tasks.classification import CLASSIFIER_OUTPUTS as OUTPUTS
from export.graphs import to_onnx
from export.graphs.to_onnx import ExportedGraph, export_graph
from export.graphs.traced import intermediate_values, peak_bytes_per_image
from export.runtimes.runners import onnx_runner, torch_runner
from export.tasks.classification import ClassifierGraph
from tests.export.conftest import CLASSES, SIZE
from tests.export.graphs_of import export_classifier


def dimensions(value: object) -> list[str | int]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]  # type: ignore[attr-defined]


def test_the_graph_has_one_input_and_six_outputs_with_an_open_batch(graph: ExportedGraph) -> None:
    (image,) = graph.model.graph.input
    assert (image.name, dimensions(image)) == ("image", ["batch", 3, *SIZE])
    shapes = {value.name: dimensions(value) for value in graph.model.graph.output}
    assert list(shapes) == ["logits", "pooled", "e1", "e2", "e3", "e4"]
    assert shapes["logits"] == ["batch", len(CLASSES)]
    assert shapes["e1"] == ["batch", 16, 16, 24]
    assert shapes["e4"] == ["batch", 32, 2, 3]
    assert [(entry.domain, entry.version) for entry in graph.model.opset_import] == [("", 20)]


def test_each_layer_norm_and_each_gelu_is_one_node_and_attention_is_decomposed(
    graph: ExportedGraph, classifier: ConvMAEClassifier
) -> None:
    operators = Counter(node.op_type for node in graph.model.graph.node)
    norms = sum(isinstance(module, torch.nn.LayerNorm) for module in classifier.modules())
    assert operators["LayerNormalization"] == norms == 12
    assert operators["Gelu"] == 3 + 4  # one a patch embedding, one an MLP
    assert operators["Softmax"] == 2 and operators["Attention"] == 0
    assert not {"Erf", "ReduceVariance", "If", "Loop"} & operators.keys()


def test_the_graph_keeps_module_paths_and_nothing_of_the_machine_that_made_it(graph: ExportedGraph) -> None:
    modules = {entry.value for node in graph.model.graph.node for entry in node.metadata_props}
    assert {"encoder.blocks1.0.conv1", "encoder.blocks3.1.attn", "fc_norm", "head"} <= modules
    assert {entry.key for node in graph.model.graph.node for entry in node.metadata_props} == {"module"}
    assert b".py" not in graph.model.SerializeToString()


def test_the_wrapper_gives_what_the_model_gives(classifier: ConvMAEClassifier) -> None:
    images = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        outputs = dict(zip(OUTPUTS, ClassifierGraph(classifier)(images), strict=True))
        assert torch.equal(outputs["logits"], classifier(images))
        for name, expected in zip(("e1", "e2", "e3", "e4"), classifier.encoder(images), strict=True):
            assert torch.equal(outputs[name], expected)


@pytest.mark.slow
def test_exporting_another_size_for_single_images_is_quiet(
    classifier: ConvMAEClassifier, capfd: pytest.CaptureFixture[str]
) -> None:
    # The position embedding is resized inside the graph here; a checkpoint of this size has it resized already.
    other = export_classifier(classifier, (32, 128), 1)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert dimensions(other.model.graph.output[5]) == ["batch", 32, 1, 4]


def test_a_model_beyond_the_file_format_is_refused(
    classifier: ConvMAEClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(to_onnx, "ONNX_LIMIT_BYTES", 1000)
    with pytest.raises(ConvMAEError, match="at most 1e-06 GB"):
        export_classifier(classifier, SIZE, 1)


def test_the_traced_program_gives_the_values_between_input_and_output(
    graph: ExportedGraph, classifier: ConvMAEClassifier
) -> None:
    images = np.random.default_rng(0).standard_normal((1, 3, *SIZE), dtype=np.float32)
    values = intermediate_values(graph.program, images, {"layer_norm_1", "no such operation"})
    with torch.inference_mode():
        stem = classifier.encoder.patch_embed1(torch.from_numpy(images).permute(0, 2, 3, 1))
        expected = classifier.encoder.blocks1[0].norm1(stem)  # type: ignore[operator]
    assert list(values) == ["layer_norm_1"]
    np.testing.assert_allclose(values["layer_norm_1"], expected.numpy(), atol=1e-5)


def test_memory_is_estimated_from_the_largest_tensor(graph: ExportedGraph) -> None:
    images = np.zeros((2, 3, *SIZE), dtype=np.float32)
    hidden = (SIZE[0] // 4) * (SIZE[1] // 4) * 32 * 4  # bytes of the widest layer: the MLP of stage 1
    estimate = peak_bytes_per_image(graph.program, images)
    assert 4 * hidden <= estimate <= 8 * hidden
    assert estimate == peak_bytes_per_image(graph.program, images[:1])


@pytest.mark.slow
def test_a_model_with_an_operator_that_is_not_for_every_runtime_is_refused() -> None:
    class Positive(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (torch.nonzero(image.flatten(1)),)

    with pytest.raises(ConvMAEError, match="is a NonZero, which is refused: the length of its output"):
        export_graph(Positive().eval(), InputSpec(shape=(3, *SIZE), max_batch=2), ("positive",))


@pytest.mark.slow
@pytest.mark.parametrize("relative_position", ["shared", "decomposed"])
def test_windows_and_relative_positions_follow_the_batch(relative_position: RelativePosition, tmp_path: Path) -> None:
    dense = DenseConfig(relative_position=relative_position, window_size=3, global_blocks=(0,), shifted_windows=True)
    config = ConvMAEConfig(
        embed_dims=(8, 16, 32), depths=(1, 1, 3), mlp_ratios=(2, 2, 2), num_heads=2, image_size=(64, 96), dense=dense
    )
    torch.manual_seed(0)
    model = build_classifier(config, num_classes=3).eval()
    for name, parameter in model.named_parameters():
        if "position" in name:
            torch.nn.init.normal_(parameter)
    onnx.save(export_classifier(model, (64, 96), 4).model, tmp_path / "model.onnx")
    reference, candidate = torch_runner(ClassifierGraph(model), OUTPUTS), onnx_runner(tmp_path / "model.onnx", OUTPUTS)
    for batch in (1, 3):
        images = np.random.default_rng(batch).standard_normal((batch, 3, 64, 96), dtype=np.float32)
        expected, found = reference(images)["e3"], candidate(images)["e3"]
        np.testing.assert_allclose(found, expected, atol=1e-5)
