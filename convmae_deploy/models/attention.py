"""Self-attention over tokens: of all of them or within windows, with relative positions or without.

Plain attention is the paper's stage 3. Windows and relative positions are what the authors' detectors and segmenter add
to it; their code is the source of every choice that the paper leaves open.

Shapes: B batch (or windows), N = H * W tokens of a grid, D width, h heads, d = D / h, r rows of the grid
whose tokens ask.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

RelativePosition = Literal["none", "shared", "per_block", "decomposed"]
UNSEEN = -100.0  # Swin's bias against keys that a query must not see; finite, so that half precision can hold it
BIAS_ENTRIES = 2**25  # how much bias is in memory at once for an image, 128 MiB in float32


class Bias(Protocol):
    """What relative positions add to the scores, computed for some rows of asking tokens at a time."""

    def rows(self, query_bhnd: Tensor, first: int, last: int) -> Tensor:
        """(B, h, r * W, N) for the queries (B, h, r * W, d) of the grid's rows `first` to `last` - 1."""


@dataclass(frozen=True)
class Positions:
    """What the blocks of stage 3 need to know of a grid."""

    grid_size: tuple[int, int]  # (H, W) in tokens
    global_bias: Bias | None = None  # shared by all blocks that attend to the whole grid
    window_bias: Bias | None = None  # shared by all others


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        window_size: int | None = None,
        shift: int = 0,
        position: nn.Module | None = None,
    ) -> None:
        """
        Args:
            width: D.
            num_heads: h.
            window_size: side of the windows in tokens; None: every token attends to the whole grid.
            shift: tokens by which the grid is rolled up and left before it is cut into windows, as in Swin.
            position: this block's own relative positions (`RelativePositionTable`, `DecomposedRelativePosition`).
        """
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.shift = shift
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.position = position

    def forward(self, tokens_bnd: Tensor, positions: Positions | None = None) -> Tensor:
        """(B, N, D) to the same; without `positions` in no order, as plain attention is."""
        if positions is None:
            return self._attend(tokens_bnd, None, (1, tokens_bnd.shape[1]))
        if self.window_size is None:
            return self._attend(tokens_bnd, positions.global_bias, positions.grid_size)
        size, grid_size = self.window_size, positions.grid_size
        shift = self.shift if min(grid_size) > size else 0  # as in Swin: no shift where a window spans the grid
        apart = torn_apart(grid_size, size, shift, tokens_bnd.device) if shift else None
        windows_mnd = split_windows(tokens_bnd, grid_size, size, shift)
        attended = self._attend(windows_mnd, positions.window_bias, (size, size), apart)
        return join_windows(attended, grid_size, size, shift)

    def _attend(
        self, tokens_bnd: Tensor, bias: Bias | None, grid_size: tuple[int, int], apart: Tensor | None = None
    ) -> Tensor:
        batch, length, width = tokens_bnd.shape
        qkv = self.qkv(tokens_bnd).reshape(batch, length, 3, self.num_heads, width // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, h, N, d)
        if isinstance(self.position, (RelativePositionTable, DecomposedRelativePosition)):
            bias = self.position(grid_size)
        if apart is not None:
            bias = ShiftedBias(bias, apart)
        attended = attend(query, key, value) if bias is None else attend_by_rows(query, key, value, bias, grid_size)
        return self.proj(attended.transpose(1, 2).reshape(batch, length, width))  # type: ignore[no-any-return]


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """`scaled_dot_product_attention` of (B, h, N, d); in float32 while a CPU trains in half precision.

    Its gradient in bfloat16 takes several times as long on a CPU as in float32 (torch 2.15).
    """
    if query.device.type != "cpu" or query.dtype.itemsize > 2 or not query.requires_grad:
        return F.scaled_dot_product_attention(query, key, value, None if bias is None else bias.to(query.dtype))
    with torch.autocast("cpu", enabled=False):
        bias = None if bias is None else bias.float()
        return F.scaled_dot_product_attention(query.float(), key.float(), value.float(), bias).to(query.dtype)


def attend_by_rows(query: Tensor, key: Tensor, value: Tensor, bias: Bias, grid_size: tuple[int, int]) -> Tensor:
    """`attend` with a bias (h, N, N) that is never whole in memory, where 64 x 64 tokens and 12 heads take 805 MB.

    Args:
        query: (B, h, N, d), and `key` and `value` as well.
        bias: computed for as many rows of the grid at a time as `BIAS_ENTRIES` allow, and again in the backward pass.
        grid_size: (H, W).
    """

    def some_rows(query_rows: Tensor, first: int, last: int) -> Tensor:
        return attend(query_rows, key, value, bias.rows(query_rows, first, last))

    width = grid_size[1]
    parts = list(row_parts(query.shape[1], grid_size))
    again = torch.is_grad_enabled() and len(parts) > 1
    attended = []
    for first, last in parts:
        query_rows = query[:, :, first * width : last * width]  # (B, h, r * W, d)
        if again:
            attended.append(checkpoint(some_rows, query_rows, first, last, use_reentrant=False))
        else:
            attended.append(some_rows(query_rows, first, last))
    return torch.cat(attended, dim=2)


def row_parts(num_heads: int, grid_size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of the rows that are computed together, the last part maybe smaller."""
    height, width = grid_size
    size = max(1, BIAS_ENTRIES // (num_heads * width * height * width))
    for first in range(0, height, size):
        yield first, min(first + size, height)


def split_windows(tokens_bnd: Tensor, grid_size: tuple[int, int], size: int, shift: int) -> Tensor:
    """(B, H * W, D) to windows (B * windows, size * size, D) of the grid, rolled by `shift` up and left.

    Where windows reach over the grid there are zeros, which take part in the attention, as in the authors' code.
    """
    batch, _, width = tokens_bnd.shape
    bottom, right = (-side % size for side in grid_size)
    map_bhwd = F.pad(tokens_bnd.reshape(batch, *grid_size, width), (0, 0, 0, right, 0, bottom))
    if shift:
        map_bhwd = map_bhwd.roll((-shift, -shift), (1, 2))
    rows, columns = map_bhwd.shape[1] // size, map_bhwd.shape[2] // size
    windows = map_bhwd.reshape(batch, rows, size, columns, size, width).transpose(2, 3)
    return windows.reshape(batch * rows * columns, size * size, width)


def join_windows(windows_mnd: Tensor, grid_size: tuple[int, int], size: int, shift: int) -> Tensor:
    """The inverse of `split_windows`: (B * windows, size * size, D) to (B, H * W, D)."""
    (height, width), channels = grid_size, windows_mnd.shape[2]
    rows, columns = (-(-side // size) for side in grid_size)
    map_bhwd = windows_mnd.reshape(-1, rows, columns, size, size, channels).transpose(2, 3)
    map_bhwd = map_bhwd.reshape(-1, rows * size, columns * size, channels)
    if shift:
        map_bhwd = map_bhwd.roll((shift, shift), (1, 2))
    return map_bhwd[:, :height, :width].reshape(-1, height * width, channels)


def torn_apart(grid_size: tuple[int, int], size: int, shift: int, device: torch.device) -> Tensor:
    """Which tokens of a window the roll brought together from opposite borders: (windows, size * size, size * size)."""
    height, width = (side + -side % size for side in grid_size)
    wrapped_rows, wrapped_columns = (torch.arange(side, device=device) >= side - shift for side in (height, width))
    part = 2 * wrapped_rows[:, None] + wrapped_columns  # (H, W): 0 to 3, of which a window holds those side by side
    parts = split_windows(part.reshape(1, -1, 1), (height, width), size, 0)  # (windows, size * size, 1)
    return parts != parts.transpose(1, 2)


@dataclass(frozen=True)
class ShiftedBias:
    """A bias for shifted windows (arXiv 2103.14030, section 3.2): tokens that were torn apart do not see each other."""

    bias: Bias | None
    apart: Tensor  # (windows, N, N) bool, see `torn_apart`

    def rows(self, query_bhnd: Tensor, first: int, last: int) -> Tensor:
        """See `Bias`; the queries are those of all windows of one image, then of the next."""
        width = query_bhnd.shape[2] // (last - first)
        apart = self.apart[:, first * width : last * width]
        mask = torch.zeros_like(apart, dtype=query_bhnd.dtype).masked_fill(apart, UNSEEN)
        mask = mask.repeat(query_bhnd.shape[0] // len(apart), 1, 1).unsqueeze(1)  # (B, 1, r * W, N)
        return mask if self.bias is None else mask + self.bias.rows(query_bhnd, first, last)


class RelativePositionTable(nn.Module):
    """A learned bias for every offset between two tokens and every head, zero at first.

    Row (y + H - 1) * (2 W - 1) + x + W - 1 is for a key that lies y rows above and x columns left of its query.
    """

    def __init__(self, grid_size: tuple[int, int], num_heads: int) -> None:
        """
        Args:
            grid_size: (H, W) that the table is stored for; for others it is resized bicubically.
            num_heads: h.
        """
        super().__init__()
        self.grid_size = grid_size
        self.offsets = 2 * grid_size[0] - 1, 2 * grid_size[1] - 1
        self.table = nn.Parameter(torch.zeros(self.offsets[0] * self.offsets[1], num_heads))

    def forward(self, grid_size: tuple[int, int]) -> "TableBias":
        """The biases of a grid (H, W), ready for `attend_by_rows`."""
        height, width = grid_size
        table = self.table.reshape(1, *self.offsets, -1).permute(0, 3, 1, 2)  # (1, h, 2 H - 1, 2 W - 1)
        offsets = 2 * height - 1, 2 * width - 1
        if offsets != self.offsets:
            table = F.interpolate(table.float(), size=offsets, mode="bicubic", align_corners=False)
        columns = torch.arange(width, device=table.device)
        pairs = (columns[:, None] - columns[None, :] + width - 1).flatten()  # a query's column and a key's
        spread = table[0].flip(1).index_select(2, pairs).reshape(-1, offsets[0], width, width)
        return TableBias(spread.transpose(1, 2).contiguous())


@dataclass(frozen=True)
class TableBias:
    """A `RelativePositionTable` for one grid, spread over columns but not rows: 25 MB at 64 x 64 tokens, 12 heads."""

    spread: Tensor  # (h, W, 2 H - 1, W): the query's column, rows between key and query + H - 1, the key's column

    def rows(self, query_bhnd: Tensor, first: int, last: int) -> Tensor:
        """See `Bias`. It is made for every image of the batch: a graph would keep one for all as a constant, whole."""
        heads, width, offsets, _ = self.spread.shape
        height = (offsets + 1) // 2
        spread = self.spread.expand(query_bhnd.shape[0], -1, -1, -1, -1)
        rows = [spread.narrow(3, height - 1 - row, height) for row in range(first, last)]  # each (B, h, W, H, W)
        return torch.stack(rows, dim=2).reshape(-1, heads, (last - first) * width, height * width)


class DecomposedRelativePosition(nn.Module):
    """What a query gives for the rows and the columns between it and a key, zero at first (arXiv 2112.01526, eq. 4)."""

    def __init__(self, grid_size: tuple[int, int], head_width: int) -> None:
        """
        Args:
            grid_size: (H, W) that the tables are stored for; for others they are resized linearly.
            head_width: d.
        """
        super().__init__()
        height, width = grid_size
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * height - 1, head_width))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * width - 1, head_width))

    def forward(self, grid_size: tuple[int, int]) -> "DecomposedBias":
        """The vectors of a grid (H, W), ready for `attend_by_rows`."""
        height, width = grid_size
        return DecomposedBias(offset_vectors(self.rel_pos_h, height), offset_vectors(self.rel_pos_w, width))


@dataclass(frozen=True)
class DecomposedBias:
    """`DecomposedRelativePosition` for one grid."""

    row_vectors: Tensor  # (H, H, d): of a query's row and a key's
    column_vectors: Tensor  # (W, W, d)

    def rows(self, query_bhnd: Tensor, first: int, last: int) -> Tensor:
        """See `Bias`."""
        batch, heads, _, head_width = query_bhnd.shape
        height, width = len(self.row_vectors), len(self.column_vectors)
        query = query_bhnd.reshape(batch, heads, last - first, width, head_width)  # (B, h, r, W, d)
        by_row = query @ self.row_vectors[first:last].transpose(1, 2)  # (B, h, r, W, H)
        by_column = (query.transpose(2, 3) @ self.column_vectors.transpose(1, 2)).transpose(2, 3)  # (B, h, r, W, W)
        return (by_row[..., :, None] + by_column[..., None, :]).reshape(batch, heads, -1, height * width)


def offset_vectors(table: Tensor, side: int) -> Tensor:
    """Vectors (side, side, d) of query and key from the table (2 * stored side - 1, d) of their offsets."""
    if len(table) != 2 * side - 1:
        resized = F.interpolate(table.float().t().unsqueeze(0), size=2 * side - 1, mode="linear", align_corners=False)
        table = resized[0].t()
    places = torch.arange(side, device=table.device)
    return table[places[:, None] - places[None, :] + side - 1]
