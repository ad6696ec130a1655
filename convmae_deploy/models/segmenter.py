"""Semantic segmentation: the ConvMAE encoder with an UperNet head and an auxiliary FCN head.

Paper: Unified Perceptual Parsing for Scene Understanding (UperNet), arXiv 1807.10221; with ConvMAE: arXiv 2205.03892.
Authors' code and weights: the SEG folder of the Alpha-VL/ConvMAE repository, MIT, on mmsegmentation. This file is an
independent implementation; modules are named as in the authors' files.

Shapes: B batch, C channels of the heads, D width of stage 3, K classes, H W the image, h w a map's grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convmae import ConvMAE, ConvMAEConfig, DenseConfig, build_convmae
from convmae_deploy.models.initialisation import initialise_scratch

HEAD_INIT_STD = 0.01  # for the layers that give the logits, as in mmsegmentation

E4Form = Literal["maxpool", "convolution"]


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig:
    """What stands on the encoder. The defaults are the paper's.

    Raises:
        ConvMAEError: a number is out of range.
    """

    channels: int = 768  # width of the UperNet head
    auxiliary_channels: int = 256  # width of the FCN head on E3, for training alone
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)  # sides in bins of the maps that E4 is pooled to
    dropout: float = 0.1  # share of channels dropped in front of the logits
    # E4 is max-pooled E3 in the paper (figure 2), and in the authors' code a 3x3 convolution with stride 2 and without
    # padding, BatchNorm and GELU: 32 x 32 tokens become 15 x 15
    e4: E4Form = "maxpool"

    def __post_init__(self) -> None:
        numbers = (self.channels, self.auxiliary_channels, *self.pool_scales)
        if min(numbers) < 1 or not self.pool_scales:
            raise ConvMAEError(f"channels, auxiliary_channels and pool_scales must be at least 1; got {numbers}")
        if not 0 <= self.dropout < 1:
            raise ConvMAEError(f"dropout must be at least 0 and less than 1; got {self.dropout}")


def authors_dense() -> DenseConfig:
    """What the authors' segmentation code changes in stage 3, where the paper keeps it as it is."""
    return DenseConfig(relative_position="per_block", layer_scale=True, transformer_norm_eps=1e-5)


