"""What a graph must not contain, so that every runtime can read it."""

from collections.abc import Mapping

import onnx
from onnx import numpy_helper

from convmae_deploy.errors import ConvMAEError

DATA_DEPENDENT = "the length of its output depends on the image, so no batch fits and TensorRT cannot read it"
BRANCHES = "a graph is to be one straight line, which every runtime optimises as a whole"
SEQUENCES = "TensorRT knows no sequences of tensors"
REFUSED = {
    "NonZero": DATA_DEPENDENT,
    "Compress": DATA_DEPENDENT,
    "Unique": DATA_DEPENDENT,
    "NonMaxSuppression": DATA_DEPENDENT,
    "If": BRANCHES,
    "Loop": BRANCHES,
    "Scan": BRANCHES,
    "SequenceMap": BRANCHES,
    "SequenceAt": SEQUENCES,
    "SequenceConstruct": SEQUENCES,
    "SequenceEmpty": SEQUENCES,
    "SequenceErase": SEQUENCES,
    "SequenceInsert": SEQUENCES,
    "SequenceLength": SEQUENCES,
    "SplitToSequence": SEQUENCES,
    "ConcatFromSequence": SEQUENCES,
}
STANDARD_DOMAINS = ("", "ai.onnx")
TOPK_LIMIT = 3840  # TensorRT's TopK takes fewer entries


def refuse_operators(model: onnx.ModelProto) -> None:
    """Raises ConvMAEError naming the first node that some runtime cannot take, its operator and the reason."""
    constants = constant_values(model.graph)
    for node in model.graph.node:
        reason = refusal(node, constants)
        if reason is not None:
            domain = f"{node.domain}." if node.domain else ""
            raise ConvMAEError(
                f"the graph's node {node.name or node.output[0]} is a {domain}{node.op_type}, which is refused: "
                f"{reason}; rewrite that part of the model for the export"
            )


def refusal(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> str | None:
    """Why the node must not be in a graph; None: it may.

    Args:
        node: of the graph.
        constants: values of the graph that are known.
    """
    if node.domain not in STANDARD_DOMAINS:
        return f"the domain {node.domain} is not ONNX's own, and other runtimes do not know it"
    if node.op_type == "TopK":
        if node.input[1] not in constants:
            return f"how many it takes is computed, and TensorRT takes a constant below {TOPK_LIMIT}"
        (count,) = numpy_helper.to_array(constants[node.input[1]]).ravel().tolist()
        return None if count < TOPK_LIMIT else f"it takes the best {count}, and TensorRT fewer than {TOPK_LIMIT}"
    return REFUSED.get(node.op_type)


def constant_values(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """The graph's constants by name: initialisers and the tensors of Constant nodes."""
    values = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            tensors = [attribute.t for attribute in node.attribute if attribute.name == "value"]
            values |= dict.fromkeys(node.output, *tensors) if tensors else {}
    return values
