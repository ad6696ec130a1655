"""Which layers become int8, in which form, and what is left alone."""

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from convmae_deploy.bundle.preprocessing import standard_preprocessing
from convmae_deploy.tasks.classification import CLASSIFIER_OUTPUTS as OUTPUTS
from convmae_deploy.tasks.classification import Classifier
from export.graphs.to_onnx import ExportedGraph
from export.int8.calibration import activation_ranges
from export.int8.quantisation import Layer, Ranges, fold_weights, quantisable_layers, quantise
from export.runtimes.runners import open_graph
from export.verification.samples import made_photos
from tests.export.conftest import SIZE

DEPTHWISE, DENSE = "encoder.blocks1.0.attn", "encoder.blocks3.0.attn.qkv"


def photos(count: int) -> list[NDArray[np.float32]]:
    """Batches of one made picture each; as good as photos where only the graph is looked at."""
    return [Classifier.pixels(photo, standard_preprocessing(SIZE))[None] for photo in made_photos(count)]


@pytest.fixture(scope="module")
def model(graph: ExportedGraph) -> onnx.ModelProto:
    return fold_weights(graph.model)


@pytest.fixture(scope="module")
def layers(model: onnx.ModelProto) -> tuple[Layer, ...]:
    return quantisable_layers(model)


@pytest.fixture(scope="module")
def ranges(model: onnx.ModelProto, layers: tuple[Layer, ...]) -> Ranges:
    return activation_ranges(model, {value for layer in layers for value in layer.inputs}, photos(4), 4)


@pytest.fixture(scope="module")
def quantised(model: onnx.ModelProto, layers: tuple[Layer, ...], ranges: Ranges) -> onnx.ModelProto:
    return quantise(model, layers, ranges)


def named(layers: tuple[Layer, ...], name: str) -> Layer:
    (layer,) = [layer for layer in layers if layer.name == name]
    return layer


def makers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output}


