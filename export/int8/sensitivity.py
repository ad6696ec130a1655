"""Which layers does int8 hurt most, and how many of them must stay in fp32 for the task's metric to hold?

A layer's error is what it does to the model's result when it alone is quantised. All of them come from one graph, in
which an input `quantised` switches each layer between its fp32 and its int8 form, so that a model of fifty layers is
loaded once and not fifty times. A detector's heads are fed the regions of the fp32 graph while its layers are ranked:
another order of nearly equal proposals says nothing about a layer.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from rich.progress import track

from convmae_deploy.backends.base import FloatArray
from convmae_deploy.terminal import Terminal
from export.int8.quantisation import Layer, Ranges, quantise
from export.runtimes.runners import open_graph

SWITCHES = "quantised"  # input: (layers,), which of them are in int8
GROWTH = 1.5  # each step returns so many times the layers of the one before, and at least one more


@dataclass(frozen=True, kw_only=True)
class Step:
    """One attempt: the metric with some layers in fp32."""

    returned: tuple[Layer, ...]  # the worst first
    value: float  # the metric's, in percent


def rank_layers(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    ranges: Ranges,
    feeds: Iterable[Mapping[str, NDArray]],  # type: ignore[type-arg]
    total: int,
) -> tuple[tuple[Layer, float], ...]:
    """The layers with their errors, the worst first.

    The error of a layer is the power of what it changes in an output, relative to the power of that output, summed over
    the outputs and averaged over the inputs.

    Args:
        model: from `fold_weights`; all of its outputs count.
        layers: all that could be quantised.
        ranges: of their inputs.
        feeds: what to run it on.
        total: how many there are, for the progress bar.
    """
    outputs = [output.name for output in model.graph.output]
    switched = switchable(model, layers, ranges).SerializeToString()
    graph = open_graph("onnxruntime", switched, optimised=False)
    errors = np.zeros(len(layers))
    for feed in track(feeds, "Ranking layers", total=total, console=Terminal(stderr=True), transient=True):
        reference = graph.run(outputs, {**feed, SWITCHES: np.zeros(len(layers), bool)})
        for index in range(len(layers)):
            found = graph.run(outputs, {**feed, SWITCHES: np.arange(len(layers)) == index})
            errors[index] += sum(_relative_error(reference[name], found[name]) for name in outputs)
    order = np.argsort(-errors, kind="stable")  # equal ones in the order of the graph
    return tuple((layers[index], float(errors[index] / total)) for index in order)


def switchable(model: onnx.ModelProto, layers: Sequence[Layer], ranges: Ranges) -> onnx.ModelProto:
    """The graph with all layers in int8, each of which is in fp32 where the input SWITCHES says so."""
    graph_model = quantise(model, layers, ranges)
    graph = graph_model.graph
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    layer_of = {name: index for index, layer in enumerate(layers) for name in layer.nodes}
    nodes: list[onnx.NodeProto] = []
    for index, layer in enumerate(layers):
        graph.initializer.append(numpy_helper.from_array(np.array(index), f"{SWITCHES}/{index}/index"))
        graph.initializer.append(weights[layer.weight])
        nodes.append(
            helper.make_node("Gather", [SWITCHES, f"{SWITCHES}/{index}/index"], [f"{SWITCHES}/{index}"], axis=0)
        )
    for node in graph.node:
        if node.name in layer_of:
            index = layer_of[node.name]
            layer = layers[index]
            originals = layer.inputs[layer.nodes.index(node.name)], layer.weight
            for position, original in enumerate(originals):
                chosen = f"{SWITCHES}/{node.name}/{position}"
                inputs = [f"{SWITCHES}/{index}", node.input[position], original]
                nodes.append(helper.make_node("Where", inputs, [chosen]))
                node.input[position] = chosen
        nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    graph.input.append(helper.make_tensor_value_info(SWITCHES, TensorProto.BOOL, [len(layers)]))
    onnx.checker.check_model(graph_model)
    return graph_model


def find_step(
    ranking: Callable[[], Sequence[Layer]], count: int, score: Callable[[Sequence[Layer]], float], least: float
) -> tuple[Step, ...]:
    """Returns the worst layers to fp32, more with every step, until the metric holds.

    Args:
        ranking: gives the layers, the worst first; asked only where the fully quantised graph does not hold.
        count: of the layers.
        score: the metric with these layers returned.
        least: what it must be.

    Returns:
        All steps; the last one holds, or it leaves one layer in int8 and nothing holds.
    """
    steps = [Step(returned=(), value=score(()))]
    if steps[0].value >= least:
        return tuple(steps)
    ranked = ranking()
    number = 0
    while steps[-1].value < least and number < count - 1:
        number = min(count - 1, max(number + 1, int(number * GROWTH)))
        returned = tuple(ranked[:number])
        steps.append(Step(returned=returned, value=score(returned)))
    return tuple(steps)


def _relative_error(reference: FloatArray, found: FloatArray) -> float:
    expected = reference.astype(np.float64)
    power = float((expected**2).sum())
    return float(((found - expected) ** 2).sum()) / power if power else 0.0
