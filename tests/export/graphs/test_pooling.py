"""Pooling by matrices is adaptive pooling."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convmae_deploy.models.convmae import ConvMAEConfig
from convmae_deploy.models.segmenter import SegmenterConfig, build_segmenter
from export.graphs.pooling import MatrixPooling, pooling_matrix, replace_adaptive_pooling


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(16, 16), (15, 15), (7, 11), (4, 5), (2, 1)])
def test_matrices_pool_as_torch_does_also_where_bins_overlap(bins: int, size: tuple[int, int]) -> None:
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    rows, columns = (pooling_matrix(side, bins).double() for side in size)
    found = rows @ image @ columns.t()
    torch.testing.assert_close(found, F.adaptive_avg_pool2d(image, bins), rtol=1e-6, atol=1e-6)
    assert torch.equal(MatrixPooling(bins)(image), found)


def test_a_bin_of_unequal_size_averages_its_own_cells() -> None:
    expected = torch.tensor([[1.0, 1, 1, 0, 0], [0, 0, 1, 1, 1]]) / 3
    torch.testing.assert_close(pooling_matrix(5, 2), expected)


@torch.no_grad()
def test_a_segmenter_computes_the_same_with_matrices() -> None:
    architecture = ConvMAEConfig(
        embed_dims=(8, 8, 16), depths=(1, 1, 1), mlp_ratios=(2, 2, 2), num_heads=2, image_size=(96, 160)
    )
    model = build_segmenter(architecture, SegmenterConfig(channels=8, auxiliary_channels=8), num_classes=4).eval()
    images = torch.randn(2, 3, 96, 160)
    expected = model(images)
    replace_adaptive_pooling(model)
    assert not any(isinstance(module, nn.AdaptiveAvgPool2d) for module in model.modules())
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)
