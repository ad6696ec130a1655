"""Position embeddings: the recorded table, its formula, and resizing against a literal bicubic resize."""

import math

import torch
from torch import Tensor

from convmae_deploy.models.positions import resize_position_embedding, sincos_position_embedding
from tests.original_files import recorded_tensor, relative_error


def test_the_position_embedding_is_the_recorded_table() -> None:
    assert relative_error(sincos_position_embedding(96, (14, 14)), recorded_tensor("encoder", "pos_embed")) <= 1e-6


def test_the_position_embedding_is_sines_and_cosines_of_column_then_row() -> None:
    embedding = sincos_position_embedding(8, (2, 3))
    assert embedding.shape == (1, 6, 8)
    row, column = 1, 2
    rates = (1.0, 10000.0**-0.5)
    expected = [wave(axis * rate) for axis in (column, row) for wave in (math.sin, math.cos) for rate in rates]
    torch.testing.assert_close(embedding[0, row * 3 + column], torch.tensor(expected))


def cubic_weight(distance: float) -> float:
    """The bicubic kernel with a = -0.75 at a distance in cells."""
    x = abs(distance)
    if x <= 1:
        return (1.25 * x - 2.25) * x * x + 1
    return -0.75 * (((x - 5) * x + 8) * x - 4) if x < 2 else 0.0


def test_a_position_embedding_is_resized_as_a_literal_bicubic_resize_does() -> None:
    old, new = (3, 4), (4, 6)
    table = torch.randn(1, 12, 2, generator=torch.Generator().manual_seed(2))

    def literal(row: int, column: int) -> Tensor:
        total = torch.zeros(2)
        y, x = (
            (index + 0.5) * before / after - 0.5 for index, before, after in zip((row, column), old, new, strict=True)
        )
        for near_row in range(math.floor(y) - 1, math.floor(y) + 3):
            for near_column in range(math.floor(x) - 1, math.floor(x) + 3):
                cell = min(max(near_row, 0), 2) * 4 + min(max(near_column, 0), 3)  # edges repeat
                total += cubic_weight(y - near_row) * cubic_weight(x - near_column) * table[0, cell]
        return total

    expected = torch.stack([literal(row, column) for row in range(4) for column in range(6)]).unsqueeze(0)
    torch.testing.assert_close(resize_position_embedding(table, old, new), expected)


def test_resizing_keeps_precision_and_returns_the_same_table_for_the_same_grid() -> None:
    table = torch.randn(1, 16, 4, dtype=torch.float64)
    assert resize_position_embedding(table, (4, 4), (4, 4)) is table
    resized = resize_position_embedding(table, (4, 4), (8, 6))
    assert resized.dtype == torch.float64
    assert not torch.equal(resized, resized.float().double())
    assert resize_position_embedding(table.half(), (4, 4), (2, 2)).dtype == torch.float16
