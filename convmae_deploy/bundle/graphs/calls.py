"""A node with the shapes of what goes into it, and the shape of what it gives: what the rules of operators work with.

Where the number of images counts, a shape has the factor `BATCH`. It is a prime larger than any other size, so that a
size has the factor if and only if it grows with the number of images, and twice if with its square.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from convmae_deploy.bundle.graphs.onnx_file import MAX_AXES, MAX_NUMBERS, TYPE_BYTES, Node, Weight
from convmae_deploy.bundle.graphs.protobuf import FormatProblem

BATCH = 2**61 - 1

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """What is known of a tensor."""

    shape: Shape
    type: int
    numbers: tuple[float, ...] | None = None  # its entries, where they are few, known, and can say what a shape is

    @property
    def entries(self) -> int:
        """How many it has."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """What they take."""
        return self.entries * TYPE_BYTES[self.type]


@dataclass(frozen=True)
class Call:
    """A node with what goes into it."""

    node: Node
    inputs: tuple[Tensor | None, ...]
    constant: tuple[bool, ...]  # whether each input is a weight

    def input(self, index: int) -> Tensor:
        """An input that must be there."""
        tensor = self.optional(index)
        if tensor is None:
            raise FormatProblem(f"it lacks input {index}")
        return tensor

    def optional(self, index: int) -> Tensor | None:
        """An input that may be left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def shape(self, index: int = 0) -> Shape:
        """Of an input."""
        return self.input(index).shape

    def rank(self, least: int, index: int = 0) -> Shape:
        """The shape of an input that must have so many axes at least."""
        shape = self.shape(index)
        if len(shape) < least:
            raise FormatProblem(f"its input {index} must have {least} axes or more, it has the shape {shown(shape)}")
        return shape

    def sizes(self, index: int, *, constant: bool = True) -> tuple[int, ...]:
        """The entries of an input that says how large the output is.

        Args:
            index: of the input.
            constant: whether it must be a weight; else it may be put together of shapes too.
        """
        tensor = self.input(index)
        if tensor.numbers is None or (constant and not self.constant[index]):
            raise FormatProblem(f"its input {index}, on which the size of its output depends, is computed")
        if not all(float(number).is_integer() for number in tensor.numbers):
            raise FormatProblem(f"its input {index} must be whole numbers")
        return tuple(int(number) for number in tensor.numbers)

    def integer(self, name: str, default: int) -> int:
        """An attribute that is a whole number."""
        value = self.node.attributes.get(name, default)
        if not isinstance(value, int):
            raise FormatProblem(f"its attribute {name} must be a whole number")
        return value

    def integers(self, name: str, default: Sequence[int] | None = None) -> tuple[int, ...]:
        """An attribute that is a list of whole numbers, as many as in the default; None: any list, which must be there.

        Raises:
            FormatProblem: it is none, or one of another length.
        """
        value = self.node.attributes.get(name, None if default is None else tuple(default))
        whole = isinstance(value, tuple) and all(isinstance(number, int) for number in value)
        if not whole or (default is not None and isinstance(value, tuple) and len(value) != len(default)):
            raise FormatProblem(f"its attribute {name} must be a list of whole numbers that fits its input")
        assert isinstance(value, tuple)
        return tuple(int(number) for number in value)

    def word(self, name: str, default: str) -> str:
        """An attribute that is a word."""
        value = self.node.attributes.get(name, default)
        if not isinstance(value, str):
            raise FormatProblem(f"its attribute {name} must be text")
        return value

    def axis(self, rank: int, default: int) -> int:
        """The attribute `axis`, counted from the front."""
        return place(self.integer("axis", default), rank)

    def axes(self, rank: int, index: int = 1) -> tuple[int, ...] | None:
        """Axes from an input or, as in older operator sets, from an attribute; None: neither is there."""
        if self.optional(index) is not None:
            return tuple(place(axis, rank) for axis in self.sizes(index))
        if "axes" in self.node.attributes:
            return tuple(place(axis, rank) for axis in self.integers("axes"))
        return None


@dataclass(frozen=True)
class Result:
    """What a node gives."""

    outputs: tuple[Tensor, ...]
    steps: int = 0  # multiplications and the like, besides reading the inputs and writing the outputs
    scratch_bytes: int = 0  # what a runtime may need meanwhile, as for the products of a transposed convolution


Rule = Callable[[Call], Result]


def weight_tensor(weight: Weight) -> Tensor:
    """What is known of a weight."""
    return Tensor(weight.shape, weight.type, weight.numbers if len(weight.shape) <= 1 else None)


def shown(shape: Shape) -> str:
    """A shape for people."""
    return "(" + ", ".join("batch" if side == BATCH else str(side) for side in shape) + ")"


def place(axis: int, rank: int) -> int:
    """An axis counted from the front."""
    if not -rank <= axis < rank:
        raise FormatProblem(f"it names the axis {axis} of a tensor with {rank}")
    return axis % rank


def broadcast(*shapes: Shape) -> Shape:
    """The shape of what is computed entry by entry from tensors of these shapes."""
    rank = max(map(len, shapes))
    sides = []
    for axis in range(rank):
        found = {shape[axis - rank + len(shape)] for shape in shapes if axis - rank + len(shape) >= 0} - {1}
        if len(found) > 1:
            raise FormatProblem(f"its inputs {' and '.join(map(shown, shapes))} do not fit together")
        sides.append(found.pop() if found else 1)
    return tuple(sides)


def result(
    shape: Sequence[int],
    kind: int,
    numbers: tuple[float, ...] | None = None,
    *,
    steps: int = 0,
    scratch_bytes: int = 0,
) -> Result:
    """One output.

    Raises:
        FormatProblem: there is no tensor of that shape.
    """
    shape = tuple(shape)
    if len(shape) > MAX_AXES or any(side < 0 for side in shape):
        raise FormatProblem(f"its output would have the shape {shown(shape)}")
    if numbers is not None and (len(numbers) > MAX_NUMBERS or len(shape) > 1):
        numbers = None
    return Result((Tensor(shape, kind, numbers),), steps, scratch_bytes)