def nodes(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {node.name: node for node in model.graph.node if node.name}


def constants(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def run(model: onnx.ModelProto, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in model.graph.output]
    return dict(zip(names, session.run(names, {"image": image}), strict=True))


def test_layers_are_all_trained_products_and_convolutions(layers: tuple[Layer, ...]) -> None:
    names = {layer.name for layer in layers}
    assert {"encoder.patch_embed1", "encoder.patch_embed3", DEPTHWISE, DENSE, "encoder.blocks3.1.mlp.fc2"} <= names
    assert "head" not in names  # 5 classes of 32 channels are too few weights to win anything


def test_weights_are_int8_with_a_scale_for_each_output_channel(
    layers: tuple[Layer, ...], quantised: onnx.ModelProto, model: onnx.ModelProto
) -> None:
    by_name, made, known, before = nodes(quantised), makers(quantised), constants(quantised), constants(model)
    for layer in layers:
        (name,) = layer.nodes
        node = by_name[name]
        weight = made[node.input[1]]
        assert weight.op_type == "DequantizeLinear"
        values, scale, zero = (known[part] for part in weight.input)
        axis = 1 if node.op_type == "MatMul" else 0
        assert values.dtype == np.int8 and not zero.any()
        assert helper.get_node_attr_value(weight, "axis") == axis
        assert scale.shape == (values.shape[axis],)
        shape = [-1 if index == axis else 1 for index in range(values.ndim)]
        assert np.abs(values * scale.reshape(shape) - before[layer.weight]).max() <= scale.max() * 0.501
    assert known[made[by_name[named(layers, DEPTHWISE).nodes[0]].input[1]].input[0]].shape == (16, 1, 5, 5)


def test_inputs_of_layers_have_one_symmetric_scale(
    layers: tuple[Layer, ...], quantised: onnx.ModelProto, ranges: Ranges
) -> None:
    by_name, made, known = nodes(quantised), makers(quantised), constants(quantised)
    for layer in layers:
        back = made[by_name[layer.nodes[0]].input[0]]
        there = made[back.input[0]]
        assert (back.op_type, there.op_type) == ("DequantizeLinear", "QuantizeLinear")
        assert there.input[0] == layer.inputs[0]
        scale, zero = known[there.input[1]], known[there.input[2]]
        assert zero.dtype == np.int8 and zero == 0
        assert scale == pytest.approx(max(map(abs, ranges[layer.inputs[0]])) / 127, rel=0.01)


def test_biases_and_products_of_attention_stay_in_fp32(model: onnx.ModelProto, quantised: onnx.ModelProto) -> None:
    before, known = constants(model), constants(quantised)
    biases = [name for name in before if name.endswith("bias")]
    assert biases and all(known[name].dtype == np.float32 for name in biases)
    assert not any(array.dtype == np.int32 for array in known.values())
    products = [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] not in before]
    assert len(products) == 4  # two blocks of attention
    for node in products:
        assert list(nodes(quantised)[node.name].input) == list(node.input)


def test_nothing_but_the_layers_reads_rounded_values(layers: tuple[Layer, ...], quantised: onnx.ModelProto) -> None:
    rounded = {node.output[0] for node in quantised.graph.node if node.op_type == "DequantizeLinear"}
    readers = {node.name for node in quantised.graph.node if rounded & set(node.input)}
    assert readers == {name for layer in layers for name in layer.nodes}
    assert {output.name for output in quantised.graph.output} == set(OUTPUTS)
    assert not rounded & set(OUTPUTS)  # e1 is what patch_embed2 reads, and stays as exact as it is


def test_the_int8_graph_gives_nearly_the_numbers_of_the_fp32_graph(
    model: onnx.ModelProto, quantised: onnx.ModelProto
) -> None:
    image = photos(1)[0]
    # as it is written: on CPUs without VNNI the products of ONNX Runtime's optimised graph saturate
    written = open_graph("onnxruntime", quantised.SerializeToString(), optimised=False)
    before, after = run(model, image), written.run(OUTPUTS, {"image": image})
    for name in OUTPUTS:
        noise = np.linalg.norm(after[name] - before[name])
        assert 0 < noise < 0.2 * np.linalg.norm(before[name])


def test_a_layer_left_out_is_as_in_the_fp32_graph(
    model: onnx.ModelProto, layers: tuple[Layer, ...], ranges: Ranges
) -> None:
    kept = named(layers, DENSE)
    partly = quantise(model, [layer for layer in layers if layer != kept], ranges)
    assert list(nodes(partly)[kept.nodes[0]].input) == [kept.inputs[0], kept.weight]
    assert np.array_equal(constants(partly)[kept.weight], constants(model)[kept.weight])
    assert quantise(model, [], ranges) == model


def test_the_same_ranges_give_the_same_file(
    model: onnx.ModelProto, layers: tuple[Layer, ...], ranges: Ranges, quantised: onnx.ModelProto
) -> None:
    again = quantise(model, layers, ranges)
    assert again.SerializeToString(deterministic=True) == quantised.SerializeToString(deterministic=True)


def test_nodes_keep_their_modules(layers: tuple[Layer, ...], quantised: onnx.ModelProto) -> None:
    assert {layer.name for layer in quantisable_layers(quantised)} == set()  # all are quantised already
    node = nodes(quantised)[named(layers, DENSE).nodes[0]]
    assert [(entry.key, entry.value) for entry in node.metadata_props] == [("module", DENSE)]
    assert not quantised.metadata_props and not quantised.graph.value_info


def two_layers(kind: type[np.floating] = np.float32) -> onnx.ModelProto:
    """A convolution used twice, and a product whose weight is transposed when the graph runs."""
    generator = np.random.default_rng(0)
    kernel = generator.standard_normal((16, 16, 3, 3)).astype(kind)
    kernel[3] *= kind(1e-3)
    weight = generator.standard_normal((32, 16)).astype(kind)
    number = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    return helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Conv", ["image", "kernel"], ["once"], "first", pads=[1, 1, 1, 1]),
                helper.make_node("Relu", ["once"], ["positive"], "relu"),
                helper.make_node("Conv", ["positive", "kernel"], ["twice"], "second", pads=[1, 1, 1, 1]),
                helper.make_node("Transpose", ["twice"], ["last"], "to_last", perm=[0, 2, 3, 1]),
                helper.make_node("Transpose", ["weight"], ["turned"], "turn", perm=[1, 0]),
                helper.make_node("MatMul", ["last", "turned"], ["result"], "product"),
            ],
            "two_layers",
            [helper.make_tensor_value_info("image", number, ["batch", 16, 8, 8])],
            [helper.make_tensor_value_info("result", number, ["batch", 8, 8, 32])],
            [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(weight, "weight")],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


