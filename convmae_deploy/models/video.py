"""VideoConvMAE, the video model of the paper (section 2.4), which its authors never released.

The paper: cubes instead of patches, masked 3-D convolutions in the first two stages, a transformer over space-time
tokens in the third, a space-time position embedding, tube masks that hide 90 %. It is built from the blocks of the
image model (`models.convmae`). Where the paper is silent it follows VideoMAE (arXiv 2203.12602), with which it compares
itself:

- 16 frames and cubes 2 frames deep, so that 16 x 224 x 224 pixels become 8 x 14 x 14 tokens: the same stage 3;
- the position embedding is VideoMAE's: a sinusoid over all positions in order, slot by slot and row by row, which is
  not trained. For clips of another size or length it is resized, over space bicubically and over time linearly, so
  that a place keeps about the embedding that it was trained with (ours: a table made anew would give each place that of
  another; fast channels lose amplitude by it);
- between the stages each slot is embedded by itself, as in the image model: the paper names no stride in time but the
  cubes', and eight slots leave none to spare;
- kernels of the depthwise convolutions are 3 slots deep: with two frames to a slot that is six frames, about what 5 x 5
  places are in space; the published size, 86M parameters, fits depths of 1, 3 and 5 alike.

Shapes: B batch, F frames, T = F / 2 slots, H W the stage-3 grid, N = H * W cells, K visible ones, M = B * K, C
channels, D width of stage 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.attention import Attention
from convmae_deploy.models.convmae import (
    CONV_NORM_EPS,
    PATCH_SIZE,
    ConvBlock,
    ConvMAEConfig,
    DenseConfig,
    PatchEmbed,
    TransformerBlock,
    check_image_size,
    initialise_linear,
    run_blocks,
    run_convolution_blocks,
)
from convmae_deploy.models.convolution import cube_convolution
from convmae_deploy.models.positions import resize_position_embedding
from convmae_deploy.models.visible import VisibleTubes

TUBELET = 2  # frames of a slot


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """What a video model has besides the image model of the same variant."""

    frames: int = 16  # in the clips that the position embedding is stored for, a multiple of 2
    kernel_depth: int = 3  # slots that the depthwise convolutions reach over, odd

    def __post_init__(self) -> None:
        check_frames(self.frames)
        if self.kernel_depth < 1 or self.kernel_depth % 2 == 0:
            raise ConvMAEError(f"kernel_depth must be odd and positive; got {self.kernel_depth}")

    @property
    def slots(self) -> int:
        """T of those clips."""
        return self.frames // TUBELET


class CubeEmbed(nn.Module):
    """`PatchEmbed` of a video: cubes of 2 frames and 4 x 4 pixels."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        cube = (TUBELET, 4, 4)
        self.proj = nn.Conv3d(3, out_channels, cube, stride=cube)
        self.norm = nn.LayerNorm(out_channels, eps=CONV_NORM_EPS)

    def forward(self, clips_bfhwc: Tensor) -> Tensor:
        """(B, F, 4H, 4W, 3) to (B, T, H, W, C)."""
        return F.gelu(self.norm(cube_convolution(self.proj, clips_bfhwc)))


