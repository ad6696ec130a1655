"""3-D depthwise convolutions as sums of 2-D ones."""

import pytest
import torch
from torch import nn

from convmae_deploy.models.convmae import depthwise_layer
from export.graphs.slotwise import SlotwiseConvolution, replace_depthwise_3d


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_a_sum_over_the_depth_is_the_3d_convolution(depth: int) -> None:
    torch.manual_seed(0)
    convolution = depthwise_layer(6, 5, depth).double()
    assert isinstance(convolution, nn.Conv3d)
    clips = torch.randn(2, 6, 4, 8, 12, dtype=torch.float64)
    found = SlotwiseConvolution(convolution)(clips)
    torch.testing.assert_close(found, convolution(clips), rtol=0, atol=1e-12)


def test_only_depthwise_3d_convolutions_are_replaced() -> None:
    model = nn.ModuleDict(
        {
            "embedding": nn.Conv3d(3, 6, (2, 4, 4), stride=(2, 4, 4)),
            "slots": depthwise_layer(6, 5, 3),
            "photos": depthwise_layer(6, 5, None),
            "block": nn.Sequential(depthwise_layer(6, 3, 1)),
        }
    )
    replace_depthwise_3d(model)
    replaced = {name for name, module in model.named_modules() if isinstance(module, SlotwiseConvolution)}
    assert replaced == {"slots", "block.0"}