def test_a_weight_used_twice_is_one_layer() -> None:
    model = fold_weights(two_layers())
    shared, product = quantisable_layers(model)
    assert (shared.nodes, shared.inputs) == (("first", "second"), ("image", "positive"))
    assert (product.name, product.nodes) == ("turned", ("product",))
    ranges = {"image": (-3.0, 3.0), "positive": (0.0, 9.0), "last": (-60.0, 60.0)}
    quantised = quantise(model, [product], ranges)
    for name in shared.nodes:
        assert nodes(quantised)[name].input[1] == "kernel"
    assert nodes(quantise(model, [shared], ranges))["product"].input[1] == "turned"


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_each_use_of_a_shared_weight_reads_a_copy(kind: type[np.floating]) -> None:
    """With the option that spares products from saturation, ONNX Runtime opens no graph with shared int8 weights."""
    model = fold_weights(two_layers(kind))
    quantised = quantise(model, quantisable_layers(model)[:1], {"image": (-3.0, 3.0), "positive": (0.0, 9.0)})
    onnx.checker.check_model(quantised, full_check=True)
    stored, found = constants(quantised), nodes(quantised)
    read = [
        [node for node in quantised.graph.node if found[name].input[1] in node.output][0]
        for name in ("first", "second")
    ]
    once, again = ([stored[name] for name in node.input] for node in read)
    assert not set(read[0].input) & set(read[1].input)
    assert all(np.array_equal(one, other) for one, other in zip(once, again, strict=True))
    assert np.abs(once[0][3]).max() > 100  # the channel of small weights
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    onnxruntime.InferenceSession(quantised.SerializeToString(), options)


def test_a_transposed_weight_becomes_a_constant() -> None:
    model = fold_weights(two_layers())
    assert [node.op_type for node in model.graph.node] == ["Conv", "Relu", "Conv", "Transpose", "MatMul"]
    assert constants(model)["turned"].shape == (16, 32)
    image = np.random.default_rng(1).standard_normal((1, 16, 8, 8)).astype(np.float32)
    assert np.allclose(run(model, image)["result"], run(two_layers(), image)["result"], atol=1e-4)


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_scales_have_the_type_of_the_layer_and_channels_of_small_weights_stay(kind: type[np.floating]) -> None:
    """The quantiser takes 1 for a scale below float16's smallest normal number, which makes zeros of such a channel."""
    number = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    weight = np.random.default_rng(2).standard_normal((32, 16)).astype(kind)
    weight[:, 3] *= kind(1e-3)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["typed"], "in", to=number),
            helper.make_node("MatMul", ["typed", "weight"], ["product"], "product"),
            helper.make_node("Cast", ["product"], ["result"], "out", to=TensorProto.FLOAT),
        ],
        "one_layer",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 32])],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, ["batch", 16])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    quantised = quantise(model, quantisable_layers(model), {"typed": (-4.0, 4.0)})
    onnx.checker.check_model(quantised, full_check=True)
    stored = constants(quantised)
    scale = stored["weight_scale"]
    assert scale.dtype == kind and all(stored[name].dtype == kind for name in stored if name.endswith("_scale"))
    rebuilt = stored["weight_quantized"] * scale.astype(np.float32)
    error = np.abs(rebuilt - weight).max(axis=0) / np.abs(weight).max(axis=0)
    assert error.max() < 0.01
    image = np.random.default_rng(1).standard_normal((4, 32)).astype(np.float32)
    found = open_graph("onnxruntime", quantised.SerializeToString(), optimised=False).run(["result"], {"image": image})
    assert np.allclose(found["result"], image @ weight.astype(np.float32), atol=0.3)
