"""Windows and relative positions of stage 3."""

import math

import pytest
import torch
from torch import Tensor

from convmae_deploy.models.attention import (
    Attention,
    Bias,
    DecomposedRelativePosition,
    Positions,
    RelativePositionTable,
    attend,
    attend_by_rows,
    join_windows,
    row_parts,
    split_windows,
)

HEADS, HEAD_WIDTH = 2, 4
GRID = (3, 5)  # rows and columns that differ, so that a swap shows


def queries(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value (B, h, N, d)."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, batch, HEADS, GRID[0] * GRID[1], HEAD_WIDTH)
    query, key, value = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_().unbind(0)
    return query, key, value


def table(grid_size: tuple[int, int] = GRID) -> RelativePositionTable:
    """A table of distinct entries."""
    position = RelativePositionTable(grid_size, HEADS).double()
    torch.nn.init.normal_(position.table, generator=torch.Generator().manual_seed(1))
    return position


def decomposed(grid_size: tuple[int, int] = GRID) -> DecomposedRelativePosition:
    """Vectors that differ."""
    position = DecomposedRelativePosition(grid_size, HEAD_WIDTH).double()
    for parameter in position.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    return position


def literal_table_bias(position: RelativePositionTable) -> Tensor:
    """(h, N, N), entry by entry."""
    height, width = GRID
    places = [(row, column) for row in range(height) for column in range(width)]
    bias = torch.empty(HEADS, len(places), len(places), dtype=torch.float64)
    for query, (query_row, query_column) in enumerate(places):
        for key, (key_row, key_column) in enumerate(places):
            row, column = query_row - key_row + height - 1, query_column - key_column + width - 1
            bias[:, query, key] = position.table[row * (2 * width - 1) + column]
    return bias


def literal_decomposed_bias(position: DecomposedRelativePosition, query: Tensor) -> Tensor:
    """(B, h, N, N), entry by entry."""
    height, width = GRID
    places = [(row, column) for row in range(height) for column in range(width)]
    bias = query.new_empty(*query.shape[:2], len(places), len(places))
    for own, (query_row, query_column) in enumerate(places):
        for other, (key_row, key_column) in enumerate(places):
            vector = position.rel_pos_h[query_row - key_row + height - 1]
            vector = vector + position.rel_pos_w[query_column - key_column + width - 1]
            bias[:, :, own, other] = query[:, :, own] @ vector
    return bias


@pytest.fixture(params=[2**25, 2 * HEADS * GRID[1] * math.prod(GRID), 1], ids=["whole", "two rows", "one row"])
def bias_entries(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How much of the bias may be in memory."""
    monkeypatch.setattr("convmae_deploy.models.attention.BIAS_ENTRIES", request.param)


@pytest.mark.usefixtures("bias_entries")
def test_attention_by_rows_adds_the_table_s_entry_of_every_pair_of_tokens() -> None:
    (query, key, value), position = queries(), table()
    scores = query @ key.transpose(2, 3) / math.sqrt(HEAD_WIDTH) + literal_table_bias(position)
    expected = scores.softmax(-1) @ value
    found = attend_by_rows(query, key, value, position(GRID), GRID)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    (wanted,) = torch.autograd.grad(expected.square().sum(), position.table)
    (gradient,) = torch.autograd.grad(found.square().sum(), position.table)
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("bias_entries")
def test_attention_by_rows_adds_what_a_query_gives_for_the_offset() -> None:
    (query, key, value), position = queries(), decomposed()
    scores = query @ key.transpose(2, 3) / math.sqrt(HEAD_WIDTH) + literal_decomposed_bias(position, query)
    expected = scores.softmax(-1) @ value
    found = attend_by_rows(query, key, value, position(GRID), GRID)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for parameter in position.parameters():
        (wanted,) = torch.autograd.grad(expected.square().sum(), parameter, retain_graph=True)
        (gradient,) = torch.autograd.grad(found.square().sum(), parameter, retain_graph=True)
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-12)


def test_the_whole_bias_of_a_large_grid_is_never_in_memory() -> None:
    parts = list(row_parts(12, (64, 64)))
    assert parts[0] == (0, 10) and parts[-1] == (60, 64)
    rows = table((64, 64)).float()((64, 64)).rows(torch.zeros(1, HEADS, 10 * 64, HEAD_WIDTH), 0, 10)
    assert rows.shape == (1, HEADS, 640, 4096)


@pytest.mark.parametrize("position", [table((6, 4)), decomposed((6, 4))])
def test_relative_positions_of_another_grid_are_resized(
    position: RelativePositionTable | DecomposedRelativePosition,
) -> None:
    query, key, value = (part.float() for part in queries())
    bias: Bias = position.float()(GRID)
    assert attend_by_rows(query, key, value, bias, GRID).shape == query.shape


def test_new_relative_positions_change_nothing() -> None:
    query, key, value = queries()
    plain = attend(query, key, value)
    for position in (RelativePositionTable(GRID, HEADS), DecomposedRelativePosition(GRID, HEAD_WIDTH)):
        found = attend_by_rows(query, key, value, position.double()(GRID), GRID)
        torch.testing.assert_close(found, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shift", [0, 1])
def test_windows_hold_neighbours_and_zeros_beyond_the_grid(shift: int) -> None:
    tokens = torch.arange(1, 16, dtype=torch.float32).reshape(1, 15, 1)
    windows = split_windows(tokens, GRID, 2, shift)
    first = [[1, 2, 6, 7], [7, 8, 12, 13]][shift]  # rows are 1 to 5, 6 to 10, 11 to 15
    assert windows[0].flatten().tolist() == first
    assert windows.shape == (2 * 3, 4, 1)
    assert windows.sum() == tokens.sum()
    assert torch.equal(join_windows(windows, GRID, 2, shift), tokens)


@pytest.mark.parametrize(("grid_size", "size", "shift"), [((5, 7), 3, 1), ((4, 6), 2, 1), ((7, 8), 4, 2)])
@pytest.mark.parametrize("with_table", [False, True])
def test_a_shifted_token_sees_the_part_of_its_window_that_was_its_neighbourhood(
    grid_size: tuple[int, int], size: int, shift: int, with_table: bool
) -> None:
    """Swin's shift against windows cut out one by one, those at the borders smaller."""
    torch.manual_seed(0)
    attention = Attention(8, HEADS, window_size=size, shift=shift).double()
    window_table = RelativePositionTable((size, size), HEADS).double()
    torch.nn.init.normal_(window_table.table)
    bias = window_table((size, size)) if with_table else None
    tokens = torch.randn(2, grid_size[0] * grid_size[1], 8, dtype=torch.float64)
    found = attention(tokens, Positions(grid_size, window_bias=bias)).reshape(2, *grid_size, 8)
    height, width = (side + -side % size for side in grid_size)
    padded = torch.zeros(2, height, width, 8, dtype=torch.float64)
    padded[:, : grid_size[0], : grid_size[1]] = tokens.reshape(2, *grid_size, 8)
    expected = torch.empty_like(padded)
    for rows in cuts(height, size, shift):
        for columns in cuts(width, size, shift):
            part = padded[:, rows, columns]  # (2, h, w, 8)
            part_size = part.shape[1], part.shape[2]
            own = None if bias is None else offset_bias(window_table, part_size)
            expected[:, rows, columns] = attention._attend(part.flatten(1, 2), own, part_size).reshape(part.shape)
    torch.testing.assert_close(found, expected[:, : grid_size[0], : grid_size[1]], rtol=0, atol=1e-12)


def cuts(side: int, size: int, shift: int) -> list[slice]:
    """Where shifted windows lie along a side that is a multiple of theirs."""
    edges = [0, *range(shift, side, size), side]
    return [slice(first, last) for first, last in zip(edges[:-1], edges[1:], strict=True)]


def offset_bias(position: RelativePositionTable, part_size: tuple[int, int]) -> Bias:
    """The same table's bias for a part of a window: an offset means what it means in the whole."""
    (height, width), (rows, columns) = position.grid_size, part_size
    offsets = position.table.reshape(2 * height - 1, 2 * width - 1, HEADS)
    middle = offsets[height - rows : height + rows - 1, width - columns : width + columns - 1]
    part = RelativePositionTable(part_size, HEADS).double()
    part.table.data = middle.reshape(-1, HEADS).detach()
    bias: Bias = part(part_size)
    return bias


def test_a_window_that_spans_the_grid_is_not_shifted() -> None:
    torch.manual_seed(0)
    plain, shifted = Attention(8, HEADS, window_size=4), Attention(8, HEADS, window_size=4, shift=2)
    shifted.load_state_dict(plain.state_dict())
    tokens = torch.randn(2, 16, 8)
    assert torch.equal(shifted(tokens, Positions((4, 4))), plain(tokens, Positions((4, 4))))


def test_a_windowed_token_sees_its_window_alone() -> None:
    torch.manual_seed(0)
    attention = Attention(8, HEADS, window_size=2)
    tokens = torch.randn(1, 16, 8)
    changed = tokens.clone()
    changed[0, 15] += 1  # the last of a 4 x 4 grid; its window is 10, 11, 14, 15
    positions = Positions((4, 4))
    moved = (attention(tokens, positions) - attention(changed, positions)).abs().amax(-1)[0] > 1e-6
    assert moved.nonzero().flatten().tolist() == [10, 11, 14, 15]
    whole = Attention(8, HEADS)
    assert ((whole(tokens, positions) - whole(changed, positions)).abs().amax(-1) > 1e-7).all()
    torch.testing.assert_close(whole(tokens, positions), whole(tokens))
