"""mIoU and its relatives from a confusion matrix, as mmsegmentation defines them. Without torch.

Shapes: K classes, H W pixels of a label map.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convmae_deploy.data.segmentation_folder import IGNORE

Confusion = NDArray[np.int64]  # (K, K) pixels by true class (rows) and predicted class (columns)


@dataclass(frozen=True, kw_only=True)
class SegmentationScores:
    """Result of comparing label maps; shares from 0 to 1."""

    mean_iou: float  # over the classes that are true or predicted somewhere
    mean_accuracy: float  # over the classes that are true somewhere
    pixel_accuracy: float  # over all pixels that have a class
    iou: tuple[float, ...]  # by class: correct pixels / pixels that are true or predicted; NaN where there are none
    accuracy: tuple[float, ...]  # by class: correct pixels / pixels that are true; NaN where there are none


def confusion_of(labels: NDArray[np.integer], predicted: NDArray[np.integer], num_classes: int) -> Confusion:
    """The confusion matrix (K, K) of one photo; pixels labelled `IGNORE` are not counted.

    Args:
        labels: (H, W), true classes.
        predicted: (H, W), from 0 to K - 1.
        num_classes: K.
    """
    counted = labels != IGNORE
    pairs = labels[counted].astype(np.int64) * num_classes + predicted[counted].astype(np.int64)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def scores_of(confusion: Confusion) -> SegmentationScores:
    """The scores of a confusion matrix (K, K), which may be the sum of many; NaN where nothing was counted."""
    correct = np.diag(confusion).astype(np.float64)
    true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    iou = _shares(correct, true + predicted - correct)
    accuracy = _shares(correct, true)
    return SegmentationScores(
        mean_iou=_mean(iou),
        mean_accuracy=_mean(accuracy),
        pixel_accuracy=float(_shares(correct.sum(keepdims=True), true.sum(keepdims=True))[0]),
        iou=tuple(iou.tolist()),
        accuracy=tuple(accuracy.tolist()),
    )


def _shares(part: NDArray[np.float64], whole: NDArray[np.floating | np.integer]) -> NDArray[np.float64]:
    """part / whole, NaN where the whole is nothing."""
    shares = np.full(part.shape, np.nan)
    np.divide(part, whole, out=shares, where=whole > 0)
    return shares


def _mean(shares: NDArray[np.float64]) -> float:
    """Of those that are not NaN; NaN where all are."""
    found = shares[~np.isnan(shares)]
    return float(found.mean()) if len(found) else float("nan")
