"""Rules of operators that move entries, compute entry by entry, or make tensors: the shape of what each gives."""

import math
import operator
from collections.abc import Callable

from convmae_deploy.bundle.graphs.calls import (
    Call,
    Result,
    Rule,
    broadcast,
    place,
    result,
    shown,
    weight_tensor,
)
from convmae_deploy.bundle.graphs.onnx_file import BOOL, INT64, TYPE_BYTES, UINT8, WHOLE_NUMBER_TYPES, Weight
from convmae_deploy.bundle.graphs.protobuf import FormatProblem


def elementwise(call: Call) -> Result:
    """Entry by entry, of all inputs."""
    first, others = call.input(0), [tensor.shape for tensor in call.inputs[1:] if tensor is not None]
    return result(broadcast(first.shape, *others), first.type, sizes_from_sizes(call))


# What the exporter computes with sizes; ONNX cuts a quotient, Python rounds it down, so those of negative ones are out.
ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "Add": operator.add,
    "Div": operator.floordiv,
    "Mul": operator.mul,
    "Sub": operator.sub,
}


def sizes_from_sizes(call: Call) -> tuple[float, ...] | None:
    """The numbers that two inputs with known ones give, each a list or one for all; None: they are not known."""
    compute = ARITHMETIC.get(call.node.operator)
    known = [tensor.numbers for tensor in call.inputs if tensor is not None and tensor.type == INT64]
    if compute is None or len(known) != len(call.inputs) or None in known:
        return None
    lists = [[int(number) for number in numbers or ()] for numbers in known]
    count = max(map(len, lists))
    if any(len(numbers) not in (1, count) for numbers in lists) or (compute is operator.floordiv and min(lists[0]) < 0):
        return None
    first, second = (numbers * count if len(numbers) == 1 else numbers for numbers in lists)
    return tuple(map(compute, first, second))


def division(call: Call) -> Result:
    """Entry by entry; of whole numbers only by constants, as a processor stops at a division by 0."""
    divisor = call.input(1)
    if divisor.type in WHOLE_NUMBER_TYPES and (
        not call.constant[1] or divisor.numbers is None or min(divisor.numbers, default=0) < 1
    ):
        raise FormatProblem("it divides whole numbers by what is not a constant above 0")
    return elementwise(call)


def comparison(call: Call) -> Result:
    """Entry by entry, true or false."""
    return result(elementwise(call).outputs[0].shape, BOOL)


def where(call: Call) -> Result:
    """Entry by entry, of the type of the second input."""
    return result(elementwise(call).outputs[0].shape, call.input(1).type)


def cast(call: Call) -> Result:
    """The same entries in another type."""
    kind = call.integer("to", 0)
    if kind not in TYPE_BYTES:
        raise FormatProblem("it casts to a type that no bundle has")
    numbers = call.input(0).numbers
    return result(call.shape(), kind, numbers if kind == INT64 and call.input(0).type == INT64 else None)


def like_first(call: Call) -> Result:
    """Of the first input's shape and type."""
    return result(call.shape(), call.input(0).type, call.input(0).numbers if call.node.operator == "Identity" else None)


def quantize(call: Call) -> Result:
    """In 8 bits."""
    zero_point = call.optional(2)
    return result(call.shape(), UINT8 if zero_point is None else zero_point.type)


def dequantize(call: Call) -> Result:
    """In the type of the scale."""
    return result(call.shape(), call.input(1).type)


def shape_of(call: Call) -> Result:
    """The shape, or a part of it, as numbers."""
    rank = len(call.shape())
    part = call.shape()[slice(call.integer("start", 0), call.integer("end", rank))]
    return result((len(part),), INT64, part)


def constant(call: Call) -> Result:
    """A tensor that stands in the node."""
    attributes = call.node.attributes
    value = attributes.get("value")
    if isinstance(value, Weight):
        return Result((weight_tensor(value),))
    for name, kind in (("value_int", INT64), ("value_ints", INT64), ("value_float", 1), ("value_floats", 1)):
        found = attributes.get(name)
        if isinstance(found, int | float):
            return result((), kind, (found,))
        if isinstance(found, tuple):
            return result((len(found),), kind, found)
    raise FormatProblem("it has no value that is known here")


def constant_of_shape(call: Call) -> Result:
    """One value again and again."""
    value = call.node.attributes.get("value")
    return result(call.sizes(0, constant=False), value.type if isinstance(value, Weight) else 1)


def arange(call: Call) -> Result:
    """Numbers in a row."""
    numbers = [call.input(index).numbers for index in range(3)]
    if not all(found is not None and len(found) == 1 for found in numbers):
        raise FormatProblem("its inputs, on which the size of its output depends, are computed")
    start, limit, step = (found[0] for found in numbers if found is not None)
    if not all(map(math.isfinite, (start, limit, step))) or step == 0:
        raise FormatProblem("its range never ends")
    return result((max(0, math.ceil((limit - start) / step)),), call.input(0).type)


