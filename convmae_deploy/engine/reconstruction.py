"""What programs that pretrain by masked reconstruction share: their loss, and pictures of what is reconstructed.

Shapes: B photos or clips, F frames of a clip, T = F / 2 slots, N patches of a photo or cubes of a clip, P pixel values
of each.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from convmae_deploy.bundle.preprocessing import ClipPreprocessing, Preprocessing
from convmae_deploy.engine.evaluation import evaluating
from convmae_deploy.engine.pictures import draw_columns
from convmae_deploy.engine.recipe import Recipe
from convmae_deploy.engine.training_config import RunConfig, TrainingConfig, check_at_least
from convmae_deploy.models.convmae import PATCH_SIZE
from convmae_deploy.models.pretraining import (
    PIXEL_VARIANCE_EPS,
    ConvMAEPretraining,
    patch_statistics,
    patchify,
    unpatchify,
)
from convmae_deploy.models.video import TUBELET
from convmae_deploy.models.video_pretraining import DEVIATION_EPS, VideoPretraining, cube_statistics, cubify, uncubify
from convmae_deploy.models.vit import PhotoVariant

GREY = 0.5  # hidden pixels are drawn so

# What a picture says of itself: such a model is not asked for the brightness and contrast that its picture shows.
FROM_THE_ORIGINAL = (
    "Hidden {pieces}: predicted detail, put back with the mean and deviation of the original {piece}, which the model "
    "did not see."
)
AS_PREDICTED = "Hidden {pieces}: pixels as predicted; nothing of the original {piece} is used."

Choose = Callable[[Tensor], Tensor]  # noise (B, cells) to the visible cells (G * B, K)
Picture = Callable[[Any, Tensor, Tensor], Image.Image]  # from model, inputs and visible cells


@dataclass(frozen=True, kw_only=True)
class MaskedTrainingConfig(TrainingConfig):
    """The settings of a program that pretrains by masked reconstruction."""

    variant: PhotoVariant  # the encoder's
    grad_checkpointing: bool = False  # recompute the blocks in the backward pass: less memory, more time
    picture_epochs: int = 20  # a picture of reconstructions every so many epochs, and after the last; 0: never
    run: RunConfig = field(default_factory=lambda: RunConfig(workers=8))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, picture_epochs=self.picture_epochs)


@dataclass(kw_only=True)
class ReconstructionRecipe(Recipe):
    """The loss of masked reconstruction, and a picture of it."""

    console: Console
    choose: Choose
    picture: Picture
    latest: tuple[Tensor, Tensor] | None = None  # inputs and their masks, of the micro-batch at hand

    def loss(self, inputs: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error of the hidden pixels; the masks follow from the noise."""
        kept = self.choose(noise)
        self.latest = inputs, kept
        return self.run.model(inputs, kept)  # type: ignore[no-any-return]

    def draw(self) -> Image.Image | None:
        """What was last trained on; not under FSDP, where no process has a whole model."""
        if self.run.is_sharded:
            self.console.print("no picture: under FSDP no process has the whole model; draw it from a checkpoint")
        if self.latest is None or self.run.is_sharded:
            return None
        return self.picture(self.run.bare_model, *self.latest)

    def last_words(self) -> str:
        """What to do with it."""
        out = self.run.config.out
        return f"pretrained encoder: {out}; finetune it with --init {out}"


def reconstruction_picture(
    model: ConvMAEPretraining, images_bchw: Tensor, kept: Tensor, preprocessing: Preprocessing
) -> Image.Image:
    """A row for each photo: the original, what the model sees of it, what it predicts, and both put together.

    Hidden pixels are grey in the second column, and the fourth takes them alone from the prediction. A model with
    `norm_pix_loss` predicts each patch less its mean and divided by its deviation; these two are then taken from the
    original, hidden patches included: the picture shows what was learnt, it is no compression, and says so below the
    photos. Predictions that are not finite are black.

    Args:
        model: on any device; left in the mode it was in.
        images_bchw: (B, 3, H * 16, W * 16), normalised, on any device.
        kept: (G * B, K), the visible cells as for the model's `forward`; of several masks the first is drawn.
        preprocessing: says what undoes the normalisation.

    Returns:
        An RGB picture; photos that are narrower than a caption are enlarged by a whole factor.
    """
    columns = reconstruction_columns(model, images_bchw, kept, preprocessing)
    return draw_columns(columns, what_is_shown(model))


