"""What takes far more than any model of this project is refused before it runs, whatever it is made of."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from convmae_deploy.bundle.graphs.calls import BATCH
from convmae_deploy.bundle.graphs.limits import cost_of, per_image
from convmae_deploy.bundle.graphs.onnx_file import read_graph
from convmae_deploy.bundle.graphs.protobuf import FormatProblem
from tests.bundle.graphs.test_rules import cost, model_of, node, refusal, weights, whole
from tests.bundle_factory import make_graph

IMAGE = ("batch", 3, 64, 64)


def chain(count: int, operator: str, **attributes: Any) -> list[Any]:
    """Nodes each of which is given the one before it twice."""
    names = ["x", *(f"y{place}_0" for place in range(count - 1))]
    return [node(operator, name, name, **attributes) for name in names]


BOMBS = {
    "constant of shape": [node("ConstantOfShape", whole(200, 10**8))],
    "expand": [node("Expand", weights(1, 1), whole(200, 10**8))],
    "expand of the image": [node("ReduceMean", "x"), node("Expand", "y0_0", whole(10**5, 10**5, 1, 1))],
    "tile": [node("Tile", "x", whole(1, 1, 1000, 1000))],
    "range": [node("Range", np.array(0), np.array(2 * 10**10), np.array(1))],
    "pad": [node("Pad", "x", whole(0, 0, 0, 0, 0, 0, 10**5, 10**5))],
    "resize": [node("Resize", "x", None, np.array([1, 1, 2000, 2000], np.float32))],
    "doubling": chain(30, "Concat", axis=2),
    "outer product": [
        node("Reshape", "x", whole(0, -1, 1)),
        node("Reshape", "x", whole(0, 1, -1)),
        node("Mul", "y0_0", "y1_0"),
        node("Reshape", "y2_0", whole(0, -1, 1)),
        node("MatMul", "y3_0", "y1_0"),
    ],
    "padded convolution": [node("Conv", "x", weights(1, 3, 1, 1), pads=[0, 0, 10**5, 10**5])],
    "strides of a transposed convolution": [node("ConvTranspose", "x", weights(3, 1, 1, 1), strides=[2000, 2000])],
    "many channels": [node("Expand", weights(1, 3, 1, 1), whole(10**6, 3, 1, 1)), node("Conv", "x", "y0_0")],
    "gathered again and again": [
        node("Gather", "x", np.zeros(4096, np.int64), axis=2),
        node("Gather", "y0_0", np.zeros(4096, np.int64), axis=3),
        node("Gather", "y1_0", np.zeros(4096, np.int64), axis=1),
    ],
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_tensor_of_many_gigabytes_is_refused_with_its_node(tmp_path: Path, name: str) -> None:
    reason = refusal(tmp_path, *BOMBS[name], shape=IMAGE)
    assert "GiB for an image, at most 4 are allowed" in reason and reason.startswith("its node 'y")


def test_steps_are_bounded_however_small_the_memory(tmp_path: Path) -> None:
    names = ["x", *(f"y{place}_0" for place in range(1199))]
    products = [node("MatMul", name, weights(2048, 2048) if name == "x" else "w0") for name in names]
    assert "steps, at most 1e+13 are allowed" in refusal(tmp_path, *products, shape=("batch", 2048, 2048))


def test_a_pooling_of_giant_windows_is_counted_by_its_windows(tmp_path: Path) -> None:
    pool = node("MaxPool", "x", kernel_shape=[2047, 2047], pads=[1023] * 4)
    assert "steps, at most" in refusal(tmp_path, pool, shape=("batch", 3, 2048, 2048))


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Reshape", "x", whole(-1, 1)), node("Reshape", "x", whole(1, -1)), node("MatMul", "y0_0", "y1_0")],
        [node("Shape", "x", start=0, end=1), node("Concat", "y0_0", "y0_0", axis=0), node("ConstantOfShape", "y1_0")],
        [node("Slice", "x", whole(1), whole(2**62), whole(0))],
        [node("Pad", "x", whole(1, 0, 0, 0, 0, 0, 0, 0))],
        [node("Concat", "x", weights(1, 3, 64, 64), axis=0)],
    ],
)
def test_what_does_not_grow_as_the_number_of_images_is_refused(tmp_path: Path, nodes: list[Any]) -> None:
    assert "does not grow as the number of images does" in refusal(tmp_path, *nodes, shape=IMAGE)


def test_all_tensors_that_are_there_at_a_time_are_counted(tmp_path: Path) -> None:
    """In the file's order each is gone before the next is made; a runtime may make all of them first."""
    large = [node("Resize", "x", None, np.array([1, 1, 200, 200], np.float32)) for _ in range(12)]
    places = [node("Slice", f"y{place}_0", whole(0), whole(1), whole(3)) for place in range(12)]
    greatest = [node("ReduceMax", f"y{place}_0") for place in range(12)]
    nodes: list[Any] = []
    for place, part in enumerate(zip(large, places, greatest, strict=True)):
        first = f"y{3 * place}_0"
        nodes += [part[0], node("Slice", first, whole(0), whole(1), whole(3)), node("ReduceMax", first)]
    nodes.append(node("Max", *[f"y{3 * place + 1}_0" for place in range(12)]))
    nodes.append(node("Max", f"y{len(nodes) - 1}_0", *[f"y{3 * place + 2}_0" for place in range(12)]))
    assert "with it an image can take" in refusal(tmp_path, *nodes, shape=IMAGE)
    assert cost(tmp_path, *nodes[:3], shape=IMAGE).memory_bytes < 3 * 2**30