def expand(call: Call) -> Result:
    """Repeated along axes of length 1."""
    return result(broadcast(call.shape(), call.sizes(1, constant=False)), call.input(0).type)


def tile(call: Call) -> Result:
    """Repeated along each axis."""
    repeats = call.sizes(1)
    if len(repeats) != len(call.shape()):
        raise FormatProblem("it repeats as many axes as its input has not")
    return result([side * times for side, times in zip(call.shape(), repeats, strict=True)], call.input(0).type)


def reshape(call: Call) -> Result:
    """The same entries in another shape."""
    shape, wanted = call.shape(), list(call.sizes(1, constant=False))
    if call.integer("allowzero", 0) == 0:
        if any(side == 0 and axis >= len(shape) for axis, side in enumerate(wanted)):
            raise FormatProblem("it keeps an axis that its input has not")
        wanted = [shape[axis] if side == 0 else side for axis, side in enumerate(wanted)]
    known, total = math.prod(side for side in wanted if side != -1), math.prod(shape)
    if wanted.count(-1) == 1 and known > 0:
        wanted[wanted.index(-1)] = total // known
    if math.prod(wanted) != total or any(side < 0 for side in wanted):
        raise FormatProblem(f"it makes {shown(tuple(wanted))} of {shown(shape)}")
    numbers = call.input(0).numbers
    return result(wanted, call.input(0).type, numbers)


def transpose(call: Call) -> Result:
    """Axes in another order."""
    shape = call.shape()
    order = call.integers("perm", tuple(reversed(range(len(shape)))))
    if sorted(order) != list(range(len(shape))):
        raise FormatProblem(f"it orders the axes of {shown(shape)} as {order}")
    return result([shape[axis] for axis in order], call.input(0).type)


def flatten(call: Call) -> Result:
    """To two axes."""
    shape = call.shape()
    axis = call.integer("axis", 1)
    axis = axis if axis == len(shape) else place(axis, len(shape))
    return result((math.prod(shape[:axis]), math.prod(shape[axis:])), call.input(0).type)


def squeeze(call: Call) -> Result:
    """Without axes of length 1."""
    shape = call.shape()
    axes = call.axes(len(shape))
    if axes is None:
        axes = tuple(axis for axis, side in enumerate(shape) if side == 1)
    if any(shape[axis] != 1 for axis in axes):
        raise FormatProblem(f"it takes away axes {axes} of {shown(shape)}, not all of which are 1")
    kept = [side for axis, side in enumerate(shape) if axis not in axes]
    return result(kept, call.input(0).type, call.input(0).numbers)


def unsqueeze(call: Call) -> Result:
    """With more axes of length 1."""
    shape = list(call.shape())
    given = call.sizes(1) if call.optional(1) is not None else call.integers("axes")
    rank = len(shape) + len(given)
    axes = sorted(place(axis, rank) for axis in given)
    if len(set(axes)) != len(axes):
        raise FormatProblem("it adds an axis twice")
    for axis in axes:
        shape.insert(axis, 1)
    return result(shape, call.input(0).type, call.input(0).numbers)


def concat(call: Call) -> Result:
    """One after the other along an axis."""
    given = [call.input(index) for index in range(len(call.inputs))]
    shape = list(call.rank(1))
    axis = call.axis(len(shape), 0)
    for tensor in given[1:]:
        if len(tensor.shape) != len(shape) or any(
            side != other for index, (side, other) in enumerate(zip(shape, tensor.shape, strict=True)) if index != axis
        ):
            raise FormatProblem(f"its inputs {' and '.join(shown(tensor.shape) for tensor in given)} do not fit")
    shape[axis] = sum(tensor.shape[axis] for tensor in given)
    numbers: tuple[float, ...] | None = ()
    for tensor in given:
        numbers = None if numbers is None or tensor.numbers is None else numbers + tensor.numbers
    return result(shape, given[0].type, numbers)


