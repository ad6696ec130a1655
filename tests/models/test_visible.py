"""Maps of visible cells: to whole maps and back, and the convolution that looks at neighbours."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convmae_deploy.models import depthwise as depthwise_module
from convmae_deploy.models.depthwise import CONVOLUTIONS, GRADIENTS, Algorithms
from convmae_deploy.models.visible import VisibleCells, VisibleTubes
from tests.original_files import relative_error

TOLERANCE = 1e-12  # relative, in float64
CHANNELS = 3


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def depthwise(kernel_size: int) -> nn.Conv2d:
    torch.manual_seed(1)
    return nn.Conv2d(CHANNELS, CHANNELS, kernel_size, padding=kernel_size // 2, groups=CHANNELS, dtype=torch.float64)


def every_set(grid_size: tuple[int, int], size: int) -> VisibleCells:
    """A batch that holds every set of `size` visible cells, one an image: single, scattered, at the border, all."""
    return VisibleCells(torch.tensor(list(combinations(range(grid_size[0] * grid_size[1]), size))), grid_size)


def by_scattering(visible: VisibleCells, convolution: nn.Conv2d, cells_mssc: Tensor) -> Tensor:
    """The literal computation: the map with zeros where cells are hidden, PyTorch's convolution, the visible cells."""
    map_bchw = visible.scatter(cells_mssc).permute(0, 3, 1, 2)
    return visible.gather(convolution(map_bchw).permute(0, 2, 3, 1), cells_mssc.shape[1])


def gradients(result: Tensor, convolution: nn.Conv2d, cells_mssc: Tensor) -> dict[str, Tensor]:
    assert convolution.bias is not None
    inputs = {"cells": cells_mssc, "weight": convolution.weight, "bias": convolution.bias}
    found = torch.autograd.grad(result, list(inputs.values()), noise(*result.shape, seed=3))
    return dict(zip(inputs, found, strict=True))


def assert_equals_scattering(visible: VisibleCells, side: int, kernel_size: int) -> None:
    convolution = depthwise(kernel_size)
    cells = noise(visible.kept.numel(), side, side, CHANNELS).requires_grad_()
    found, expected = visible.depthwise(convolution, cells), by_scattering(visible, convolution, cells)
    assert relative_error(found, expected) <= TOLERANCE
    found_gradients = gradients(found, convolution, cells)
    for name, gradient in gradients(expected, convolution, cells).items():
        assert relative_error(found_gradients[name], gradient) <= TOLERANCE, name


@pytest.mark.parametrize("kernel_size", [5, 7, 9])
@pytest.mark.parametrize("side", [4, 2, 1])
@pytest.mark.parametrize("grid_size", [(3, 3), (2, 4), (4, 2), (1, 5)])
def test_the_convolution_of_any_visible_cells_is_that_of_the_scattered_map(
    grid_size: tuple[int, int], side: int, kernel_size: int
) -> None:
    cells = grid_size[0] * grid_size[1]
    for size in range(1, cells + 1):
        assert_equals_scattering(every_set(grid_size, size), side, kernel_size)


def test_cells_that_are_out_of_reach_of_one_another_are_convolved_alone() -> None:
    convolution, cells = depthwise(5), noise(2, 2, 2, CHANNELS)
    together = VisibleCells(torch.tensor([[0, 3]]), (1, 4)).depthwise(convolution, cells)
    alone = [VisibleCells(torch.tensor([[0]]), (1, 1)).depthwise(convolution, cell.unsqueeze(0)) for cell in cells]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=TOLERANCE)


def test_the_same_cells_serve_maps_and_kernels_of_several_sizes() -> None:
    visible = VisibleCells(torch.tensor([[0, 1, 4], [1, 3, 5]]), (2, 3))
    for side, kernel_size in ((4, 5), (2, 5), (4, 7), (4, 5)):
        assert_equals_scattering(visible, side, kernel_size)


