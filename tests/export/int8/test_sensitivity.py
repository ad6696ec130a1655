"""Which layer int8 hurts, and how many go back to fp32."""

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from convmae_deploy.bundle.preprocessing import standard_preprocessing
from convmae_deploy.tasks.classification import Classifier
from export.graph_files import without_outputs
from export.graphs.to_onnx import ExportedGraph
from export.int8.calibration import activation_ranges
from export.int8.quantisation import Layer, Ranges, fold_weights, quantisable_layers, quantise
from export.int8.sensitivity import SWITCHES, Step, find_step, rank_layers, switchable
from export.verification.samples import made_photos
from tests.export.conftest import SIZE, copy_of, node_of

BAD = "encoder.blocks3.1.mlp.fc1"  # the layer that is made bad on purpose
Feed = dict[str, NDArray[np.float32]]


def feeds(count: int) -> list[Feed]:
    return [{"image": Classifier.pixels(photo, standard_preprocessing(SIZE))[None]} for photo in made_photos(count)]


def with_outlier(graph: ExportedGraph, factor: float = 3e3) -> onnx.ModelProto:
    """The same function, but one channel of what BAD reads is `factor` times as large, and its weights as small.

    int8 has one scale for all channels, so the others become zero.
    """
    model = copy_of(graph).model
    product = node_of(model, BAD, "MatMul")
    norm = next(node for node in model.graph.node if product.input[0] in node.output)
    assert norm.op_type == "LayerNormalization"
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, scale in ((norm.input[1], factor), (norm.input[2], factor), (product.input[1], 1 / factor)):
        array = numpy_helper.to_array(arrays[name]).copy()
        array[3] *= scale
        arrays[name].CopyFrom(numpy_helper.from_array(array, name))
    return model


def prepared(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[Layer, ...], Ranges]:
    folded = fold_weights(without_outputs(model, {"pooled", "e1", "e2", "e3", "e4"}))
    layers = quantisable_layers(folded)
    values = {value for layer in layers for value in layer.inputs}
    images = [feed["image"] for feed in feeds(3)]
    return folded, layers, activation_ranges(folded, values, images, 3)


@pytest.fixture(scope="module")
def bad(graph: ExportedGraph) -> tuple[onnx.ModelProto, tuple[Layer, ...], Ranges]:
    return prepared(with_outlier(graph))


def logits(model: onnx.ModelProto, feed: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], feed)[0])


def test_the_layer_with_an_outlier_is_the_worst_by_far(
    bad: tuple[onnx.ModelProto, tuple[Layer, ...], Ranges],
) -> None:
    model, layers, ranges = bad
    ranking = rank_layers(model, layers, ranges, feeds(2), 2)
    assert {layer.name for layer, _ in ranking} == {layer.name for layer in layers}
    assert ranking[0][0].name == BAD
    assert ranking[0][1] > 10 * ranking[1][1]
    errors = [error for _, error in ranking]
    assert errors == sorted(errors, reverse=True)
    assert ranking == rank_layers(model, layers, ranges, feeds(2), 2)


def test_switches_choose_between_the_forms_of_each_layer(
    bad: tuple[onnx.ModelProto, tuple[Layer, ...], Ranges],
) -> None:
    model, layers, ranges = bad
    switched, feed = switchable(model, layers, ranges), feeds(1)[0]
    none, all_of_them = np.zeros(len(layers), bool), np.ones(len(layers), bool)
    assert np.array_equal(logits(switched, feed | {SWITCHES: none}), logits(model, feed))
    assert np.array_equal(
        logits(switched, feed | {SWITCHES: all_of_them}), logits(quantise(model, layers, ranges), feed)
    )
    index = [layer.name for layer in layers].index(BAD)
    one = logits(switched, feed | {SWITCHES: np.arange(len(layers)) == index})
    assert np.array_equal(one, logits(quantise(model, [layers[index]], ranges), feed))
    assert not np.array_equal(one, logits(model, feed))


def numbered(count: int) -> list[Layer]:
    return [Layer(name=str(index), weight=f"w{index}", nodes=(), inputs=()) for index in range(count)]


def steps_for(needed: int, count: int = 12) -> tuple[Step, ...]:
    """The steps where the metric holds with the `needed` worst layers in fp32."""

    def score(returned: Sequence[Layer]) -> float:
        return 99.5 if len(returned) >= needed else 50.0 + len(returned)

    return find_step(lambda: numbered(count), count, score, 99.0)


def test_nothing_is_ranked_or_returned_where_all_of_int8_holds() -> None:
    def never() -> list[Layer]:
        raise AssertionError

    (step,) = find_step(never, 12, lambda _: 99.0, 99.0)
    assert step == Step(returned=(), value=99.0)


def test_the_worst_layers_go_back_first_in_growing_steps() -> None:
    steps = steps_for(5)
    assert [len(step.returned) for step in steps] == [0, 1, 2, 3, 4, 6]
    assert [layer.name for layer in steps[-1].returned] == ["0", "1", "2", "3", "4", "5"]
    assert steps[-1].value == 99.5 and all(step.value < 99 for step in steps[:-1])


def test_at_least_one_layer_stays_in_int8() -> None:
    steps = steps_for(12)
    assert len(steps[-1].returned) == 11
    assert all(step.value < 99 for step in steps)
