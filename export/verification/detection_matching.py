"""Detections of a photo by two runs of a detector in fp32, paired: they are sets, since near ties change places."""

from dataclasses import dataclass

import numpy as np
import torch
from torchvision.ops import box_iou

from convmae_deploy.backends.base import FloatArray, Outputs
from convmae_deploy.tasks.detection import MAX_DETECTIONS
from export.verification.gates import Comparison

DETECTIONS = "detections"  # the row of the report
SAME_OVERLAP = 0.9  # least IoU of a pair
SAME_SCORE = 1e-3  # largest difference of a pair's scores
UNMATCHED = 0.02  # largest share of rows without a partner
NO_BOXES = (np.zeros((0, 4), np.float32),) * 2


@dataclass(frozen=True, kw_only=True)
class Matching:
    """How the detections of one image compare."""

    decided: int  # rows of both sides that must have a partner
    unmatched: int  # those of them without a partner
    score_difference: float  # largest of a pair
    settled: bool  # whether the graph's suppression had rounds enough
    boxes: tuple[FloatArray, FloatArray] = NO_BOXES  # (pairs, 4) of each side, where they were paired one to one


def image_of(outputs: Outputs, image: int) -> Outputs:
    """One image of a batch's outputs."""
    return {name: values[image] for name, values in outputs.items()}


def match_image(expected: Outputs, found: Outputs, threshold: float) -> Matching:
    """Pairs the detections of an image greedily, the reference's best first, each with its closest partner."""
    (expected_boxes, expected_scores, expected_labels), (found_boxes, found_scores, found_labels) = (
        [side[name][: int(side["num"])] for name in ("boxes", "scores", "labels")] for side in (expected, found)
    )
    difference = np.abs(expected_scores[:, None] - found_scores[None, :])
    overlap = box_iou(torch.from_numpy(expected_boxes), torch.from_numpy(found_boxes)).numpy()
    suits = (expected_labels[:, None] == found_labels[None, :]) & (difference <= SAME_SCORE)
    closeness = np.where(suits & (overlap >= SAME_OVERLAP), overlap, 0.0)  # (expected, found); 0: no pair
    rows: list[int] = []
    columns: list[int] = []
    for row in range(len(closeness)):
        column = int(closeness[row].argmax()) if closeness.shape[1] else 0
        if closeness.shape[1] and closeness[row, column] > 0:
            rows.append(row)
            columns.append(column)
            closeness[:, column] = 0.0
    unmatched = [decided(expected_scores, threshold), decided(found_scores, threshold)]
    total = sum(int(side.sum()) for side in unmatched)
    unmatched[0][rows] = False
    unmatched[1][columns] = False
    return Matching(
        decided=total,
        unmatched=sum(int(side.sum()) for side in unmatched),
        settled=bool(found["converged"]),
        score_difference=float(difference[rows, columns].max(initial=0.0)),
        boxes=(expected_boxes[rows], found_boxes[columns]),
    )


def decided(scores: FloatArray, threshold: float) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which rows are detections whatever rounding does: above the threshold, and above the last of a full list."""
    least = max(threshold, float(scores[-1])) if len(scores) == MAX_DETECTIONS else threshold
    return np.asarray(scores > least + SAME_SCORE)


def judge(
    matchings: list[Matching], *, allowed: float = UNMATCHED, spared: int = 0, what: str = "detections"
) -> Comparison:
    """One comparison of all images: differences of scores, cosine of the pairs' boxes, share of rows with a partner.

    Args:
        matchings: of each image.
        allowed: largest share of rows without a partner.
        spared: so many of them are allowed whatever their share is.
        what: the rows are called.
    """
    total, unmatched = (sum(getattr(matching, name) for matching in matchings) for name in ("decided", "unmatched"))
    share = unmatched / max(total, 1)
    expected, found = (
        np.concatenate([matching.boxes[side] for matching in matchings]).astype(np.float64).ravel() for side in (0, 1)
    )
    norms = float(np.linalg.norm(expected) * np.linalg.norm(found))
    difference = max((matching.score_difference for matching in matchings), default=0.0)
    unsettled = sum(not matching.settled for matching in matchings)
    problem = None
    if share > allowed and unmatched > spared:
        problem = f"{unmatched} of {total} {what} have no partner, more than {allowed:.0%}"
    elif unsettled:
        problem = f"on {unsettled} of {len(matchings)} images suppression needs more rounds than the graph has"
    return Comparison(
        max_abs=difference,
        max_rel=difference,  # scores are at most 1
        cosine=min(1.0, float(expected @ found) / norms) if norms else 1 - share,
        excess=share / allowed,
        worst_image=max(range(len(matchings)), key=lambda image: badness(matchings[image])),
        images_decided=total,
        images_agreeing=total - unmatched,
        problem=problem,
    )


def badness(matching: Matching) -> tuple[bool, int]:
    """Order of images, the worst last: those whose suppression has not settled, then by rows without a partner."""
    return not matching.settled, matching.unmatched
