"""The baseline: a plain ViT, which MAE pretrains by the same masks, decoder and loss as ConvMAE.

Papers: Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377; with it ConvMAE compares itself (arXiv
2205.03892, Tables 1 and 8, Figures 3 and 4). The network is timm's VisionTransformer (Apache-2.0).

A ViT is a ConvMAE without stages 1 and 2: its configuration has zeros there, its E1 and E2 have no channels, and what
stands around an encoder (classifier, decoder, checkpoints) is the same for both. It has no class token: MAE works
"similarly well without this token (with average pooling)" (its appendix A.1), and ConvMAE has none.

Shapes: B batch, H W the grid of 16 x 16-pixel patches, D width.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from convmae_deploy.models.convmae import (
    MODELS,
    PATCH_SIZE,
    STRIDES,
    ConvMAE,
    ConvMAEConfig,
    Variant,
    build_convmae,
)
from convmae_deploy.models.convolution import strided_convolution
from convmae_deploy.models.positions import sincos_position_embedding


def vit_nano() -> ConvMAEConfig:
    """Beside `nano`: 2.83M parameters where that has 2.67M at 128 pixels, and as many features for a linear probe."""
    return vit(width=192, depth=6, num_heads=6, image_size=(128, 128))


def vit_base() -> ConvMAEConfig:
    """ViT-B, the MAE of the paper's Table 1, beside `base`: 85.8M parameters where that has 84.6M."""
    return vit(width=768, depth=12, num_heads=12)


def vit(*, width: int, depth: int, num_heads: int, image_size: tuple[int, int] = (224, 224)) -> ConvMAEConfig:
    """The configuration of a plain ViT."""
    return ConvMAEConfig(
        embed_dims=(0, 0, width),
        depths=(0, 0, depth),
        mlp_ratios=(0, 0, 4),
        num_heads=num_heads,
        image_size=image_size,
    )


PhotoVariant = Literal[Variant, "vit_nano", "vit_base"]  # what is trained on photos: a baseline too
VITS: dict[str, Callable[[], ConvMAEConfig]] = {"vit_nano": vit_nano, "vit_base": vit_base}


def variant_config(variant: str, image_size: tuple[int, int] | None) -> ConvMAEConfig:
    """The architecture of a variant, for images of (height, width) pixels where a size is given."""
    config = (MODELS | VITS)[variant]()
    return config if image_size is None else replace(config, image_size=image_size)


class PatchProjection(nn.Module):
    """MAE's patch embedding: the convolution alone."""

    def __init__(self, projection: nn.Conv2d) -> None:
        super().__init__()
        self.proj = projection

    def forward(self, pixels_bhwc: Tensor) -> Tensor:
        """(B, H * 16, W * 16, 3) to (B, H, W, D)."""
        return strided_convolution(self.proj, pixels_bhwc)


class ViT(ConvMAE):
    """timm's ViT in the place of stage 3: what comes before it leaves pixels as they are."""

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        mlp_ratio: float,
        num_heads: int,
        grid_size: tuple[int, int],
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
    ) -> None:
        """
        Args:
            width: D.
            depth: blocks.
            mlp_ratio: hidden width / width of their MLPs.
            num_heads: attention heads.
            grid_size: (H, W) in tokens that the position embedding is stored for.
            in_chans: channels of the images.
            drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        """
        nn.Module.__init__(self)  # it shares what ConvMAE computes and none of its layers
        vit = VisionTransformer(
            img_size=(grid_size[0] * PATCH_SIZE, grid_size[1] * PATCH_SIZE),
            patch_size=PATCH_SIZE,
            in_chans=in_chans,
            num_classes=0,
            embed_dim=width,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            drop_path_rate=drop_path_rate,
        )
        self.in_chans = in_chans
        self.embed_dims = 0, 0, width
        self.grid_size = grid_size
        self.grad_checkpointing = False
        self.needs_positions = False
        self.blocks1, self.blocks2, self.blocks3 = nn.ModuleList(), nn.ModuleList(), nn.ModuleList(vit.blocks)
        self.patch_embed1 = self.patch_embed2 = self.patch_embed4 = nn.Identity()  # type: ignore[assignment]
        self.patch_embed3 = PatchProjection(vit.patch_embed.proj)  # type: ignore[assignment]
        self.pos_embed = nn.Parameter(sincos_position_embedding(width, grid_size))

    def forward(self, images_bchw: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, 3, H * 16, W * 16) to E1 and E2 without channels, E3 (B, D, H, W), E4 (B, D, H / 2, W / 2)."""
        _, _, e3, e4 = super().forward(images_bchw)
        batch, _, height, width = images_bchw.shape
        e1, e2 = (images_bchw.new_zeros(batch, 0, height // stride, width // stride) for stride in STRIDES[:2])
        return e1, e2, e3, e4


def build_encoder(config: ConvMAEConfig, *, in_chans: int = 3, drop_path_rate: float = 0.0) -> ConvMAE:
    """The encoder of a configuration, with fresh weights."""
    if config.has_stages:
        return build_convmae(config, in_chans=in_chans, drop_path_rate=drop_path_rate)
    return ViT(
        width=config.embed_dims[2],
        depth=config.depths[2],
        mlp_ratio=config.mlp_ratios[2],
        num_heads=config.num_heads,
        grid_size=config.grid_size,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
    )
