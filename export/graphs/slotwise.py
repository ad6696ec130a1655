"""3-D depthwise convolutions as sums of 2-D ones over the slots of a clip, for the exported graph.

It is the same sum in another order. ONNX Runtime has a fast 2-D depthwise convolution on the CPU and none in 3-D: on
8 x 56 x 56 places of 256 channels with a kernel of 3 x 5 x 5 the latter takes 67 ms, this 37 ms; on 8 x 28 x 28 places
of 384 channels 29 and 14 (medians of 12 runs in turn, two cores, layout changes included, of which most of the 37 are).
A ConvMAE-B takes 1.70 s instead of 1.82 for a clip of 16 x 224 x 224 (the fastest of 12 runs in turn, shared cores).
PyTorch is faster in 3-D, so nothing but the graph is written so.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class SlotwiseConvolution(nn.Module):
    """What a depthwise `nn.Conv3d` with zero padding that keeps the size computes, one place of its depth at a time."""

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, map_bcthw: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same."""
        weight, bias = self.convolution.weight, self.convolution.bias  # (C, 1, d, k, k)
        channels, _, depth, height, width = weight.shape
        reach, slots = depth // 2, map_bcthw.shape[2]
        padded = F.pad(map_bcthw.transpose(1, 2), (0, 0, 0, 0, 0, 0, reach, reach))  # (B, T + d - 1, C, H, W)
        total: Tensor | None = None
        for place in range(depth):
            part = F.conv2d(
                padded[:, place : place + slots].flatten(0, 1),
                weight[:, :, place],
                bias if place == reach else None,
                padding=(height // 2, width // 2),
                groups=channels,
            )
            total = part if total is None else total + part
        assert total is not None
        return total.unflatten(0, (-1, slots)).transpose(1, 2)  # type: ignore[no-any-return, no-untyped-call]


def replace_depthwise_3d(model: nn.Module) -> None:
    """Puts `SlotwiseConvolution` in place of every depthwise `nn.Conv3d` of a model."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv3d) and child.groups == child.in_channels == child.out_channels:
                setattr(module, name, SlotwiseConvolution(child))