def test_the_order_of_the_cells_is_that_in_which_they_are_named() -> None:
    ascending, other = (VisibleCells(torch.tensor([order]), (2, 3)) for order in ((0, 1, 3, 5), (5, 0, 3, 1)))
    map_bhwc, convolution = noise(1, 8, 12, CHANNELS), depthwise(5)
    order = [3, 0, 2, 1]
    assert torch.equal(other.gather(map_bhwc, 4), ascending.gather(map_bhwc, 4)[order])
    assert torch.equal(other.scatter(other.gather(map_bhwc, 4)), ascending.scatter(ascending.gather(map_bhwc, 4)))
    assert torch.equal(
        other.depthwise(convolution, other.gather(map_bhwc, 4)),
        ascending.depthwise(convolution, ascending.gather(map_bhwc, 4))[order],
    )


@pytest.mark.parametrize("trained", ["cells", "weight"])
def test_a_gradient_does_not_depend_on_whether_others_are_wanted(trained: str) -> None:
    visible, convolution = every_set((2, 3), 3), depthwise(5)
    cells = noise(visible.kept.numel(), 2, 2, CHANNELS).requires_grad_()
    expected = gradients(visible.depthwise(convolution, cells), convolution, cells)[trained]
    convolution.requires_grad_(trained == "weight")
    alone = cells if trained == "cells" else cells.detach()
    result = visible.depthwise(convolution, alone)
    wanted = cells if trained == "cells" else convolution.weight
    (found,) = torch.autograd.grad(result, wanted, noise(*result.shape, seed=3))
    assert torch.equal(found, expected)


def test_cells_in_bfloat16_are_convolved_in_bfloat16() -> None:
    visible, convolution = every_set((2, 3), 3), depthwise(5).float()
    cells = noise(visible.kept.numel(), 2, 2, CHANNELS)
    found = visible.depthwise(convolution, cells.bfloat16())
    assert found.dtype == torch.bfloat16
    assert relative_error(found, visible.depthwise(convolution, cells.float())) <= 0.02


@pytest.mark.parametrize("side", [4, 2, 1])
def test_gathered_cells_are_cut_from_the_map(side: int) -> None:
    kept = torch.tensor([[0, 5], [2, 3]])
    map_bhwc = noise(2, 2 * side, 3 * side, CHANNELS)
    expected = []
    for image, cells in enumerate(kept.tolist()):
        for cell in cells:
            top, left = cell // 3 * side, cell % 3 * side
            expected.append(map_bhwc[image, top : top + side, left : left + side])
    assert torch.equal(VisibleCells(kept, (2, 3)).gather(map_bhwc, side), torch.stack(expected))


@pytest.mark.parametrize("side", [4, 2, 1])
def test_scattering_gathered_cells_leaves_the_map_with_zeros_at_hidden_ones(side: int) -> None:
    visible = every_set((2, 3), 2)
    map_bhwc = noise(len(visible.kept), 2 * side, 3 * side, CHANNELS)
    cells = visible.gather(map_bhwc, side)
    removed = visible.removed().reshape(-1, 2, 3, 1)
    for axis in (1, 2):
        removed = removed.repeat_interleave(side, axis)
    assert torch.equal(visible.scatter(cells), torch.where(removed == 1, 0.0, map_bhwc))
    assert torch.equal(visible.gather(visible.scatter(cells), side), cells)


def test_the_gradient_of_gathering_is_scattering_and_the_other_way_round() -> None:
    visible = every_set((2, 3), 3)
    map_bhwc = noise(len(visible.kept), 8, 12, CHANNELS).requires_grad_()
    cells = noise(visible.kept.numel(), 4, 4, CHANNELS, seed=1).requires_grad_()
    (gathered,) = torch.autograd.grad(visible.gather(map_bhwc, 4), map_bhwc, cells.detach())
    (scattered,) = torch.autograd.grad(visible.scatter(cells), cells, map_bhwc.detach())
    assert torch.equal(gathered, visible.scatter(cells))
    assert torch.equal(scattered, visible.gather(map_bhwc, 4))


