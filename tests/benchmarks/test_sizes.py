"""Sizes are counted right, and the paper's are met where the text says so."""

import pytest
import torch
from torch import nn

from benchmarks.sizes import SizesConfig, dense_cost, multiply_adds, own_cost, print_sizes
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.attention import Attention
from convmae_deploy.models.convmae import base


def test_multiply_adds_are_those_of_products_convolutions_and_attention() -> None:
    with torch.device("meta"):
        assert multiply_adds(nn.Linear(30, 20), torch.zeros(7, 30)) == pytest.approx(7 * 30 * 20 / 1e9)
        depthwise = nn.Conv2d(12, 12, 5, padding=2, groups=12)
        assert multiply_adds(depthwise, torch.zeros(1, 12, 8, 9)) == pytest.approx(8 * 9 * 12 * 25 / 1e9)
        attention, tokens, width = Attention(16, 4), 10, 16
        expected = tokens * 4 * width**2 + 2 * tokens**2 * width
        assert multiply_adds(attention, torch.zeros(1, tokens, width)) == pytest.approx(expected / 1e9)


@pytest.mark.slow
def test_pretraining_costs_what_table_5_and_the_authors_code_say() -> None:
    with torch.device("meta"):
        whole = dense_cost(base(), "block")
        assert whole == pytest.approx(17.22, abs=0.005)  # counted in their code
        assert dense_cost(base(), "token") / whole == pytest.approx(1.7, abs=0.05)
        assert own_cost(base(), "block", masked=True) < 0.66 * whole


@pytest.mark.slow
def test_tables_stand_beside_the_papers(capsys: pytest.CaptureFixture[str]) -> None:
    print_sizes(SizesConfig(tables=(3,)))
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| base")]
    assert [row[1] for row in rows] == ["160.18M", "154.86M", "154.32M"]
    assert rows[1][2:6] == ["153.06M", "153M", "611", "600"]


def test_a_table_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConvMAEError, match="--tables must be among 7, 5, 2, 3; got 4"):
        SizesConfig(tables=(4,))
