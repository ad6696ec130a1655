"""Maps of the visible cells alone, and the one operation on them that looks at neighbours.

While pretraining most cells of an image are hidden (paper, section 2.2). Everything in the encoder but the depthwise
convolution treats each cell by itself, so the hidden ones need not be computed at all; the authors' code computes them
and multiplies by a mask. The convolution sees zeros where a neighbour is hidden, as it does there and at the border.

Shapes: B batch, H W the grid of cells, K visible cells of each image, M = B * K, s tokens along a cell's side, C
channels, k kernel size, e = s + k - 1 tokens along the side of a cell with the surroundings that the kernel reaches.
The same cells are visible in every one of a video's T slots, so there a cell is a tube.
"""

from typing import Any

import torch
from torch import Tensor, nn

from convmae_deploy.models.depthwise import CONVOLUTIONS, GRADIENTS, ON_A_CPU, Algorithms, flipped, window_padding


class VisibleCells:
    """Where the visible cells of a batch are; takes maps of whole grids to maps of those cells and back.

    A map of cells is (M, s, s, C): all cells of the first image, then those of the next, in the order of `kept`.
    """

    def __init__(self, kept_bk: Tensor, grid_size: tuple[int, int], algorithms: Algorithms = ON_A_CPU) -> None:
        """
        Args:
            kept_bk: row-major indices of the visible cells, (B, K) int64, each at most once an image.
            grid_size: (H, W) in cells.
            algorithms: of the convolution.
        """
        self.kept = kept_bk
        self.algorithms = algorithms
        self.grid_size = grid_size
        batch, cells = len(kept_bk), grid_size[0] * grid_size[1]
        first = torch.arange(batch, device=kept_bk.device)[:, None] * cells
        self.rows = (first + kept_bk).flatten()  # (M,) of all B * H * W cells
        self._windows: dict[tuple[int, int], Tensor] = {}

    def removed(self) -> Tensor:
        """The mask (B, H * W), float32: 1 = removed, 0 = kept."""
        batch, cells = len(self.kept), self.grid_size[0] * self.grid_size[1]
        return torch.ones(batch, cells, device=self.kept.device).scatter(1, self.kept, 0.0)

    def gather(self, map_bhwc: Tensor, side: int) -> Tensor:
        """(B, H * s, W * s, C) to its visible cells (M, s, s, C)."""
        height, width = self.grid_size
        channels = map_bhwc.shape[-1]
        cells = map_bhwc.reshape(-1, height, side, width, side, channels).transpose(2, 3)  # (B, H, W, s, s, C)
        rows: Tensor = _GatherRows.apply(cells.reshape(-1, side * side * channels), self.rows)
        return rows.reshape(-1, side, side, channels)

    def scatter(self, cells_mssc: Tensor) -> Tensor:
        """(M, s, s, C) to the map (B, H * s, W * s, C), zero where cells are hidden."""
        height, width = self.grid_size
        _, side, _, channels = cells_mssc.shape
        filled = cells_mssc.new_zeros(len(self.kept) * height * width, side, side, channels)
        filled = filled.index_put((self.rows,), cells_mssc)
        map_bhswsc = filled.reshape(-1, height, width, side, side, channels).transpose(2, 3)  # (B, H, s, W, s, C)
        return map_bhswsc.reshape(-1, height * side, width * side, channels)

    def depthwise(self, convolution: nn.Conv2d | nn.Conv3d, cells_mssc: Tensor) -> Tensor:
        """The depthwise convolution of the scattered map, at the visible cells; (M, s, s, C) to the same."""
        weight = convolution.weight.to(cells_mssc.dtype)  # as autocast would
        windows = self.windows(cells_mssc, weight.shape[-1])
        names = self.algorithms.convolution, self.algorithms.gradient
        mixed: Tensor = _DepthwiseOfCells.apply(cells_mssc, weight, windows, *names)
        assert convolution.bias is not None
        return mixed + convolution.bias.to(mixed.dtype)

    def windows(self, cells_mssc: Tensor, kernel_size: int) -> Tensor:
        """Which of the visible tokens the kernel reaches from each cell; one more than there are for none.

        Asked for the first time it is computed, then it is remembered.
        """
        return self.window_tokens(cells_mssc.shape[-2], kernel_size)

    def window_tokens(self, side: int, kernel_size: int) -> Tensor:
        """Which of the M * s * s visible tokens the kernel reaches from each cell, (M, e, e); M * s * s for none."""
        key = side, kernel_size
        if key not in self._windows:
            height, width = self.grid_size
            rows, columns = height * side, width * side
            device = self.kept.device
            batch, cells = len(self.kept), height * width
            image = (self.rows // cells)[:, None, None]  # (M, 1, 1)
            cell_row = (self.rows % cells // width)[:, None, None]
            cell_column = (self.rows % width)[:, None, None]

            own = torch.arange(side, device=device)
            own_tokens = (image * rows + cell_row * side + own[:, None]) * columns + cell_column * side + own
            visible = own_tokens.numel()
            lookup = torch.full((batch * rows * columns + 1,), visible, device=device)  # last: outside of the image
            lookup[own_tokens.flatten()] = torch.arange(visible, device=device)

            reach = torch.arange(side + kernel_size - 1, device=device) - kernel_size // 2
            row, column = cell_row * side + reach[:, None], cell_column * side + reach  # (M, e, 1), (M, 1, e)
            inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
            tokens = torch.where(inside, (image * rows + row) * columns + column, batch * rows * columns)
            self._windows[key] = lookup[tokens]  # (M, e, e)
        return self._windows[key]


class VisibleTubes(VisibleCells):
    """The same of a video, whose visible cells are those of every slot: maps (B, T, H * s, W * s, C).

    A map of tubes is (M, T, s, s, C): all slots of the first cell, then those of the next.
    """

    def __init__(self, kept_bk: Tensor, grid_size: tuple[int, int], algorithms: Algorithms = ON_A_CPU) -> None:
        """Arguments as for `VisibleCells`."""
        super().__init__(kept_bk, grid_size, algorithms)
        self._tube_windows: dict[tuple[int, int, int], Tensor] = {}

    def gather(self, map_bthwc: Tensor, side: int) -> Tensor:
        """(B, T, H * s, W * s, C) to its visible tubes (M, T, s, s, C)."""
        height, width = self.grid_size
        slots, channels = map_bthwc.shape[1], map_bthwc.shape[-1]
        tubes = map_bthwc.reshape(-1, slots, height, side, width, side, channels).permute(0, 2, 4, 1, 3, 5, 6)
        rows: Tensor = _GatherRows.apply(tubes.reshape(-1, slots * side * side * channels), self.rows)
        return rows.reshape(-1, slots, side, side, channels)

    def scatter(self, tubes_mtssc: Tensor) -> Tensor:
        """(M, T, s, s, C) to the map (B, T, H * s, W * s, C), zero where cells are hidden."""
        height, width = self.grid_size
        _, slots, side, _, channels = tubes_mtssc.shape
        filled = tubes_mtssc.new_zeros(len(self.kept) * height * width, slots, side, side, channels)
        filled = filled.index_put((self.rows,), tubes_mtssc)
        map_bthswsc = filled.reshape(-1, height, width, slots, side, side, channels).permute(0, 3, 1, 4, 2, 5, 6)
        return map_bthswsc.reshape(-1, slots, height * side, width * side, channels)

    def windows(self, tubes_mtssc: Tensor, kernel_size: int) -> Tensor:
        """(M, T, e, e): in each slot the tokens around a cell; the kernel's depth is left to the convolution."""
        tubes, slots, side, _, _ = tubes_mtssc.shape
        key = slots, side, kernel_size
        if key not in self._tube_windows:
            tokens = self.window_tokens(side, kernel_size).unsqueeze(1)  # (M, 1, e, e), as if there were one slot
            area = side * side
            slot = torch.arange(slots, device=tokens.device)[:, None, None]  # (T, 1, 1)
            own = tokens // area * slots * area + slot * area + tokens % area
            self._tube_windows[key] = torch.where(tokens < tubes * area, own, tubes * slots * area)
        return self._tube_windows[key]


class _GatherRows(torch.autograd.Function):
    """`rows[index]` for indices that occur once: its gradient is a copy, where `index_select` adds one by one."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.length = len(rows)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.length, gradient.shape[1]).index_put((index,), gradient), None


class _DepthwiseOfCells(torch.autograd.Function):
    """Depthwise convolution of visible cells (M, s, s, C) or tubes (M, T, s, s, C), from the window around each."""

    @staticmethod
    def forward(
        ctx: Any, cells_mssc: Tensor, weight: Tensor, windows: Tensor, convolution: str, gradient: str
    ) -> Tensor:
        ctx.save_for_backward(cells_mssc, weight, windows)
        ctx.convolution, ctx.gradient = convolution, gradient
        return CONVOLUTIONS[convolution](_take(cells_mssc, windows), weight, window_padding(weight.shape[2:]))

    @staticmethod
    def backward(ctx: Any, gradient_mssc: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        cells_mssc, weight, windows = ctx.saved_tensors
        kernel = weight.shape[2:]
        gradient_cells = gradient_weight = None
        if ctx.needs_input_grad[0]:
            # a reaches b by an offset exactly when b reaches a by the opposite one
            reached = _take(gradient_mssc, windows)
            gradient_cells = CONVOLUTIONS[ctx.convolution](reached, flipped(weight), window_padding(kernel))
        if ctx.needs_input_grad[1]:
            gradient_weight = GRADIENTS[ctx.gradient](_take(cells_mssc, windows), gradient_mssc, kernel)
        return gradient_cells, gradient_weight, None, None, None


def _take(cells_mssc: Tensor, windows: Tensor) -> Tensor:
    """The tokens of each window, (M, e, e, C) or (M, T, e, e, C), zero where there is none."""
    channels = cells_mssc.shape[-1]
    padded = torch.cat([cells_mssc.reshape(-1, channels), cells_mssc.new_zeros(1, channels)])
    return padded.index_select(0, windows.flatten()).reshape(*windows.shape, channels)
