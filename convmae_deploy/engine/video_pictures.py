"""Pictures of what a video pretraining model reconstructs.

Shapes: B clips, F frames, T = F / 2 slots, N cells of a slot, P pixel values of a cube.
"""

import torch
from PIL import Image
from torch import Tensor

from convmae_deploy.bundle.manifest import ClipPreprocessing
from convmae_deploy.engine.pictures import GREY, draw_columns, to_pixels
from convmae_deploy.models.convmae import PATCH_SIZE
from convmae_deploy.models.video import TUBELET
from convmae_deploy.models.video_pretraining import (
    DEVIATION_EPS,
    VideoPretraining,
    cube_statistics,
    cubify,
    uncubify,
)


def reconstruction_strip(
    model: VideoPretraining, clips_bcfhw: Tensor, kept_bk: Tensor, preprocessing: ClipPreprocessing
) -> Image.Image:
    """Three rows for each clip: original, what the model sees of it, and what it predicts; a column for each slot.

    Of a slot the first frame is shown. Hidden pixels are grey in the second row; the third has the prediction where
    they are hidden and the original where they are not. A model with `norm_pix_loss` predicts each colour of a cube
    less its mean and divided by its deviation; these two are then taken from the original, as for photos.

    Args:
        model: on any device; left in the mode it was in.
        clips_bcfhw: (B, 3, F, H * 16, W * 16), normalised, on any device.
        kept_bk: (B, K), the visible cells.
        preprocessing: says what undoes the normalisation.
    """
    original, masked, pasted = reconstruction_rows(model, clips_bcfhw, kept_bk, preprocessing)
    rows = torch.stack((original, masked, pasted), dim=1).flatten(0, 1)  # (3 * B, T, 3, height, width)
    captions = (f"frame {1 + TUBELET * slot}" for slot in range(rows.shape[1]))
    return draw_columns(dict(zip(captions, rows.unbind(dim=1), strict=True)))


@torch.inference_mode()
def reconstruction_rows(
    model: VideoPretraining, clips_bcfhw: Tensor, kept_bk: Tensor, preprocessing: ClipPreprocessing
) -> tuple[Tensor, Tensor, Tensor]:
    """Original, masked and pasted frames, each (B, T, 3, H * 16, W * 16) in [0, 1] on the CPU, one of each slot.

    Arguments are those of `reconstruction_strip`.
    """
    device = model.mask_token.device
    clips_bcfhw = clips_bcfhw.to(device)
    was_training = model.training
    model.eval()
    try:
        prediction, hidden, _ = model.reconstruct(clips_bcfhw, kept_bk.to(device))
    finally:
        model.train(was_training)
    prediction = prediction.float()
    if model.norm_pix_loss:
        mean, deviation = cube_statistics(cubify(clips_bcfhw).float())
        prediction = prediction * (deviation + DEVIATION_EPS) + mean
    grid_size = clips_bcfhw.shape[-2] // PATCH_SIZE, clips_bcfhw.shape[-1] // PATCH_SIZE

    def shown(clips: Tensor) -> Tensor:
        return clips[:, :, ::TUBELET].transpose(1, 2)  # (B, T, 3, height, width)

    is_hidden = shown(uncubify(hidden.expand_as(prediction), grid_size)) > 0
    original = to_pixels(shown(clips_bcfhw.float()), preprocessing)
    predicted = to_pixels(shown(uncubify(prediction, grid_size)), preprocessing)
    masked = original.masked_fill(is_hidden, GREY)
    return original.cpu(), masked.cpu(), torch.where(is_hidden, predicted, original).cpu()
