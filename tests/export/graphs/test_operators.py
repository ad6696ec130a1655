import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from convmae_deploy.errors import ConvMAEError
from export.graphs.operators import TOPK_LIMIT, constant_values, refuse_operators


def graph_of(*nodes: onnx.NodeProto, **constants: int) -> onnx.ModelProto:
    """A model of these nodes, with integer constants of one entry by name."""
    values = [numpy_helper.from_array(np.array([value]), name) for name, value in constants.items()]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3])
    return helper.make_model(helper.make_graph(list(nodes), "graph", [image], [], values))


@pytest.mark.parametrize("operator", ["NonZero", "NonMaxSuppression", "If", "Loop", "Scan", "SequenceAt"])
def test_a_refused_operator_is_named_with_its_node_and_the_reason(operator: str) -> None:
    relu = helper.make_node("Relu", ["image"], ["positive"])
    node = helper.make_node(operator, ["positive"], ["found"], name="heads/node_7")
    refuse_operators(graph_of(relu))
    sentence = f"the graph's node heads/node_7 is a {operator}, which is refused: .+; rewrite that part"
    with pytest.raises(ConvMAEError, match=sentence):
        refuse_operators(graph_of(relu, node))


def test_a_node_without_a_name_is_named_after_its_output() -> None:
    with pytest.raises(ConvMAEError, match="node found is a NonZero"):
        refuse_operators(graph_of(helper.make_node("NonZero", ["image"], ["found"])))


def test_an_operator_of_another_domain_is_refused() -> None:
    node = helper.make_node("FusedMatMul", ["image", "image"], ["product"], domain="com.microsoft")
    with pytest.raises(ConvMAEError, match=re.escape("is a com.microsoft.FusedMatMul, which is refused: the domain")):
        refuse_operators(graph_of(node))
    refuse_operators(graph_of(helper.make_node("Relu", ["image"], ["positive"], domain="ai.onnx")))


def test_topk_is_refused_from_the_number_on_that_tensorrt_cannot_take() -> None:
    node = helper.make_node("TopK", ["image", "k"], ["values", "indices"])
    refuse_operators(graph_of(node, k=TOPK_LIMIT - 1))
    with pytest.raises(ConvMAEError, match="node values is a TopK, .*takes the best 3840, and TensorRT fewer"):
        refuse_operators(graph_of(node, k=TOPK_LIMIT))
    constant = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.array([5000])))
    with pytest.raises(ConvMAEError, match="the best 5000"):
        refuse_operators(graph_of(constant, node))


def test_constants_of_nodes_and_initialisers_are_found() -> None:
    constant = helper.make_node("Constant", [], ["a"], value=numpy_helper.from_array(np.array([7])))
    values = constant_values(graph_of(constant, helper.make_node("Constant", [], ["b"], value_int=3), c=8).graph)
    assert {name: numpy_helper.to_array(tensor).tolist() for name, tensor in values.items()} == {"a": [7], "c": [8]}
