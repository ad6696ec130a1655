"""Masks: which cells stay visible, as a function of noise."""

import pytest
import torch
from torch import Tensor

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.masking import (
    MASKING,
    complementary_groups,
    draw_noise,
    keep_each_in_turn,
    keep_lowest,
    visible_cells,
)


def seeded_noise(cells: int, batch: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(batch, cells, generator=torch.Generator().manual_seed(seed))


def divisors(cells: int) -> list[int]:
    return [groups for groups in range(2, cells + 1) if cells % groups == 0]


@pytest.mark.parametrize(("cells", "mask_ratio", "kept"), [(196, 0.75, 49), (196, 0.6, 78), (16, 0.9, 1), (6, 0.5, 3)])
def test_a_block_mask_keeps_the_cells_of_lowest_noise_in_ascending_order(
    cells: int, mask_ratio: float, kept: int
) -> None:
    noise = seeded_noise(cells)
    found = keep_lowest(noise, mask_ratio)
    assert found.dtype == torch.int64
    assert kept == int(cells * (1 - mask_ratio))
    for row, values in zip(found.tolist(), noise.tolist(), strict=True):
        assert row == sorted(sorted(range(cells), key=lambda cell: values[cell])[:kept])


@pytest.mark.parametrize("cells", [16, 24, 196])
def test_complementary_masks_show_every_cell_exactly_once(cells: int) -> None:
    noise = seeded_noise(cells)
    for groups in divisors(cells):
        kept = keep_each_in_turn(noise, 1 - 1 / groups)
        assert kept.shape == (groups * 3, cells // groups)
        assert torch.equal(kept, kept.sort(dim=1).values)
        by_image = kept.reshape(groups, 3, -1).transpose(0, 1).flatten(1)  # (B, G * K)
        assert torch.equal(by_image.sort(dim=1).values, torch.arange(cells).expand(3, -1))


def test_complementary_groups_are_dealt_in_the_order_of_the_noise() -> None:
    noise = seeded_noise(12, batch=2)
    kept = keep_each_in_turn(noise, 0.75)
    for image, values in enumerate(noise.tolist()):
        order = sorted(range(12), key=lambda cell: values[cell])
        for group in range(4):
            assert kept[group * 2 + image].tolist() == sorted(order[3 * group : 3 * group + 3])
    assert torch.equal(kept[:2], keep_lowest(noise, 0.75))


@pytest.mark.parametrize("cells", [16, 24, 196])
def test_a_number_of_masks_that_does_not_divide_the_cells_is_refused_in_one_sentence(cells: int) -> None:
    for groups in set(range(2, cells)) - set(divisors(cells)):
        with pytest.raises(ConvMAEError, match=f"got {cells} cells and {groups} masks") as caught:
            keep_each_in_turn(seeded_noise(cells), 1 - 1 / groups)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mask_ratio", [0.0, 0.4, 0.7, 0.76, 0.987, 1.0, -1.0])
def test_a_visible_share_that_is_no_whole_part_is_refused(mask_ratio: float) -> None:
    with pytest.raises(ConvMAEError, match=f"visible share of 1/k .*; got mask_ratio {mask_ratio}$"):
        keep_each_in_turn(seeded_noise(16), mask_ratio)


@pytest.mark.parametrize(("cells", "mask_ratio", "kept"), [(16, 0.0, 16), (16, 0.95, 0), (4, 1.0, 0), (4, -0.5, 6)])
def test_a_mask_that_hides_nothing_or_everything_is_refused(cells: int, mask_ratio: float, kept: int) -> None:
    sentence = f"some of {cells} cells and leave some; got mask_ratio {mask_ratio}, which leaves {kept}$"
    with pytest.raises(ConvMAEError, match=sentence):
        visible_cells(cells, mask_ratio)
    with pytest.raises(ConvMAEError, match=sentence):
        keep_lowest(seeded_noise(cells), mask_ratio)


def test_the_strategies_differ_in_cells_and_masks_of_an_image() -> None:
    facts = {
        name: (strategy.cell_size, len(strategy.choose(seeded_noise(16), 0.75))) for name, strategy in MASKING.items()
    }
    assert facts == {"block": (16, 3), "complementary": (16, 12), "token": (4, 3)}
    assert [complementary_groups(1 - 1 / groups) for groups in (2, 3, 5, 49)] == [2, 3, 5, 49]


@pytest.mark.parametrize("name", MASKING)
def test_the_same_seed_gives_the_same_mask_and_another_seed_another(name: str) -> None:
    strategy = next(strategy for key, strategy in MASKING.items() if key == name)

    def mask(seed: int) -> Tensor:
        noise = draw_noise(2, (64, 96), strategy.cell_size, torch.Generator().manual_seed(seed))
        assert noise.shape == (2, (64 // strategy.cell_size) * (96 // strategy.cell_size))
        return strategy.choose(noise, 0.75)

    assert torch.equal(mask(0), mask(0))
    assert not torch.equal(mask(0), mask(1))
    assert not torch.equal(mask(0)[0], mask(0)[1])


def test_without_a_generator_the_noise_is_torchs_own() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1, 16)
    torch.manual_seed(3)
    assert torch.equal(draw_noise(1, (64, 64), 16, None), expected)


def test_noise_lies_between_zero_and_one() -> None:
    noise = draw_noise(8, (224, 224), 4, torch.Generator().manual_seed(0))
    assert noise.min() >= 0 and noise.max() < 1
    assert abs(noise.mean().item() - 0.5) < 0.01


def test_noise_for_a_size_that_the_model_does_not_take_is_refused() -> None:
    with pytest.raises(ConvMAEError, match="positive multiples of 32, at most 4096; got 224 x 225$"):
        draw_noise(1, (224, 225), 16, None)
