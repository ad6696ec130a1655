"""The depthwise convolution of windows and the gradient of its weight, by several algorithms.

PyTorch's gradient of a depthwise weight takes so much longer on a CPU than the convolution itself that it dominates
whole training steps; one matrix product per channel does not. That is what a CPU takes, and so does any device that
nobody has measured. Which is the fastest on a GPU depends on the GPU and on its libraries, so that `fastest` measures;
a pretraining model keeps what it found. All algorithms give the same but for rounding.

Shapes: M maps or windows, H W their grid, C channels, k kernel size, s side of a square of tokens, e = s + k - 1 side
of its window: the square and all that the kernel reaches from it. Windows of a video have a time axis of T slots in
front of the grid, and a kernel for them a depth d, which is padded.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight, conv3d_weight

Convolution = Callable[[Tensor, Tensor, Sequence[int]], Tensor]  # map, weight, padding
Gradient = Callable[[Tensor, Tensor, Sequence[int]], Tensor]  # windows, gradient of what comes out, kernel
Measure = Callable[[Callable[[], Any]], float]  # the seconds that a piece of work takes
MEASURED_TOKENS = 2**17  # in windows: enough for all of a GPU


@dataclass(frozen=True)
class Algorithms:
    """Names of what convolves (of `CONVOLUTIONS`) and of what computes the weight's gradient (of `GRADIENTS`)."""

    convolution: str = "convolution"
    gradient: str = "products"


ON_A_CPU = Algorithms()


def flipped(weight: Tensor) -> Tensor:
    """The kernel that takes gradients back to what it was given."""
    return weight.flip(tuple(range(2, weight.dim())))


