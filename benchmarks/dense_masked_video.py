"""The dense masked computation of a video: every cell of every slot computed, hidden ones multiplied by zero.

`benchmarks.pretraining --video` measures against it with PyTorch's own depthwise convolution and with ours.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.dense_masked import grid, removed_cells
from convmae_deploy.models.convmae import ConvBlock, run_blocks
from convmae_deploy.models.convolution import depthwise_convolution, strided_convolution
from convmae_deploy.models.video import each_slot, resize_space_time_embedding
from convmae_deploy.models.video_pretraining import VideoPretraining

Depthwise = Callable[[nn.Conv3d, Tensor], Tensor]  # of a map (B, T, H, W, C)


def plain_depthwise(convolution: nn.Conv3d, map_bthwc: Tensor) -> Tensor:
    """PyTorch's own, on a map whose channels are last in memory, with its own gradients."""
    return convolution(map_bthwc.movedim(-1, 1)).movedim(1, -1)  # type: ignore[no-any-return]


class DenseMaskedVideo(nn.Module):
    """The same parameters and numbers as the model that it wraps, by way of whole maps."""

    def __init__(self, model: VideoPretraining, depthwise: Depthwise = depthwise_convolution) -> None:
        """
        Args:
            model: the model whose parameters these are.
            depthwise: how the convolutions of the first two stages are computed; by default as in the model itself.
        """
        super().__init__()
        self.model = model
        self.depthwise = depthwise

    def forward(self, clips_bcfhw: Tensor, kept_bk: Tensor) -> Tensor:
        """The loss; arguments as for `VideoPretraining`."""
        model = self.model
        tokens = model.decoder_embed(self.latent(clips_bcfhw, kept_bk))  # (B, T, K, decoder width)
        removed = removed_cells(clips_bcfhw, kept_bk)
        (batch, slots), grid_size = tokens.shape[:2], grid(clips_bcfhw)
        filled = model.mask_token.to(tokens.dtype).expand(batch, slots, removed.shape[1], -1)
        filled = filled.scatter(2, every_slot(kept_bk, tokens), tokens)
        stored = model.encoder.slots, model.encoder.grid_size
        filled = filled + resize_space_time_embedding(model.decoder_pos_embed, stored, (slots, grid_size))
        prediction = model.decoder_pred(
            model.decoder_norm(run_blocks(model.decoder_blocks, filled.flatten(1, 2), recompute=False))
        )
        return model.loss(clips_bcfhw, prediction, removed.repeat(1, slots).unsqueeze(2))

    def latent(self, clips_bcfhw: Tensor, kept_bk: Tensor) -> Tensor:
        """(B, T, K, D), fused and normalised."""
        model, encoder = self.model, self.model.encoder
        visible = 1 - removed_cells(clips_bcfhw, kept_bk).reshape(-1, 1, *grid(clips_bcfhw))  # (B, 1, H, W)
        stage1 = self.stage(encoder.blocks1, encoder.patch_embed1(clips_bcfhw.permute(0, 2, 3, 4, 1)), visible)
        stage2 = self.stage(encoder.blocks2, each_slot(encoder.patch_embed2, stage1), visible)
        tokens = encoder.patch_embed4(each_slot(encoder.patch_embed3, stage2)).flatten(2, 3)  # (B, T, N, D)
        tokens = tokens + encoder.position_embedding(tokens.shape[1], grid(clips_bcfhw))
        tokens = tokens.gather(2, every_slot(kept_bk, tokens))
        tokens = run_blocks(encoder.blocks3, tokens.flatten(1, 2), recompute=False).reshape(tokens.shape)
        if model.multi_scale:
            for convolution, map_bthwc in (
                (model.stage1_output_decode, stage1),
                (model.stage2_output_decode, stage2),
            ):
                fused = strided_convolution(convolution, map_bthwc.flatten(0, 1)).flatten(1, 2)  # (B * T, N, D)
                fused = fused.reshape(len(kept_bk), -1, *fused.shape[1:])
                tokens = tokens + fused.gather(2, every_slot(kept_bk, fused))
        return model.norm(tokens)  # type: ignore[no-any-return]

    def stage(self, blocks: nn.ModuleList, map_bthwc: Tensor, visible_bhw: Tensor) -> Tensor:
        """A convolution stage on whole maps; hidden places become zero in front of the depthwise convolution."""
        mask = F.interpolate(visible_bhw, size=map_bthwc.shape[2:4])[:, 0, None, :, :, None]  # (B, 1, H, W, 1)
        for block in blocks:
            assert isinstance(block, ConvBlock) and isinstance(block.attn, nn.Conv3d)
            hidden = block.conv1(block.norm1(map_bthwc))
            mixed = self.depthwise(block.attn, hidden * mask.to(hidden.dtype))
            map_bthwc = map_bthwc + block.conv2(mixed)
            map_bthwc = map_bthwc + block.mlp(block.norm2(map_bthwc))
        return map_bthwc


def every_slot(kept_bk: Tensor, tokens_btnd: Tensor) -> Tensor:
    """The index (B, T, K, D) of the visible cells of every slot."""
    _, slots, _, width = tokens_btnd.shape
    return kept_bk[:, None, :, None].expand(-1, slots, -1, width)
