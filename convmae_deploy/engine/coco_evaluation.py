"""COCO's metrics of boxes and masks: the twelve numbers of each, by pycocotools."""

import contextlib
import copy
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Kind = Literal["box", "mask"]
IOU_TYPES: Mapping[Kind, str] = {"box": "bbox", "mask": "segm"}
METRICS = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)


def coco_metrics(
    ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], kind: Kind
) -> dict[str, float]:
    """The twelve numbers, each in [0, 1]; one that the ground truth says nothing of (no small object, ...) is left out.

    Args:
        ground_truth: `images`, `categories` and `annotations` in COCO's format, crowds included: what is found on them
            counts neither for nor against. An object whose segmentation is None counts for boxes alone; where masks
            are compared what is found on its box counts neither way.
        detections: entries of COCO's results format: `image_id`, `category_id` (the file's, not a label), `score`,
            `bbox` (x, y, width, height) and for masks `segmentation` (run lengths), in pixels of the original photo;
            at most the best 100 of a photo count. None at all score 0.
        kind: what is compared. Small, medium and large are by the area of `bbox` in both cases, as pycocotools reads
            a file of results; detectron2 takes the mask's for masks, which moves these three alone.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        # copies with ids from 1 on: pycocotools writes into them, and to it an object with the id 0 is never found
        known = [_annotation(number, entry, kind) for number, entry in enumerate(ground_truth["annotations"], 1)]
        reference = _index(ground_truth, known)
        found = _index(ground_truth, [_result(number, entry) for number, entry in enumerate(detections, 1)])
        evaluation = COCOeval(reference, found, IOU_TYPES[kind])
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(value) for name, value in zip(METRICS, evaluation.stats, strict=True) if value >= 0}


def _index(ground_truth: Mapping[str, Any], annotations: list[dict[str, Any]]) -> COCO:
    """What pycocotools works on; its own reader of results fails where there are none."""
    index = COCO()
    index.dataset = {key: ground_truth[key] for key in ("images", "categories")} | {"annotations": annotations}
    index.createIndex()
    return index


def _annotation(number: int, annotation: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """An annotation of the ground truth for pycocotools."""
    changed = {**copy.deepcopy(dict(annotation)), "id": number}
    if kind == "mask" and changed["segmentation"] is None:
        x, y, width, height = changed["bbox"]
        outline = [x, y, x + width, y, x + width, y + height, x, y + height]
        changed |= {"segmentation": [outline], "iscrowd": 1}
    return changed


def _result(number: int, detection: Mapping[str, Any]) -> dict[str, Any]:
    """A detection as an annotation."""
    _, _, width, height = detection["bbox"]
    return {**detection, "id": number, "iscrowd": 0, "area": width * height}