class VideoConvMAE(nn.Module):
    """The encoder. Input (B, 3, F, H, W), normalised, F even, H and W multiples of 32; output E1..E4.

    They have strides 4, 8, 16, 32 in space and 2 in time: (B, C, T, height, width). E1, E2, E3 are the outputs of the
    stages, without a final norm; E4 is E3 max-pooled over space.
    """

    def __init__(
        self,
        *,
        embed_dims: tuple[int, int, int],
        depths: tuple[int, int, int],
        mlp_ratios: tuple[float, float, float],
        num_heads: int,
        slots: int,
        grid_size: tuple[int, int],
        kernel_size: int = 5,
        kernel_depth: int = 3,
        drop_path_rate: float = 0.0,
    ) -> None:
        """
        Args:
            embed_dims: channels of the three stages.
            depths: blocks of the three stages.
            mlp_ratios: hidden width / width of the MLPs of the three stages.
            num_heads: attention heads of stage 3.
            slots: T that the position embedding is stored for.
            grid_size: (H, W) in tokens that it is stored for.
            kernel_size: of the depthwise convolutions over space.
            kernel_depth: of them over time, in slots.
            drop_path_rate: stochastic depth of the last block; it grows linearly from 0 over all blocks.
        """
        super().__init__()
        self.in_chans = 3
        self.embed_dims = embed_dims
        self.slots = slots
        self.grid_size = grid_size
        self.grad_checkpointing = False
        # on the CPU whatever the default device is: a model made on the meta device has rates too
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        dim1, dim2, dim3 = embed_dims
        self.patch_embed1 = CubeEmbed(dim1)
        self.blocks1 = nn.ModuleList(
            ConvBlock(dim1, mlp_ratios[0], kernel_size, next(rates), kernel_depth=kernel_depth)
            for _ in range(depths[0])
        )
        self.patch_embed2 = PatchEmbed(dim1, dim2, 2)
        self.blocks2 = nn.ModuleList(
            ConvBlock(dim2, mlp_ratios[1], kernel_size, next(rates), kernel_depth=kernel_depth)
            for _ in range(depths[1])
        )
        self.patch_embed3 = PatchEmbed(dim2, dim3, 2)
        self.patch_embed4 = nn.Linear(dim3, dim3)
        self.pos_embed = nn.Parameter(sinusoid_table(slots * grid_size[0] * grid_size[1], dim3), requires_grad=False)
        self.blocks3 = nn.ModuleList(
            TransformerBlock(dim3, Attention(dim3, num_heads), mlp_ratios[2], next(rates)) for _ in range(depths[2])
        )
        self.apply(initialise_linear)

    def forward(self, clips_bcfhw: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, 3, F, H, W) to E1 (B, C1, F/2, H/4, W/4), E2, E3 and E4 (B, D, F/2, H/32, W/32)."""
        check_clip_size(clips_bcfhw.shape)
        stage1 = self.forward_stage1(clips_bcfhw.permute(0, 2, 3, 4, 1))
        stage2 = self.forward_stage2(stage1)
        stage3 = self.forward_stage3(stage2)
        e1, e2, e3 = (stage.permute(0, 4, 1, 2, 3) for stage in (stage1, stage2, stage3))  # (B, C, T, H, W)
        return e1, e2, e3, F.max_pool3d(e3, (1, 2, 2))

    def forward_visible(self, clips_bcfhw: Tensor, visible: VisibleTubes) -> tuple[Tensor, Tensor, Tensor]:
        """What the dense computation with masked convolutions gives in the visible tubes, without the rest of it.

        Args:
            clips_bcfhw: (B, 3, F, H, W), F even, sides multiples of 32; hidden pixels have no influence.
            visible: K cells of 16 x 16 pixels of each clip, the same in all of its frames.

        Returns:
            Stage 1 (M, T, 4, 4, C1), stage 2 (M, T, 2, 2, C2), both by tubes, and stage 3 (B, K, T, D).
        """
        check_clip_size(clips_bcfhw.shape)
        stage1 = self.forward_stage1(visible.gather(clips_bcfhw.permute(0, 2, 3, 4, 1), PATCH_SIZE), visible)
        stage2 = self.forward_stage2(stage1, visible)
        return stage1, stage2, self.forward_stage3_visible(stage2, visible)

    def forward_stage1(self, clips_bfhwc: Tensor, visible: VisibleTubes | None = None) -> Tensor:
        """(B, F, H, W, 3) to (B, T, H/4, W/4, C1), or tubes (M, F, 4p, 4p, 3) to (M, T, p, p, C1)."""
        map_bthwc = self.patch_embed1(clips_bfhwc)
        return run_convolution_blocks(self.blocks1, map_bthwc, visible, recompute=self.grad_checkpointing)

    def forward_stage2(self, stage1_bthwc: Tensor, visible: VisibleTubes | None = None) -> Tensor:
        """(B, T, H/4, W/4, C1) to (B, T, H/8, W/8, C2), or tubes (M, T, 4, 4, C1) to (M, T, 2, 2, C2)."""
        map_bthwc = each_slot(self.patch_embed2, stage1_bthwc)
        return run_convolution_blocks(self.blocks2, map_bthwc, visible, recompute=self.grad_checkpointing)

    def forward_stage3(self, stage2_bthwc: Tensor) -> Tensor:
        """(B, T, H/8, W/8, C2) to (B, T, H/16, W/16, D)."""
        map_bthwd = self.patch_embed4(each_slot(self.patch_embed3, stage2_bthwc))
        _, slots, height, width, _ = map_bthwd.shape
        tokens = map_bthwd.flatten(1, 3) + self.position_embedding(slots, (height, width)).flatten(1, 2)
        return run_blocks(self.blocks3, tokens, recompute=self.grad_checkpointing).reshape(map_bthwd.shape)

    def forward_stage3_visible(self, stage2_mtssc: Tensor, visible: VisibleTubes) -> Tensor:
        """Tubes (M, T, 2, 2, C2) to tokens (B, K, T, D), which attend to one another alone."""
        tubes = self.patch_embed4(each_slot(self.patch_embed3, stage2_mtssc))  # (M, T, 1, 1, D)
        slots = tubes.shape[1]
        tokens = tubes.reshape(*visible.kept.shape, slots, -1)  # (B, K, T, D)
        position = self.position_embedding(slots, visible.grid_size)[0, :, visible.kept]  # (T, B, K, D)
        tokens = tokens + position.permute(1, 2, 0, 3)
        attended = run_blocks(self.blocks3, tokens.flatten(1, 2), recompute=self.grad_checkpointing)
        return attended.reshape(tokens.shape)

    def position_embedding(self, slots: int, grid_size: tuple[int, int]) -> Tensor:
        """(1, T, N, D) for a clip, resized where it is not of the stored length and size."""
        return resize_space_time_embedding(self.pos_embed, (self.slots, self.grid_size), (slots, grid_size))


def build_video_convmae(config: ConvMAEConfig, video: VideoConfig, *, drop_path_rate: float = 0.0) -> VideoConvMAE:
    """The video backbone of a variant, with fresh weights.

    Raises:
        ConvMAEError: the configuration holds what only detectors and segmenters have, or is that of a plain ViT.
    """
    if not config.has_stages:
        raise ConvMAEError("a video model must be a ConvMAE, which has convolution stages; got a plain ViT")
    if config.dense != DenseConfig():
        raise ConvMAEError(f"a video model has plain attention; leave `dense` as it is, got {config.dense}")
    return VideoConvMAE(
        embed_dims=config.embed_dims,
        depths=config.depths,
        mlp_ratios=config.mlp_ratios,
        num_heads=config.num_heads,
        slots=video.slots,
        grid_size=config.grid_size,
        kernel_size=config.kernel_size,
        kernel_depth=video.kernel_depth,
        drop_path_rate=drop_path_rate,
    )


def each_slot(layer: PatchEmbed, map_bthwc: Tensor) -> Tensor:
    """A layer of maps (B, H, W, C) on every slot of (B, T, H, W, C)."""
    return layer(map_bthwc.flatten(0, 1)).unflatten(0, map_bthwc.shape[:2])  # type: ignore[no-any-return]


def check_frames(frames: int) -> None:
    """Raises ConvMAEError unless frames are a positive multiple of 2."""
    if frames <= 0 or frames % TUBELET:
        raise ConvMAEError(f"the frames of a clip must be a positive multiple of {TUBELET}; got {frames}")


def check_clip_size(shape: Sequence[int]) -> None:
    """Raises ConvMAEError unless (B, C, F, H, W) has frames and sides that the model can take."""
    check_frames(shape[2])
    check_image_size(tuple(shape[3:]))


def sinusoid_table(positions: int, width: int) -> Tensor:
    """VideoMAE's fixed embedding (1, positions, width): channel 2i is the sine, 2i + 1 the cosine of one angle.

    The angle of position p is p * 10000^(-2i / width); computed in float64 as there.
    """
    rates = 10000.0 ** (-2 * (torch.arange(width) // 2).double() / width)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * rates
    angles[:, 0::2], angles[:, 1::2] = angles[:, 0::2].sin(), angles[:, 1::2].cos()
    return angles.float().unsqueeze(0)


def resize_space_time_embedding(
    embedding: Tensor, old: tuple[int, tuple[int, int]], new: tuple[int, tuple[int, int]]
) -> Tensor:
    """(1, old T * H * W, D) to (1, new T, H * W, D): bicubic over space, linear over time.

    Args:
        embedding: the stored one.
        old: its (T, (H, W)).
        new: those of the clip.
    """
    (old_slots, old_grid), (new_slots, new_grid) = old, new
    slots_tnd = embedding.reshape(old_slots, -1, embedding.shape[2])
    slots_tnd = torch.cat([resize_position_embedding(slot[None], old_grid, new_grid) for slot in slots_tnd])
    if old_slots != new_slots:
        over_time = slots_tnd.permute(1, 2, 0)  # (N, D, T)
        slots_tnd = F.interpolate(over_time, size=new_slots, mode="linear", align_corners=False).permute(2, 0, 1)
    return slots_tnd.unsqueeze(0)
