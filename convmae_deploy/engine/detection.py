"""What a detector scores over a split, in the photos' own pixels as it is served, and pictures of what it finds.

Shapes: H W a photo.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from convmae_deploy.data.coco import CocoObject, CocoPhoto, read_coco_photo
from convmae_deploy.data.detection_datasets import EvaluationDetections, collate_detections
from convmae_deploy.engine.coco_evaluation import IOU_TYPES, coco_metrics
from convmae_deploy.engine.evaluation import Validation, evaluate, evaluating, outputs_of
from convmae_deploy.engine.pictures import draw_rows
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.detection import coco_result, find_detections
from convmae_deploy.tasks.drawing import draw_detections
from convmae_deploy.tasks.letterbox import letterbox
from convmae_deploy.tasks.masks import ObjectMask
from convmae_deploy.tasks.objects import Detection

TILE = 480, 360  # (width, height) in pixels that a photo is fitted into
SCORE_THRESHOLD = 0.3  # objects that are less sure are not drawn

Outputs = Mapping[str, Tensor]  # of `models.detector` for one image


class CocoMetric:
    """COCO's metrics in percent: `box_ap`, `mask_ap50` and the like, twelve of each kind; `coco_metrics` says which."""

    def __init__(self, photos: EvaluationDetections) -> None:
        self.photos = photos
        self.seen: list[int] = []  # indices of photos
        self.results: list[dict[str, Any]] = []

    def update(self, outputs: list[Outputs], extra: list[int]) -> None:
        """Takes what was found in photos, by their indices."""
        split = self.photos.split
        self.seen += extra
        for index, found in zip(extra, outputs, strict=True):
            for one in in_photo(found, self.photos, index):
                self.results.append(coco_result(one, split.photos[index].id, split.category_ids[one.index]))

    def compute(self, accelerator: Accelerator) -> dict[str, float]:
        """The metrics on the photos of all processes, computed by the main one."""
        seen: list[int] = sorted(gather_object(self.seen))
        results: list[dict[str, Any]] = gather_object(self.results)
        shared: list[dict[str, float]] = [{}]
        if accelerator.is_main_process:
            results.sort(key=lambda result: result["image_id"])  # so that equal scores rank the same on any number
            truth = self.photos.split.subset(seen).ground_truth()
            numbers = {kind: coco_metrics(truth, results, kind) for kind in IOU_TYPES}
            shared = [{f"{kind}_{name}": 100 * part[name] for kind, part in numbers.items() for name in part}]
        scores: dict[str, float] = broadcast_object_list(shared)[0]
        if not all(f"{kind}_ap" in scores for kind in IOU_TYPES):
            raise ConvMAEError(
                f"none of the {len(seen)} validation photos holds an object to be found; check the annotations"
            )
        return scores

    def summary(self, scores: Mapping[str, float]) -> str:
        """The averages over all overlaps, and those at 0.5."""
        return ", ".join(
            f"{kind} AP {scores[f'{kind}_ap']:.2f} % (AP50 {scores[f'{kind}_ap50']:.2f} %)" for kind in IOU_TYPES
        )


def evaluate_detector(
    model: nn.Module, photos: EvaluationDetections, accelerator: Accelerator, *, batch_size: int, workers: int
) -> Validation:
    """Detects on all photos; `mask_ap` is the score to choose by. Arguments and errors are those of `evaluate`."""
    return evaluate(
        model,
        photos,
        CocoMetric(photos),
        accelerator,
        batch_size=batch_size,
        workers=workers,
        collate=collate_detections,
    )


def in_photo(outputs: Outputs, photos: EvaluationDetections, index: int, *, threshold: float = 0.0) -> list[Detection]:
    """A detector's outputs for a photo as objects in the photo's pixels, best first.

    Args:
        outputs: on any device.
        photos: the split, and what makes a photo an input.
        index: of the photo.
        threshold: scores below it are left out.
    """
    photo = photos.split.photos[index]
    arrays = {name: value.cpu().numpy() for name, value in outputs.items()}
    size = photo.height, photo.width
    return find_detections(arrays, size, photos.preprocessing, photos.split.classes, threshold=threshold)


def detection_picture(
    model: nn.Module, photos: EvaluationDetections, indices: range, accelerator: Accelerator
) -> Image.Image | None:
    """A row for each photo: the objects that are annotated, crowds left out, and those that the detector finds.

    Args:
        model: a detector; left in the mode it was in.
        photos: the split.
        indices: of the photos to draw; unreadable ones are left out.
        accelerator: of the training, for device and precision.

    Returns:
        None where no photo could be read.
    """
    with evaluating(model):
        return draw_rows(_rows(model, photos, indices, accelerator), TILE)


def _rows(
    model: nn.Module, photos: EvaluationDetections, indices: range, accelerator: Accelerator
) -> Iterator[dict[str, Image.Image]]:
    split, classes = photos.split, photos.split.classes
    for index in indices:
        try:
            photo = read_coco_photo(split.photos[index])
        except ConvMAEError:
            continue
        image = torch.from_numpy(letterbox(photo, photos.preprocessing))[None]
        (outputs,) = outputs_of(model, image, accelerator)
        found = in_photo(outputs, photos, index, threshold=SCORE_THRESHOLD)
        annotated = [as_found(item, split.photos[index], classes) for item in split.objects[index]]
        yield {
            "annotated": draw_detections(photo, annotated, len(classes)),
            f"found, score {SCORE_THRESHOLD} or more": draw_detections(photo, found, len(classes)),
        }


def as_found(item: CocoObject, photo: CocoPhoto, classes: tuple[str, ...]) -> Detection:
    """An annotation as if it had been found with certainty."""
    size = photo.height, photo.width
    side = max(size)
    cells: NDArray[np.float32] = np.zeros((side, side), np.float32)  # one a pixel, so that the mask stays as it is
    cells[: photo.height, : photo.width] = item.mask(*size)
    mask = ObjectMask(probabilities=cells, box=(0, 0, side, side), size=size)
    return Detection(label=classes[item.label], index=item.label, score=1.0, box=item.box, mask=mask)
