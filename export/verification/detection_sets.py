"""Detections of two runs of one detector, compared as sets: what can be told of a graph from its own outputs alone.

In fp32 detections are paired as `detection_matching` does. Reduced precision moves scores, and with them which of two
overlapping boxes survives; so there only detections that either side is sure of must have a partner.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torchvision.ops import box_iou

from convmae_deploy.backends.base import Outputs
from convmae_deploy.bundle.manifest import INT8, Precision
from convmae_deploy.bundle.numerics import NumericsReport
from convmae_deploy.models.roi_heads import SCORE_THRESHOLD
from export.runtimes.runners import Runner
from export.verification.detection_matching import (
    DETECTIONS,
    SAME_SCORE,
    UNMATCHED,
    Matching,
    image_of,
    judge,
    match_image,
)
from export.verification.elementwise import Failure, Verification
from export.verification.gates import Comparison, incomparable, worst_of
from export.verification.inputs import Batch
from export.verification.samples import PICTURES

SURE = 0.3  # detections of at least this score must have a partner
UNSURE = 0.2  # which must score at least this
SAME_PLACE = 0.8  # least IoU of partners
ALLOWED: dict[Precision, float] = {"fp32": UNMATCHED, "fp16": 0.02, "bf16": 0.05, **dict.fromkeys(INT8, 1.0)}


def verify_detection_sets(
    reference: Runner, candidate: Runner, batches: Sequence[Batch], precision: Precision, *, between: tuple[str, str]
) -> Verification:
    """Detections of the batches of pictures; noise and blank images are full of ties.

    Args:
        reference: gives the detections that hold.
        candidate: those in question.
        batches: the inputs.
        precision: whose gate holds.
        between: what the two are, for the report: (reference, runtime).
    """
    chosen = [batch for batch in batches if batch.name.startswith(PICTURES)]
    comparisons = [(batch.name, compare_sets(reference, candidate, batch, precision)) for batch in chosen]
    failures = tuple(
        Failure(batch=batch, output=DETECTIONS, comparison=comparison)
        for batch, (_, comparison) in zip(chosen, comparisons, strict=True)
        if comparison.problem is not None
    )
    report = NumericsReport(
        reference=between[0],
        runtime=between[1],
        inputs=tuple(batch.name for batch in chosen),
        tolerance=describe(precision),
        outputs={DETECTIONS: worst_of(comparisons)},
        passed=not failures,
    )
    return Verification(report=report, failures=failures)


def compare_sets(reference: Runner, candidate: Runner, batch: Batch, precision: Precision) -> Comparison:
    """The detections of one batch of both sides."""
    expected = reference(batch.images)
    try:
        found = candidate(batch.images)
    except Exception as error:  # no runtime's exceptions have a common base
        return incomparable(f"the graph does not run: {' '.join(str(error).split())}")
    if not all(np.isfinite(values).all() for values in found.values()):
        return incomparable("the graph gives NaN or infinity")
    return compare_detections([expected], [found], precision, SCORE_THRESHOLD)


def compare_detections(
    expected: Sequence[Outputs], found: Sequence[Outputs], precision: Precision, threshold: float
) -> Comparison:
    """The detections of some batches, all found above a threshold, as sets of each image."""
    pairs = [
        (image_of(before, image), image_of(after, image))
        for before, after in zip(expected, found, strict=True)
        for image in range(len(before["num"]))
    ]
    if precision == "fp32":
        return judge([match_image(before, after, threshold) for before, after in pairs])
    matchings = [sure_pairs(before, after) for before, after in pairs]
    # one of a few may be so near to a limit that rounding decides
    return judge(matchings, allowed=ALLOWED[precision], spared=1, what="sure detections")


def sure_pairs(expected: Outputs, found: Outputs) -> Matching:
    """Looks for the partners of the sure detections of either side."""
    decided = unmatched = 0
    difference = 0.0
    for side, other in ((expected, found), (found, expected)):
        rows, others = int(side["num"]), int(other["num"])
        overlap = box_iou(torch.from_numpy(side["boxes"][:rows]), torch.from_numpy(other["boxes"][:others])).numpy()
        suits = (side["labels"][:rows, None] == other["labels"][None, :others]) & (overlap >= SAME_PLACE)
        suits &= other["scores"][None, :others] >= UNSURE
        for row in np.flatnonzero(side["scores"][:rows] >= SURE):
            decided += 1
            if not suits[row].any():
                unmatched += 1
                continue
            closest = int(np.where(suits[row], overlap[row], -1).argmax())
            difference = max(difference, abs(float(side["scores"][row] - other["scores"][closest])))
    return Matching(decided=decided, unmatched=unmatched, score_difference=difference, settled=bool(found["converged"]))


def describe(precision: Precision) -> str:
    """The gate in words and numbers."""
    if precision == "fp32":
        return (
            f"detections of pictures: at most {ALLOWED[precision]:.0%} without a partner of the same class with IoU >= "
            f"0.9 and a score within {SAME_SCORE:g}, suppression settled on all"
        )
    share = "reported only" if ALLOWED[precision] >= 1 else f"at most {ALLOWED[precision]:.0%}, or one, without one"
    return (
        f"detections of pictures that score {SURE} or more on either side have a partner of the same class with IoU >= "
        f"{SAME_PLACE} and a score of {UNSURE} or more: {share}; suppression settled on all"
    )
