import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from convmae_deploy.backends.base import FloatArray
from export.graphs.to_onnx import ExportedGraph
from export.verification.divergence import LayerError, cut_points, find_divergence, judge
from export.verification.gates import FP32, compare
from tests.export.conftest import SIZE, copy_of, node_of

IMAGES = np.random.default_rng(1).standard_normal((1, 3, *SIZE), dtype=np.float32)


def weight_of(model: onnx.ModelProto, module: str, operator: str) -> onnx.TensorProto:
    name = node_of(model, module, operator).input[1]
    weights: list[onnx.TensorProto] = [weight for weight in model.graph.initializer if weight.name == name]
    return weights[0]


def store(weight: onnx.TensorProto, values: FloatArray) -> None:
    weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), weight.name))


def transpose_weight(model: onnx.ModelProto) -> None:
    weight = weight_of(model, "encoder.blocks2.0.conv1", "MatMul")
    store(weight, numpy_helper.to_array(weight).T)


def swap_epsilon(model: onnx.ModelProto) -> None:
    for attribute in node_of(model, "encoder.blocks3.1.norm1", "LayerNormalization").attribute:
        if attribute.name == "epsilon":
            attribute.f = 1e-1


def perturb_one_number(model: onnx.ModelProto) -> None:
    weight = weight_of(model, "encoder.blocks1.0.mlp.fc2", "MatMul")
    values = numpy_helper.to_array(weight).copy()
    values[3, 4] += 0.5
    store(weight, values)


def tanh_for_gelu(model: onnx.ModelProto) -> None:
    node = node_of(model, "encoder.blocks3.0.mlp.act", "Gelu")
    del node.attribute[:]
    node.attribute.append(onnx.helper.make_attribute("approximate", "tanh"))


def forget_the_second_skip_connection(model: onnx.ModelProto) -> None:
    first, second = (
        node
        for node in model.graph.node
        if node.op_type == "Add" and any(entry.value == "encoder.blocks3.0" for entry in node.metadata_props)
    )
    second.input[list(second.input).index(first.output[0])] = first.input[0]


def break_the_attention_scale(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "Softmax" and any("blocks3.1.attn" in entry.value for entry in node.metadata_props):
            node.op_type = "Relu"
            del node.attribute[:]


BREAKAGES = [
    (transpose_weight, "encoder.blocks2.0.conv1"),
    (swap_epsilon, "encoder.blocks3.1.norm1"),
    (perturb_one_number, "encoder.blocks1.0.mlp.fc2"),
    (tanh_for_gelu, "encoder.blocks3.0.mlp.act"),
    (forget_the_second_skip_connection, "encoder.blocks3.0"),
    (break_the_attention_scale, "encoder.blocks3.1.attn"),
]


@pytest.mark.parametrize(("breakage", "module"), BREAKAGES, ids=lambda value: getattr(value, "__name__", ""))
def test_the_broken_layer_is_named_and_the_layers_behind_it_are_not_blamed(
    graph: ExportedGraph, breakage: object, module: str
) -> None:
    broken = copy_of(graph)
    breakage(broken.model)  # type: ignore[operator]
    divergence = find_divergence(broken, IMAGES, FP32)
    assert divergence.first is not None
    assert divergence.first.module == module
    assert f"{module} (ONNX value {divergence.first.value})" in divergence.explanation
    assert [layer.module for layer in divergence.layers if layer.comparison.problem] == [module]


def layer(module: str, difference: float) -> LayerError:
    reference = np.ones((1, 4), dtype=np.float32)
    comparison = compare(reference, reference + np.float32(difference), FP32)
    return LayerError(module=module, value=f"{module}_value", operator="Add", comparison=comparison)


def test_the_first_layer_beyond_the_gate_is_blamed_though_a_later_one_is_worse() -> None:
    divergence = judge((layer("a", 1e-6), layer("b", 0.01), layer("c", 0.5)))
    assert divergence.explanation == "b (ONNX value b_value)"


def test_where_no_layer_is_beyond_the_gate_the_largest_error_is_named_with_that_reservation() -> None:
    divergence = judge((layer("a", 1e-6), layer("b", 5e-4), layer("c", 1e-5)))
    assert divergence.first is not None and divergence.first.module == "b"
    assert "within tolerance" in divergence.explanation


def test_a_graph_that_agrees_without_optimisations_leaves_the_optimiser_as_the_culprit(graph: ExportedGraph) -> None:
    divergence = find_divergence(graph, IMAGES, FP32)
    assert divergence.first is None and divergence.layers == ()
    assert "optimisations" in divergence.explanation


def test_every_layer_with_weights_and_every_output_is_a_cut_point(graph: ExportedGraph) -> None:
    values = cut_points(graph)
    assert set(graph.outputs) <= values.keys()
    operations = [node.name for node in graph.program.graph.nodes if node.op == "call_function"]
    weighted = {name for name in operations if name.startswith(("linear", "conv2d", "layer_norm", "gelu"))}
    assert weighted <= set(values.values())
    assert len(set(values.values())) == len(values)