def split(call: Call) -> Result:
    """Into parts along an axis."""
    shape = call.rank(1)
    axis = call.axis(len(shape), 0)
    count = len(call.node.outputs)
    if call.optional(1) is not None:
        sizes = call.sizes(1)
    else:
        largest = -(-shape[axis] // count)
        sizes = (*[largest] * (count - 1), shape[axis] - largest * (count - 1))
    if len(sizes) != count or sum(sizes) != shape[axis] or any(size < 0 for size in sizes):
        raise FormatProblem(f"it splits {shown(shape)} into parts of {sizes}")
    parts = [result((*shape[:axis], size, *shape[axis + 1 :]), call.input(0).type) for size in sizes]
    return Result(tuple(part.outputs[0] for part in parts))


def cut(call: Call) -> Result:
    """From some entry to another along some axes."""
    shape = list(call.rank(1))
    starts, ends = call.sizes(1), call.sizes(2)
    axes = call.axes(len(shape), 3)
    axes = tuple(range(len(starts))) if axes is None else axes
    steps = call.sizes(4) if call.optional(4) is not None else (1,) * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) == len(set(axes)) <= len(shape) or 0 in steps:
        raise FormatProblem("its starts, ends, axes and steps do not fit together")
    numbers = call.input(0).numbers
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if numbers is not None:
            numbers = numbers[slice(start, end, step)]
        first, last, step = slice(start, end, step).indices(shape[axis])
        shape[axis] = max(0, -((first - last) // step))
    return result(shape, call.input(0).type, numbers)


def gather(call: Call) -> Result:
    """Entries along an axis, by their places."""
    shape, places = call.rank(1), call.input(1)
    axis = call.axis(len(shape), 0)
    known, numbers = call.input(0).numbers, None
    if known is not None and places.numbers is not None:
        if not all(-len(known) <= index < len(known) for index in places.numbers):
            raise FormatProblem("it takes entries that are not there")
        numbers = tuple(known[int(index)] for index in places.numbers)
    return result((*shape[:axis], *places.shape, *shape[axis + 1 :]), call.input(0).type, numbers)


def gather_elements(call: Call) -> Result:
    """As many entries as there are places."""
    if len(call.shape()) != len(call.shape(1)):
        raise FormatProblem("its places have not as many axes as its input")
    return result(call.shape(1), call.input(0).type)


def pad(call: Call) -> Result:
    """With more entries around."""
    shape = list(call.rank(1))
    axes = call.axes(len(shape), 3)
    axes = tuple(range(len(shape))) if axes is None else axes
    pads = call.sizes(1)
    if len(pads) != 2 * len(axes):
        raise FormatProblem(f"it pads {len(axes)} axes with {len(pads)} numbers")
    for index, axis in enumerate(axes):
        shape[axis] += pads[index] + pads[index + len(axes)]
    return result(shape, call.input(0).type)


def reduction(call: Call) -> Result:
    """One entry for all along some axes."""
    shape = call.shape()
    axes = call.axes(len(shape))
    if not axes:
        axes = () if call.integer("noop_with_empty_axes", 0) else tuple(range(len(shape)))
    return result(without_axes(call, shape, axes), call.input(0).type)


def arg_reduction(call: Call) -> Result:
    """The place of one entry along an axis."""
    shape = call.rank(1)
    return result(without_axes(call, shape, (call.axis(len(shape), 0),)), INT64)


def without_axes(call: Call, shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """A shape whose axes became 1, or went, as `keepdims` says."""
    if call.integer("keepdims", 1):
        return tuple(1 if axis in axes else side for axis, side in enumerate(shape))
    return tuple(side for axis, side in enumerate(shape) if axis not in axes)


def top_k(call: Call) -> Result:
    """The largest along an axis, and their places."""
    shape = list(call.rank(1))
    axis, sizes = call.axis(len(shape), -1), call.sizes(1)
    if len(sizes) != 1 or not 0 <= sizes[0] <= shape[axis]:
        raise FormatProblem(f"it takes the best {sizes} of {shown(tuple(shape))}")
    steps = math.prod(shape) * 64  # at most so many comparisons for each entry
    shape[axis] = sizes[0]
    values, places = (result(shape, kind).outputs[0] for kind in (call.input(0).type, INT64))
    return Result((values, places), steps)


TENSOR_RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("Abs", "Add", "And", "Ceil", "Clip", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu"),
        elementwise,
    ),
    **dict.fromkeys(("Log", "Max", "Min", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu"), elementwise),
    **dict.fromkeys(("Round", "Sigmoid", "Sign", "Softplus", "Sqrt", "Sub", "Sum", "Tanh", "Xor"), elementwise),
    **dict.fromkeys(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"), comparison),
    **dict.fromkeys(("Div", "Mod"), division),
    **dict.fromkeys(("Identity", "LogSoftmax", "Softmax"), like_first),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization", "LayerNormalization"), like_first),
    **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"), reduction),
    **dict.fromkeys(("ArgMax", "ArgMin"), arg_reduction),
    "Cast": cast,
    "Concat": concat,
    "Constant": constant,
    "ConstantOfShape": constant_of_shape,
    "DequantizeLinear": dequantize,
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "GatherElements": gather_elements,
    "Pad": pad,
    "QuantizeLinear": quantize,
    "Range": arange,
    "Reshape": reshape,
    "Shape": shape_of,
    "Slice": cut,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "TopK": top_k,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
    "Where": where,
}
