"""Whether a graph is one that a stranger's bundle may bring: what it takes is bounded before anything of it runs.

Its operators are those that export writes for every task and precision, and their nearest relatives. Of all
of them the shape of the output follows from the shapes of the inputs, attributes and constants, never from what a
picture shows, and there is no loop and no branch among them. So the memory and the steps of a run are known here,
whatever runs it, and what takes far more than any model of this project is refused, as is what grows faster than the
number of images.

That the runtimes' operators themselves do no harm, with inputs that fit their definition, is taken on trust.
"""

from dataclasses import dataclass

from convmae_deploy.bundle.graphs.calls import BATCH, Call, Result, Tensor, shown, weight_tensor
from convmae_deploy.bundle.graphs.layer_rules import LAYER_RULES
from convmae_deploy.bundle.graphs.memory import MemoryBound
from convmae_deploy.bundle.graphs.onnx_file import TYPE_BYTES, Node, OnnxGraph
from convmae_deploy.bundle.graphs.protobuf import FormatProblem
from convmae_deploy.bundle.graphs.tensor_rules import TENSOR_RULES
from convmae_deploy.files import shortened

RULES = TENSOR_RULES | LAYER_RULES
# For each image, of a graph for batches of one size for a batch; together with what does not depend on images, which
# runtimes compute once and keep.
MAX_TENSOR_BYTES = 4 * 2**30  # for one tensor, with what computing it needs
MAX_MEMORY_BYTES = 16 * 2**30  # for all that can be there at a time, weights in the file not counted
MAX_STEPS = 10**13  # multiplications and the like: some times those of the largest model here
ENTRY_STEPS = 4  # for each entry that a node reads or writes


@dataclass(frozen=True)
class Cost:
    """What a graph takes for each image, or a fixed batch, at most, with what it takes once."""

    memory_bytes: int
    steps: int


def cost_of(graph: OnnxGraph, input_shape: tuple[int, ...]) -> Cost:
    """What running a graph takes, of which every node is known to be harmless.

    Args:
        graph: of a bundle.
        input_shape: (channels, ..., height, width) of its input, where the graph leaves it open.

    Raises:
        FormatProblem: it has nodes that a bundle may not have, or does not fit together.
    """
    tensors: dict[str, Tensor] = {name: weight_tensor(weight) for name, weight in graph.weights.items()}
    for entry in graph.inputs:
        open_axes = (BATCH, *input_shape) if len(entry.shape) == 1 + len(input_shape) else ()
        if entry.name in tensors or entry.type not in TYPE_BYTES or (None in entry.shape and not open_axes):
            raise FormatProblem(f"its input {shortened(entry.name)} is a weight too, or of a size that nothing says")
        shape = tuple(open_axes[axis] if side is None else side for axis, side in enumerate(entry.shape))
        tensors[entry.name] = Tensor(shape, entry.type)
    return _Walk(graph, tensors).cost()


class _Walk:
    """Goes through the nodes in their order and keeps count."""

    def __init__(self, graph: OnnxGraph, tensors: dict[str, Tensor]) -> None:
        self.graph, self.tensors = graph, tensors
        self.memory = MemoryBound(graph)
        self.kept = self.scratch = self.steps = 0  # bytes of what does not depend on images, bytes, and steps

    def cost(self) -> Cost:
        """What all nodes take."""
        for index, node in enumerate(self.graph.nodes):
            try:
                found = _result_of(self._call(node))
                self._count(index, node, found)
                self._check(found)
            except FormatProblem as problem:
                raise FormatProblem(
                    f"its node {shortened(node.name or ','.join(node.outputs))}, a {shortened(node.operator)}, is "
                    f"refused: {problem}"
                ) from None
        missing = [name for name in self.graph.outputs if name not in self.tensors]
        if missing:
            raise FormatProblem(f"nothing gives its output {shortened(missing[0])}")
        return Cost(self._memory_bytes, self.steps)

    @property
    def _memory_bytes(self) -> int:
        return self.kept + self.scratch + self.memory.bytes

    def _call(self, node: Node) -> Call:
        unknown = [name for name in node.inputs if name and name not in self.tensors]
        if unknown or not node.outputs:
            raise FormatProblem(f"nothing before it gives {shortened(unknown[0])}" if unknown else "it gives nothing")
        inputs = tuple(self.tensors[name] if name else None for name in node.inputs)
        return Call(node, inputs, tuple(name in self.graph.weights for name in node.inputs))

    def _count(self, index: int, node: Node, found: Result) -> None:
        given = [self.tensors[name] for name in node.inputs if name]
        for name, tensor in zip(node.outputs, found.outputs, strict=True):
            if not name or name in self.tensors:
                raise FormatProblem(f"two nodes give {shortened(name)}, or it has no name")
            self.tensors[name] = tensor
        moving = {name: per_image(self.tensors[name].bytes) for name in node.outputs}
        if all(self.tensors[name].bytes < BATCH for name in node.outputs):
            self.kept += sum(moving.values())
            moving = dict.fromkeys(moving, 0)
        self.memory.add(index, node.inputs, moving)
        self.scratch = max(self.scratch, per_image(found.scratch_bytes))
        entries = sum(per_image(tensor.entries) for tensor in (*given, *found.outputs))
        self.steps += per_image(found.steps) + ENTRY_STEPS * entries

    def _check(self, found: Result) -> None:
        parts = [per_image(tensor.bytes) for tensor in found.outputs] + [per_image(found.scratch_bytes)]
        largest, memory = max(parts), self._memory_bytes
        if largest > MAX_TENSOR_BYTES:
            shapes = " and ".join(shown(tensor.shape) for tensor in found.outputs)
            raise FormatProblem(
                f"its output {shapes}, or computing it, takes {largest / 2**30:.3g} GiB for an image, at most "
                f"{MAX_TENSOR_BYTES >> 30} are allowed"
            )
        if memory > MAX_MEMORY_BYTES:
            raise FormatProblem(
                f"with it an image can take {memory / 2**30:.3g} GiB, at most {MAX_MEMORY_BYTES >> 30} are allowed"
            )
        if self.steps > MAX_STEPS:
            raise FormatProblem(f"with it an image takes {self.steps:.2g} steps, at most {MAX_STEPS:.2g} are allowed")


def _result_of(call: Call) -> Result:
    rule = RULES.get(call.node.operator)
    if rule is None:
        raise FormatProblem("the operator is none that a bundle may have")
    found = rule(call)
    if len(found.outputs) != len(call.node.outputs):
        raise FormatProblem(f"it has {len(call.node.outputs)} outputs, {len(found.outputs)} are known here")
    return found


def per_image(size: int) -> int:
    """A size for one image; one that does not depend on the number of images, as it is.

    Raises:
        FormatProblem: it grows with the square of the number of images, or in another way that is not known.
    """
    share, rest = divmod(size, BATCH)
    if rest == 0 and share % BATCH:
        return share
    if size >= BATCH:
        raise FormatProblem("what it takes does not grow as the number of images does")
    return size
