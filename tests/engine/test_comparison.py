"""Paired differences and their adjustment, against textbook values."""

import pytest

from convmae_deploy.engine.comparison import holm, paired_difference


def test_an_interval_is_students_of_the_differences() -> None:
    found = paired_difference([12.0, 15.0, 14.0], [10.0, 12.0, 13.0])  # 2, 3, 1: mean 2, deviation 1
    reach = 4.302652729911275 / 3**0.5  # the 97.5 % quantile of two degrees of freedom
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, 2 - reach, 2 + reach))
    t = 2 * 3**0.5
    assert found.p == pytest.approx(1 - t / (t**2 + 2) ** 0.5)  # closed form for two degrees of freedom


def test_the_smallest_probability_counts_as_often_as_there_are_comparisons() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []
