"""Order and randomness as functions of (seed, epoch, step)."""

import random

import numpy as np
import pytest
import torch

from convmae_deploy.data.determinism import StepSampler, seed_step
from convmae_deploy.errors import ConvMAEError


def keys(sampler: StepSampler, epoch: int, first_step: int = 0) -> list[list[tuple[int, int]]]:
    sampler.start(epoch, first_step)
    return list(sampler)


def test_starting_in_the_middle_continues_the_same_order() -> None:
    sampler = StepSampler(50, batch_size=8, micro_batch_size=4, seed=3)
    whole = keys(sampler, epoch=2)
    assert sampler.steps_per_epoch == 6 and sampler.micro_batches_per_step == 2
    assert len(whole) == 12
    assert keys(sampler, epoch=2, first_step=4) == whole[8:]


def test_an_epoch_sees_every_sample_at_most_once_and_orders_differ() -> None:
    sampler = StepSampler(50, batch_size=8, micro_batch_size=8, seed=0)
    first, second = (sum(keys(sampler, epoch), []) for epoch in (0, 1))
    assert len(first) == len(set(first)) == 48
    assert [index for _, index in first] != [index for _, index in second]
    assert {epoch for epoch, _ in second} == {1}


def test_processes_share_each_update_without_overlap() -> None:
    alone = StepSampler(40, batch_size=10, micro_batch_size=10, seed=1)
    ranks = [StepSampler(40, batch_size=10, micro_batch_size=5, seed=1, rank=rank, world_size=2) for rank in (0, 1)]
    shares = [keys(sampler, 0) for sampler in ranks]
    for whole, left, right in zip(keys(alone, 0), *shares, strict=True):
        assert set(whole) == set(left) | set(right)
        assert not set(left) & set(right)


def test_fewer_samples_than_a_batch_make_one_update() -> None:
    sampler = StepSampler(5, batch_size=64, micro_batch_size=2, seed=0)
    assert sampler.steps_per_epoch == 1
    assert [len(batch) for batch in keys(sampler, 0)] == [2, 2, 1]


@pytest.mark.parametrize(("length", "batch"), [(50, 10), (5, 64), (7, 3)])
def test_every_process_always_has_the_same_to_do(length: int, batch: int) -> None:
    ranks = [StepSampler(length, batch_size=batch, micro_batch_size=1, seed=0, rank=r, world_size=3) for r in range(3)]
    sizes = [[len(part) for part in keys(sampler, 0)] for sampler in ranks]
    assert sizes[0] == sizes[1] == sizes[2] and set(sizes[0]) == {1}


def test_more_processes_than_samples_are_refused() -> None:
    with pytest.raises(ConvMAEError, match="4 processes need at least as many samples"):
        StepSampler(3, batch_size=8, micro_batch_size=1, seed=0, world_size=4)


def draws(seed: int, step: int, rank: int = 0) -> tuple[float, float, float]:
    seed_step(seed, step, rank)
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_a_step_seeds_all_generators_by_seed_step_and_rank() -> None:
    assert draws(0, 7) == draws(0, 7)
    others = [draws(0, 8), draws(1, 7), draws(0, 7, rank=1)]
    for other in others:
        assert all(a != b for a, b in zip(draws(0, 7), other, strict=True))