def test_what_does_not_depend_on_images_stays(tmp_path: Path) -> None:
    """Runtimes compute it once, all of it, before the first run."""
    nodes: list[Any] = []
    for place in range(6):
        nodes += [node("ConstantOfShape", whole(3, 10**8 + place)), node("ReduceMax", f"y{2 * place}_0")]
    assert cost(tmp_path, *nodes[:4]).memory_bytes == pytest.approx(2.4e9, rel=0.01)
    nodes += [node("ConstantOfShape", whole(10, 10**8)) for _ in range(3)]
    assert "with it an image can take" in refusal(tmp_path, *nodes)


def test_costs_are_those_of_one_image_whatever_the_batch(tmp_path: Path) -> None:
    product = node("MatMul", "x", weights(64, 1000))
    opened, fixed = (cost(tmp_path, product, shape=(batch, 3, 64, 64)) for batch in ("batch", 5))
    assert fixed.steps == pytest.approx(5 * opened.steps, rel=0.02)  # the weight is read once
    assert fixed.memory_bytes == 5 * opened.memory_bytes == 5 * 3 * 64 * 1000 * 4


def test_sizes_of_the_batch_are_told_from_others() -> None:
    assert (per_image(0), per_image(7), per_image(7 * BATCH)) == (0, 7, 7)
    for size in (BATCH * BATCH, BATCH + 1, 2 * BATCH - 1):
        with pytest.raises(FormatProblem):
            per_image(size)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda graph: graph.output.add(name="e9"), "nothing gives its output 'e9'"),
        (lambda graph: graph.node[1].output.__setitem__(0, "pool1"), "two nodes give 'pool1'"),
        (lambda graph: graph.input[0].__setattr__("name", "head"), "its input 'head' is a weight too"),
        (lambda graph: graph.input[0].type.tensor_type.__setattr__("elem_type", TensorProto.STRING), "its input"),
        (lambda graph: graph.node[0].__setattr__("op_type", "NonMaxSuppression"), "is none that a bundle may have"),
    ],
)
def test_a_graph_that_does_not_fit_together_is_refused(tmp_path: Path, change: Any, reason: str) -> None:
    model = make_graph(3, (64, 64))
    change(model.graph)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(FormatProblem, match=reason):
        cost_of(read_graph(tmp_path / "model.onnx"), (3, 64, 64))


def test_an_input_of_open_size_has_the_size_of_the_manifest(tmp_path: Path) -> None:
    model = model_of(node("Conv", "x", weights(8, 3, 1, 1)), shape=("batch", 3, "height", "width"))
    onnx.save(model, tmp_path / "model.onnx")
    graph = read_graph(tmp_path / "model.onnx")
    assert cost_of(graph, (3, 100, 100)).memory_bytes == 8 * 100 * 100 * 4
    with pytest.raises(FormatProblem, match="of a size that nothing says"):
        cost_of(graph, (3, 4, 100, 100))