def window_padding(kernel: Sequence[int]) -> tuple[int, ...]:
    """Windows hold all that the kernel reaches within a slot, so only the time axis is padded, if there is one."""
    *depth, _, _ = kernel
    return (*(size // 2 for size in depth), 0, 0)


@torch.no_grad()  # as within an autograd.Function
def fastest(
    shape: Sequence[int], side: int, device: torch.device, dtype: torch.dtype, measure: Measure | None = None
) -> tuple[Algorithms, dict[str, dict[str, float]]]:
    """The fastest algorithms for a layer on a device in a precision.

    Args:
        shape: of its weight, (C, 1, k, k) or (C, 1, d, k, k).
        side: s.
        device: on which all is computed.
        dtype: of maps and weight.
        measure: by default gives the median of many runs by PyTorch's timer, which waits for the device.

    Returns:
        Their names, and {"convolution" or "gradient": {name: seconds}}; infinity for one that does not run there.
    """
    channels, _, *kernel = shape
    *depth, size, _ = kernel
    slots = [4 * each for each in depth]
    cells = max(1, MEASURED_TOKENS // ((side + size - 1) ** 2 * math.prod(slots)))
    own = torch.Generator(device).manual_seed(0)  # training's is left alone

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=own, device=device, dtype=dtype)

    weight = noise(*shape)
    windows, gradient = (noise(cells, *slots, edge, edge, channels) for edge in (side + size - 1, side))
    work = {
        "convolution": {
            name: partial(convolve, windows, weight, window_padding(kernel)) for name, convolve in CONVOLUTIONS.items()
        },
        "gradient": {name: partial(compute, windows, gradient, kernel) for name, compute in GRADIENTS.items()},
    }
    found = {what: {name: _seconds(run, measure) for name, run in runs.items()} for what, runs in work.items()}
    best = {what: min(times, key=times.__getitem__) for what, times in found.items()}
    return Algorithms(**best), found


def _seconds(work: Callable[[], Any], measure: Measure | None) -> float:
    try:
        work()  # compiles
        return (measure or _median)(work)
    except Exception:  # of the compiler, of its compiler, of the driver: they have no common base
        return math.inf


def _median(work: Callable[[], Any]) -> float:
    from torch.utils.benchmark import Timer  # it warns, when imported, of machines without CUDA

    timer = Timer("work()", globals={"work": work})
    return float(timer.blocked_autorange(min_run_time=0.1).median)


def by_convolution(map_mhwc: Tensor, weight: Tensor, padding: Sequence[int]) -> Tensor:
    """PyTorch's own, without bias; (M, H, W, C) to (M, H + 2 * padding - k + 1, W + ..., C), contiguous.

    Args:
        map_mhwc: (M, H, W, C) or (M, T, H, W, C).
        weight: (C, 1, k, k) or (C, 1, d, k, k).
        padding: on both sides of each axis of the kernel.
    """
    operation = F.conv2d if weight.dim() == 4 else F.conv3d
    mixed = operation(map_mhwc.movedim(-1, 1), weight, padding=tuple(padding), groups=len(weight))
    return mixed.movedim(1, -1).contiguous()


def shifted(map_mhwc: Tensor, weight: Tensor, padding: Sequence[int]) -> Tensor:
    """A product of the map and each place of the kernel, summed; arguments as for `by_convolution`.

    One pass over the memory where torch.compile makes one piece of it, twenty-five where it does not.
    """
    parts = _parts(map_mhwc, weight.shape[2:], padding)
    terms = (part * factor for part, factor in zip(parts, weight.flatten(1).unbind(1), strict=True))
    return sum(terms, start=torch.zeros((), device=weight.device)).to(map_mhwc.dtype)


def by_products(windows: Tensor, gradient: Tensor, kernel: Sequence[int]) -> Tensor:
    """The weight's gradient, (C, 1, k, k) or (C, 1, d, k, k), by one matrix product a channel, not all of it used.

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


def gradient_by_convolution(windows: Tensor, gradient: Tensor, kernel: Sequence[int]) -> Tensor:
    """PyTorch's own; arguments as for `by_products`."""
    operation = conv2d_weight if len(kernel) == 2 else conv3d_weight
    channels = gradient.shape[-1]
    windows_mc, gradient_mc = windows.movedim(-1, 1), gradient.movedim(-1, 1)
    padding = window_padding(kernel)
    return operation(windows_mc, (channels, 1, *kernel), gradient_mc, padding=padding, groups=channels)  # type: ignore[no-untyped-call, no-any-return]


def shifted_gradient(windows: Tensor, gradient: Tensor, kernel: Sequence[int]) -> Tensor:
    """For each place of the kernel the product of what it reaches with the gradient; arguments as for `by_products`."""
    parts = _parts(windows, kernel, window_padding(kernel))
    sums = torch.stack([(part * gradient).sum(tuple(range(gradient.dim() - 1))) for part in parts])
    return sums.t().reshape(-1, 1, *kernel).to(gradient.dtype)


def _parts(map_mhwc: Tensor, kernel: Sequence[int], padding: Sequence[int]) -> Iterator[Tensor]:
    """What each place of the kernel multiplies, at least in float32: as the sum over them is to be."""
    reach = [side for size in reversed(padding) for side in (size, size)]
    padded = F.pad(map_mhwc, (0, 0, *reach))
    sizes = [size - span + 1 for size, span in zip(padded.shape[1:-1], kernel, strict=True)]
    for place in product(*map(range, kernel)):
        reached = tuple(slice(first, first + size) for first, size in zip(place, sizes, strict=True))
        part = padded[(slice(None), *reached)]
        yield part.float() if part.dtype in (torch.float16, torch.bfloat16) else part


def _fused(function: Callable[..., Tensor], counted: int) -> Callable[..., Tensor]:
    """The function as one kernel for any number of maps; within a model that is compiled it is compiled with that.

    Args:
        function: of tensors and a size.
        counted: how many of its arguments begin with the number of maps.
    """

    def run(*arguments: Any) -> Tensor:
        if torch.compiler.is_compiling():
            return function(*arguments)
        for maps in arguments[:counted]:
            torch._dynamo.maybe_mark_dynamic(maps, 0)
        with torch.autocast(arguments[0].device.type, enabled=False):  # else it is compiled for both
            return _compiled(function)(*arguments)

    return run


@cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    # sizes of the other axes are few, and a kernel for any of them takes minutes to make
    return torch.compile(function, dynamic=False, fullgraph=True)


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


CONVOLUTIONS: Mapping[str, Convolution] = {"convolution": by_convolution, "shifted": _fused(shifted, 1)}
GRADIENTS: Mapping[str, Gradient] = {
    "products": by_products,
    "convolution": gradient_by_convolution,
    "shifted": _fused(shifted_gradient, 2),
}
