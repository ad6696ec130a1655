"""From logits to labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

ScoreFunction = Literal["softmax", "sigmoid", "none"]


@dataclass(frozen=True)
class Prediction:
    """One class and how sure the model is of it."""

    label: str
    score: float  # in [0, 1] for softmax and sigmoid; a logit for "none"
    index: int  # of the class among the model's, as two may have one name


def scores(logits: NDArray[np.float32], function: ScoreFunction) -> NDArray[np.float32]:
    """Turns logits (B, K) into scores (B, K): softmax over the classes, sigmoid of each, or the logits as they are."""
    if function == "none":
        return logits
    if function == "sigmoid":
        # Written with tanh, which does not overflow for large negative logits.
        return np.asarray(0.5 * (np.tanh(0.5 * logits) + 1), dtype=np.float32)
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True), dtype=np.float32)


def top_k(scores: NDArray[np.floating[Any]], classes: Sequence[str], k: int) -> list[Prediction]:
    """The `k` best of one image's scores (K,), best first; equal scores in the order of the classes.

    Args:
        scores: one score a class.
        classes: one name a class.
        k: how many; all when larger than the number of classes.
    """
    best = np.argsort(-scores, kind="stable")[:k]
    return [Prediction(label=classes[index], score=float(scores[index]), index=int(index)) for index in best]
