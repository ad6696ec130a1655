"""Convolutions on channels-last maps, with gradients that a CPU computes in reasonable time.

PyTorch's gradient of a depthwise weight takes so much longer on a CPU than the convolution itself that it dominates
whole training steps; here it is one matrix product per channel. A convolution whose kernel is its stride is one matrix
product in both directions. `python -m benchmarks.pretraining` measures what that gains.

Shapes: M maps or windows, H W their grid, C channels, p kernel size of a strided convolution, k of a depthwise one,
s side of a square of tokens, e = s + k - 1 side of its window: the square and all that the kernel reaches from it.
"""

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


def depthwise_convolution(convolution: nn.Conv2d, map_mhwc: Tensor) -> Tensor:
    """A depthwise convolution with zero padding that keeps the size; (M, H, W, C) to the same."""
    if map_mhwc.device.type == "cpu" and map_mhwc.requires_grad:
        mixed: Tensor = _Depthwise.apply(map_mhwc, convolution.weight.to(map_mhwc.dtype))
        assert convolution.bias is not None
        return mixed + convolution.bias.to(mixed.dtype)
    return convolution(map_mhwc.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # type: ignore[no-any-return]


class _Depthwise(torch.autograd.Function):
    """Depthwise convolution of whole maps, H and W multiples of `SQUARE`."""

    @staticmethod
    def forward(ctx: Any, map_mhwc: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(map_mhwc, weight)
        return convolve(map_mhwc, weight, padding=weight.shape[-1] // 2)

    @staticmethod
    def backward(ctx: Any, gradient_mhwc: Tensor) -> tuple[Tensor, Tensor]:
        map_mhwc, weight = ctx.saved_tensors
        reach = weight.shape[-1] // 2
        maps, height, width, channels = map_mhwc.shape
        gradient_map = convolve(gradient_mhwc, weight.flip(2, 3), padding=reach)
        padded = F.pad(map_mhwc, (0, 0, reach, reach, reach, reach))
        windows = padded.unfold(1, SQUARE + 2 * reach, SQUARE).unfold(2, SQUARE + 2 * reach, SQUARE)
        windows = windows.permute(0, 1, 2, 4, 5, 3).flatten(0, 2)  # (M * H / s * W / s, e, e, C)
        squares = gradient_mhwc.reshape(maps, height // SQUARE, SQUARE, width // SQUARE, SQUARE, channels)
        squares = squares.transpose(2, 3).flatten(0, 2)  # (M * H / s * W / s, s, s, C)
        return gradient_map, depthwise_weight_gradient(windows, squares, weight.shape[-1])


def convolve(map_mhwc: Tensor, weight: Tensor, padding: int = 0) -> Tensor:
    """Depthwise, without bias; (M, H, W, C) to (M, H + 2 * padding - k + 1, W + ..., C), contiguous."""
    mixed = F.conv2d(map_mhwc.permute(0, 3, 1, 2), weight, padding=padding, groups=len(weight))  # (M, C, H, W)
    return mixed.permute(0, 2, 3, 1).contiguous()


def depthwise_weight_gradient(windows_meec: Tensor, gradient_mssc: Tensor, kernel_size: int) -> Tensor:
    """Gradient (C, 1, k, k): for each channel all products of windows and gradients, summed over the windows."""
    number, side, _, channels = gradient_mssc.shape
    extent = windows_meec.shape[1]
    # transposed as plain matrices, which is several times faster than permuting three axes
    windows_ecm = windows_meec.reshape(number, -1).t().contiguous().reshape(extent**2, channels, number)
    gradient_scm = gradient_mssc.reshape(number, -1).t().contiguous().reshape(side**2, channels, number)
    products = torch.bmm(windows_ecm.transpose(0, 1), gradient_scm.permute(1, 2, 0))  # (C, e * e, s * s)
    products = products.reshape(channels, extent, extent, side, side)
    # kernel place (i, j) multiplies window token (y + i, x + j) into output token (y, x)
    per_channel, row, column, own_row, own_column = products.stride()
    diagonal = products.as_strided(
        (channels, kernel_size, kernel_size, side, side),
        (per_channel, row, column, row + own_row, column + own_column),
    )
    return diagonal.sum((3, 4)).unsqueeze(1)
