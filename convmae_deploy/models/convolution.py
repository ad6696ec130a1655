"""Convolutions on channels-last maps, with gradients that a CPU computes in reasonable time.

PyTorch's gradient of a depthwise weight takes so much longer on a CPU than the convolution itself that it dominates
whole training steps; here it is one matrix product per channel. A convolution whose kernel is its stride is one matrix
product in both directions. `python -m benchmarks.pretraining` measures what that gains.

Shapes: M maps or windows, H W their grid, C channels, p kernel size of a strided convolution, k of a depthwise one,
s side of a square of tokens, e = s + k - 1 side of its window: the square and all that the kernel reaches from it. Maps
of a video have a time axis of T slots in front of the grid, and a depthwise kernel for them a depth d.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SQUARE = 4  # tokens: sides of stages 1 and 2 are multiples of it, and a larger one wastes more of its matrix products


def strided_convolution(convolution: nn.Conv2d, map_mhwc: Tensor) -> Tensor:
    """A convolution whose kernel is its stride; (M, H * p, W * p, C) to (M, H, W, out)."""
    patch = convolution.kernel_size[0]
    _, height, width, channels = map_mhwc.shape
    patches = map_mhwc.reshape(-1, height // patch, patch, width // patch, patch, channels).transpose(2, 3)
    weight = convolution.weight.permute(0, 2, 3, 1).flatten(1)  # (out, p * p * C)
    return F.linear(patches.flatten(3), weight, convolution.bias)  # patches: (M, H, W, p * p * C)


def cube_convolution(convolution: nn.Conv3d, map_mthwc: Tensor) -> Tensor:
    """`strided_convolution` of a video, a cube at a time; (M, T * t, H * p, W * p, C) to (M, T, H, W, out)."""
    depth, patch, _ = convolution.kernel_size
    _, frames, height, width, channels = map_mthwc.shape
    cubes = map_mthwc.reshape(
        -1, frames // depth, depth, height // patch, patch, width // patch, patch, channels
    )  # (M, T, t, H, p, W, p, C)
    cubes = cubes.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4)  # (M, T, H, W, t * p * p * C)
    return F.linear(cubes, convolution.weight.permute(0, 2, 3, 4, 1).flatten(1), convolution.bias)


def depthwise_convolution(convolution: nn.Conv2d | nn.Conv3d, map_mhwc: Tensor) -> Tensor:
    """A depthwise convolution with zero padding that keeps the size; (M, H, W, C) or (M, T, H, W, C) to the same."""
    if map_mhwc.device.type == "cpu" and map_mhwc.requires_grad:
        mixed: Tensor = _Depthwise.apply(map_mhwc, convolution.weight.to(map_mhwc.dtype))
        assert convolution.bias is not None
        return mixed + convolution.bias.to(mixed.dtype)
    return convolution(map_mhwc.movedim(-1, 1)).movedim(1, -1)  # type: ignore[no-any-return]


class _Depthwise(torch.autograd.Function):
    """Depthwise convolution of whole maps, H and W multiples of `SQUARE`."""

    @staticmethod
    def forward(ctx: Any, map_mhwc: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(map_mhwc, weight)
        return convolve(map_mhwc, weight, padding=tuple(size // 2 for size in weight.shape[2:]))

    @staticmethod
    def backward(ctx: Any, gradient_mhwc: Tensor) -> tuple[Tensor, Tensor]:
        map_mhwc, weight = ctx.saved_tensors
        kernel = weight.shape[2:]
        gradient_map = convolve(gradient_mhwc, flipped(weight), padding=tuple(size // 2 for size in kernel))
        *outer, height, width, channels = map_mhwc.shape  # outer: (M,) or (M, T)
        reach = kernel[-1] // 2
        padded = F.pad(map_mhwc, (0, 0, reach, reach, reach, reach))
        windows = padded.unfold(-3, SQUARE + 2 * reach, SQUARE).unfold(-3, SQUARE + 2 * reach, SQUARE)
        squares = gradient_mhwc.reshape(*outer, height // SQUARE, SQUARE, width // SQUARE, SQUARE, channels)
        if len(outer) == 1:  # to (M * H / s * W / s, e, e, C) and (M * H / s * W / s, s, s, C)
            windows = windows.permute(0, 1, 2, 4, 5, 3).flatten(0, 2)
            squares = squares.permute(0, 1, 3, 2, 4, 5).flatten(0, 2)
        else:  # to (M * H / s * W / s, T, e, e, C) and (M * H / s * W / s, T, s, s, C)
            windows = windows.permute(0, 2, 3, 1, 5, 6, 4).flatten(0, 2)
            squares = squares.permute(0, 2, 4, 1, 3, 5, 6).flatten(0, 2)
        return gradient_map, depthwise_weight_gradient(windows, squares, kernel)


def convolve(map_mhwc: Tensor, weight: Tensor, padding: Sequence[int] | int = 0) -> Tensor:
    """Depthwise, without bias; (M, H, W, C) to (M, H + 2 * padding - k + 1, W + ..., C), contiguous; with time as well.

    Args:
        map_mhwc: (M, H, W, C) or (M, T, H, W, C).
        weight: (C, 1, k, k) or (C, 1, d, k, k).
        padding: on both sides of each axis of the kernel.
    """
    operation = F.conv2d if weight.dim() == 4 else F.conv3d
    mixed = operation(map_mhwc.movedim(-1, 1), weight, padding=padding, groups=len(weight))
    return mixed.movedim(1, -1).contiguous()


def flipped(weight: Tensor) -> Tensor:
    """The kernel that takes gradients back to what it was given."""
    return weight.flip(tuple(range(2, weight.dim())))


def depthwise_weight_gradient(windows: Tensor, gradient: Tensor, kernel: Sequence[int]) -> Tensor:
    """The weight's gradient, (C, 1, k, k) or (C, 1, d, k, k).

    Args:
        windows: (M, e, e, C) or (M, T, e, e, C).
        gradient: of the convolution's result, (M, s, s, C) or (M, T, s, s, C).
        kernel: (k, k) or (d, k, k).
    """
    channels = gradient.shape[-1]
    if len(kernel) == 2:
        return _square_gradient(_columns(windows), _columns(gradient), channels, kernel[-1]).unsqueeze(1)
    slots, depth = gradient.shape[1], kernel[0]
    windows_xtm, gradient_xtm = (
        columns.reshape(len(columns), slots, -1)
        for columns in (_columns(values.transpose(0, 1).flatten(0, 1)) for values in (windows, gradient))
    )
    parts = []
    for place in range(depth):  # in the kernel: slot t of the gradient reaches slot t + ahead of the windows
        ahead = place - depth // 2
        reached = windows_xtm[:, max(ahead, 0) : max(slots + ahead, 0)].flatten(1)
        own = gradient_xtm[:, max(-ahead, 0) : max(slots - ahead, 0)].flatten(1)
        parts.append(_square_gradient(reached, own, channels, kernel[-1]))
    return torch.stack(parts, dim=1).unsqueeze(1)


def _columns(values: Tensor) -> Tensor:
    """(M, ...) to (..., M), the other axes in one: as a plain matrix, which is several times faster than permuting."""
    return values.flatten(1).t().contiguous()


def _square_gradient(windows_xm: Tensor, gradient_ym: Tensor, channels: int, kernel_size: int) -> Tensor:
    """(C, k, k): for each channel all products of windows and gradients, summed over the windows.

    Args:
        windows_xm: (e * e * C, M), each row in one piece.
        gradient_ym: (s * s * C, M), likewise.
        channels: C.
        kernel_size: k.
    """
    side = math.isqrt(len(gradient_ym) // channels)
    extent = side + kernel_size - 1
    windows_ecm = windows_xm.reshape(extent**2, channels, -1)
    gradient_scm = gradient_ym.reshape(side**2, channels, -1)
    products = torch.bmm(windows_ecm.transpose(0, 1), gradient_scm.permute(1, 2, 0))  # (C, e * e, s * s)
    products = products.reshape(channels, extent, extent, side, side)
    # kernel place (i, j) multiplies window token (y + i, x + j) into output token (y, x)
    per_channel, row, column, own_row, own_column = products.stride()
    diagonal = products.as_strided(
        (channels, kernel_size, kernel_size, side, side),
        (per_channel, row, column, row + own_row, column + own_column),
    )
    return diagonal.sum((3, 4))
