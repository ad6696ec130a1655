"""Convolutions on whole channels-last maps, with gradients that a CPU computes in reasonable time.

A depthwise one computes its weight's gradient from squares of the map and the windows around them, see
`models.depthwise`. A convolution whose kernel is its stride is one matrix product in both directions.
`python -m benchmarks.pretraining` measures what that gains.

Shapes: M maps, H W their grid, C channels, p kernel size of a strided convolution, k of a depthwise one, s side of a
square of tokens, e = s + k - 1 side of its window. Maps of a video have a time axis of T slots in front of the grid,
and a depthwise kernel for them a depth d.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convmae_deploy.models.depthwise import by_convolution, by_products, flipped

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
        return by_convolution(map_mhwc, weight, [size // 2 for size in weight.shape[2:]])

    @staticmethod
    def backward(ctx: Any, gradient_mhwc: Tensor) -> tuple[Tensor, Tensor]:
        map_mhwc, weight = ctx.saved_tensors
        kernel = weight.shape[2:]
        gradient_map = by_convolution(gradient_mhwc, flipped(weight), [size // 2 for size in kernel])
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
        return gradient_map, by_products(windows, squares, kernel)
