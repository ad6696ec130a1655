"""The pretraining model of VideoConvMAE: encoder on visible tubes, multi-scale fusion, space-time decoder, pixel loss.

Paper: arXiv 2205.03892, section 2.4. Where it is silent: the fusion and the norm in front of the decoder are those of
the image model (`models.pretraining`), slot by slot; the decoder (384 wide, 4 blocks, 6 heads), its position embedding,
the tube mask (90 %) and the target (each colour of a cube less its mean, divided by its deviation) are VideoMAE's
(arXiv 2203.12602). The target is made from the clip as the model sees it, where VideoMAE first undoes the clip's own
normalisation: a scale and a shift of a whole colour, which its target takes out again. Without `norm_pix_loss` the
target is those values, as for photos.

Shapes: B clips, T slots of 2 frames, H W the stage-3 grid, N = H * W cells, K visible ones, M = B * K tubes, D encoder
width, P = 2 * 16 * 16 * 3 pixel values of a cube. Mask convention: 1 = removed, 0 = kept.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.attention import Attention
from convmae_deploy.models.convmae import (
    PATCH_SIZE,
    TRANSFORMER_NORM_EPS,
    ConvMAEConfig,
    TransformerBlock,
    run_blocks,
)
from convmae_deploy.models.convolution import strided_convolution
from convmae_deploy.models.depthwise import ON_A_CPU
from convmae_deploy.models.pretraining import Reconstruction, check_decoder, initialise_pretraining
from convmae_deploy.models.video import (
    TUBELET,
    VideoConfig,
    VideoConvMAE,
    build_video_convmae,
    resize_space_time_embedding,
    sinusoid_table,
)
from convmae_deploy.models.visible import VisibleTubes

DEVIATION_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class VideoPretrainingConfig:
    """What a video pretraining model has besides its encoder, and what it does with the mask."""

    decoder_width: int = 384
    decoder_depth: int = 4  # blocks
    decoder_heads: int = 6
    decoder_mlp_ratio: float = 4.0
    mask_ratio: float = 0.9  # share of the cells of a slot that is hidden, in all slots
    multi_scale: bool = True  # stages 1 and 2 are fused into the decoder's input
    norm_pix_loss: bool = True  # predict each cube's pixels normalised by colour

    def __post_init__(self) -> None:
        check_decoder(self.decoder_width, self.decoder_depth, self.decoder_heads, self.decoder_mlp_ratio)
        if self.decoder_width % self.decoder_heads:
            raise ConvMAEError(
                f"decoder_width must be a multiple of decoder_heads ({self.decoder_heads}); got {self.decoder_width}"
            )


class VideoPretraining(nn.Module):
    """Masked autoencoder: reconstructs the pixels of the hidden tubes from the visible ones."""

    _no_split_modules = ["ConvBlock", "TransformerBlock"]  # what Accelerate's FSDP takes for a unit

    def __init__(
        self,
        encoder: VideoConvMAE,
        *,
        decoder_width: int,
        decoder_depth: int,
        decoder_heads: int,
        decoder_mlp_ratio: float,
        multi_scale: bool = True,
        norm_pix_loss: bool = True,
    ) -> None:
        """
        Args:
            encoder: the backbone.
            decoder_width: channels of the decoder.
            decoder_depth: its blocks.
            decoder_heads: its attention heads.
            decoder_mlp_ratio: hidden width / width of its MLPs.
            multi_scale: whether stages 1 and 2 are fused into the decoder's input.
            norm_pix_loss: whether cubes are normalised before they are compared.
        """
        super().__init__()
        dim1, dim2, width = encoder.embed_dims
        self.encoder = encoder
        self.multi_scale = multi_scale
        self.norm_pix_loss = norm_pix_loss
        self.depthwise_algorithms = ON_A_CPU  # that convolve visible cells; a GPU's fastest are measured
        if multi_scale:
            self.stage1_output_decode = nn.Conv2d(dim1, width, 4, stride=4)  # for every slot
            self.stage2_output_decode = nn.Conv2d(dim2, width, 2, stride=2)
        self.norm = nn.LayerNorm(width, eps=TRANSFORMER_NORM_EPS)
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        positions = encoder.slots * encoder.grid_size[0] * encoder.grid_size[1]
        self.decoder_pos_embed = nn.Parameter(sinusoid_table(positions, decoder_width), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            TransformerBlock(decoder_width, Attention(decoder_width, decoder_heads), decoder_mlp_ratio)
            for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=TRANSFORMER_NORM_EPS)
        self.decoder_pred = nn.Linear(decoder_width, TUBELET * PATCH_SIZE * PATCH_SIZE * 3)
        initialise_pretraining(self, encoder.patch_embed3.proj, self.mask_token)

    def forward(self, clips_bcfhw: Tensor, kept_bk: Tensor) -> Tensor:
        """The loss, a float32 scalar, of reconstructing what `kept_bk` hides.

        Args:
            clips_bcfhw: (B, 3, T * 2, H * 16, W * 16), normalised, sides multiples of 32.
            kept_bk: (B, K) int64, the cells that are visible in every slot.
        """
        return self.reconstruct(clips_bcfhw, kept_bk).loss

    def reconstruct(self, clips_bcfhw: Tensor, kept_bk: Tensor) -> Reconstruction:
        """Prediction (B, T * N, P), what of it is hidden (B, T * N, 1), and loss; arguments as for `forward`."""
        frames, height, width = clips_bcfhw.shape[2:]
        visible = VisibleTubes(kept_bk, (height // PATCH_SIZE, width // PATCH_SIZE), self.depthwise_algorithms)
        prediction = self.decode(self.decoder_embed(self.encode(clips_bcfhw, visible)), visible)
        hidden = visible.removed().repeat(1, frames // TUBELET).unsqueeze(2)  # (B, T * N, 1)
        return Reconstruction(prediction, hidden, self.loss(clips_bcfhw, prediction, hidden))

    def encode(self, clips_bcfhw: Tensor, visible: VisibleTubes) -> Tensor:
        """The latent (B, K, T, D), fused and normalised."""
        stage1, stage2, tokens = self.encoder.forward_visible(clips_bcfhw, visible)
        if self.multi_scale:
            fused = strided_convolution(self.stage1_output_decode, stage1.flatten(0, 1))  # (M * T, 1, 1, D)
            fused = fused + strided_convolution(self.stage2_output_decode, stage2.flatten(0, 1))
            tokens = tokens + fused.reshape(tokens.shape)
        return self.norm(tokens)  # type: ignore[no-any-return]

    def decode(self, tokens_bktd: Tensor, visible: VisibleTubes) -> Tensor:
        """Embedded visible tokens (B, K, T, decoder width), hidden ones filled in, to cubes (B, T * N, P)."""
        (batch, _, slots, channels), (height, width) = tokens_bktd.shape, visible.grid_size
        filled = self.mask_token.to(tokens_bktd.dtype).expand(batch * height * width, slots, channels)
        filled = filled.index_put((visible.rows,), tokens_bktd.flatten(0, 1))
        tokens = filled.reshape(batch, height * width, slots, channels).transpose(1, 2)  # (B, T, N, decoder width)
        stored = self.encoder.slots, self.encoder.grid_size
        tokens = tokens + resize_space_time_embedding(self.decoder_pos_embed, stored, (slots, visible.grid_size))
        tokens = run_blocks(self.decoder_blocks, tokens.flatten(1, 2), recompute=self.encoder.grad_checkpointing)
        return self.decoder_pred(self.decoder_norm(tokens))  # type: ignore[no-any-return]

    def loss(self, clips_bcfhw: Tensor, prediction: Tensor, hidden: Tensor) -> Tensor:
        """Mean squared error over hidden cubes, in float32; in float64 where the prediction is."""
        precision = torch.promote_types(prediction.dtype, torch.float32)
        target = cubify(clips_bcfhw).to(precision)
        if self.norm_pix_loss:
            mean, deviation = cube_statistics(target)
            target = (target - mean) / (deviation + DEVIATION_EPS)
        squared = (prediction.to(precision) - target).square() * hidden
        return squared.sum() / hidden.expand_as(squared).sum()

    def no_weight_decay(self) -> set[str]:
        """None besides one-dimensional parameters, as for images."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block of encoder and decoder in the backward pass instead of keeping its activations."""
        self.encoder.grad_checkpointing = enable


