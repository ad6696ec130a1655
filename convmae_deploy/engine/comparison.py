"""What the difference of two training recipes is worth that were each run with the same few seeds."""

from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The mean difference of pairs and its interval, by Student's t distribution."""

    mean: float
    low: float
    high: float
    p: float  # probability of such a mean or a larger one, of either sign, where there is no difference


def paired_difference(values: Sequence[float], others: Sequence[float]) -> Difference:
    """Of `values` less `others`, pair by pair: two runs of a pair share their seed, and so their weights and photos.

    Args:
        values: at least two.
        others: as many, not all at one distance from `values`.
    """
    differences = [value - other for value, other in zip(values, others, strict=True)]
    test = stats.ttest_1samp(differences, 0.0)
    interval = test.confidence_interval(CONFIDENCE)
    mean = sum(differences) / len(differences)
    return Difference(mean=mean, low=float(interval.low), high=float(interval.high), p=float(test.pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """The probabilities adjusted for being several (Holm 1979): the smallest times n, the next times n - 1, and so on.

    Returns:
        In the order of `p_values`, at most 1, and none smaller than one of a smaller p.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - place)))
        adjusted[index] = largest
    return adjusted
