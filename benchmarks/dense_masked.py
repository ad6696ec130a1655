"""The dense masked computation, operation by operation as the authors' code does it.

Every cell is computed and hidden ones are multiplied by zero. Maps have their channels first, with 1x1 convolutions and
two permutations around each normalisation; attention makes its whole matrix of scores. The slow literal reference for
`ConvMAEPretraining`: tests compare with it, and `benchmarks.pretraining` measures against it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convmae_deploy.models.attention import Attention
from convmae_deploy.models.convmae import (
    PATCH_SIZE,
    ConvBlock,
    PatchEmbed,
    TransformerBlock,
)
from convmae_deploy.models.positions import resize_position_embedding
from convmae_deploy.models.pretraining import ConvMAEPretraining


class DenseMaskedPretraining(nn.Module):
    """The same parameters and numbers as the model that it wraps, by way of whole maps."""

    def __init__(self, model: ConvMAEPretraining) -> None:
        super().__init__()
        self.model = model

    def forward(self, images_bchw: Tensor, kept_bk: Tensor) -> Tensor:
        """The loss; arguments as for `ConvMAEPretraining`, one mask an image."""
        latent = self.latent(images_bchw, kept_bk)
        model, grid_size = self.model, grid(images_bchw)
        tokens = model.decoder_embed(latent)
        hidden_tokens = model.mask_token.expand(len(tokens), grid_size[0] * grid_size[1], -1).to(tokens.dtype)
        index = kept_bk[:, :, None].expand(-1, -1, tokens.shape[2])
        position = resize_position_embedding(model.decoder_pos_embed, model.grid_size, grid_size)
        tokens = hidden_tokens.scatter(1, index, tokens) + position
        for block in model.decoder_blocks:
            tokens = transformer_block(block, tokens)
        prediction = model.decoder_pred(model.decoder_norm(tokens))
        return model.loss(images_bchw, prediction, removed_cells(images_bchw, kept_bk).unsqueeze(2))

    def latent(self, images_bchw: Tensor, kept_bk: Tensor) -> Tensor:
        """(B, K, D), fused and normalised."""
        encoder = self.model.encoder
        grid_size = grid(images_bchw)
        visible = 1 - removed_cells(images_bchw, kept_bk).reshape(-1, 1, *grid_size)  # (B, 1, H, W)
        stage1 = masked_stage(encoder.patch_embed1, encoder.blocks1, images_bchw, visible)
        stage2 = masked_stage(encoder.patch_embed2, encoder.blocks2, stage1, visible)
        embedded = encoder.patch_embed4(as_tokens(embed(encoder.patch_embed3, stage2)))  # (B, N, D)
        tokens = self._take(embedded + encoder.position_embedding(grid_size), kept_bk)
        for block in encoder.blocks3:
            tokens = transformer_block(block, tokens)
        if self.model.multi_scale:
            for convolution, stage in (
                (self.model.stage1_output_decode, stage1),
                (self.model.stage2_output_decode, stage2),
            ):
                tokens = tokens + self._take(as_tokens(convolution(stage)), kept_bk)
        return self.model.norm(tokens)  # type: ignore[no-any-return]

    @staticmethod
    def _take(tokens_bnd: Tensor, kept_bk: Tensor) -> Tensor:
        return tokens_bnd.gather(1, kept_bk[:, :, None].expand(-1, -1, tokens_bnd.shape[2]))


def grid(pixels: Tensor) -> tuple[int, int]:
    """(H, W) of images or clips in stage-3 tokens."""
    return pixels.shape[-2] // PATCH_SIZE, pixels.shape[-1] // PATCH_SIZE


def removed_cells(pixels: Tensor, kept_bk: Tensor) -> Tensor:
    """The mask (B, N) of images, or of one slot of clips: 1 = removed."""
    height, width = grid(pixels)
    return torch.ones(len(kept_bk), height * width, device=kept_bk.device).scatter(1, kept_bk, 0.0)


def as_tokens(map_bchw: Tensor) -> Tensor:
    """(B, H * W, C)"""
    return map_bchw.flatten(2).transpose(1, 2)


def normalise(norm: nn.Module, map_bchw: Tensor) -> Tensor:
    """LayerNorm over the channels."""
    return norm(map_bchw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


def pointwise(layer: nn.Linear | nn.Conv2d, map_bchw: Tensor) -> Tensor:
    """A linear layer as a 1x1 convolution."""
    return F.conv2d(map_bchw, layer.weight[:, :, None, None], layer.bias)


def embed(layer: PatchEmbed, map_bchw: Tensor) -> Tensor:
    """A patch embedding by PyTorch's own convolution."""
    return F.gelu(normalise(layer.norm, layer.proj(map_bchw)))


def masked_stage(layer: PatchEmbed, blocks: nn.ModuleList, map_bchw: Tensor, visible_bhw: Tensor) -> Tensor:
    """A convolution stage on whole maps; hidden places become zero in front of PyTorch's depthwise convolution."""
    map_bchw = embed(layer, map_bchw)
    mask = F.interpolate(visible_bhw, size=map_bchw.shape[2:]).to(map_bchw.dtype)  # (B, 1, H, W)
    for block in blocks:
        assert isinstance(block, ConvBlock)
        hidden = pointwise(block.conv1, normalise(block.norm1, map_bchw))
        map_bchw = map_bchw + pointwise(block.conv2, block.attn(hidden * mask))
        hidden = F.gelu(pointwise(block.mlp.fc1, normalise(block.norm2, map_bchw)))
        map_bchw = map_bchw + pointwise(block.mlp.fc2, hidden)
    return map_bchw


def transformer_block(block: nn.Module, tokens_bnd: Tensor) -> Tensor:
    """A pre-norm block without options."""
    assert isinstance(block, TransformerBlock)
    tokens_bnd = tokens_bnd + attend(block.attn, block.norm1(tokens_bnd))
    return tokens_bnd + block.mlp(block.norm2(tokens_bnd))  # type: ignore[no-any-return]


def attend(layer: Attention, tokens_bnd: Tensor) -> Tensor:
    """Self-attention with its scores (B, h, N, N) in memory."""
    batch, length, width = tokens_bnd.shape
    qkv = layer.qkv(tokens_bnd).reshape(batch, length, 3, layer.num_heads, width // layer.num_heads)
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, h, N, d)
    scores = query @ key.transpose(2, 3) * (width // layer.num_heads) ** -0.5
    attended = scores.softmax(dim=3) @ value
    return layer.proj(attended.transpose(1, 2).reshape(batch, length, width))  # type: ignore[no-any-return]