def build_video_pretraining(
    config: ConvMAEConfig, video: VideoConfig, pretraining: VideoPretrainingConfig
) -> VideoPretraining:
    """The video pretraining model of a variant, with fresh weights."""
    return VideoPretraining(
        build_video_convmae(config, video),
        decoder_width=pretraining.decoder_width,
        decoder_depth=pretraining.decoder_depth,
        decoder_heads=pretraining.decoder_heads,
        decoder_mlp_ratio=pretraining.decoder_mlp_ratio,
        multi_scale=pretraining.multi_scale,
        norm_pix_loss=pretraining.norm_pix_loss,
    )


def cubify(clips_bcfhw: Tensor) -> Tensor:
    """(B, 3, T * 2, H * 16, W * 16) to cubes (B, T * N, P), slot by slot; a cube holds (frame, row, column, colour)."""
    batch, channels, frames, height, width = clips_bcfhw.shape
    slots = clips_bcfhw.reshape(
        batch, channels, frames // TUBELET, TUBELET, height // PATCH_SIZE, PATCH_SIZE, width // PATCH_SIZE, PATCH_SIZE
    )  # (B, 3, T, 2, H, 16, W, 16)
    return slots.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4).flatten(1, 3)


def uncubify(cubes_bnp: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """The inverse of `cubify`: (B, T * N, P) to (B, 3, T * 2, H * 16, W * 16)."""
    height, width = grid_size
    slots = cubes_bnp.reshape(len(cubes_bnp), -1, height, width, TUBELET, PATCH_SIZE, PATCH_SIZE, 3)
    clips = slots.permute(0, 7, 1, 4, 2, 5, 3, 6)  # (B, 3, T, 2, H, 16, W, 16)
    return clips.flatten(6).flatten(4, 5).flatten(2, 3)


def cube_statistics(cubes_bnp: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased deviation of each colour of each cube, repeated for its pixels: each (B, T * N, P)."""
    pixels = cubes_bnp.reshape(*cubes_bnp.shape[:2], -1, 3)  # (B, T * N, 512, 3)
    mean, deviation = pixels.mean(2, keepdim=True), pixels.std(2, keepdim=True)
    return mean.expand_as(pixels).flatten(2), deviation.expand_as(pixels).flatten(2)