class NormedConvolution(nn.Module):
    """Convolution without bias, BatchNorm, ReLU; the grid stays as it is."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        nn.init.xavier_uniform_(self.conv.weight)  # as the paper says; the authors' mmseg starts from Kaiming's

    def forward(self, map_bchw: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(map_bchw)))


class UperHead(nn.Module):
    """Pyramid pooling of E4, a feature pyramid over E1-E4, and their fusion at the grid of E1."""

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        num_classes: int,
        *,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
    ) -> None:
        """
        Args:
            in_channels: of E1, E2, E3, E4.
            channels: C.
            num_classes: K.
            pool_scales: sides in bins of the pooled maps.
            dropout: share of channels dropped in front of the logits.
        """
        super().__init__()
        *lower, top = in_channels
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), NormedConvolution(top, channels, 1)) for scale in pool_scales
        )
        self.bottleneck = NormedConvolution(top + len(pool_scales) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(NormedConvolution(width, channels, 1) for width in lower)
        self.fpn_convs = nn.ModuleList(NormedConvolution(channels, channels, 3) for _ in lower)
        self.fpn_bottleneck = NormedConvolution(len(in_channels) * channels, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = logits_layer(channels, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """E1-E4 to logits (B, K, H / 4, W / 4)."""
        laterals = [lateral(level) for lateral, level in zip(self.lateral_convs, maps[:-1], strict=True)]
        laterals.append(self.pool_pyramid(maps[-1]))
        for level in range(len(laterals) - 1, 0, -1):  # from the coarsest down, each adds to the next finer one
            laterals[level - 1] = laterals[level - 1] + resize_like(laterals[level], laterals[level - 1])
        levels = [convolution(lateral) for convolution, lateral in zip(self.fpn_convs, laterals[:-1], strict=True)]
        levels.append(laterals[-1])
        finest, *coarser = levels
        same = [finest, *(resize_like(level, finest) for level in coarser)]
        fused = self.fpn_bottleneck(torch.cat(same, dim=1))
        return self.conv_seg(self.dropout(fused))  # type: ignore[no-any-return]

    def pool_pyramid(self, e4_bdhw: Tensor) -> Tensor:
        """E4 (B, D, h, w) beside its pooled maps, fused to (B, C, h, w)."""
        pooled = [resize_like(pooling(e4_bdhw), e4_bdhw) for pooling in self.psp_modules]
        return self.bottleneck(torch.cat([e4_bdhw, *pooled], dim=1))  # type: ignore[no-any-return]


class AuxiliaryHead(nn.Module):
    """A small FCN on E3 whose loss helps the encoder to learn; use does not need it."""

    def __init__(self, in_channels: int, channels: int, num_classes: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.convs = nn.ModuleList([NormedConvolution(in_channels, channels, 3)])
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = logits_layer(channels, num_classes)

    def forward(self, e3_bdhw: Tensor) -> Tensor:
        """E3 (B, D, H / 16, W / 16) to logits (B, K, H / 16, W / 16)."""
        return self.conv_seg(self.dropout(self.convs[0](e3_bdhw)))  # type: ignore[no-any-return]


class ConvMAESegmenter(nn.Module):
    """Encoder, UperNet head, auxiliary head."""

    def __init__(self, encoder: ConvMAE, segmenter: SegmenterConfig, num_classes: int) -> None:
        """
        Args:
            encoder: the backbone.
            segmenter: widths of the heads and the form of E4.
            num_classes: K.
        """
        super().__init__()
        width = encoder.embed_dims[2]
        self.num_classes = num_classes
        self.encoder = encoder
        self.downsample = unpadded_downsampling(width) if segmenter.e4 == "convolution" else None
        self.decode_head = UperHead(
            (*encoder.embed_dims, width),
            segmenter.channels,
            num_classes,
            pool_scales=segmenter.pool_scales,
            dropout=segmenter.dropout,
        )
        self.auxiliary_head = AuxiliaryHead(width, segmenter.auxiliary_channels, num_classes, dropout=segmenter.dropout)

    def forward(self, images_bchw: Tensor, auxiliary: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """(B, 3, H, W), normalised, sides multiples of 32, to logits (B, K, H / 4, W / 4).

        With `auxiliary` what `forward_training` gives; so that a wrapped model (DDP) gives it as well.

        Raises:
            ConvMAEError: a side is no multiple of 32, or with the authors' form of E4 less than 64.
        """
        if auxiliary:
            return self.forward_training(images_bchw)
        return self.decode_head(self.forward_features(images_bchw))  # type: ignore[no-any-return]

    def forward_training(self, images_bchw: Tensor) -> tuple[Tensor, Tensor]:
        """The logits (B, K, H / 4, W / 4), and those of the auxiliary head (B, K, H / 16, W / 16)."""
        maps = self.forward_features(images_bchw)
        return self.decode_head(maps), self.auxiliary_head(maps[2])

    def forward_features(self, images_bchw: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, 3, H, W) to E1, E2, E3 (B, D, H / 16, W / 16) and the E4 of the config."""
        e1, e2, e3, e4 = self.encoder(images_bchw)
        if self.downsample is None:
            return e1, e2, e3, e4
        if min(e3.shape[-2:]) < 3:
            raise ConvMAEError(
                "the authors' form of E4 needs images of at least 64 x 64 pixels; "
                f"got {images_bchw.shape[-2]} x {images_bchw.shape[-1]}"
            )
        return e1, e2, e3, self.downsample(e3)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block of the encoder in the backward pass instead of keeping its activations."""
        self.encoder.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that decay leaves alone besides one-dimensional ones.

        None: the authors' code means to spare the position embedding but compares another name, so it is decayed.
        """
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's parameter groups by depth: all before stage 3 is the stem; the heads match nothing and come last."""
        return {
            "stem": r"^encoder\.(?:pos_embed|patch_embed\d|blocks[12])",
            "blocks": r"^encoder\.blocks3\.(\d+)",
        }


def logits_layer(channels: int, num_classes: int) -> nn.Conv2d:
    """A 1x1 convolution with small weights, so that all classes are about equally likely at first."""
    layer = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(layer.weight, std=HEAD_INIT_STD)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def unpadded_downsampling(width: int) -> nn.Sequential:
    """The authors' E4: (B, D, h, w) to (B, D, (h - 1) // 2, (w - 1) // 2)."""
    return nn.Sequential(nn.Conv2d(width, width, 3, stride=2), nn.BatchNorm2d(width), nn.GELU())


def resize_like(map_bchw: Tensor, target_bchw: Tensor) -> Tensor:
    """The map on the grid of another one, bilinearly, corners not aligned."""
    return F.interpolate(map_bchw, size=target_bchw.shape[-2:], mode="bilinear", align_corners=False)


def build_segmenter(
    config: ConvMAEConfig, segmenter: SegmenterConfig, *, num_classes: int, drop_path_rate: float = 0.0
) -> ConvMAESegmenter:
    """The segmenter of a configuration, with fresh weights."""
    encoder = build_convmae(config, drop_path_rate=drop_path_rate)
    initialise_scratch(encoder)
    return ConvMAESegmenter(encoder, segmenter, num_classes)
