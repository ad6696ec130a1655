"""The pretraining model: encoder on visible cells, multi-scale fusion, decoder, pixel loss.

Paper: arXiv 2205.03892, sections 2.1 and 2.2. Authors' code and weights: the Alpha-VL/ConvMAE repository, MIT. This
is an independent implementation; where paper and code disagree it follows the code, which made the published weights:
a LayerNorm stands between the fused sum and the decoder's Linear (Eq. 1 has none), the decoder has 16 heads (paper: 12)
and its MLP ratio is that of the encoder's stage 1.

Shapes: B images, G masks of each, H W the stage-3 grid, N = H * W, K visible cells, M = G * B * K, D encoder width,
P = 16 * 16 * 3 pixel values of a patch. Mask convention: 1 = removed, 0 = kept.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.attention import Attention
from convmae_deploy.models.convmae import (
    PATCH_SIZE,
    STRIDES,
    TRANSFORMER_NORM_EPS,
    ConvMAE,
    ConvMAEConfig,
    TransformerBlock,
    run_blocks,
)
from convmae_deploy.models.convolution import strided_convolution
from convmae_deploy.models.depthwise import ON_A_CPU, Algorithms, fastest
from convmae_deploy.models.initialisation import pointwise_layers
from convmae_deploy.models.masking import MASKING, MaskingName
from convmae_deploy.models.positions import resize_position_embedding, sincos_position_embedding
from convmae_deploy.models.visible import VisibleCells
from convmae_deploy.models.vit import ViT, build_encoder

PIXEL_VARIANCE_EPS = 1e-6
MAX_DECODER = 8192  # channels, blocks and heads
MAX_MLP_RATIO = 64


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig:
    """What a pretraining model has besides its encoder, and what it does with the mask."""

    decoder_width: int = 512
    decoder_depth: int = 8  # blocks
    decoder_heads: int = 16  # paper: 12, which does not divide 512
    decoder_mlp_ratio: float = 4.0  # the authors' code takes the encoder's ratio of stage 1: 8 for B*, L and H
    masking: MaskingName = "block"
    mask_ratio: float = 0.75  # share of the cells that is hidden
    multi_scale: bool = True  # stages 1 and 2 are fused into the decoder's input (paper, section 2.2; Table 6)
    masked_convolution: bool = True  # False: the convolutions see hidden pixels (paper, Table 5: 81.5 %)
    norm_pix_loss: bool = True  # predict each patch's pixels less their mean, divided by their deviation

    def __post_init__(self) -> None:
        check_decoder(self.decoder_width, self.decoder_depth, self.decoder_heads, self.decoder_mlp_ratio)
        if self.decoder_width % self.decoder_heads or self.decoder_width % 4:
            raise ConvMAEError(
                f"decoder_width must be a multiple of decoder_heads ({self.decoder_heads}) and of 4; "
                f"got {self.decoder_width}"
            )
        if self.masking == "token" and not self.masked_convolution:
            raise ConvMAEError("token masks need masked convolutions: without, nothing would be hidden; use block")


def check_decoder(width: int, depth: int, heads: int, mlp_ratio: float) -> None:
    """Raises ConvMAEError where a number is none that a decoder can be made of."""
    if min(width, depth, heads) < 1 or max(width, depth, heads) > MAX_DECODER or not 0 < mlp_ratio <= MAX_MLP_RATIO:
        raise ConvMAEError(
            f"decoder_width, decoder_depth and decoder_heads must be from 1 to {MAX_DECODER} and decoder_mlp_ratio "
            f"above 0 and at most {MAX_MLP_RATIO}; got {width}, {depth}, {heads} and {mlp_ratio:g}"
        )


class Reconstruction(NamedTuple):
    """What a forward pass predicts, for pictures and tests."""

    prediction: Tensor  # (G * B, N, P), in the units of the loss
    hidden: Tensor  # (G * B, N, 1 or P), 1 = the loss counts this patch, or this pixel value
    loss: Tensor  # scalar


class ConvMAEPretraining(nn.Module):
    """Masked autoencoder: reconstructs the pixels of the hidden cells from the visible ones."""

    def __init__(
        self,
        encoder: ConvMAE,
        *,
        decoder_width: int,
        decoder_depth: int,
        decoder_heads: int,
        decoder_mlp_ratio: float,
        cell_size: int = PATCH_SIZE,
        multi_scale: bool = True,
        masked_convolution: bool = True,
        norm_pix_loss: bool = True,
    ) -> None:
        """
        Args:
            encoder: the backbone; its position embedding is frozen here, as in the authors' code.
            decoder_width: channels of the decoder.
            decoder_depth: its blocks.
            decoder_heads: its attention heads.
            decoder_mlp_ratio: hidden width / width of its MLPs.
            cell_size: pixels along the side of what a mask hides: 16 (a stage-3 token) or 4 (a stage-1 token).
            multi_scale: whether stages 1 and 2 are fused into the decoder's input.
            masked_convolution: whether the convolutions are kept from seeing hidden pixels.
            norm_pix_loss: whether patches are normalised before they are compared.
        """
        super().__init__()
        dim1, dim2, width = encoder.embed_dims
        self.encoder = encoder
        self.grid_size = encoder.grid_size
        self.cell_size = cell_size
        self.masked_convolution = masked_convolution
        self.norm_pix_loss = norm_pix_loss
        self.depthwise_algorithms = ON_A_CPU  # that convolve visible cells; a GPU's fastest are measured
        self.multi_scale = multi_scale
        encoder_block = "Block" if isinstance(encoder, ViT) else "ConvBlock"
        self._no_split_modules = [encoder_block, "TransformerBlock"]  # what Accelerate's FSDP takes for a unit
        if multi_scale:
            self.stage1_output_decode = nn.Conv2d(dim1, width, 4, stride=4)
            self.stage2_output_decode = nn.Conv2d(dim2, width, 2, stride=2)
        self.norm = nn.LayerNorm(width, eps=TRANSFORMER_NORM_EPS)
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder_pos_embed = nn.Parameter(sincos_position_embedding(decoder_width, self.grid_size), False)
        self.decoder_blocks = nn.ModuleList(
            TransformerBlock(decoder_width, Attention(decoder_width, decoder_heads), decoder_mlp_ratio)
            for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=TRANSFORMER_NORM_EPS)
        self.decoder_pred = nn.Linear(decoder_width, PATCH_SIZE * PATCH_SIZE * 3)
        self.encoder.pos_embed.requires_grad_(False)
        self.mask_token.requires_grad_(cell_size == PATCH_SIZE)  # smaller cells leave a piece of every token visible
        initialise_pretraining(self, encoder.patch_embed3.proj, self.mask_token)

    def forward(self, images_bchw: Tensor, kept: Tensor) -> Tensor:
        """The loss, a float32 scalar, of reconstructing what `kept` hides.

        Args:
            images_bchw: (B, 3, H * 16, W * 16), normalised, sides multiples of 32.
            kept: (G * B, K) int64, the visible cells; row g * B + b is mask g of image b.
        """
        return self.reconstruct(images_bchw, kept).loss

    def reconstruct(self, images_bchw: Tensor, kept: Tensor) -> Reconstruction:
        """The prediction for every patch, what of it is hidden, and the loss; arguments as for `forward`."""
        masks = len(kept) // len(images_bchw)
        if len(kept) - masks * len(images_bchw):  # divmod and % would have torch.compile make a graph for every batch
            raise ConvMAEError(f"there must be as many masks of every image; got {len(kept)} of {len(images_bchw)}")
        images_bchw = images_bchw.repeat(masks, 1, 1, 1)  # (G * B, 3, H, W)
        height, width = images_bchw.shape[-2:]
        visible = VisibleCells(kept, (height // self.cell_size, width // self.cell_size), self.depthwise_algorithms)
        grid_size = height // PATCH_SIZE, width // PATCH_SIZE
        tokens = self.decoder_embed(self.encode(images_bchw, visible))
        prediction = self.decode(tokens, visible, grid_size)
        hidden = self.hidden_pixels(visible)
        return Reconstruction(prediction, hidden, self.loss(images_bchw, prediction, hidden))

    def encode(self, images_bchw: Tensor, visible: VisibleCells) -> Tensor:
        """The latent (B, K, D), fused and normalised; (B, N, D) where cells are smaller than a stage-3 token."""
        if self.cell_size != PATCH_SIZE:
            return self._encode_small_cells(images_bchw, visible)
        if self.masked_convolution:
            stage1, stage2, tokens = self.encoder.forward_visible(images_bchw, visible)
        else:
            map1 = self.encoder.forward_stage1(images_bchw.permute(0, 2, 3, 1))
            map2 = self.encoder.forward_stage2(map1)
            stage1, stage2 = visible.gather(map1, 4), visible.gather(map2, 2)
            tokens = self.encoder.forward_stage3_visible(stage2, visible)
        if self.multi_scale:
            tokens = tokens + self._fused(stage1, stage2).reshape(tokens.shape)
        return self.norm(tokens)  # type: ignore[no-any-return]

    def _encode_small_cells(self, images_bchw: Tensor, visible: VisibleCells) -> Tensor:
        """Only stage 1 has hidden places; they leave it as zeros, so later stages run on whole maps and learn nothing.

        The paper does not say what becomes of masked stage-1 tokens; that is our choice.
        """
        patches = visible.gather(images_bchw.permute(0, 2, 3, 1), self.cell_size)  # (M, 4, 4, 3)
        stage1 = visible.scatter(self.encoder.forward_stage1(patches, visible))  # (B, H * 4, W * 4, C1)
        stage2 = self.encoder.forward_stage2(stage1)
        tokens = self.encoder.forward_stage3(stage2).flatten(1, 2)  # (B, N, D)
        if self.multi_scale:
            tokens = tokens + self._fused(stage1, stage2).reshape(tokens.shape)
        return self.norm(tokens)  # type: ignore[no-any-return]

    def _fused(self, stage1: Tensor, stage2: Tensor) -> Tensor:
        """E1 and E2 as stage-3 tokens, summed; channels-last maps or cells in, (..., D) out in the same order."""
        fused1 = strided_convolution(self.stage1_output_decode, stage1)
        return fused1 + strided_convolution(self.stage2_output_decode, stage2)

    def decode(self, tokens_bkd: Tensor, visible: VisibleCells, grid_size: tuple[int, int]) -> Tensor:
        """Embedded visible tokens (B, K, decoder width), hidden ones filled in, to predicted patches (B, N, P)."""
        if self.cell_size == PATCH_SIZE:
            batch, cells = len(tokens_bkd), grid_size[0] * grid_size[1]
            filled = self.mask_token.to(tokens_bkd.dtype).expand(batch, cells, -1).flatten(0, 1)
            filled = filled.index_put((visible.rows,), tokens_bkd.flatten(0, 1))
            tokens_bkd = filled.reshape(batch, cells, -1)
        tokens = tokens_bkd + resize_position_embedding(self.decoder_pos_embed, self.grid_size, grid_size)
        tokens = run_blocks(self.decoder_blocks, tokens, recompute=self.encoder.grad_checkpointing)
        return self.decoder_pred(self.decoder_norm(tokens))  # type: ignore[no-any-return]

    def hidden_pixels(self, visible: VisibleCells) -> Tensor:
        """What the loss counts: (B, N, 1) for cells of a whole patch, (B, N, P) for smaller ones."""
        removed = visible.removed()  # (B, cells)
        if self.cell_size == PATCH_SIZE:
            return removed.unsqueeze(2)
        pixels = removed.reshape(-1, 1, *visible.grid_size)  # (B, 1, H / cell, W / cell)
        for axis in (2, 3):
            pixels = pixels.repeat_interleave(self.cell_size, axis)
        return patchify(pixels.expand(-1, 3, -1, -1))

    def loss(self, images_bchw: Tensor, prediction: Tensor, hidden: Tensor) -> Tensor:
        """Mean squared error over hidden pixels, in float32; in float64 where the prediction is."""
        precision = torch.promote_types(prediction.dtype, torch.float32)
        target = patchify(images_bchw).to(precision)
        if self.norm_pix_loss:
            mean, variance = patch_statistics(target)
            target = (target - mean) / (variance + PIXEL_VARIANCE_EPS).sqrt()
        squared = (prediction.to(precision) - target).square() * hidden
        return squared.sum() / hidden.expand_as(squared).sum()

    def no_weight_decay(self) -> set[str]:
        """None besides one-dimensional parameters: the mask token decays, as in the authors' code."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block of encoder and decoder in the backward pass instead of keeping its activations."""
        self.encoder.grad_checkpointing = enable


