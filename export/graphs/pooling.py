"""Adaptive average pooling as two products with matrices that only sides decide: rows of bins @ map @ columns of bins.

ONNX has no adaptive pooling, and bins of unequal size, as those of a 15 x 15 map in two, are no pooling of ONNX at all.
"""

import torch
from torch import Tensor, nn


class MatrixPooling(nn.Module):
    """What `AdaptiveAvgPool2d(bins)` computes, for every size of map."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, map_bchw: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, bins, bins)."""
        height, width = map_bchw.shape[-2:]
        rows, columns = (pooling_matrix(side, self.bins).to(map_bchw) for side in (height, width))
        return rows @ map_bchw @ columns.t()


def pooling_matrix(side: int, bins: int) -> Tensor:
    """(bins, side) float32: row i averages the cells from floor(i side / bins) to ceil((i + 1) side / bins).

    Compared without a division, so that a graph with open sides computes it from these.
    """
    rows, cells = torch.arange(bins)[:, None], torch.arange(side)[None]
    inside = (((cells + 1) * bins > rows * side) & (cells * bins < (rows + 1) * side)).float()  # (bins, side)
    return inside / inside.sum(dim=1, keepdim=True)


def replace_adaptive_pooling(model: nn.Module) -> None:
    """Puts `MatrixPooling` in place of every square `AdaptiveAvgPool2d` of a model."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.AdaptiveAvgPool2d) and isinstance(child.output_size, int):
                setattr(module, name, MatrixPooling(child.output_size))