def what_is_shown(model: ConvMAEPretraining | VideoPretraining) -> str:
    """What the hidden pixels of a picture are made of, a sentence."""
    pieces = ("cube", "cubes") if isinstance(model, VideoPretraining) else ("patch", "patches")
    sentence = FROM_THE_ORIGINAL if model.norm_pix_loss else AS_PREDICTED
    return sentence.format(piece=pieces[0], pieces=pieces[1])


def reconstruction_columns(
    model: ConvMAEPretraining, images_bchw: Tensor, kept: Tensor, preprocessing: Preprocessing
) -> dict[str, Tensor]:
    """Caption to photos (B, 3, H * 16, W * 16) in [0, 1] on the CPU, in the order of the columns.

    Arguments are those of `reconstruction_picture`.
    """

    def scale(images: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = patch_statistics(patchify(images).float())
        return mean, (variance + PIXEL_VARIANCE_EPS).sqrt()

    return _views(model, images_bchw, kept[: len(images_bchw)], preprocessing, scale, unpatchify, lambda images: images)


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
    rows = torch.stack(reconstruction_rows(model, clips_bcfhw, kept_bk, preprocessing), dim=1)
    rows = rows.flatten(0, 1)  # (3 * B, T, 3, height, width)
    captions = (f"frame {1 + TUBELET * slot}" for slot in range(rows.shape[1]))
    return draw_columns(dict(zip(captions, rows.unbind(dim=1), strict=True)), what_is_shown(model))


def reconstruction_rows(
    model: VideoPretraining, clips_bcfhw: Tensor, kept_bk: Tensor, preprocessing: ClipPreprocessing
) -> tuple[Tensor, Tensor, Tensor]:
    """Original, masked and pasted frames, each (B, T, 3, H * 16, W * 16) in [0, 1] on the CPU, one of each slot.

    Arguments are those of `reconstruction_strip`.
    """

    def scale(clips: Tensor) -> tuple[Tensor, Tensor]:
        mean, deviation = cube_statistics(cubify(clips).float())
        return mean, deviation + DEVIATION_EPS

    def first_frames(clips: Tensor) -> Tensor:
        return clips[:, :, ::TUBELET].transpose(1, 2)  # (B, T, 3, height, width)

    views = _views(model, clips_bcfhw, kept_bk, preprocessing, scale, uncubify, first_frames)
    return views["original"], views["masked"], views["pasted"]


@torch.inference_mode()
def _views(
    model: ConvMAEPretraining | VideoPretraining,
    inputs: Tensor,
    kept: Tensor,
    preprocessing: Preprocessing | ClipPreprocessing,
    scale: Callable[[Tensor], tuple[Tensor, Tensor]],
    join: Callable[[Tensor, tuple[int, int]], Tensor],
    shown: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """The original, what is seen of it, the prediction, and both put together, in [0, 1] on the CPU.

    Args:
        model: left in the mode it was in.
        inputs: (B, 3, ..., H * 16, W * 16).
        kept: (B, K).
        preprocessing: says what undoes the normalisation.
        scale: inputs to mean and divisor of their pieces, of a model with `norm_pix_loss`.
        join: pieces (B, N, P) and their grid to what the inputs are like.
        shown: what of that is shown, (B, ..., 3, H * 16, W * 16).
    """
    device = model.mask_token.device
    inputs = inputs.to(device)
    with evaluating(model):
        prediction, hidden, _ = model.reconstruct(inputs, kept.to(device))
    prediction = prediction.float()
    if model.norm_pix_loss:
        mean, divisor = scale(inputs)
        prediction = prediction * divisor + mean
    grid_size = inputs.shape[-2] // PATCH_SIZE, inputs.shape[-1] // PATCH_SIZE
    is_hidden = shown(join(hidden.expand_as(prediction), grid_size)) > 0
    original = _to_pixels(shown(inputs.float()), preprocessing)
    predicted = _to_pixels(shown(join(prediction, grid_size)), preprocessing)
    views = {
        "original": original,
        "masked": original.masked_fill(is_hidden, GREY),
        "reconstruction": predicted,
        "pasted": torch.where(is_hidden, predicted, original),
    }
    return {caption: photos.cpu() for caption, photos in views.items()}


def _to_pixels(images: Tensor, preprocessing: Preprocessing | ClipPreprocessing) -> Tensor:
    """Normalised values (..., 3, height, width) to [0, 1], clipped; what is not finite becomes 0."""
    mean, std = (
        torch.tensor(values, device=images.device).reshape(3, 1, 1)
        for values in (preprocessing.mean, preprocessing.std)
    )
    return (images * std + mean).nan_to_num(0.0, 0.0, 0.0).clamp(0, 1)