def build_pretraining(config: ConvMAEConfig, pretraining: PretrainingConfig) -> ConvMAEPretraining:
    """The pretraining model of two configurations, with fresh weights.

    Raises:
        ConvMAEError: a plain ViT shall do what takes convolution stages.
    """
    cell_size = MASKING[pretraining.masking].cell_size
    if not config.has_stages:
        if cell_size != PATCH_SIZE or not pretraining.masked_convolution:
            raise ConvMAEError(
                f"a plain ViT has tokens of {PATCH_SIZE} x {PATCH_SIZE} pixels and no convolutions, so that it takes "
                "block or complementary masks; leave --masking and --masked-convolution as they are"
            )
        if pretraining.multi_scale:
            raise ConvMAEError("a plain ViT has no stages to fuse; give --no-multi-scale")
    return ConvMAEPretraining(
        build_encoder(config),
        decoder_width=pretraining.decoder_width,
        decoder_depth=pretraining.decoder_depth,
        decoder_heads=pretraining.decoder_heads,
        decoder_mlp_ratio=pretraining.decoder_mlp_ratio,
        cell_size=cell_size,
        multi_scale=pretraining.multi_scale,
        masked_convolution=pretraining.masked_convolution,
        norm_pix_loss=pretraining.norm_pix_loss,
    )


