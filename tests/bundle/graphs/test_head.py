"""The last layers of a classifier are found in its graph, in the forms in which exporters write them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from convmae_deploy.bundle.graphs.head import OtherHead, PooledHead, read_pooled_head
from convmae_deploy.tasks import load_bundle
from tests.bundle.changed_graphs import Change, changed, pool_one_cell, replace_nodes
from tests.bundle_factory import CHANNELS, make_bundle, make_video_bundle

D, K = CHANNELS[2], 3


def read(path: Path) -> PooledHead:
    return read_pooled_head(load_bundle(path), "e3", "logits")


def weight_of(path: Path) -> np.ndarray[Any, Any]:
    """The tiny bundle's, (K, D)."""
    (found,) = (entry for entry in onnx.load(path / "model.onnx").graph.initializer if entry.name == "head")
    return numpy_helper.to_array(found).T


def test_a_matrix_after_a_global_mean_is_found(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "bundle")
    head = read(path)
    assert head.norm is None and np.array_equal(head.weight, weight_of(path)) and not head.bias.any()
    assert head.weight.shape == (K, D)


def test_a_norm_and_a_layer_with_a_bias_are_found_as_pytorch_exports_them(tmp_path: Path) -> None:
    weight, bias, scale, shift = (
        np.random.default_rng(0).standard_normal(shape).astype(np.float32) for shape in ((K, D), K, D, D)
    )

    def change(graph: onnx.GraphProto) -> None:
        nodes = [
            helper.make_node("Reshape", ["e3", "flat"], ["tokens"]),
            helper.make_node("ReduceMean", ["tokens", "axes"], ["average"], keepdims=0),
            helper.make_node("LayerNormalization", ["average", "scale", "shift"], ["pooled"], epsilon=1e-6),
            helper.make_node("Gemm", ["pooled", "weight", "bias"], ["logits"], transB=1),
        ]
        places = {"flat": np.array([0, D, -1]), "axes": np.array([2])}
        floats = {"weight": weight, "bias": bias, "scale": scale, "shift": shift}
        replace_nodes(graph, ("GlobalAveragePool", "Flatten", "MatMul"), nodes, **places, **floats)

    head = read(changed(tmp_path / "bundle", change))
    assert np.array_equal(head.weight, weight) and np.array_equal(head.bias, bias)
    assert head.norm is not None and head.norm.epsilon == pytest.approx(1e-6)
    assert np.array_equal(head.norm.scale, scale) and np.array_equal(head.norm.shift, shift)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_a_head_in_half_precision_with_a_sum_is_found_through_its_casts(tmp_path: Path, kind: int) -> None:
    weight, bias = np.arange(D * K, dtype=np.float32).reshape(D, K) / 4, np.array([1, 2, 0.5], np.float32)

    def change(graph: onnx.GraphProto) -> None:
        nodes = [
            helper.make_node("Cast", ["pooled"], ["half"], to=kind),
            helper.make_node("MatMul", ["half", "weight"], ["product"]),
            helper.make_node("Add", ["bias", "product"], ["sum"]),
            helper.make_node("Cast", ["sum"], ["logits"], to=TensorProto.FLOAT),
        ]
        replace_nodes(graph, ("MatMul",), nodes)
        for name, values in (("weight", weight), ("bias", bias)):
            graph.initializer.append(helper.make_tensor(name, kind, values.shape, values.reshape(-1)))
            if not graph.initializer[-1].raw_data:  # as exporters write it
                numbers = np.array(graph.initializer[-1].int32_data, dtype="<u2")
                del graph.initializer[-1].int32_data[:]
                graph.initializer[-1].raw_data = numbers.tobytes()

    head = read(changed(tmp_path / "bundle", change))
    assert np.array_equal(head.weight, weight.T) and np.array_equal(head.bias, bias)


def test_weights_in_a_file_of_their_own_are_read(tmp_path: Path) -> None:
    outside = {"save_as_external_data": True, "location": "weights.data", "size_threshold": 0}
    path = changed(tmp_path / "bundle", lambda graph: None, **outside)
    expected = numpy_helper.to_array(
        next(entry for entry in onnx.load(path / "model.onnx").graph.initializer if entry.name == "head")
    ).T
    assert np.array_equal(read(path).weight, expected)


def pool_with(graph: onnx.GraphProto, operator: str, source: str) -> None:
    replace_nodes(graph, ("GlobalAveragePool",), [helper.make_node(operator, [source], ["mean"])])


OTHERS: dict[str, tuple[Change, str]] = {
    "the largest value": (
        lambda graph: pool_with(graph, "GlobalMaxPool", "e3"),
        "GlobalMaxPool, not on the mean over all cells of e3",
    ),
    "one cell": (
        pool_one_cell,
        "Gather, not on the mean",
    ),
    "another map": (
        lambda graph: pool_with(graph, "GlobalAveragePool", "e4"),
        "the mean of something else than e3",
    ),
    "no linear layer": (
        lambda graph: replace_nodes(
            graph, ("MatMul",),
            [helper.make_node("MatMul", ["pooled", "head"], ["x"]), helper.make_node("Tanh", ["x"], ["logits"])],
        ),
        "not made by a linear layer",
    ),
    "a scaled layer": (
        lambda graph: replace_nodes(
            graph, ("MatMul",), [helper.make_node("Gemm", ["pooled", "head"], ["logits"], alpha=2.0)]
        ),
        "its last layer is scaled",
    ),
    "computed weights": (
        lambda graph: replace_nodes(
            graph, ("MatMul",),
            [helper.make_node("Neg", ["head"], ["w"]), helper.make_node("MatMul", ["pooled", "w"], ["logits"])],
        ),
        "not in the graph as numbers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_a_graph_that_ends_in_another_way_says_in_which(name: str, tmp_path: Path) -> None:
    change, sentence = OTHERS[name]
    with pytest.raises(OtherHead, match=sentence):
        read(changed(tmp_path / "bundle", change))


def test_the_mean_of_a_video_is_one_over_all_slots(tmp_path: Path) -> None:
    head = read_pooled_head(load_bundle(make_video_bundle(tmp_path / "bundle")), "e3", "logits")
    assert head.weight.shape == (K, D)
