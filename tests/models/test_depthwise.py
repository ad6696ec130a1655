"""Every way to convolve windows and to compute the weight's gradient gives PyTorch's numbers; the fastest is found."""

import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from convmae_deploy.models import depthwise
from convmae_deploy.models.depthwise import (
    CONVOLUTIONS,
    GRADIENTS,
    Algorithms,
    fastest,
    window_padding,
)
from tests.original_files import relative_error

KERNELS = [((5, 5), 4), ((7, 7), 2), ((9, 9), 1), ((3, 5, 5), 4), ((1, 5, 5), 2), ((5, 3, 3), 1)]  # and the side
CHANNELS, CELLS, SLOTS = 6, 5, 4
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a compiler makes of the same sums is for a device to show."""
    monkeypatch.setattr(depthwise, "_compiled", lambda function: function)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def case(kernel: tuple[int, ...], side: int, cells: int = CELLS) -> tuple[Tensor, Tensor, Tensor]:
    """Windows, a weight, and a gradient of what comes out."""
    outer = (cells,) if len(kernel) == 2 else (cells, SLOTS)
    extent = side + kernel[-1] - 1
    windows, gradient = noise(*outer, extent, extent, CHANNELS), noise(*outer, side, side, CHANNELS, seed=1)
    return windows, noise(CHANNELS, 1, *kernel, seed=2), gradient


def literally(windows: Tensor, weight: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """PyTorch's convolution and what its autograd makes of it."""
    weight = weight.clone().requires_grad_()
    operation, padding = (F.conv2d, (0, 0)) if weight.dim() == 4 else (F.conv3d, (weight.shape[2] // 2, 0, 0))
    mixed = operation(windows.movedim(-1, 1), weight, padding=padding, groups=CHANNELS).movedim(1, -1)
    return mixed.detach(), torch.autograd.grad(mixed, weight, gradient)[0]


@pytest.mark.parametrize(("kernel", "side"), KERNELS)
def test_every_way_gives_the_numbers_of_pytorch(kernel: tuple[int, ...], side: int) -> None:
    windows, weight, gradient = case(kernel, side)
    mixed, derivative = literally(windows, weight, gradient)
    for name, convolve in CONVOLUTIONS.items():
        assert relative_error(convolve(windows, weight, window_padding(kernel)), mixed) < 1e-12, name
    for name, differentiate in GRADIENTS.items():
        assert relative_error(differentiate(windows, gradient, kernel), derivative) < 1e-12, name


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [(3, 3), (3, 3, 3)])
def test_shifted_products_are_one_graph_for_each_stage_whatever_the_number_of_cells(
    kernel: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Photos that cannot be read make an update smaller. What a device's compiler makes of it is for the device."""
    torch.compiler.reset()
    counter, graphs = CompileCounter(), []
    compiler = partial(torch.compile, backend=counter, dynamic=False, fullgraph=True)
    monkeypatch.setattr(depthwise, "_compiled", cache(compiler))
    for side, cells in ((4, 11), (4, 14), (2, 10), (2, 1), (4, 13)):
        windows, weight, gradient = case(kernel, side, cells)
        mixed, derivative = literally(windows, weight, gradient)
        assert relative_error(CONVOLUTIONS["shifted"](windows, weight, window_padding(kernel)), mixed) < 1e-12
        assert relative_error(GRADIENTS["shifted"](windows, gradient, kernel), derivative) < 1e-12
        graphs.append(counter.frame_count)
    assert graphs == [2, 2, 4, 6, 6]  # a single cell has a graph of its own


@pytest.mark.parametrize("way", CONVOLUTIONS)
def test_padding_is_zeros_around_the_map(way: str) -> None:
    map_mhwc, weight = noise(2, 3, 4, CHANNELS), noise(CHANNELS, 1, 5, 3)
    expected = F.conv2d(map_mhwc.movedim(-1, 1), weight, padding=(2, 1), groups=CHANNELS).movedim(1, -1)
    found = CONVOLUTIONS[way](map_mhwc, weight, (2, 1))
    assert relative_error(found, expected) < 1e-12 and found.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shifted_products_of_half_precision_are_summed_in_float32(dtype: torch.dtype) -> None:
    """Twenty-five sums in bf16 would lose three more bits."""
    windows, weight, gradient = (value.to(dtype) for value in case((5, 5), 4))
    expected = literally(windows.double(), weight.double(), gradient.double())
    found = CONVOLUTIONS["shifted"](windows, weight, (0, 0)), GRADIENTS["shifted"](windows, gradient, (5, 5))
    for values, exact in zip(found, expected, strict=True):
        assert values.dtype == dtype and relative_error(values.double(), exact) < torch.finfo(dtype).eps / 2


def clock(*seconds: float) -> Callable[[Callable[[], Any]], float]:
    """Runs what it is given, and says these numbers in turn."""
    given: Iterator[float] = iter(seconds)

    def taken(work: Callable[[], Any]) -> float:
        work()
        return next(given)

    return taken


@pytest.mark.parametrize(("kernel", "side"), [((5, 5), 4), ((3, 5, 5), 4)])
def test_the_fastest_are_found(kernel: tuple[int, ...], side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depthwise, "MEASURED_TOKENS", 64)
    before = torch.get_rng_state()
    algorithms, found = fastest((CHANNELS, 1, *kernel), side, CPU, torch.float32, clock(0.3, 0.1, 0.2, 0.5, 0.4))
    assert torch.equal(torch.get_rng_state(), before)
    assert algorithms == Algorithms("shifted", "products")
    assert found == {
        "convolution": {"convolution": 0.3, "shifted": 0.1},
        "gradient": {"products": 0.2, "convolution": 0.5, "shifted": 0.4},
    }


def test_a_way_that_does_not_run_here_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*_: object) -> Tensor:
        raise RuntimeError("Cannot find a working triton installation")

    monkeypatch.setattr(depthwise, "_compiled", lambda _: no_compiler)
    monkeypatch.setattr(depthwise, "MEASURED_TOKENS", 64)
    algorithms, found = fastest((CHANNELS, 1, 5, 5), 4, CPU, torch.float32, clock(0.3, 0.5, 0.2))
    assert algorithms == Algorithms("convolution", "convolution")
    assert found["convolution"]["shifted"] == found["gradient"]["shifted"] == math.inf
