"""The dense masked computation that the authors' code does: every cell computed, hidden ones multiplied by zero.

The slow literal reference for `ConvMAEPretraining`: tests compare with it, and `benchmarks.pretraining` measures
against it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convmae_deploy.models.convmae import PATCH_SIZE, ConvBlock, PatchEmbed, resize_position_embedding
from convmae_deploy.models.pretraining import ConvMAEPretraining


class DenseMaskedPretraining(nn.Module):
    """The same parameters and numbers as the model that it wraps, by way of whole maps."""

    def __init__(self, model: ConvMAEPretraining) -> None:
        super().__init__()
        self.model = model

    def forward(self, images_bchw: Tensor, kept_bk: Tensor) -> Tensor:
        """The loss; arguments as for `ConvMAEPretraining`, one mask an image."""
        latent = self.latent(images_bchw, kept_bk)
        model, grid_size = self.model, self._grid_size(images_bchw)
        tokens = model.decoder_embed(latent)
        hidden_tokens = model.mask_token.expand(len(tokens), grid_size[0] * grid_size[1], -1).to(tokens.dtype)
        index = kept_bk[:, :, None].expand(-1, -1, tokens.shape[2])
        position = resize_position_embedding(model.decoder_pos_embed, model.grid_size, grid_size)
        tokens = hidden_tokens.scatter(1, index, tokens) + position
        for block in model.decoder_blocks:
            tokens = block(tokens)
        prediction = model.decoder_pred(model.decoder_norm(tokens))
        return model.loss(images_bchw, prediction, self._removed(images_bchw, kept_bk).unsqueeze(2))

    def latent(self, images_bchw: Tensor, kept_bk: Tensor) -> Tensor:
        """(B, K, D), fused and normalised."""
        encoder = self.model.encoder
        grid_size = self._grid_size(images_bchw)
        visible = 1 - self._removed(images_bchw, kept_bk).reshape(-1, 1, *grid_size)  # (B, 1, H, W)
        stage1 = masked_stage(encoder.patch_embed1, encoder.blocks1, images_bchw.permute(0, 2, 3, 1), visible)
        stage2 = masked_stage(encoder.patch_embed2, encoder.blocks2, stage1, visible)
        embedded = encoder.patch_embed4(embed(encoder.patch_embed3, stage2)).flatten(1, 2)  # (B, N, D)
        tokens = self._take(embedded + encoder.position_embedding(grid_size), kept_bk)
        for block in encoder.blocks3:
            tokens = block(tokens)
        if self.model.multi_scale:
            for convolution, stage in (
                (self.model.stage1_output_decode, stage1),
                (self.model.stage2_output_decode, stage2),
            ):
                tokens = tokens + self._take(convolution(stage.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2), kept_bk)
        return self.model.norm(tokens)  # type: ignore[no-any-return]

    @staticmethod
    def _grid_size(images_bchw: Tensor) -> tuple[int, int]:
        return images_bchw.shape[2] // PATCH_SIZE, images_bchw.shape[3] // PATCH_SIZE

    def _removed(self, images_bchw: Tensor, kept_bk: Tensor) -> Tensor:
        height, width = self._grid_size(images_bchw)
        removed = torch.ones(len(kept_bk), height * width, device=kept_bk.device)
        return removed.scatter(1, kept_bk, 0.0)

    @staticmethod
    def _take(tokens_bnd: Tensor, kept_bk: Tensor) -> Tensor:
        return tokens_bnd.gather(1, kept_bk[:, :, None].expand(-1, -1, tokens_bnd.shape[2]))


def embed(layer: PatchEmbed, map_bhwc: Tensor) -> Tensor:
    """A patch embedding by PyTorch's own convolution."""
    return F.gelu(layer.norm(layer.proj(map_bhwc.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))


def masked_stage(layer: PatchEmbed, blocks: nn.ModuleList, map_bhwc: Tensor, visible_bhw: Tensor) -> Tensor:
    """A convolution stage on whole maps; hidden places become zero in front of PyTorch's depthwise convolution."""
    map_bhwc = embed(layer, map_bhwc)
    mask = F.interpolate(visible_bhw, size=map_bhwc.shape[1:3]).to(map_bhwc.dtype)  # (B, 1, H, W)
    for block in blocks:
        assert isinstance(block, ConvBlock)
        hidden = block.conv1(block.norm1(map_bhwc)).permute(0, 3, 1, 2)  # (B, C, H, W)
        map_bhwc = map_bhwc + block.conv2(block.attn(hidden * mask).permute(0, 2, 3, 1))
        map_bhwc = map_bhwc + block.mlp(block.norm2(map_bhwc))
    return map_bhwc
