"""Pictures of what a pretraining model reconstructs.

Shapes: B photos, N patches of a photo, P = 16 * 16 * 3 pixel values of a patch.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from convmae_deploy.bundle.manifest import ClipPreprocessing, Preprocessing
from convmae_deploy.models.convmae import PATCH_SIZE
from convmae_deploy.models.pretraining import (
    PIXEL_VARIANCE_EPS,
    ConvMAEPretraining,
    patch_statistics,
    patchify,
    unpatchify,
)

GREY = 0.5  # of hidden pixels
GAP = 4  # pixels between photos and around them
CAPTION_HEIGHT = 20  # pixels
CAPTION_SIZE = 13  # of the font
CAPTION_COLOUR = (64, 64, 64)
MIN_COLUMN_WIDTH = 112  # pixels; narrower photos are enlarged, so that captions fit


def reconstruction_picture(
    model: ConvMAEPretraining, images_bchw: Tensor, kept: Tensor, preprocessing: Preprocessing
) -> Image.Image:
    """A row for each photo: the original, what the model sees of it, what it predicts, and both put together.

    Hidden pixels are grey in the second column, and the fourth takes them alone from the prediction. A model with
    `norm_pix_loss` predicts each patch less its mean and divided by its deviation; these two are then taken from the
    original, hidden patches included: the picture shows what was learnt, it is no compression. Predictions that are
    not finite are black.

    Args:
        model: on any device; left in the mode it was in.
        images_bchw: (B, 3, H * 16, W * 16), normalised, on any device.
        kept: (G * B, K), the visible cells as for the model's `forward`; of several masks the first is drawn.
        preprocessing: says what undoes the normalisation.

    Returns:
        An RGB picture; photos that are narrower than a caption are enlarged by a whole factor.
    """
    return draw_columns(reconstruction_columns(model, images_bchw, kept, preprocessing))


@torch.inference_mode()
def reconstruction_columns(
    model: ConvMAEPretraining, images_bchw: Tensor, kept: Tensor, preprocessing: Preprocessing
) -> dict[str, Tensor]:
    """Caption to photos (B, 3, H * 16, W * 16) in [0, 1] on the CPU, in the order of the columns.

    Arguments are those of `reconstruction_picture`.
    """
    device = model.mask_token.device
    images_bchw = images_bchw.to(device)
    was_training = model.training
    model.eval()
    try:
        prediction, hidden, _ = model.reconstruct(images_bchw, kept[: len(images_bchw)].to(device))
    finally:
        model.train(was_training)
    prediction = prediction.float()
    if model.norm_pix_loss:
        mean, variance = patch_statistics(patchify(images_bchw).float())
        prediction = prediction * (variance + PIXEL_VARIANCE_EPS).sqrt() + mean
    grid_size = images_bchw.shape[-2] // PATCH_SIZE, images_bchw.shape[-1] // PATCH_SIZE
    is_hidden = unpatchify(hidden.expand_as(prediction), grid_size) > 0  # (B, 3, H * 16, W * 16)
    original = to_pixels(images_bchw.float(), preprocessing)
    predicted = to_pixels(unpatchify(prediction, grid_size), preprocessing)
    columns = {
        "original": original,
        "masked": original.masked_fill(is_hidden, GREY),
        "reconstruction": predicted,
        "pasted": torch.where(is_hidden, predicted, original),
    }
    return {caption: photos.cpu() for caption, photos in columns.items()}


def to_pixels(images_bchw: Tensor, preprocessing: Preprocessing | ClipPreprocessing) -> Tensor:
    """Normalised values to [0, 1], clipped; what is not finite becomes 0."""
    mean, std = (
        torch.tensor(values, device=images_bchw.device).reshape(3, 1, 1)
        for values in (preprocessing.mean, preprocessing.std)
    )
    return (images_bchw * std + mean).nan_to_num(0.0, 0.0, 0.0).clamp(0, 1)


def draw_columns(columns: Mapping[str, Tensor]) -> Image.Image:
    """Captions above columns of photos, on white.

    Args:
        columns: caption to photos (B, 3, height, width) in [0, 1], all of one shape.
    """
    count, _, height, width = next(iter(columns.values())).shape
    enlarged = math.ceil(MIN_COLUMN_WIDTH / width)
    height, width = height * enlarged, width * enlarged
    size = GAP + len(columns) * (width + GAP), CAPTION_HEIGHT + count * (height + GAP)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(CAPTION_SIZE)
    for column, (caption, photos) in enumerate(columns.items()):
        left = GAP + column * (width + GAP)
        draw.text((left + width / 2, CAPTION_HEIGHT / 2), caption, CAPTION_COLOUR, font, anchor="mm")
        for row, photo in enumerate((photos * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()):
            tile = Image.fromarray(photo).resize((width, height), Image.Resampling.NEAREST)
            picture.paste(tile, (left, CAPTION_HEIGHT + row * (height + GAP)))
    return picture


def tile(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    """An RGB picture fitted into `size` (width, height) in pixels, white around it, as (3, height, width) in [0, 1]."""
    fitted = picture.copy()
    fitted.thumbnail(size)
    canvas = Image.new("RGB", size, "white")
    canvas.paste(fitted, ((size[0] - fitted.width) // 2, (size[1] - fitted.height) // 2))
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1) / 255
