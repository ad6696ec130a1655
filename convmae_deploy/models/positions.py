"""Position embeddings of the stage-3 tokens: how they are made and how they are resized.

Shapes: N = H * W tokens, D channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_position_embedding(width: int, grid_size: tuple[int, int]) -> Tensor:
    """Fixed 2-D sine-cosine embedding (1, H * W, width): first half of the channels by column, second half by row.

    The rate of channel i is 10000^(-i / (width / 4)); computed in float64 as in the authors' code.
    """
    rates = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid_size), indexing="ij")
    angles = [axis.reshape(-1, 1) * rates for axis in (columns, rows)]  # each (N, width / 4)
    waves = [wave for angle in angles for wave in (angle.sin(), angle.cos())]
    return torch.cat(waves, dim=1).float().unsqueeze(0)


def resize_position_embedding(embedding: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Bicubic resize of (1, old H * W, D) to (1, new H * W, D), as all of the authors' loaders do it."""
    if old == new:
        return embedding
    precision = torch.promote_types(embedding.dtype, torch.float32)
    map_bdhw = embedding.to(precision).reshape(1, *old, -1).permute(0, 3, 1, 2)  # (1, D, H, W)
    resized = F.interpolate(map_bdhw, size=new, mode="bicubic", align_corners=False)
    return resized.flatten(2).transpose(1, 2).to(embedding.dtype)
