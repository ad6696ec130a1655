"""Which cells stay visible while pretraining: from noise to indices.

Every strategy is a function of noise, one number for each cell, so a mask is reproducible wherever its noise is: the
training programs draw it with the photo, from (seed, epoch, index).

Shapes: B batch, N cells of the grid, K visible cells, G masks of one image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convmae import PATCH_SIZE, check_image_size

MaskingName = Literal["block", "complementary", "token"]


@dataclass(frozen=True, kw_only=True)
class MaskingStrategy:
    """How cells are chosen, and how large a cell is."""

    cell_size: int  # pixels along the side of a cell
    choose: Callable[[Tensor, float], Tensor]  # (noise (B, N), mask_ratio) to kept (G * B, K)


def keep_lowest(noise_bn: Tensor, mask_ratio: float) -> Tensor:
    """The int(N * (1 - mask_ratio)) cells of lowest noise, (B, K) int64 in ascending order.

    Raises:
        ConvMAEError: no cell would stay visible, or none hidden.
    """
    return lowest(noise_bn, visible_cells(noise_bn.shape[1], mask_ratio))


def keep_tubes(noise_bn: Tensor, mask_ratio: float) -> Tensor:
    """VideoMAE's tubes: all but int(N * mask_ratio) cells of a slot, the same in every slot; (B, K) int64, ascending.

    Raises:
        ConvMAEError: no cell would stay visible, or none hidden.
    """
    cells = noise_bn.shape[1]
    kept = cells - int(cells * mask_ratio)
    check_visible(kept, cells, mask_ratio)
    return lowest(noise_bn, kept)


def keep_each_in_turn(noise_bn: Tensor, mask_ratio: float) -> Tensor:
    """FastConvMAE: the cells of each image dealt into G = 1 / (1 - mask_ratio) disjoint groups, each visible once.

    Returns:
        (G * B, K) int64; rows [g * B, (g + 1) * B) hold group g of every image, each in ascending order.

    Raises:
        ConvMAEError: the visible share is no 1/G with a whole G >= 2 that divides N.
    """
    batch, cells = noise_bn.shape
    groups = complementary_groups(mask_ratio)
    if cells % groups:
        raise ConvMAEError(
            f"complementary masks need a number of cells that their count divides; got {cells} cells and {groups} "
            "masks, choose another image size or mask ratio"
        )
    shuffled = noise_bn.argsort(dim=1).reshape(batch, groups, cells // groups)
    return shuffled.sort(dim=2).values.transpose(0, 1).reshape(groups * batch, cells // groups)


def visible_cells(cells: int, mask_ratio: float) -> int:
    """K of N cells, rounded down as in the authors' code.

    Raises:
        ConvMAEError: K is not between 1 and N - 1.
    """
    kept = int(cells * (1 - mask_ratio))
    check_visible(kept, cells, mask_ratio)
    return kept


def check_visible(kept: int, cells: int, mask_ratio: float) -> None:
    """Raises ConvMAEError unless some of the cells are kept and some hidden."""
    if not 0 < kept < cells:
        raise ConvMAEError(
            f"a mask must hide some of {cells} cells and leave some; got mask_ratio {mask_ratio}, which leaves {kept}"
        )


def lowest(noise_bn: Tensor, kept: int) -> Tensor:
    """The cells of lowest noise, (B, K) int64 in ascending order."""
    return noise_bn.argsort(dim=1)[:, :kept].sort(dim=1).values


def complementary_groups(mask_ratio: float) -> int:
    """G for a visible share of 1/G.

    Raises:
        ConvMAEError: the share is no 1/G with a whole G >= 2.
    """
    groups = round(1 / (1 - mask_ratio)) if mask_ratio < 1 else 0
    if groups < 2 or abs(1 / groups - (1 - mask_ratio)) > 1e-6:
        raise ConvMAEError(
            "complementary masks need a visible share of 1/k with a whole k of at least 2 (mask_ratio 0.5, 0.75, 0.8, "
            f"...); got mask_ratio {mask_ratio}"
        )
    return groups


# `token` is the paper's ablation (Table 5): random stage-1 tokens instead of whole 16 x 16 cells. Nearly every stage-3
# token then holds some visible pixels, so all of them are kept and the cost is almost that of the dense encoder.
MASKING: dict[MaskingName, MaskingStrategy] = {
    "block": MaskingStrategy(cell_size=PATCH_SIZE, choose=keep_lowest),
    "complementary": MaskingStrategy(cell_size=PATCH_SIZE, choose=keep_each_in_turn),
    "token": MaskingStrategy(cell_size=4, choose=keep_lowest),
}


def draw_noise(batch: int, image_size: tuple[int, int], cell_size: int, generator: torch.Generator | None) -> Tensor:
    """Uniform noise (B, N) on the generator's device (None: torch's own generator of the CPU).

    Raises:
        ConvMAEError: the image size is no multiple of 32.
    """
    check_image_size(image_size)
    cells = image_size[0] // cell_size * (image_size[1] // cell_size)
    return torch.rand(batch, cells, generator=generator, device=None if generator is None else generator.device)