def test_the_mask_is_one_where_a_cell_is_removed() -> None:
    removed = VisibleCells(torch.tensor([[1, 4], [5, 0]]), (2, 3)).removed()
    assert removed.dtype == torch.float32
    assert removed.tolist() == [[1, 0, 1, 1, 0, 1], [0, 1, 1, 1, 1, 0]]


def every_tube(grid_size: tuple[int, int], size: int) -> VisibleTubes:
    """As `every_set`, of videos."""
    return VisibleTubes(torch.tensor(list(combinations(range(grid_size[0] * grid_size[1]), size))), grid_size)


def depthwise_3d(depth: int, kernel_size: int) -> nn.Conv3d:
    torch.manual_seed(1)
    kernel, padding = (depth, kernel_size, kernel_size), (depth // 2, kernel_size // 2, kernel_size // 2)
    return nn.Conv3d(CHANNELS, CHANNELS, kernel, padding=padding, groups=CHANNELS, dtype=torch.float64)


@pytest.mark.parametrize("depth", [1, 3, 5])
@pytest.mark.parametrize(("side", "kernel_size"), [(4, 5), (2, 5), (1, 7)])
@pytest.mark.parametrize("slots", [1, 2, 4])
def test_the_convolution_of_any_visible_tubes_is_that_of_the_scattered_video(
    slots: int, side: int, kernel_size: int, depth: int
) -> None:
    for size in range(1, 7):
        visible = every_tube((2, 3), size)
        convolution = depthwise_3d(depth, kernel_size)
        tubes = noise(visible.kept.numel(), slots, side, side, CHANNELS).requires_grad_()
        whole = convolution(visible.scatter(tubes).permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
        found, expected = visible.depthwise(convolution, tubes), visible.gather(whole, side)
        assert relative_error(found, expected) <= TOLERANCE
        assert convolution.bias is not None
        inputs = (tubes, convolution.weight, convolution.bias)
        upstream = noise(*found.shape, seed=3)
        for each, other in zip(
            torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
        ):
            assert relative_error(each, other) <= TOLERANCE


def test_tubes_are_the_cells_of_every_slot() -> None:
    cells = VisibleCells(torch.tensor([[4, 1], [0, 5]]), (2, 3))
    tubes = VisibleTubes(cells.kept, (2, 3))
    video = noise(2, 3, 8, 12, CHANNELS)
    gathered = tubes.gather(video, 4)
    for slot in range(3):
        assert torch.equal(gathered[:, slot], cells.gather(video[:, slot], 4))
        assert torch.equal(tubes.scatter(gathered)[:, slot], cells.scatter(gathered[:, slot]))


def test_the_ways_that_are_given_compute_the_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []

    def noted(name: str, way: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*given: Any) -> Tensor:
            used.append(name)
            return way(*given)

        return run

    monkeypatch.setitem(CONVOLUTIONS, "shifted", noted("shifted", CONVOLUTIONS["shifted"]))
    monkeypatch.setitem(GRADIENTS, "convolution", noted("convolution", GRADIENTS["convolution"]))
    monkeypatch.setattr(depthwise_module, "_compiled", lambda function: function)
    convolution, cells = depthwise(5), noise(4, 2, 2, CHANNELS).requires_grad_()
    kept = torch.tensor([[0, 1], [2, 0]])
    results = [
        VisibleCells(kept, (1, 3), *algorithms).depthwise(convolution, cells)
        for algorithms in ((), (Algorithms("shifted", "convolution"),))
    ]
    assert used == ["shifted"]
    found, expected = (gradients(result, convolution, cells) for result in reversed(results))
    assert used == ["shifted", "shifted", "convolution"]
    assert relative_error(*reversed(results)) <= TOLERANCE
    for name, gradient in expected.items():
        assert relative_error(found[name], gradient) <= TOLERANCE, name
