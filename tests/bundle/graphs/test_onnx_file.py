"""The reader finds in a file what the `onnx` package finds, and refuses what no bundle has."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from convmae_deploy.bundle.graphs import onnx_file
from convmae_deploy.bundle.graphs.onnx_file import ExternalData, read_graph
from convmae_deploy.bundle.graphs.protobuf import FormatProblem
from tests.bundle_factory import make_detection_graph, make_graph, make_segmentation_graph

MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "classification": lambda: make_graph(3, (64, 64)),
    "video": lambda: make_graph(3, (64, 64), 4),
    "detection": lambda: make_detection_graph((64, 96)),
    "segmentation": lambda: make_segmentation_graph(4, (64, 64)),
}


def read(model: onnx.ModelProto, folder: Path) -> onnx_file.OnnxGraph:
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return read_graph(folder / "model.onnx")


def refusal(model: onnx.ModelProto, folder: Path) -> str:
    with pytest.raises(FormatProblem) as caught:
        read(model, folder)
    return str(caught.value)


@pytest.mark.parametrize("task", MODELS)
def test_a_graph_is_what_onnx_reads(tmp_path: Path, task: str) -> None:
    model = MODELS[task]()
    found = read(model, tmp_path)
    assert found.opset == 20
    assert [(node.operator, list(node.inputs), list(node.outputs)) for node in found.nodes] == [
        (node.op_type, list(node.input), list(node.output)) for node in model.graph.node
    ]
    for node, expected in zip(found.nodes, model.graph.node, strict=True):
        values = {entry.name: helper.get_attribute_value(entry) for entry in expected.attribute}
        assert node.attributes == {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    assert found.weights.keys() == {tensor.name for tensor in model.graph.initializer}
    for tensor in model.graph.initializer:
        weight, array = found.weights[tensor.name], numpy_helper.to_array(tensor)
        assert (weight.type, weight.shape) == (tensor.data_type, tuple(tensor.dims))
        assert weight.data is not None and weight.data.tobytes() == array.tobytes()
    (only,) = found.inputs
    dimensions = model.graph.input[0].type.tensor_type.shape.dim
    assert only.shape == (None, *(dimension.dim_value for dimension in dimensions[1:]))
    assert found.outputs == tuple(output.name for output in model.graph.output)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32])
def test_small_weights_say_their_numbers_however_they_are_stored(tmp_path: Path, kind: int, raw: bool) -> None:
    values = [1, -2, 3]
    model = make_graph(3, (64, 64))
    content: Any = values
    if raw:
        content = np.array(values, helper.tensor_dtype_to_np_dtype(kind)).tobytes()
    model.graph.initializer.append(helper.make_tensor("small", kind, [3], content, raw=raw))
    assert read(model, tmp_path).weights["small"].numbers == (1, -2, 3)


def test_large_weights_are_not_copied_and_say_no_numbers(tmp_path: Path) -> None:
    model = make_graph(3, (64, 64))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1000, np.int64), "many"))
    weight = read(model, tmp_path).weights["many"]
    assert weight.numbers is None and isinstance(weight.data, memoryview)


def test_where_weights_outside_are_is_found(tmp_path: Path) -> None:
    model = make_graph(3, (64, 64))
    head = next(tensor for tensor in model.graph.initializer if tensor.name == "head")
    onnx.external_data_helper.set_external_data(head, "weights.bin", offset=8, length=96)
    head.ClearField("raw_data")
    weight = read(model, tmp_path).weights["head"]
    assert weight.external == ExternalData("weights.bin", 8, 96) and weight.data is None


def with_outer_graph(model: onnx.ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", "", ""], ["l"], body=body))


def with_weight(**fields: Any) -> Callable[[onnx.ModelProto], object]:
    return lambda model: model.graph.initializer.add(name="odd", **fields)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_outer_graph, "an attribute has a graph inside it, as a loop or a branch has"),
        (lambda model: model.functions.add(name="f"), "the model has a function"),
        (lambda model: model.training_info.add(), "the model has a training"),
        (lambda model: model.graph.sparse_initializer.add(dims=[10**12]), "the graph has a sparse tensor"),
        (
            lambda model: model.graph.node.append(helper.make_node("Gelu", ["e1"], ["g"], domain="com.microsoft")),
            "its node 'Gelu' is of the domain 'com.microsoft', not of ONNX's",
        ),
        (
            lambda model: model.graph.node.append(helper.make_node("Constant", [], ["t"], value_strings=["a"])),
            "an attribute has texts",
        ),
        (with_weight(data_type=1, dims=[10**12], raw_data=b"abcd"), "'odd' has 4 bytes, its shape takes 4000000000000"),
        (with_weight(data_type=1, dims=[-1, 5]), "'odd' has an impossible shape"),
        (with_weight(data_type=1, dims=[1] * 9, raw_data=b"abcd"), "'odd' has an impossible shape"),
        (with_weight(data_type=8, dims=[1], string_data=[b"x"]), "a tensor has the field 6"),
        (with_weight(data_type=8, dims=[1]), "'odd' is of a type that no bundle has"),
        (with_weight(data_type=7, dims=[10**9], int64_data=[1]), "'odd' has fewer values than the 1000000000"),
        (with_weight(data_type=7, dims=[1], int64_data=[1, 2]), "'odd' has 2 values, its shape 1"),
        (lambda model: model.graph.initializer.append(model.graph.initializer[0]), "two of its weights have the same"),
        (lambda model: model.opset_import.append(helper.make_opsetid("", 21)), "not one set of ONNX's operators"),
        (lambda model: model.ClearField("graph"), "it has no graph"),
        (lambda model: model.graph.input[0].type.tensor_type.shape.dim[0].CopyFrom(dimension(-3)), "impossible shape"),
    ],
)
def test_what_no_bundle_has_is_refused(
    tmp_path: Path, change: Callable[[onnx.ModelProto], object], reason: str
) -> None:
    model = make_graph(3, (64, 64))
    change(model)
    assert reason in refusal(model, tmp_path)


def dimension(size: int) -> onnx.TensorShapeProto.Dimension:
    return onnx.TensorShapeProto.Dimension(dim_value=size)


def test_an_attribute_whose_type_is_another_than_its_value_s_is_refused(tmp_path: Path) -> None:
    model = make_graph(3, (64, 64))
    model.graph.node[0].attribute[0].type = onnx.AttributeProto.INT
    assert "is of a type that no bundle has" in refusal(model, tmp_path)


def test_a_second_graph_which_protobuf_would_merge_into_the_first_is_refused(tmp_path: Path) -> None:
    first, second = make_graph(3, (64, 64)), onnx.ModelProto()
    second.graph.node.append(helper.make_node("NonZero", ["image"], ["n"]))
    (tmp_path / "model.onnx").write_bytes(first.SerializeToString() + second.SerializeToString())
    assert len(onnx.load(tmp_path / "model.onnx").graph.node) == len(first.graph.node) + 1
    with pytest.raises(FormatProblem, match="the model has two fields graph"):
        read_graph(tmp_path / "model.onnx")


def test_a_graph_of_very_many_nodes_or_inputs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_graph(3, (64, 64))
    monkeypatch.setattr(onnx_file, "MAX_INPUTS", 10)
    assert "more than 10 inputs and outputs" in refusal(model, tmp_path)
    monkeypatch.setattr(onnx_file, "MAX_NODES", 5)
    assert "it has 10 nodes or weights, at most 5 are taken" in refusal(model, tmp_path)
