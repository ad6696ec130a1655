"""The dense masked computation that the authors' code does: every cell computed, hidden ones multiplied by zero.

The slow literal reference for `ConvMAEPretraining`: tests compare with it, `benchmarks.pretraining` measures against it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convmae_deploy.models.convmae import PATCH_SIZE
from convmae_deploy.models.pretraining import ConvMAEPretraining


class DenseMaskedPretraining(nn.Module):
    """The same parameters and numbers as the model that it wraps, by way of whole maps."""

    def __init__(self, model: ConvMAEPretraining) -> None:
        super().__init__()
        self.model = model
        self.visible_map: Tensor | None = None  # (B, 1, H, W) of the forward pass at hand, 1 = visible
        for stage in (model.encoder.blocks1, model.encoder.blocks2):
            for block in stage:
                block.attn.register_forward_pre_hook(self._hide)  # type: ignore[operator, union-attr]

    def _hide(self, convolution: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        (map_bchw,) = inputs
        assert self.visible_map is not None
        return map_bchw * F.interpolate(self.visible_map, size=map_bchw.shape[-2:]).to(map_bchw.dtype)

    def forward(self, images_bchw: Tensor, kept_bk: Tensor) -> Tensor:
        """The loss; arguments as for `ConvMAEPretraining`, one mask an image."""
        latent = self.latent(images_bchw, kept_bk)
        model, grid_size = self.model, self._grid_size(images_bchw)
        tokens = model.decoder_embed(latent)
        hidden_tokens = model.mask_token.expand(len(tokens), grid_size[0] * grid_size[1], -1).to(tokens.dtype)
        index = kept_bk[:, :, None].expand(-1, -1, tokens.shape[2])
        tokens = hidden_tokens.scatter(1, index, tokens) + model.decoder_pos_embed
        for block in model.decoder_blocks:
            tokens = block(tokens)
        prediction = model.decoder_pred(model.decoder_norm(tokens))
        return model.loss(images_bchw, prediction, self._removed(images_bchw, kept_bk).unsqueeze(2))

    def latent(self, images_bchw: Tensor, kept_bk: Tensor) -> Tensor:
        """(B, K, D), fused and normalised."""
        encoder = self.model.encoder
        grid_size = self._grid_size(images_bchw)
        self.visible_map = 1 - self._removed(images_bchw, kept_bk).reshape(-1, 1, *grid_size)
        stage1 = encoder.forward_stage1(images_bchw.permute(0, 2, 3, 1))
        stage2 = encoder.forward_stage2(stage1)
        embedded = encoder.patch_embed4(encoder.patch_embed3(stage2)).flatten(1, 2)  # (B, N, D)
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
