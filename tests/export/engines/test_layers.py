"""The layers of an engine in TensorRT's words, and the types that its work is done in."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from convmae_deploy.backends.engine_record import EngineLayer
from convmae_deploy.bundle.manifest import Precision
from convmae_deploy.errors import ConvMAEError
from export.engines.layers import FoundLayer, check_types, node_work, parse_layers, with_work

TENSOR = "{{ Name: {}, Dimensions: [-1,192], Strides: [192,1], StrideOrder: [1,0], Datatype: {}, Format: (Linear) x }}"
LINE = (
    "Name: {}, LayerType: {}, Inputs: [ {} ], Constants: [{}], Outputs: [ {} ], TacticName: , StreamId: 0, Metadata: {}"
)


def tensor(kind: str) -> str:
    return TENSOR.format("__myln_k_arg", kind)


# as TensorRT for RTX 1.7.1 writes them at the end of a build, line breaks made spaces
RTX = " ".join(
    [
        "Layers:",
        "Name: __mye0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , Metadata: ",
        LINE.format("__myl_Cast", "kgen", tensor("Float"), "", tensor("Half"), "[ONNX Layer: node_cast]"),
        LINE.format(
            "__myl_FcAdd_myl0_113",
            "runtime_fusion",
            tensor("Half"),
            f" {tensor('Half')}, {tensor('Float')} ",
            tensor("Half"),
            "[ONNX Layer: node_linear_42][ONNX Layer: node_MatMul_436]",
        ),
        LINE.format(
            "node_Conv_1_myl0_7",
            "correlation",
            tensor("Int8"),
            tensor("Int8"),
            tensor("Float"),
            "[ONNX Layer: node_Conv_1]",
        ),
        "I/O Tensors: Name: image, IOMode: Input, DataType: Float, Dimensions: [-1,3,128,128]",
    ]
)
# a line put together as those of TensorRT 8 and 10 in published logs
CLASSIC = (
    "Name: conv1 + relu1, LayerType: CaskConvolution, Inputs: [ { Name: image, Location: Device, Dimensions: [1,3,8], "
    "Format/Datatype: Channel major FP16 format where channel % 4 == 0 }], Outputs: [ { Name: x, Dimensions: [1,8], "
    "Format/Datatype: Row major linear FP32 }], ParameterType: Convolution, Weights: {Type: Half, Count: 216}, "
    "TacticName: sm80_xmma, StreamId: 0, Metadata: [ONNX Layer: conv1]\x1e[ONNX Layer: relu1]"
)


def test_layers_are_read_with_their_types_and_nodes() -> None:
    first, cast, product, convolution = parse_layers(RTX)
    assert (first.name, first.kind, first.reads, first.nodes) == ("__mye0", "shape_call", (), ())
    assert (cast.reads, cast.weights, cast.gives) == (("fp32",), (), ("fp16",))
    assert product == FoundLayer(
        name="__myl_FcAdd_myl0_113",
        kind="runtime_fusion",
        reads=("fp16",),
        weights=("fp16", "fp32"),
        gives=("fp16",),
        nodes=("node_linear_42", "node_MatMul_436"),
    )
    assert (convolution.reads, convolution.weights, convolution.gives) == (("int8",), ("int8",), ("fp32",))
    (classic,) = parse_layers(CLASSIC)
    assert (classic.name, classic.reads, classic.gives) == ("conv1 + relu1", ("fp16",), ("fp32",))
    assert classic.nodes == ("conv1", "relu1")
    assert parse_layers("nothing of this kind") == ()


@pytest.mark.parametrize(
    ("reads", "weights", "expected"),
    [
        (("fp16",), ("fp16", "fp32"), "fp16"),
        (("fp32",), ("fp16",), "fp16"),  # a cast is part of it
        (("fp32",), ("int8",), "fp32"),  # weights are unpacked
        (("int8",), ("int8", "fp32"), "int8"),
        ((), (), ""),
    ],
)
def test_a_layer_computes_in_what_goes_in(reads: tuple[str, ...], weights: tuple[str, ...], expected: str) -> None:
    assert EngineLayer(name="a", kind="gemm", reads=reads, weights=weights, gives=()).computes_in == expected


def small_graph() -> onnx.ModelProto:
    """A grouped convolution, a product of two values, and one by weights: 4608, 4096 and 2560 multiply-adds."""
    weights = {"kernel": (8, 1, 3, 3), "table": (512, 5)}
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["map"], "conv", group=8, pads=[1, 1, 1, 1]),
        helper.make_node("Transpose", ["map"], ["turned"], "turn", perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["map", "turned"], ["product"], "attention"),
        helper.make_node("Flatten", ["product"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "table"], ["logits"], "head"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 8, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_work_is_counted_for_one_image() -> None:
    assert node_work(small_graph()) == {"conv": 8 * 64 * 9, "attention": 8 * 8 * 8 * 8, "head": 512 * 5}


def found(name: str, kind: str, *nodes: str) -> FoundLayer:
    weights = () if name == "moves" else (kind,)
    return FoundLayer(name=name, kind="gemm", reads=(kind,), weights=weights, gives=(kind,), nodes=nodes)


@pytest.mark.parametrize("precision", ["fp16", "int8-fp16", "int8"])
def test_an_engine_that_is_silently_in_fp32_is_refused(precision: Precision) -> None:
    work = {"conv": 40, "head": 60}
    half = with_work([found("moves", "fp32", "conv"), found("a", "fp16", "conv"), found("b", "fp16", "head")], work)
    assert [layer.work for layer in half] == [0, 40, 60]
    check_types(half, precision, "the engine")
    mixed = with_work([found("a", "fp16", "conv"), found("b", "fp32", "head")], work)
    if precision == "int8":  # whose attention is in fp32
        check_types(mixed, precision, "the engine")
        return
    with pytest.raises(ConvMAEError, match="computes 60% of its multiplications in fp32, most of them in layer b;"):
        check_types(mixed, precision, "the engine of model.fp16.onnx")
    check_types((), precision, "an engine of which nothing is known")
