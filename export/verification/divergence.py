"""Which layer is it? Every layer of the graph is run on PyTorch's own inputs, so that no layer inherits an error.

The exporter names the values of the graph after the operations of the traced program, and the graph's outputs are the
program's by position. At each such value the graph is cut: the layers behind it read PyTorch's value instead, and the
graph's own value becomes an output. One run then gives the error that each piece makes by itself.

Limits: only float32 values are cut, so a wrong integer (a shape, an index) shows at the next float value; a layer that
the exporter has fused with its neighbour is named as the one of the two that comes last.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from convmae_deploy.backends.base import Feeds, FloatArray, Outputs
from export.graphs.to_onnx import ExportedGraph, module_path
from export.graphs.traced import intermediate_values, module_of
from export.runtimes.runners import open_graph
from export.verification.gates import Comparison, Tolerance, compare

REFERENCE = "reference/"  # prefix of the inputs that carry PyTorch's values
TOP_LEVEL = "the model's own forward"


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """The error that one piece of the graph makes when it is fed PyTorch's values."""

    module: str  # path in the model, for instance encoder.blocks1.1.mlp.fc1
    value: str  # name of the ONNX value at the end of the piece
    operator: str  # ONNX operator that gives the value
    comparison: Comparison


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """Where the graph leaves PyTorch."""

    layers: tuple[LayerError, ...]  # all that were compared, in the order of the graph
    first: LayerError | None  # None: the layers agree; see `explanation`
    explanation: str  # one clause for the message


def find_divergence(graph: ExportedGraph, images: FloatArray, tolerance: Tolerance) -> Divergence:
    """Names the first layer of `graph` whose own error on `images` (B, 3, ...) exceeds the tolerance.

    Where none does alone, it names the layer with the largest error of its own, or, when the graph agrees with PyTorch
    as soon as ONNX Runtime's graph optimisations are off, the optimiser.
    """
    operations = cut_points(graph)
    program_names = set(operations.values())
    traced = intermediate_values(graph.program, images, program_names)
    expected = {value: traced[name] for value, name in operations.items() if name in traced}
    output_values = {name: expected[name] for name in graph.outputs if name in expected}
    plain = _run(graph.model, {graph.input: images}, list(output_values))
    if all(compare(output_values[name], plain[name], tolerance).problem is None for name in output_values):
        return Divergence(
            layers=(), first=None, explanation="none, without ONNX Runtime's graph optimisations it agrees"
        )
    layers = layer_errors(graph, operations, expected, images, tolerance)
    return judge(layers)


def cut_points(graph: ExportedGraph) -> dict[str, str]:
    """ONNX value -> operation of the traced program with the same meaning, in the order of the graph."""
    operations = {node.name for node in graph.program.graph.nodes if node.op == "call_function"}
    by_position = zip(graph.outputs, graph.program.graph_signature.user_outputs, strict=True)
    renamed = {output: operation for output, operation in by_position if isinstance(operation, str)}
    produced = [name for node in graph.model.graph.node for name in node.output]
    return {name: renamed.get(name, name) for name in produced if renamed.get(name, name) in operations}


def reading_inputs(
    model: onnx.ModelProto, values: Mapping[str, tuple[int, Sequence[int | str] | None]]
) -> onnx.ModelProto:
    """A copy of `model` in which whatever reads one of `values` reads an input `reference/NAME` instead.

    Args:
        model: the graph.
        values: name of a value -> its ONNX element type and its shape, None where it is open; one that nothing reads
            becomes no input.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    read = set()
    for node in copy.graph.node:
        for index, name in enumerate(node.input):
            if name in values:
                node.input[index] = REFERENCE + name
                read.add(name)
    copy.graph.input.extend(helper.make_tensor_value_info(REFERENCE + name, *values[name]) for name in sorted(read))
    return copy


def cut(model: onnx.ModelProto, values: Mapping[str, FloatArray]) -> onnx.ModelProto:
    """A copy of `model` in which each of `values` is an output, and its readers read an input `reference/NAME`."""
    pieces = reading_inputs(model, {name: (TensorProto.FLOAT, value.shape) for name, value in values.items()})
    del pieces.graph.output[:]
    pieces.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in values)
    return pieces


def layer_errors(
    graph: ExportedGraph,
    operations: Mapping[str, str],
    expected: Mapping[str, FloatArray],
    images: FloatArray,
    tolerance: Tolerance,
) -> tuple[LayerError, ...]:
    """The own error of each piece between cut points.

    Args:
        graph: the graph.
        operations: ONNX value -> operation of the program.
        expected: ONNX value -> PyTorch's value.
        images: (B, 3, H, W), or clips (B, 3, T, H, W).
        tolerance: what a piece may be off by.
    """
    pieces = cut(graph.model, expected)
    inputs = {entry.name for entry in pieces.graph.input} - {graph.input}
    feeds = {graph.input: images} | {name: expected[name.removeprefix(REFERENCE)] for name in inputs}
    found = _run(pieces, feeds, list(expected))
    modules = {node.name: module_path(module_of(node)) or TOP_LEVEL for node in graph.program.graph.nodes}
    operators = {name: node.op_type for node in graph.model.graph.node for name in node.output}
    return tuple(
        LayerError(
            module=modules[operations[name]],
            value=name,
            operator=operators[name],
            comparison=compare(reference[None], found[name][None], tolerance),
        )
        for name, reference in expected.items()
    )


def judge(layers: tuple[LayerError, ...]) -> Divergence:
    """The first layer that fails a gate by itself, else the one with the largest error of its own."""
    first = next((layer for layer in layers if layer.comparison.problem is not None), None)
    if first is not None:
        return Divergence(layers=layers, first=first, explanation=f"{first.module} (ONNX value {first.value})")
    largest = max(layers, key=lambda layer: layer.comparison.excess, default=None)
    if largest is None:
        return Divergence(layers=layers, first=None, explanation="unknown: no value of the graph could be compared")
    return Divergence(
        layers=layers,
        first=largest,
        explanation=f"{largest.module} (ONNX value {largest.value}), within tolerance but the largest error of all",
    )


def _run(model: onnx.ModelProto, feeds: Feeds, outputs: list[str]) -> Outputs:
    """One run without graph optimisations, which could merge the layers that are to be told apart."""
    return open_graph("onnxruntime", model, optimised=False).run(outputs, feeds)
