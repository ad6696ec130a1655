"""The ConvMAE backbone: two convolutional stages, one transformer stage, four feature maps.

Paper: ConvMAE: Masked Convolution Meets Masked Autoencoders, arXiv 2205.03892 (NeurIPS 2022, as MCMAE).
Authors' code and weights: the Alpha-VL/ConvMAE repository, MIT. This file is an independent implementation; where paper
and code disagree it follows the code, which made the published weights, and says so.

Shapes: B batch, C channels of a stage, H W its grid, N = H * W tokens, D width of stage 3.
Inside the network maps are channels-last (B, H, W, C), so that every pointwise layer is a Linear; features that leave
it are (B, C, H, W). The stages take whole maps, or maps (M, s, s, C) of the visible cells alone (`models.visible`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.layers.layer_scale import LayerScale
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.attention import (
    Attention,
    DecomposedRelativePosition,
    Positions,
    RelativePosition,
    RelativePositionTable,
)
from convmae_deploy.models.convolution import depthwise_convolution, strided_convolution
from convmae_deploy.models.positions import resize_position_embedding, sincos_position_embedding
from convmae_deploy.models.visible import VisibleCells

STRIDES = (4, 8, 16, 32)  # pixels per cell of E1, E2, E3, E4
MAX_IMAGE_SIDE = 4096  # pixels, as in a bundle's manifest
PATCH_SIZE = 16  # pixels along the side of a stage-3 token, the cell that masking hides as a whole
CONV_NORM_EPS = 1e-5  # patch embeddings and convolution blocks: PyTorch's default in the authors' code
TRANSFORMER_NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """What the authors' detectors and segmenter change in the encoder; by default nothing.

    Raises:
        ConvMAEError: the values do not fit together.
    """

    relative_position: RelativePosition = "none"  # in stage 3; shared: by all global and by all windowed blocks
    relative_size: tuple[int, int] | None = None  # (height, width) in pixels that it is stored for; None: image_size
    window_size: int | None = None  # side in tokens of the windows of stage 3; None: every block is global
    global_blocks: tuple[int, ...] = ()  # blocks of stage 3, from 0, that attend to the whole map all the same
    shifted_windows: bool = False  # every second windowed block is shifted by half a window (paper, section 2.3)
    layer_scale: bool = False  # a learned factor for every channel of stage 3's branches, 1 at first
    conv_norm_eps: float = CONV_NORM_EPS  # in the convolution blocks
    transformer_norm_eps: float = TRANSFORMER_NORM_EPS  # in stage 3

    def __post_init__(self) -> None:
        if self.window_size is not None and self.window_size < 1:
            raise ConvMAEError(f"window_size must be at least 1 token; got {self.window_size}")
        if self.window_size is None and (self.global_blocks or self.shifted_windows):
            raise ConvMAEError("global_blocks and shifted_windows need a window_size; got None")
        if self.relative_size is not None:
            check_image_size(self.relative_size)


@dataclass(frozen=True, kw_only=True)
class ConvMAEConfig:
    """Architecture of one variant (paper, Table 7).

    Raises:
        ConvMAEError: the numbers do not fit together; the message names them.
    """

    embed_dims: tuple[int, int, int]  # channels of stages 1, 2, 3
    depths: tuple[int, int, int]  # blocks of stages 1, 2, 3
    mlp_ratios: tuple[float, float, float]  # hidden width / width of the MLPs of stages 1, 2, 3
    num_heads: int  # attention heads of stage 3
    image_size: tuple[int, int] = (224, 224)  # (height, width) in pixels that the position embedding is stored for
    kernel_size: int = 5  # the depthwise convolutions' (paper, Table 5: 5, 7, 9)
    dense: DenseConfig = DenseConfig()  # what detectors and segmenters change

    def __post_init__(self) -> None:
        check_image_size(self.image_size)
        sizes = {name: getattr(self, name) for name in ("embed_dims", "depths", "mlp_ratios")}
        for name, values in {**sizes, "num_heads": (self.num_heads,)}.items():
            stages = values if self.has_stages else values[-1:]
            if not all(value > 0 for value in stages):  # nor is NaN
                raise ConvMAEError(f"{name} must be above 0; got {', '.join(map(str, values))}")
        if not self.has_stages and self.dense != DenseConfig():
            raise ConvMAEError(f"a plain ViT has no windows, relative positions or LayerScale; got {self.dense}")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ConvMAEError(f"kernel_size must be odd and positive; got {self.kernel_size}")
        width = self.embed_dims[2]
        if width % self.num_heads or width % 4:
            raise ConvMAEError(
                f"the width of stage 3 must be a multiple of num_heads ({self.num_heads}) and of 4; got {width}"
            )

    @property
    def has_stages(self) -> bool:
        """Whether there are convolution stages. Where all numbers of stages 1 and 2 are 0 it is a plain ViT.

        That is a baseline, `models.vit`.
        """
        return any(value for sizes in (self.embed_dims, self.depths, self.mlp_ratios) for value in sizes[:2])

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the images that the model is made for.

        The position embedding of the authors' second detector is stored for smaller ones and resized.
        """
        return self.dense.relative_size or self.image_size

    @property
    def grid_size(self) -> tuple[int, int]:
        """(H, W) of the stage-3 tokens."""
        return self.image_size[0] // PATCH_SIZE, self.image_size[1] // PATCH_SIZE


