"""The rules give the shapes that `onnx` infers, for every operator, and refuse what it would not take."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from convmae_deploy.bundle.graphs.calls import Call, Result, Tensor, weight_tensor
from convmae_deploy.bundle.graphs.limits import RULES, Cost, cost_of
from convmae_deploy.bundle.graphs.onnx_file import OnnxGraph, read_graph
from convmae_deploy.bundle.graphs.protobuf import FormatProblem

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
MAP = (2, 4, 9, 7)  # of the input `x`
ELEMENTWISE = "Abs Ceil Erf Exp Floor Gelu HardSigmoid HardSwish LeakyRelu Log Neg Reciprocal Relu Round Sigmoid Sign"
ALIKE = f"{ELEMENTWISE} Softplus Sqrt Tanh Identity Softmax LogSoftmax Not".split()
BROADCAST = "Add Sub Mul Div Max Min Sum Pow".split()


def node(operator: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> tuple[str, tuple[Any, ...], int, Any]:
    """`x` stands for the input; arrays and lists of whole numbers become weights; None is left out."""
    return operator, inputs, outputs, attributes


def whole(*values: int) -> Any:
    return np.array(values, np.int64)


def weights(*shape: int, kind: Any = np.float32) -> Any:
    return np.ones(shape, kind)


CASES = {
    **{operator: node(operator, "x") for operator in ALIKE if operator != "Not"},
    **{operator: node(operator, "x", weights(9, 1)) for operator in BROADCAST},
    "Mod": node("Mod", np.full((3,), 4), whole(2)),
    "PadsOnly": node("Conv", "x", weights(6, 4, 3, 3), pads=[1, 0, 2, 3]),
    "Strides": node("Conv", "x", weights(6, 2, 3, 3), group=2, strides=[2, 3], dilations=[2, 1]),
    "Same": node("Conv", "x", weights(6, 4, 3, 2), strides=[2, 2], auto_pad="SAME_UPPER"),
    "ConvTranspose": node(
        "ConvTranspose", "x", weights(4, 3, 3, 2), strides=[2, 3], output_padding=[1, 0], pads=[0, 1, 1, 0]
    ),
    "MaxPool": node("MaxPool", "x", kernel_shape=[2, 3], strides=[2, 2]),
    "Ceil mode": node("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    "AveragePool": node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "GlobalAveragePool": node("GlobalAveragePool", "x"),
    "MatMul": node("MatMul", "x", weights(7, 5)),
    "MatMul of a vector": node("MatMul", "x", weights(7)),
    "MatMul by a vector": node("MatMul", weights(9), "x"),
    "MatMul of stacks": node("MatMul", "x", weights(3, 1, 4, 7, 2)),
    "Gemm": node("Gemm", weights(4, 3), weights(5, 4), weights(5), transA=1, transB=1),
    "Resize sizes": node("Resize", "x", None, None, whole(2, 4, 18, 21), mode="linear"),
    "Resize scales": node("Resize", "x", None, np.array([1, 1, 1.5, 0.5], np.float32), mode="cubic"),
    "GridSample": node("GridSample", "x", weights(2, 5, 3, 2)),
    "Reshape": node("Reshape", "x", whole(0, -1, 9)),
    "Transpose": node("Transpose", "x", perm=[0, 2, 3, 1]),
    "Transpose all": node("Transpose", "x"),
    "Flatten": node("Flatten", "x", axis=2),
    "Squeeze": node("Squeeze", weights(1, 3, 1), whole(0)),
    "Squeeze all": node("Squeeze", weights(1, 3, 1)),
    "Unsqueeze": node("Unsqueeze", "x", whole(0, -1)),
    "Concat": node("Concat", "x", weights(2, 3, 9, 7), axis=1),
    "Split": node("Split", "x", whole(1, 3), outputs=2, axis=1),
    "Split evenly": node("Split", "x", outputs=4, axis=2, num_outputs=4),
    "Slice": node("Slice", "x", whole(1, -3), whole(2**62, 100), whole(2, -1), whole(2, 1)),
    "Slice backwards": node("Slice", "x", whole(-1), whole(-(2**62)), whole(3), whole(-2)),
    "Slice of all": node("Slice", "x", whole(0, 1), whole(1, 3)),
    "Gather": node("Gather", "x", np.zeros((5, 2), np.int64), axis=2),
    "Gather one": node("Gather", "x", np.array(3), axis=-1),
    "GatherElements": node("GatherElements", "x", np.zeros((2, 4, 3, 7), np.int64), axis=2),
    "Pad": node("Pad", "x", whole(0, 0, 1, 2, 0, 0, 3, 4)),
    "Pad axes": node("Pad", "x", whole(1, 2), None, whole(-1)),
    "Expand": node("Expand", weights(9, 1), whole(2, 1, 7)),
    "Tile": node("Tile", "x", whole(1, 2, 1, 3)),
    "Range": node("Range", np.array(1), np.array(8), np.array(3)),
    "ConstantOfShape": node("ConstantOfShape", whole(3, 4)),
    "Constant": node("Constant", value_ints=[1, 2, 3]),
    "ReduceMean": node("ReduceMean", "x", whole(-1, 1), keepdims=0),
    "ReduceMax": node("ReduceMax", "x"),
    "ReduceSum of nothing": node("ReduceSum", "x", noop_with_empty_axes=1),
    "ArgMax": node("ArgMax", "x", axis=1, keepdims=0),
    "TopK": node("TopK", "x", whole(5), outputs=2, axis=2),
    "Where": node("Where", weights(9, 1, kind=np.bool_), "x", weights(7)),
    "Equal": node("Equal", "x", weights(7)),
    "And": node("And", weights(3, 1, kind=np.bool_), weights(4, kind=np.bool_)),
    "Not": node("Not", weights(3, kind=np.bool_)),
    "Clip": node("Clip", "x", np.array(0, np.float32), None),
    "Cast": node("Cast", "x", to=int(INT64)),
    "Shape": node("Shape", "x", start=1, end=-1),
    "LayerNormalization": node("LayerNormalization", "x", weights(7), weights(7)),
    "BatchNormalization": node("BatchNormalization", "x", *[weights(4)] * 4),
    "QuantizeLinear": node("QuantizeLinear", "x", np.array(1, np.float32), np.array(0, np.int8)),
    "DequantizeLinear": node("DequantizeLinear", weights(3, 2, kind=np.int8), np.array(1, np.float32)),
}


def model_of(*nodes: tuple[str, tuple[Any, ...], int, Any], shape: tuple[int | str, ...] = MAP) -> onnx.ModelProto:
    """A graph of these nodes, each of which gives `y0`, `y1`, ... with its place in front where there are several."""
    initialisers: list[onnx.TensorProto] = []
    made: list[onnx.NodeProto] = []
    for place, (operator, inputs, outputs, attributes) in enumerate(nodes):
        names = []
        for value in inputs:
            if isinstance(value, np.ndarray):
                initialisers.append(numpy_helper.from_array(value, f"w{len(initialisers)}"))
                value = initialisers[-1].name
            names.append(value or "")
        given = [f"y{place}_{index}" for index in range(outputs)]
        made.append(helper.make_node(operator, names, given, **attributes))
    entry = helper.make_tensor_value_info("x", FLOAT, shape)
    last = [helper.make_empty_tensor_value_info(name) for name in made[-1].output]
    graph = helper.make_graph(made, "g", [entry], last, initializer=initialisers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def read(model: onnx.ModelProto, folder: Path) -> OnnxGraph:
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return read_graph(folder / "model.onnx")


def cost(folder: Path, *nodes: Any, shape: tuple[int | str, ...] = MAP) -> Cost:
    graph = read(model_of(*nodes, shape=shape), folder)
    return cost_of(graph, tuple(side for side in shape[1:] if isinstance(side, int)))


def refusal(folder: Path, *nodes: Any, shape: tuple[int | str, ...] = MAP) -> str:
    with pytest.raises(FormatProblem) as caught:
        cost(folder, *nodes, shape=shape)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", CASES)
def test_shapes_and_types_are_those_that_onnx_infers(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(CASES[name])
    graph = read(model, tmp_path)
    (only,) = graph.nodes
    found: list[Tensor] = []
    rule = RULES[only.operator]

    def watched(call: Call) -> Result:
        found.extend(rule(call).outputs)
        return rule(call)

    monkeypatch.setitem(RULES, only.operator, watched)
    cost_of(graph, MAP[1:])
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph.output
    for tensor, output in zip(found, inferred, strict=True):
        expected = output.type.tensor_type
        assert tensor.type == expected.elem_type
        assert tensor.shape == tuple(dimension.dim_value for dimension in expected.shape.dim)


def test_every_operator_has_a_case() -> None:
    untried = {"InstanceNormalization", "ReduceMin", "ReduceProd", "ArgMin"}  # the rules of ones that are tried
    untried |= {"Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Or", "Xor"}
    assert RULES.keys() - untried == {operator for operator, *_ in CASES.values()}


def test_numbers_go_from_shape_to_shape(tmp_path: Path) -> None:
    """As the exporter writes it: a part of one tensor's shape with constants is another's."""
    nodes = [
        node("Shape", "x"),
        node("Slice", "y0_0", whole(2), whole(4), whole(0)),
        node("Concat", whole(-1), "y1_0", axis=0),
        node("Reshape", "x", "y2_0"),
        node("Transpose", "y3_0", perm=[2, 0, 1]),
    ]
    assert cost(tmp_path, *nodes).steps > 0
    refused = refusal(tmp_path, *nodes, node("MatMul", "y4_0", weights(3, 3)))
    assert "(7, 8, 9) and (3, 3) do not fit together" in refused


def test_sizes_are_computed_from_sizes(tmp_path: Path) -> None:
    """As the exporter writes it for graphs whose sides are open."""
    nodes = [
        node("Shape", "x", start=2),
        node("Div", "y0_0", whole(2)),
        node("Mul", "y1_0", whole(3)),
        node("Concat", whole(2, 4), "y2_0", axis=0),
        node("Resize", "x", None, None, "y3_0"),
    ]
    assert "(2, 4, 12, 9) and (3, 3) do not fit" in refusal(tmp_path, *nodes, node("MatMul", "y4_0", weights(3, 3)))
    below = [nodes[0], node("Sub", "y0_0", whole(20)), node("Div", "y1_0", whole(2))]  # -5.5 is cut in ONNX
    assert "computed" in refusal(tmp_path, *below, *nodes[3:])
    places = [node("Shape", "x", start=2, end=3), node("Squeeze", "y0_0")]
    places.append(node("Range", np.array(0), "y1_0", np.array(2)))
    assert "(5) and (3, 3) do not fit" in refusal(tmp_path, *places, node("MatMul", "y2_0", weights(3, 3)))


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (node("NonZero", "x"), "'y0_0', a 'NonZero', is refused: the operator is none that a bundle may have"),
        (node("Relu", "nowhere"), "nothing before it gives 'nowhere'"),
        (node("Relu"), "it lacks input 0"),
        (node("Relu", "x", outputs=0), "it gives nothing"),
        (node("Relu", "x", outputs=2), "it has 2 outputs, 1 are known here"),
        (node("Add", "x", weights(5)), "(2, 4, 9, 7) and (5) do not fit together"),
        (node("Reshape", "x", whole(5, -1)), "it makes (5, 100) of (2, 4, 9, 7)"),
        (node("Reshape", "x", whole(-1, -1)), "it makes (-1, -1) of"),
        (node("Conv", "x", weights(6, 3, 3, 3)), "its kernel (6, 3, 3, 3) does not fit its input"),
        (node("Conv", "x", weights(6, 4, 11, 3)), "is larger than a map of (9, 7)"),
        (node("Conv", "x", weights(6, 4, 3, 3), strides=[0, 1]), "does not fit a map of (9, 7)"),
        (node("Conv", "x", weights(6, 4, 3, 3), pads=[1, 1]), "its attribute pads must be a list of whole numbers"),
        (node("Conv", "x", weights(6, 4, 3, 3), auto_pad="ODD"), "it pads in a way that is not known here"),
        (node("Concat", "x", weights(2, 4, 9, 6), axis=1), "do not fit"),
        (node("Concat", "x", axis=9), "it names the axis 9 of a tensor with 4"),
        (node("TopK", "x", whole(8), outputs=2), "it takes the best (8,) of (2, 4, 9, 7)"),
        (node("Squeeze", "x", whole(1)), "not all of which are 1"),
        (node("Unsqueeze", "x", whole(0, 0)), "it adds an axis twice"),
        (node("Split", "x", whole(1, 1), outputs=2, axis=1), "it splits (2, 4, 9, 7) into parts of (1, 1)"),
        (node("Slice", "x", whole(0), whole(1), whole(0), whole(0)), "do not fit together"),
        (node("Transpose", "x", perm=[0, 0, 1, 2]), "it orders the axes"),
        (node("Cast", "x", to=8), "it casts to a type that no bundle has"),
        (node("Div", whole(1), whole(0)), "it divides whole numbers by what is not a constant above 0"),
        (node("Mod", whole(-(2**63)), whole(-1)), "it divides whole numbers by what is not a constant above 0"),
        (node("Range", np.array(0), np.array(9), np.array(0)), "its range never ends"),
        (node("Resize", "x", None, None, whole(1, 1)), "it resizes 4 axes to 2 sizes"),
        (node("Resize", "x", None, weights(4), keep_aspect_ratio_policy="not_larger"), "a way that is not known here"),
        (node("Unsqueeze", "x", whole(*range(5))), "its output would have the shape"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path: Path, case: Any, reason: str) -> None:
    assert reason in refusal(tmp_path, case)


@pytest.mark.parametrize(
    "case",
    [
        node("Expand", "x", "y1_0"),
        node("Reshape", "x", "y1_0"),
        node("ConstantOfShape", "y1_0"),
        node("Tile", "x", "y1_0"),
        node("Pad", "x", "y1_0"),
        node("Slice", "x", "y1_0", "y1_0"),
        node("TopK", "x", "y1_0", outputs=2),
        node("Range", "y1_0", "y1_0", "y1_0"),
        node("Resize", "x", None, None, "y1_0"),
        node("Resize", "x", None, "y0_0"),
        node("Split", "x", "y1_0", outputs=2),
        node("Squeeze", "x", "y1_0"),
        node("Unsqueeze", "x", "y1_0"),
        node("ReduceMean", "x", "y1_0"),
    ],
)
def test_a_size_that_a_picture_decides_is_refused(tmp_path: Path, case: Any) -> None:
    computed = [node("ReduceMax", "x", whole(0, 2, 3), keepdims=0), node("Cast", "y0_0", to=int(INT64))]
    reason = refusal(tmp_path, *computed, case)
    assert "on which the size of its output depends" in reason and "computed" in reason


@pytest.mark.parametrize("case", [node("Slice", "x", "y0_0", "y0_0"), node("Tile", "x", "y0_0")])
def test_where_a_cut_begins_is_a_constant(tmp_path: Path, case: Any) -> None:
    """Else what a graph takes could be most at a number of images that nobody looked at."""
    assert "computed" in refusal(tmp_path, node("Shape", "x"), case, shape=("batch", 4, 9, 7))


def test_a_weight_says_its_numbers_only_where_it_is_a_list(tmp_path: Path) -> None:
    graph = read(model_of(node("Add", "x", np.ones((1, 2), np.int64))), tmp_path)
    assert weight_tensor(graph.weights["w0"]).numbers is None
