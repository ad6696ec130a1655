"""Feature pyramids: from the encoder's maps to P2..P6 of one width, at strides 4, 8, 16, 32, 64.

Sources: FPN (arXiv 1612.03144) and ViTDet's simple feature pyramid (arXiv 2203.16527) as in the authors' two detection
repositories (Alpha-VL/ConvMAE, MIT; Alpha-VL/Official-ConvMAE-Det, Apache-2.0). An independent implementation.

Shapes: B batch, C1 C2 D the encoder's channels, P the pyramid's, H W the image.
"""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

PYRAMID_STRIDES = (4, 8, 16, 32, 64)  # pixels per cell of P2..P6

PyramidKind = Literal["fpn", "simple"]
NormKind = Literal["batch", "layer"]
NORMS: dict[NormKind, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "layer": LayerNorm2d,  # over channels, eps 1e-6, one layer_norm on channels-last maps
}


class FeaturePyramid(FeaturePyramidNetwork):  # type: ignore[misc]  # torchvision is untyped
    """FPN: lateral 1x1, nearest upsampling from above, output 3x3; each convolution with a norm and without a bias."""

    def __init__(self, embed_dims: tuple[int, int, int], channels: int, norm: NormKind) -> None:
        """
        Args:
            embed_dims: C1, C2, D of the encoder.
            channels: P.
            norm: behind every convolution.
        """
        dim1, dim2, dim3 = embed_dims
        super().__init__([dim1, dim2, dim3, dim3], channels, LastLevelMaxPool(), NORMS[norm])

    def forward(self, maps: tuple[Tensor, Tensor, Tensor, Tensor]) -> list[Tensor]:
        """E1..E4 to P2..P6, (B, P, H/4, W/4) to (B, P, H/64, W/64), the last rounded up."""
        return list(super().forward(dict(enumerate(maps))).values())


class SimpleFeaturePyramid(nn.Module):
    """ViTDet's pyramid: every level comes from E3 alone, by transposed convolutions or a maximum over 2x2 cells."""

    def __init__(self, embed_dims: tuple[int, int, int], channels: int, norm: NormKind) -> None:
        """
        Args:
            embed_dims: C1, C2, D of the encoder; the first two are not used.
            channels: P.
            norm: behind every convolution that is not transposed.
        """
        super().__init__()
        width = embed_dims[2]
        half, quarter = width // 2, width // 4
        normed = NORMS[norm]

        def level(in_channels: int, *scaling: nn.Module) -> nn.Sequential:
            lateral = Conv2dNormActivation(in_channels, channels, 1, norm_layer=normed, activation_layer=None)
            output = Conv2dNormActivation(channels, channels, 3, norm_layer=normed, activation_layer=None)
            return nn.Sequential(*scaling, lateral, output)

        self.p2 = level(
            quarter,
            nn.ConvTranspose2d(width, half, 2, stride=2),
            normed(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, stride=2),
        )
        self.p3 = level(half, nn.ConvTranspose2d(width, half, 2, stride=2))
        self.p4 = level(width)
        self.p5 = level(width, nn.MaxPool2d(2))

    def forward(self, maps: tuple[Tensor, Tensor, Tensor, Tensor]) -> list[Tensor]:
        """E1..E4 to P2..P6, (B, P, H/4, W/4) to (B, P, H/64, W/64), the last rounded up."""
        e3 = maps[2]
        p5 = self.p5(e3)
        return [self.p2(e3), self.p3(e3), self.p4(e3), p5, F.max_pool2d(p5, 1, stride=2)]


PYRAMIDS: dict[PyramidKind, Callable[[tuple[int, int, int], int, NormKind], nn.Module]] = {
    "fpn": FeaturePyramid,
    "simple": SimpleFeaturePyramid,
}
