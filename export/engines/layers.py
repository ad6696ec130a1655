"""What TensorRT made of a graph: the kernels of an engine, with the types that they read and give.

TensorRT writes a line for each layer of an engine: at the end of a build, where its messages are as verbose as they can
be, and when its inspector is asked about a loaded engine. The builder's words need no GPU, and both are of one form, of
which this reads the types and the graph's nodes. How much of the work is done in which type follows from the graph: the
multiply-adds of its convolutions and matrix products.

Read from TensorRT for RTX 1.7 itself, and from published logs of TensorRT 8 and 10. Where a version writes others no
layers are found, and that is said.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import onnx
from onnx import shape_inference

from convmae_deploy.backends.engine_record import EngineLayer
from convmae_deploy.bundle.manifest import Precision
from convmae_deploy.errors import ConvMAEError

MARK = "LayerType: "  # in every line of a layer, and in no other message
# as TensorRT calls them, in its several ways
TYPES = {
    **dict.fromkeys(("Float", "FP32"), "fp32"),
    **dict.fromkeys(("Half", "FP16"), "fp16"),
    **dict.fromkeys(("BFloat16", "BF16"), "bf16"),
    **dict.fromkeys(("Int8", "INT8"), "int8"),
    "FP8": "fp8",
    **dict.fromkeys(("Int32", "INT32"), "int32"),
    **dict.fromkeys(("Int64", "INT64"), "int64"),
    "Bool": "bool",
}
_LAYER = re.compile(r"(?:^|\s)Name: (?P<name>(?:(?!Name: ).)*?), LayerType: (?P<kind>[^,]*),")
_TYPE = re.compile(rf"(?:Datatype|Type): [^,}}]*?\b({'|'.join(TYPES)})\b")
_END = re.compile(r"\[\s*\]|\}\s*\]")  # of a list of tensors
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
MAX_NAME = 200  # characters of a layer's name, which may be made of those of a hundred nodes
# What a file in reduced precision must not be: an engine that computes most of it in fp32. In int8 files the products
# of attention are in fp32, so they are not held to it.
HELD: tuple[Precision, ...] = ("fp16", "bf16", "int8-fp16")
MOST_IN_FP32 = 0.5  # of the multiply-adds
MULTIPLYING = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, kw_only=True)
class FoundLayer:
    """A layer of an engine, as TensorRT describes it."""

    name: str
    kind: str
    reads: tuple[str, ...]  # types of what it reads, of TYPES
    weights: tuple[str, ...]  # of its constants
    gives: tuple[str, ...]
    nodes: tuple[str, ...]  # of the graph, that it is made of


def parse_layers(text: str) -> tuple[FoundLayer, ...]:
    """The layers in TensorRT's description of an engine, in its order; none where the text is of another form."""
    starts = list(_LAYER.finditer(text))
    ends = [*(match.start() for match in starts), len(text)][1:]
    found = []
    for match, end in zip(starts, ends, strict=True):
        body = text[match.end() : end].split("I/O Tensors:")[0]
        before, _, after = body.partition("Outputs: ")
        inputs, _, constants = before.partition("Constants: ")
        list_end = _END.search(after)
        given, rest = (after[: list_end.end()], after[list_end.end() :]) if list_end else (after, "")
        found.append(
            FoundLayer(
                name=match["name"].strip()[:MAX_NAME],
                kind=match["kind"].strip(),
                reads=_types(inputs),
                weights=_types(constants) + _types(rest),  # some name the types of weights at the end
                gives=_types(given),
                nodes=tuple(_NODE.findall(body)),
            )
        )
    return tuple(found)


def _types(text: str) -> tuple[str, ...]:
    return tuple(TYPES[name] for name in _TYPE.findall(text))


def with_work(layers: Sequence[FoundLayer], work: Mapping[str, int]) -> tuple[EngineLayer, ...]:
    """The layers with what they compute.

    A node that is in several layers, such as one that moves its input into place, counts in the one that bears its
    name, else in the one with the most types of weights, else in the first.

    Args:
        layers: of an engine.
        work: of `node_work`.
    """
    owners: dict[str, int] = {}
    for node in work:
        places = [place for place, layer in enumerate(layers) if node in layer.nodes]
        if places:
            owners[node] = max(
                places, key=lambda place: (layers[place].name.startswith(node), len(layers[place].weights), -place)
            )
    sums = Counter[int]()
    for node, place in owners.items():
        sums[place] += work[node]
    return tuple(
        EngineLayer(
            name=layer.name,
            kind=layer.kind,
            reads=tuple(dict.fromkeys(layer.reads)),
            weights=tuple(dict.fromkeys(layer.weights)),
            gives=tuple(dict.fromkeys(layer.gives)),
            work=sums[place],
        )
        for place, layer in enumerate(layers)
    )


def node_work(model: onnx.ModelProto) -> dict[str, int]:
    """Multiply-adds of one image in each convolution and matrix product whose shapes are known.

    Args:
        model: with an open first axis of its input.
    """
    single = onnx.ModelProto()
    single.CopyFrom(model)
    for entry in single.graph.input:
        entry.type.tensor_type.shape.dim[0].dim_value = 1
    for output in single.graph.output:
        output.type.tensor_type.ClearField("shape")
    graph = shape_inference.infer_shapes(single, data_prop=True).graph
    shapes = {
        value.name: [side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type in MULTIPLYING and node.name:
            count = _multiplications(node, [shapes.get(name, []) for name in (*node.input[:2], node.output[0])])
            if count:
                found[node.name] = count
    return found


def _multiplications(node: onnx.NodeProto, shapes: Sequence[Sequence[int]]) -> int:
    """Of a node that reads two and gives one; 0 where a size is not known."""
    first, weight, given = shapes
    if node.op_type == "Conv":
        return prod(given) * prod(weight[1:]) if given and weight else 0
    if node.op_type == "ConvTranspose":
        return prod(first) * prod(weight[1:]) if first and weight else 0
    transposed = node.op_type == "Gemm" and any(one.name == "transA" and one.i for one in node.attribute)
    return prod(given) * first[0 if transposed else -1] if given and first else 0


def check_types(layers: Sequence[EngineLayer], precision: Precision, engine: str) -> None:
    """Raises ConvMAEError where an engine of a graph in reduced precision does most of its work in fp32.

    Args:
        layers: of the engine; none where they are not known.
        precision: of the graph.
        engine: what it is, for the sentence.
    """
    total, wide = sum(layer.work for layer in layers), [layer for layer in layers if layer.computes_in == "fp32"]
    work = sum(layer.work for layer in wide)
    if precision not in HELD or not total or work <= MOST_IN_FP32 * total:
        return
    largest = max(wide, key=lambda layer: layer.work)
    raise ConvMAEError(
        f"{engine} must compute in {precision}, and TensorRT computes {work / total:.0%} of its multiplications in "
        f"fp32, most of them in layer {largest.name}; it would be hardly faster than one of fp32, so none was written: "
        f"export the model again with --precision {precision}"
    )
