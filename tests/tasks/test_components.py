"""Principal components of maps."""

import numpy as np
import pytest

from convmae_deploy.tasks.components import principal_components


@pytest.mark.parametrize(("channels", "cells"), [(5, 30), (30, 5)])
def test_a_map_of_rank_one_has_one_component_whatever_its_offset(channels: int, cells: int) -> None:
    random = np.random.default_rng(0)
    weights, pattern = random.standard_normal(channels), random.standard_normal(cells)
    weights[np.argmax(np.abs(weights))] *= -1  # the sign is fixed by the largest weight, so it must come out flipped
    scores, shares = principal_components((1000 + np.outer(weights, pattern)).astype(np.float32), 3)

    sign = np.sign(weights[np.argmax(np.abs(weights))])
    expected = sign * np.linalg.norm(weights) * (pattern - pattern.mean())
    np.testing.assert_allclose(scores[0], expected, atol=1e-3)  # float32 holds 1000 + x to 6e-5
    np.testing.assert_allclose(shares, [1, 0, 0], atol=1e-6)
    assert not scores[1:].any()


@pytest.mark.parametrize("shape", [(12, 10, 10), (100, 4, 3), (20, 2, 5, 5)])
def test_components_equal_numpys_singular_vectors(shape: tuple[int, ...]) -> None:
    data = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    data *= np.linspace(1, 3, shape[0], dtype=np.float32).reshape(-1, *[1] * (len(shape) - 1))
    scores, shares = principal_components(data, 3)

    flat = data.reshape(shape[0], -1).astype(np.float64)
    left, singular, right = np.linalg.svd(flat - flat.mean(axis=1, keepdims=True), full_matrices=False)
    signs = np.sign(left[np.argmax(np.abs(left), axis=0), np.arange(left.shape[1])])
    expected = (signs * singular)[:3, None] * right[:3]
    assert scores.shape == (3, *shape[1:]) and scores.dtype == shares.dtype == np.float32
    np.testing.assert_allclose(scores.reshape(3, -1), expected, atol=1e-3)
    np.testing.assert_allclose(shares, singular[:3] ** 2 / (singular**2).sum(), rtol=1e-5)


def test_a_map_without_variation_and_one_with_fewer_cells_than_components_have_zeros_for_what_is_not_there() -> None:
    scores, shares = principal_components(np.full((4, 2, 2), 7, np.float32), 3)
    assert not scores.any() and not shares.any()
    scores, shares = principal_components(np.array([[[1, 2]], [[5, 1]]], np.float32), 3)
    assert scores[0].any() and not scores[1:].any() and shares.tolist() == pytest.approx([1, 0, 0])