def nano() -> ConvMAEConfig:
    """Ours: 2.7M parameters at 128 pixels, for CPUs, tests and the model that ships."""
    return ConvMAEConfig(
        embed_dims=(32, 96, 192), depths=(2, 3, 5), mlp_ratios=(4, 4, 4), num_heads=6, image_size=(128, 128)
    )


def tiny() -> ConvMAEConfig:
    """Ours: between nano and small."""
    return ConvMAEConfig(embed_dims=(64, 128, 256), depths=(2, 2, 8), mlp_ratios=(4, 4, 4), num_heads=8)


def small() -> ConvMAEConfig:
    """ConvMAE-S of the paper."""
    return ConvMAEConfig(embed_dims=(128, 256, 384), depths=(2, 2, 11), mlp_ratios=(4, 4, 4), num_heads=6)


def base() -> ConvMAEConfig:
    """ConvMAE-B, the one variant in the authors' code: 84.6M parameters (the paper's Tables 1 and 7: 88 and 84)."""
    return ConvMAEConfig(embed_dims=(256, 384, 768), depths=(2, 2, 11), mlp_ratios=(4, 4, 4), num_heads=12)


def base_kernel7() -> ConvMAEConfig:
    """ConvMAE-B with 7x7 convolutions (paper, Table 5)."""
    return replace(base(), kernel_size=7)


def base_kernel9() -> ConvMAEConfig:
    """ConvMAE-B with 9x9 convolutions (paper, Table 5)."""
    return replace(base(), kernel_size=9)


def base_plus() -> ConvMAEConfig:
    """ConvMAE-B* of the paper: wider MLPs in the convolution stages."""
    return replace(base(), mlp_ratios=(8, 8, 4))


def large() -> ConvMAEConfig:
    """ConvMAE-L of the paper."""
    return ConvMAEConfig(embed_dims=(384, 768, 1024), depths=(2, 2, 23), mlp_ratios=(8, 8, 4), num_heads=16)


def huge() -> ConvMAEConfig:
    """ConvMAE-H by the paper's own Table 7: 679.5M parameters, where the table prints 666M."""
    return ConvMAEConfig(embed_dims=(768, 1024, 1280), depths=(2, 2, 31), mlp_ratios=(8, 8, 4), num_heads=16)


Variant = Literal["nano", "tiny", "small", "base", "base_kernel7", "base_kernel9", "base_plus", "large", "huge"]
MODELS: dict[str, Callable[[], ConvMAEConfig]] = {
    "nano": nano,
    "tiny": tiny,
    "small": small,
    "base": base,
    "base_kernel7": base_kernel7,
    "base_kernel9": base_kernel9,
    "base_plus": base_plus,
    "large": large,
    "huge": huge,
}


