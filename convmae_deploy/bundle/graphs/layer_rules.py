"""Rules of operators that compute much: the shape of what each gives, and how many multiplications that takes.

Shapes: B batch, C channels, then the places of a map along one to three axes.
"""

import math
from collections.abc import Sequence

from convmae_deploy.bundle.graphs.calls import Call, Result, Rule, Shape, broadcast, result, shown
from convmae_deploy.bundle.graphs.onnx_file import TYPE_BYTES
from convmae_deploy.bundle.graphs.protobuf import FormatProblem

RESIZE_STEPS = 64  # for each entry read or written: a window of 4 x 4, its weights computed anew
SAMPLE_STEPS = 64  # the same at places that are data


def window_places(call: Call, sides: Shape, kernel: Shape) -> Shape:
    """How many places a window takes along each axis of a map.

    Args:
        call: with the attributes of a convolution or a pooling.
        sides: of the map.
        kernel: sides of the window.
    """
    axes = len(sides)
    strides, dilations = call.integers("strides", (1,) * axes), call.integers("dilations", (1,) * axes)
    pads, padding = call.integers("pads", (0,) * 2 * axes), call.word("auto_pad", "NOTSET")
    if len(kernel) != axes or min((*strides, *dilations, *kernel), default=1) < 1 or min(pads, default=0) < 0:
        raise FormatProblem(f"its window of {kernel} does not fit a map of {shown(sides)}")
    if padding in ("SAME_UPPER", "SAME_LOWER"):
        return tuple(-(-side // stride) for side, stride in zip(sides, strides, strict=True))
    if padding not in ("NOTSET", "VALID"):
        raise FormatProblem("it pads in a way that is not known here")
    found = []
    for axis, side in enumerate(sides):
        spare = side + (pads[axis] + pads[axis + axes] if padding == "NOTSET" else 0)
        spare -= (kernel[axis] - 1) * dilations[axis] + 1
        if spare < 0:
            raise FormatProblem(f"its window of {kernel} is larger than a map of {shown(sides)}")
        steps = -(-spare // strides[axis]) if call.integer("ceil_mode", 0) else spare // strides[axis]
        found.append(steps + 1)
    return tuple(found)


def convolution(call: Call) -> Result:
    """A window that is a sum of products."""
    shape, kernel, group = call.rank(3), call.shape(1), call.integer("group", 1)
    if len(kernel) != len(shape) or group < 1 or kernel[1] * group != shape[1] or kernel[0] % group:
        raise FormatProblem(f"its kernel {shown(kernel)} does not fit its input {shown(shape)}")
    places = window_places(call, shape[2:], kernel[2:])
    window = math.prod(kernel[1:])
    output = (shape[0], kernel[0], *places)
    return result(output, call.input(0).type, steps=math.prod(output) * window)


def transposed_convolution(call: Call) -> Result:
    """A window that is spread out."""
    shape, kernel, group = call.rank(3), call.shape(1), call.integer("group", 1)
    if len(kernel) != len(shape) or group < 1 or kernel[0] != shape[1] or kernel[0] % group:
        raise FormatProblem(f"its kernel {shown(kernel)} does not fit its input {shown(shape)}")
    axes = len(shape) - 2
    strides, dilations = call.integers("strides", (1,) * axes), call.integers("dilations", (1,) * axes)
    pads, more = call.integers("pads", (0,) * 2 * axes), call.integers("output_padding", (0,) * axes)
    plain = call.word("auto_pad", "NOTSET") == "NOTSET" and "output_shape" not in call.node.attributes
    if not plain or min((*strides, *dilations)) < 1 or min((*pads, *more)) < 0:
        raise FormatProblem("it pads in a way that is not known here")
    places = [
        strides[axis] * (side - 1)
        + more[axis]
        + (kernel[2 + axis] - 1) * dilations[axis]
        + 1
        - pads[axis]
        - pads[axis + axes]
        for axis, side in enumerate(shape[2:])
    ]
    window = math.prod(kernel[1:])
    output, kind = (shape[0], kernel[1] * group, *places), call.input(0).type
    unrolled = window * math.prod(shape[2:]) * TYPE_BYTES[kind]
    return result(output, kind, steps=math.prod(shape) * window, scratch_bytes=unrolled)


def pooling(call: Call) -> Result:
    """A window of which one number is taken."""
    shape, kernel = call.rank(3), call.integers("kernel_shape")
    output = (*shape[:2], *window_places(call, shape[2:], kernel))
    return result(output, call.input(0).type, steps=math.prod(output) * math.prod(kernel))


def global_pooling(call: Call) -> Result:
    """One number for the whole map."""
    shape = call.rank(3)
    return result((*shape[:2], *[1] * (len(shape) - 2)), call.input(0).type)


def matrix_product(call: Call) -> Result:
    """Of the last two axes; others are broadcast."""
    left, right = call.rank(1), call.rank(1, 1)
    rows, columns = (left[-2:-1], right[-1:]) if len(right) > 1 else (left[-2:-1], ())
    inner = right[-2] if len(right) > 1 else right[0]
    if left[-1] != inner:
        raise FormatProblem(f"its inputs {shown(left)} and {shown(right)} do not fit together")
    output = (*broadcast(left[:-2], right[:-2]), *rows, *columns)
    return result(output, call.input(0).type, steps=math.prod(output) * inner)


def general_product(call: Call) -> Result:
    """Of two matrices, one or both turned."""
    left, right = call.shape(), call.shape(1)
    if len(left) != 2 or len(right) != 2:
        raise FormatProblem(f"its inputs {shown(left)} and {shown(right)} must be matrices")
    left = left[::-1] if call.integer("transA", 0) else left
    right = right[::-1] if call.integer("transB", 0) else right
    if left[1] != right[0]:
        raise FormatProblem(f"its inputs {shown(left)} and {shown(right)} do not fit together")
    return result((left[0], right[1]), call.input(0).type, steps=left[0] * right[1] * left[1])


def resize(call: Call) -> Result:
    """A map in another size."""
    shape = call.rank(1)
    plain = "axes" not in call.node.attributes and call.word("keep_aspect_ratio_policy", "stretch") == "stretch"
    if not plain or call.word("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise FormatProblem("it resizes in a way that is not known here")
    output: Sequence[int]
    if call.optional(3) is not None:
        output = call.sizes(3, constant=False)
    else:
        factors = call.input(2).numbers
        if factors is None or not call.constant[2] or not all(0 < factor < math.inf for factor in factors):
            raise FormatProblem("its factors, on which the size of its output depends, are computed or impossible")
        output = [side if factor == 1 else int(side * factor) for side, factor in zip(shape, factors, strict=False)]
    if len(output) != len(shape):
        raise FormatProblem(f"it resizes {len(shape)} axes to {len(output)} sizes")
    return result(output, call.input(0).type, steps=RESIZE_STEPS * (math.prod(shape) + math.prod(output)))


def grid_sample(call: Call) -> Result:
    """A map at places that are data."""
    shape, grid = call.rank(3), call.rank(3, 1)
    if len(grid) != len(shape) or grid[0] != shape[0] or grid[-1] != len(shape) - 2:
        raise FormatProblem(f"its places {shown(grid)} do not fit its input {shown(shape)}")
    output = (*shape[:2], *grid[1:-1])
    return result(output, call.input(0).type, steps=SAMPLE_STEPS * math.prod(output))


LAYER_RULES: dict[str, Rule] = {
    "AveragePool": pooling,
    "Conv": convolution,
    "ConvTranspose": transposed_convolution,
    "Gemm": general_product,
    "GlobalAveragePool": global_pooling,
    "GridSample": grid_sample,
    "MatMul": matrix_product,
    "MaxPool": pooling,
    "Resize": resize,
}