def fastest_algorithms(
    model: nn.Module, cell_size: int, device: torch.device, dtype: torch.dtype
) -> tuple[Algorithms, dict[str, dict[str, float]]]:
    """The fastest algorithms to convolve a pretraining model's visible cells; see `models.depthwise.fastest`.

    Args:
        model: for photos or videos, with convolutions; its first one is measured, where most tokens are.
        cell_size: pixels along the side of what a mask hides.
        device: to measure on, whatever the model is on.
        dtype: that the convolution is computed in.
    """
    shape = model.get_parameter("encoder.blocks1.0.attn.weight").shape
    return fastest(shape, cell_size // STRIDES[0], device, dtype)


def initialise_pretraining(model: nn.Module, last_patch_embedding: nn.Conv2d, mask_token: nn.Parameter) -> None:
    """As in the authors' code: Xavier for Linears and for the last patch embedding only, 0.02 for the mask token.

    What they hold as 1x1 convolutions keeps PyTorch's default for those, which is that of a Linear.
    """
    pointwise = set(pointwise_layers(model))
    for layer in model.modules():
        if layer in pointwise:
            layer.reset_parameters()
        elif isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    nn.init.xavier_uniform_(last_patch_embedding.weight.view(len(last_patch_embedding.weight), -1))
    nn.init.normal_(mask_token, std=0.02)


def patchify(images_bchw: Tensor) -> Tensor:
    """(B, 3, H * 16, W * 16) to patches (B, N, P), row-major; a patch holds (row, column, colour)."""
    batch, channels, height, width = images_bchw.shape
    grid = images_bchw.reshape(
        batch, channels, height // PATCH_SIZE, PATCH_SIZE, width // PATCH_SIZE, PATCH_SIZE
    )  # (B, 3, H, 16, W, 16)
    return grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches_bnp: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """The inverse of `patchify`: (B, N, P) to (B, 3, H * 16, W * 16)."""
    height, width = grid_size
    grid = patches_bnp.reshape(-1, height, width, PATCH_SIZE, PATCH_SIZE, 3)  # (B, H, W, 16, 16, 3)
    return grid.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def patch_statistics(patches_bnp: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each patch over its P values, each (B, N, 1).

    In two passes: on a CPU `Tensor.var` takes eight times as long (torch 2.15).
    """
    mean = patches_bnp.mean(2, keepdim=True)
    return mean, (patches_bnp - mean).square_().sum(2, keepdim=True) / (patches_bnp.shape[2] - 1)
