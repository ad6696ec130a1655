"""Pictures of what a detector finds in photos, beside what is annotated.

Shapes: H W a photo.
"""

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from convmae_deploy.data.coco import CocoObject, CocoPhoto, read_coco_photo
from convmae_deploy.data.detection_datasets import EvaluationDetections
from convmae_deploy.engine.detection_evaluation import detect, in_photo
from convmae_deploy.engine.pictures import draw_columns, tile
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.drawing import draw_detections
from convmae_deploy.tasks.letterbox import letterbox
from convmae_deploy.tasks.masks import ObjectMask
from convmae_deploy.tasks.objects import Detection

TILE = 480, 360  # (width, height) in pixels that a photo is fitted into
SCORE_THRESHOLD = 0.3  # of what is drawn


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
    split = photos.split
    columns: dict[str, list[torch.Tensor]] = {"annotated": [], f"found, score {SCORE_THRESHOLD} or more": []}
    was_training = model.training
    model.eval()
    for index in indices:
        try:
            photo = read_coco_photo(split.photos[index])
        except ConvMAEError:
            continue
        image = torch.from_numpy(letterbox(photo, photos.preprocessing))[None]
        (outputs,) = detect(model, image, accelerator)
        found = in_photo(outputs, split, index, photos.preprocessing, threshold=SCORE_THRESHOLD)
        annotated = [as_found(item, split.photos[index], split.classes) for item in split.objects[index]]
        for tiles, detections in zip(columns.values(), (annotated, found), strict=True):
            tiles.append(tile(draw_detections(photo, detections, len(split.classes)), TILE))
    model.train(was_training)
    if not any(columns.values()):
        return None
    return draw_columns({caption: torch.stack(tiles) for caption, tiles in columns.items()})


def as_found(item: CocoObject, photo: CocoPhoto, classes: tuple[str, ...]) -> Detection:
    """An annotation as if it had been found with certainty."""
    size = photo.height, photo.width
    side = max(size)
    cells: NDArray[np.float32] = np.zeros((side, side), np.float32)  # one a pixel, so that the mask stays as it is
    cells[: photo.height, : photo.width] = item.mask(*size)
    mask = ObjectMask(probabilities=cells, box=(0, 0, side, side), size=size)
    return Detection(label=classes[item.label], index=item.label, score=1.0, box=item.box, mask=mask)
