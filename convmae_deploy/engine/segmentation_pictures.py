"""Pictures of what a segmenter makes of photos, beside their labels.

Shapes: H W a photo.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from convmae_deploy.bundle.manifest import SlidingWindow
from convmae_deploy.data.segmentation_folder import SegmentationFolder
from convmae_deploy.engine.pictures import draw_columns, tile
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.label_colours import class_areas, overlay, with_legend
from convmae_deploy.tasks.sliding_window import RunWindows, segment_photo

TILE = 320, 240  # (width, height) in pixels that a photo is fitted into
MAX_LEGEND = 24  # classes


def segmentation_picture(
    folder: SegmentationFolder, indices: range, preprocessing: SlidingWindow, run: RunWindows
) -> Image.Image | None:
    """A row for each photo: itself, its labels, what the segmenter says; below a legend of the largest classes.

    Args:
        folder: of the photos.
        indices: of those to draw; unreadable ones are left out.
        preprocessing: of the segmenter.
        run: the segmenter, from windows to logits.

    Returns:
        None where no photo could be read.
    """
    classes = len(folder.classes)
    columns: dict[str, list[torch.Tensor]] = {"photo": [], "labels": [], "prediction": []}
    seen: list[NDArray[np.integer]] = []
    for index in indices:
        try:
            photo, labels = folder.read(index)
        except ConvMAEError:
            continue
        predicted = segment_photo(photo, preprocessing, run).labels
        seen += [labels.ravel(), predicted.ravel()]
        pictures = (photo, overlay(photo, labels, classes), overlay(photo, predicted, classes))
        for tiles, picture in zip(columns.values(), pictures, strict=True):
            tiles.append(tile(picture, TILE))
    if not seen:
        return None
    shown = list(class_areas(np.concatenate(seen), classes))[:MAX_LEGEND]
    drawn = draw_columns({caption: torch.stack(tiles) for caption, tiles in columns.items()})
    return with_legend(drawn, folder.classes, shown)