class PatchEmbed(nn.Module):
    """Convolution with kernel = stride, LayerNorm, GELU. The paper has the convolution alone, the code has all."""

    def __init__(self, in_channels: int, out_channels: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, out_channels, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(out_channels, eps=CONV_NORM_EPS)

    def forward(self, map_bhwc: Tensor) -> Tensor:
        return F.gelu(self.norm(strided_convolution(self.proj, map_bhwc)))  # (B, H, W, C)


class ConvBlock(nn.Module):
    """Pre-norm block of the convolution stages: 1x1, depthwise, 1x1; then an MLP. Each branch with a skip."""

    def __init__(
        self,
        channels: int,
        mlp_ratio: float,
        kernel_size: int,
        drop_path: float,
        *,
        kernel_depth: int | None = None,
        norm_eps: float = CONV_NORM_EPS,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=norm_eps)
        self.conv1 = nn.Linear(channels, channels)  # a 1x1 convolution on channels-last maps
        self.attn = depthwise_layer(channels, kernel_size, kernel_depth)  # named as in the authors' files
        self.conv2 = nn.Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels, eps=norm_eps)
        self.mlp = Mlp(channels, round(channels * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, map_bhwc: Tensor, visible: VisibleCells | None = None) -> Tensor:
        """A whole map (B, H, W, C), or that of the visible cells (M, s, s, C); the result has the same shape.

        With a kernel depth the maps are those of videos, (B, T, H, W, C) or (M, T, s, s, C).
        """
        hidden = self.conv1(self.norm1(map_bhwc))
        if visible is None:
            mixed = depthwise_convolution(self.attn, hidden)
        else:
            mixed = visible.depthwise(self.attn, hidden)
        map_bhwc = map_bhwc + self.drop_path(self.conv2(mixed))
        return map_bhwc + self.drop_path(self.mlp(self.norm2(map_bhwc)))  # type: ignore[no-any-return]


def depthwise_layer(channels: int, kernel_size: int, kernel_depth: int | None) -> nn.Conv2d | nn.Conv3d:
    """A depthwise convolution over space that keeps the size; with a depth over space and time."""
    reach = kernel_size // 2
    if kernel_depth is None:
        return nn.Conv2d(channels, channels, kernel_size, padding=reach, groups=channels)
    kernel, padding = (kernel_depth, kernel_size, kernel_size), (kernel_depth // 2, reach, reach)
    return nn.Conv3d(channels, channels, kernel, padding=padding, groups=channels)


class TransformerBlock(nn.Module):
    """Pre-norm ViT block."""

    def __init__(
        self,
        width: int,
        attention: Attention,
        mlp_ratio: float,
        drop_path: float = 0.0,
        *,
        norm_eps: float = TRANSFORMER_NORM_EPS,
        layer_scale: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = attention
        self.ls1 = LayerScale(width, 1.0) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, round(width * mlp_ratio))
        self.ls2 = LayerScale(width, 1.0) if layer_scale else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens_bnd: Tensor, positions: Positions | None = None) -> Tensor:
        tokens_bnd = tokens_bnd + self.drop_path(self.ls1(self.attn(self.norm1(tokens_bnd), positions)))
        return tokens_bnd + self.drop_path(self.ls2(self.mlp(self.norm2(tokens_bnd))))  # type: ignore[no-any-return]


def run_blocks(blocks: nn.ModuleList, x: Tensor, *extra: VisibleCells | Positions, recompute: bool) -> Tensor:
    """The blocks in turn; with `recompute` the backward pass computes each anew instead of keeping its activations."""
    for block in blocks:
        again = recompute and torch.is_grad_enabled()
        x = checkpoint(block, x, *extra, use_reentrant=False) if again else block(x, *extra)
    return x


def run_convolution_blocks(
    blocks: nn.ModuleList, map_bhwc: Tensor, visible: VisibleCells | None, *, recompute: bool
) -> Tensor:
    """`run_blocks` of a convolution stage, on a whole map (`visible` is None) or on that of the visible cells."""
    if visible is None or not len(blocks):
        return run_blocks(blocks, map_bhwc, recompute=recompute)
    first = blocks[0]
    assert isinstance(first, ConvBlock)
    # here, before the first block: it is remembered, which recomputing must not do
    visible.windows(map_bhwc, first.attn.kernel_size[-1])
    return run_blocks(blocks, map_bhwc, visible, recompute=recompute)


class ConvMAE(nn.Module):
    """The encoder. Input (B, 3, H, W), normalised, H and W multiples of 32; output E1..E4 at strides 4, 8, 16, 32.

    E1, E2, E3 are the outputs of the three stages, without a final norm; E4 is E3 max-pooled (paper, section 2.3).
    """

    def __init__(
        self,
        *,
        embed_dims: tuple[int, int, int],
        depths: tuple[int, int, int],
        mlp_ratios: tuple[float, float, float],
        num_heads: int,
        grid_size: tuple[int, int],
        kernel_size: int = 5,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        dense: DenseConfig | None = None,
    ) -> None:
        """
        Args:
            embed_dims: channels of the three stages.
            depths: blocks of the three stages.
            mlp_ratios: hidden width / width of the MLPs of the three stages.
            num_heads: attention heads of stage 3.
            grid_size: (H, W) in tokens that the position embedding is stored for.
            kernel_size: of the depthwise convolutions.
            in_chans: channels of the images; 3 but for models made through timm.
            drop_path_rate: stochastic depth of the last block; it grows linearly from 0 over all blocks.
            dense: what detectors and segmenters change; None: nothing.
        """
        super().__init__()
        self.in_chans = in_chans
        self.embed_dims = embed_dims
        self.grid_size = grid_size
        self.grad_checkpointing = False
        # on the CPU whatever the default device is: a model made on the meta device has rates too
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        dense = dense or DenseConfig()
        dim1, dim2, dim3 = embed_dims
        self.patch_embed1 = PatchEmbed(in_chans, dim1, 4)
        self.blocks1 = nn.ModuleList(
            ConvBlock(dim1, mlp_ratios[0], kernel_size, next(rates), norm_eps=dense.conv_norm_eps)
            for _ in range(depths[0])
        )
        self.patch_embed2 = PatchEmbed(dim1, dim2, 2)
        self.blocks2 = nn.ModuleList(
            ConvBlock(dim2, mlp_ratios[1], kernel_size, next(rates), norm_eps=dense.conv_norm_eps)
            for _ in range(depths[1])
        )
        self.patch_embed3 = PatchEmbed(dim2, dim3, 2)
        self.patch_embed4 = nn.Linear(dim3, dim3)  # in the code, not in the paper
        self.pos_embed = nn.Parameter(sincos_position_embedding(dim3, grid_size))
        self.blocks3 = nn.ModuleList(
            TransformerBlock(
                dim3,
                stage3_attention(dim3, num_heads, block, grid_size, dense),
                mlp_ratios[2],
                next(rates),
                norm_eps=dense.transformer_norm_eps,
                layer_scale=dense.layer_scale,
            )
            for block in range(depths[2])
        )
        self.needs_positions = dense.relative_position != "none" or dense.window_size is not None
        self.global_position, self.window_position = shared_positions(num_heads, grid_size, dense)
        self.apply(initialise_linear)

    def forward(self, images_bchw: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, 3, H, W) to E1 (B, C1, H/4, W/4), E2 (B, C2, H/8, W/8), E3 (B, D, H/16, W/16), E4 (B, D, H/32, W/32)."""
        check_image_size(tuple(images_bchw.shape[-2:]))
        stage1 = self.forward_stage1(images_bchw.permute(0, 2, 3, 1))
        stage2 = self.forward_stage2(stage1)
        stage3 = self.forward_stage3(stage2)
        e1, e2, e3 = (stage.permute(0, 3, 1, 2) for stage in (stage1, stage2, stage3))  # (B, C, H, W)
        return e1, e2, e3, F.max_pool2d(e3, 2)

    def forward_visible(self, images_bchw: Tensor, visible: VisibleCells) -> tuple[Tensor, Tensor, Tensor]:
        """What the dense computation with masked convolutions gives at the visible cells, without the rest of it.

        Args:
            images_bchw: (B, 3, H, W), sides multiples of 32; hidden pixels have no influence.
            visible: K cells of 16 x 16 pixels of each image.

        Returns:
            Stage 1 (M, 4, 4, C1), stage 2 (M, 2, 2, C2), both by cells, and stage 3 (B, K, D).
        """
        check_image_size(tuple(images_bchw.shape[-2:]))
        stage1 = self.forward_stage1(visible.gather(images_bchw.permute(0, 2, 3, 1), PATCH_SIZE), visible)
        stage2 = self.forward_stage2(stage1, visible)
        return stage1, stage2, self.forward_stage3_visible(stage2, visible)

    def forward_stage1(self, images_bhwc: Tensor, visible: VisibleCells | None = None) -> Tensor:
        """(B, H, W, 3) to (B, H/4, W/4, C1), or cells (M, 4p, 4p, 3) to (M, p, p, C1)."""
        map_bhwc = self.patch_embed1(images_bhwc)
        return run_convolution_blocks(self.blocks1, map_bhwc, visible, recompute=self.grad_checkpointing)

    def forward_stage2(self, stage1_bhwc: Tensor, visible: VisibleCells | None = None) -> Tensor:
        """(B, H/4, W/4, C1) to (B, H/8, W/8, C2), or cells (M, 4, 4, C1) to (M, 2, 2, C2)."""
        map_bhwc = self.patch_embed2(stage1_bhwc)
        return run_convolution_blocks(self.blocks2, map_bhwc, visible, recompute=self.grad_checkpointing)

    def forward_stage3(self, stage2_bhwc: Tensor) -> Tensor:
        """(B, H/8, W/8, C2) to (B, H/16, W/16, D)."""
        map_bhwd = self.patch_embed4(self.patch_embed3(stage2_bhwc))
        batch, height, width, channels = map_bhwd.shape
        tokens = map_bhwd.reshape(batch, height * width, channels) + self.position_embedding((height, width))
        positions = (self._positions((height, width)),) if self.needs_positions else ()
        tokens = run_blocks(self.blocks3, tokens, *positions, recompute=self.grad_checkpointing)
        return tokens.reshape(batch, height, width, channels)

    def forward_stage3_visible(self, stage2_mssc: Tensor, visible: VisibleCells) -> Tensor:
        """Cells (M, 2, 2, C2) to tokens (B, K, D), which attend to one another alone."""
        cells = self.patch_embed4(self.patch_embed3(stage2_mssc))  # (M, 1, 1, D)
        tokens = cells.reshape(*visible.kept.shape, -1)  # (B, K, D)
        tokens = tokens + self.position_embedding(visible.grid_size)[0, visible.kept]
        return run_blocks(self.blocks3, tokens, recompute=self.grad_checkpointing)

    def position_embedding(self, grid_size: tuple[int, int]) -> Tensor:
        """The position embedding (1, N, D) for a grid, resized where it is not the stored one."""
        if grid_size == self.grid_size:
            return self.pos_embed
        return resize_position_embedding(self.pos_embed, self.grid_size, grid_size)

    def _positions(self, grid_size: tuple[int, int]) -> Positions:
        """What the blocks of stage 3 share on a grid; where a block has its own relative positions it uses those."""
        shared, window = self.global_position, self.window_position
        return Positions(
            grid_size,
            None if shared is None else shared(grid_size),
            None if window is None else window(window.grid_size),
        )


def build_convmae(config: ConvMAEConfig, *, in_chans: int = 3, drop_path_rate: float = 0.0) -> ConvMAE:
    """The backbone of a configuration, with fresh weights.

    Raises:
        ConvMAEError: it is that of a plain ViT.
    """
    if not config.has_stages:
        raise ConvMAEError("the encoder must be a ConvMAE, which has convolution stages; got a plain ViT")
    return ConvMAE(
        embed_dims=config.embed_dims,
        depths=config.depths,
        mlp_ratios=config.mlp_ratios,
        num_heads=config.num_heads,
        grid_size=config.grid_size,
        kernel_size=config.kernel_size,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
        dense=config.dense,
    )


def stage3_attention(
    width: int, num_heads: int, block: int, grid_size: tuple[int, int], dense: DenseConfig
) -> Attention:
    """The attention of one block of stage 3, counted from 0; arguments as for `ConvMAE`."""
    windowed = dense.window_size is not None and block not in dense.global_blocks
    window_size = dense.window_size if windowed else None
    before = sum(earlier not in dense.global_blocks for earlier in range(block))
    shift = (dense.window_size or 0) // 2 if windowed and dense.shifted_windows and before % 2 else 0
    grid_size = relative_grid(grid_size, dense) if window_size is None else (window_size, window_size)
    position: nn.Module | None = None
    if dense.relative_position == "per_block":
        position = RelativePositionTable(grid_size, num_heads)
    elif dense.relative_position == "decomposed":
        position = DecomposedRelativePosition(grid_size, width // num_heads)
    return Attention(width, num_heads, window_size=window_size, shift=shift, position=position)


def shared_positions(
    num_heads: int, grid_size: tuple[int, int], dense: DenseConfig
) -> tuple[RelativePositionTable | None, RelativePositionTable | None]:
    """The tables that all global and all windowed blocks of stage 3 share, if they share any."""
    if dense.relative_position != "shared":
        return None, None
    window = dense.window_size
    return (
        RelativePositionTable(relative_grid(grid_size, dense), num_heads),
        None if window is None else RelativePositionTable((window, window), num_heads),
    )


def relative_grid(grid_size: tuple[int, int], dense: DenseConfig) -> tuple[int, int]:
    """(H, W) in tokens that relative positions over the whole map are stored for."""
    if dense.relative_size is None:
        return grid_size
    return dense.relative_size[0] // PATCH_SIZE, dense.relative_size[1] // PATCH_SIZE


def check_image_size(image_size: Sequence[int]) -> None:
    """Raises ConvMAEError unless (height, width) are positive multiples of 32, of at most 4096."""
    if any(side <= 0 or side % 32 or side > MAX_IMAGE_SIDE for side in image_size):
        raise ConvMAEError(
            f"image height and width must be positive multiples of 32, at most {MAX_IMAGE_SIDE}; "
            f"got {' x '.join(map(str, image_size))}"
        )


def initialise_linear(module: nn.Module) -> None:
    """Weights of Linear layers from a truncated normal of 0.02, biases 0; convolutions keep PyTorch's default."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
