"""Convolutions by matrix products equal PyTorch's own, in values and in gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convmae_deploy.models import convolution as module
from convmae_deploy.models.convolution import cube_convolution, depthwise_convolution, strided_convolution
from tests.original_files import relative_error

TOLERANCE = 1e-12  # relative, in float64
Layer = nn.Conv2d | nn.Conv3d
Operation = Callable[[Any, Tensor], Tensor]


def torch_convolution(convolution: Layer, map_mhwc: Tensor) -> Tensor:
    result: Tensor = convolution(map_mhwc.movedim(-1, 1)).movedim(1, -1)
    return result


def seeded_map(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


def depthwise(channels: int, kernel_size: int) -> nn.Conv2d:
    torch.manual_seed(1)
    return nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, dtype=torch.float64)


def depthwise_3d(channels: int, depth: int, kernel_size: int) -> nn.Conv3d:
    torch.manual_seed(1)
    kernel, padding = (depth, kernel_size, kernel_size), (depth // 2, kernel_size // 2, kernel_size // 2)
    return nn.Conv3d(channels, channels, kernel, padding=padding, groups=channels, dtype=torch.float64)


def values_and_gradients(operation: Operation, convolution: Layer, map_mhwc: Tensor) -> dict[str, Tensor]:
    """The result, and the gradients of its sum weighted by noise."""
    result = operation(convolution, map_mhwc)
    upstream = torch.randn(result.shape, dtype=result.dtype, generator=torch.Generator().manual_seed(2))
    bias = convolution.bias
    assert bias is not None
    gradients = torch.autograd.grad(result, (map_mhwc, convolution.weight, bias), upstream)
    return dict(zip(("value", "map", "weight", "bias"), (result.detach(), *gradients), strict=True))


def assert_equals_torch(operation: Operation, convolution: Layer, map_mhwc: Tensor) -> None:
    found = values_and_gradients(operation, convolution, map_mhwc)
    for name, expected in values_and_gradients(torch_convolution, convolution, map_mhwc).items():
        assert relative_error(found[name], expected) <= TOLERANCE, name


def refuse(*arguments: object) -> Tensor:
    raise AssertionError("the operation with gradients of this project was used")


@pytest.mark.parametrize("patch", [2, 4])
@pytest.mark.parametrize(("maps", "height", "width"), [(1, 1, 1), (3, 2, 3), (2, 4, 1)])
def test_a_strided_convolution_equals_torch(patch: int, maps: int, height: int, width: int) -> None:
    torch.manual_seed(1)
    convolution = nn.Conv2d(5, 7, patch, stride=patch, dtype=torch.float64)
    assert_equals_torch(strided_convolution, convolution, seeded_map(maps, height * patch, width * patch, 5))


@pytest.mark.parametrize("kernel_size", [1, 5, 7, 9])
@pytest.mark.parametrize(("maps", "height", "width"), [(1, 4, 4), (2, 8, 12), (3, 12, 4)])
def test_a_depthwise_convolution_equals_torch(kernel_size: int, maps: int, height: int, width: int) -> None:
    assert_equals_torch(depthwise_convolution, depthwise(3, kernel_size), seeded_map(maps, height, width, 3))


@pytest.mark.parametrize("patch", [2, 4])
@pytest.mark.parametrize(("maps", "slots", "height", "width"), [(1, 1, 1, 1), (3, 4, 2, 3), (2, 2, 4, 1)])
def test_a_convolution_of_cubes_equals_torch(patch: int, maps: int, slots: int, height: int, width: int) -> None:
    torch.manual_seed(1)
    cube = (2, patch, patch)
    convolution = nn.Conv3d(3, 7, cube, stride=cube, dtype=torch.float64)
    assert_equals_torch(cube_convolution, convolution, seeded_map(maps, 2 * slots, height * patch, width * patch, 3))


@pytest.mark.parametrize(("depth", "kernel_size"), [(1, 5), (3, 5), (5, 3), (3, 1), (7, 3)])
@pytest.mark.parametrize(
    ("maps", "slots", "height", "width"), [(1, 1, 4, 4), (2, 2, 8, 12), (3, 8, 12, 4), (1, 5, 4, 8)]
)
def test_a_depthwise_convolution_over_space_and_time_equals_torch(
    depth: int, kernel_size: int, maps: int, slots: int, height: int, width: int
) -> None:
    convolution = depthwise_3d(3, depth, kernel_size)
    assert_equals_torch(depthwise_convolution, convolution, seeded_map(maps, slots, height, width, 3))


def test_a_map_whose_memory_is_in_another_order_gives_the_same() -> None:
    transposed = seeded_map(2, 3, 8, 4).permute(0, 3, 2, 1)  # (2, 4, 8, 3)
    assert_equals_torch(depthwise_convolution, depthwise(3, 5), transposed)
    assert_equals_torch(strided_convolution, nn.Conv2d(3, 6, 4, stride=4, dtype=torch.float64), transposed)


def test_gradients_of_this_project_are_used_where_a_map_is_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._Depthwise, "apply", refuse)
    with pytest.raises(AssertionError, match="gradients of this project"):
        depthwise_convolution(depthwise(3, 5), seeded_map(1, 8, 8, 3))


def test_without_gradients_the_plain_convolution_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._Depthwise, "apply", refuse)
    convolution, map_mhwc = depthwise(3, 5), seeded_map(1, 8, 8, 3)
    expected = torch_convolution(convolution, map_mhwc)
    with torch.no_grad():
        assert torch.equal(depthwise_convolution(convolution, map_mhwc * 1), expected)
    with torch.inference_mode():
        assert torch.equal(depthwise_convolution(convolution, map_mhwc * 1), expected)


def test_a_map_without_a_gradient_leaves_that_of_the_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._Depthwise, "apply", refuse)
    convolution, map_mhwc = depthwise(3, 5), seeded_map(1, 8, 8, 3)
    (found,) = torch.autograd.grad(
        depthwise_convolution(convolution, map_mhwc.detach()).square().sum(), convolution.weight
    )
    (expected,) = torch.autograd.grad(torch_convolution(convolution, map_mhwc).square().sum(), convolution.weight)
    assert relative_error(found, expected) <= TOLERANCE


def test_a_map_in_bfloat16_is_convolved_in_bfloat16() -> None:
    convolution, map_mhwc = depthwise(3, 5).float(), seeded_map(1, 8, 8, 3)
    expected = torch_convolution(convolution, map_mhwc.float())
    found = depthwise_convolution(convolution, map_mhwc.bfloat16())
    assert found.dtype == torch.bfloat16
    assert relative_error(found, expected) <= 0.02
