"""Feature pyramids against literal computations."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convmae_deploy.models.pyramid import NORMS, PYRAMIDS, FeaturePyramid, NormKind, PyramidKind, SimpleFeaturePyramid

DIMS = 4, 6, 8
CHANNELS = 5


def encoder_maps(height: int = 3, width: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """E1..E4 of two images of 32 * height by 32 * width pixels."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(DIMS[0], 8), (DIMS[1], 4), (DIMS[2], 2), (DIMS[2], 1)]
    e1, e2, e3, e4 = (torch.randn(2, dim, height * by, width * by, generator=generator) for dim, by in sizes)
    return e1, e2, e3, e4


def normed(layers: nn.Module, map_bchw: Tensor) -> Tensor:
    """A convolution and a LayerNorm over channels, eps 1e-6, written out."""
    convolution, norm = layers.children()
    map_bchw = convolution(map_bchw)
    mean = map_bchw.mean(dim=1, keepdim=True)
    variance = (map_bchw - mean).square().mean(dim=1, keepdim=True)
    weight, bias = (parameter.detach()[:, None, None] for parameter in norm.parameters())
    return (map_bchw - mean) / (variance + 1e-6).sqrt() * weight + bias


def moved(pyramid: nn.Module) -> nn.Module:
    """In float64, with norms that are not the identity."""
    with torch.no_grad():
        for parameter in pyramid.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return pyramid.eval().double()


@pytest.mark.parametrize("kind", ["fpn", "simple"])
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_levels_have_the_strides_and_one_width(kind: PyramidKind, norm: NormKind) -> None:
    levels = PYRAMIDS[kind](DIMS, CHANNELS, norm)(encoder_maps())
    sizes = [(24, 40), (12, 20), (6, 10), (3, 5), (2, 3)]
    assert [tuple(level.shape) for level in levels] == [(2, CHANNELS, *size) for size in sizes]
    assert torch.equal(levels[4], levels[3][:, :, ::2, ::2])


def test_fpn_adds_what_lies_above_to_each_lateral_map() -> None:
    torch.manual_seed(0)
    pyramid = moved(FeaturePyramid(DIMS, CHANNELS, "layer"))
    maps = tuple(level.double() for level in encoder_maps())
    lateral, output = (list(layers.children()) for layers in pyramid.children() if isinstance(layers, nn.ModuleList))
    total = normed(lateral[3], maps[3])
    expected = [normed(output[3], total)]
    for level in (2, 1, 0):
        total = normed(lateral[level], maps[level]) + total.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        expected.insert(0, normed(output[level], total))
    for found, right in zip(pyramid(maps)[:4], expected, strict=True):
        torch.testing.assert_close(found, right)


def test_the_simple_pyramid_computes_every_level_from_e3() -> None:
    torch.manual_seed(0)
    pyramid = moved(SimpleFeaturePyramid(DIMS, CHANNELS, "layer"))
    maps = tuple(level.double() for level in encoder_maps())
    first, norm, _, second, lateral, output = pyramid.get_submodule("p2").children()
    hidden = second(F.gelu(normed(nn.Sequential(first, norm), maps[2])))
    p2 = normed(output, normed(lateral, hidden))
    _, lateral, output = pyramid.get_submodule("p5").children()
    p5 = normed(output, normed(lateral, F.max_pool2d(maps[2], 2)))
    found = pyramid((maps[0] * 0, maps[1] * 0, maps[2], maps[3] * 0))
    torch.testing.assert_close(found[0], p2)
    torch.testing.assert_close(found[3], p5)


def test_convolutions_in_front_of_a_norm_have_no_bias() -> None:
    fpn = FeaturePyramid(DIMS, CHANNELS, "batch")
    assert all(module.bias is None for module in fpn.modules() if isinstance(module, nn.Conv2d))
    assert sum(isinstance(module, nn.BatchNorm2d) for module in fpn.modules()) == 8
    assert "eps=1e-06" in repr(NORMS["layer"](3))
