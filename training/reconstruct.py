"""Draws what a pretraining model makes of photos: original, masked, reconstruction, and both pasted together.

    python -m training.reconstruct runs/pretrain photos/ --out reconstruction.png
    python -m training.reconstruct checkpoint.pth cat.jpg dog.jpg --out reconstruction.png --mask-ratio 0.9

CHECKPOINT is a pretraining run or checkpoint of ours, or a full pretraining file of the authors (the `convmae_base.pth`
they published has no decoder). Photos are files or folders. Masks follow from --seed and the order of the photos.
Runs on the CPU: seconds for a ConvMAE-B and sixteen photos.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from convmae_deploy.bundle.preprocessing import Preprocessing, standard_preprocessing
from convmae_deploy.checkpoints.initial import load_initial_pretraining
from convmae_deploy.engine.reconstruction import reconstruction_picture, what_is_shown
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import atomic_file, check_can_create
from convmae_deploy.media.photo_files import find_photos, read_photo
from convmae_deploy.models.convmae import check_image_size
from convmae_deploy.models.masking import MASKING, draw_noise
from convmae_deploy.program import readable, run_program
from convmae_deploy.tasks.preprocess import preprocess

MAX_PHOTOS = 16  # in one picture


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig:
    """Draws what a pretraining model reconstructs of photos, and prints the loss of each."""

    # pretraining run or checkpoint, or a .pth file of the authors
    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    # files or folders; the first 16 photos are drawn
    photos: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PHOTO ...")]
    out: Path  # the PNG to write; replaced where it exists
    seed: int = 0  # the masks follow from it
    mask_ratio: float | None = None  # share of the cells that is hidden; default: the checkpoint's
    image_size: tuple[int, int] | None = None  # height and width in pixels, multiples of 32; default: the checkpoint's

    def __post_init__(self) -> None:
        if not self.photos:
            raise ConvMAEError("at least one photo or folder of photos must be given; found none")
        if self.out.suffix.lower() != ".png" or self.out.is_dir():
            found = f"the folder {self.out}" if self.out.is_dir() else self.out
            raise ConvMAEError(f"--out must be a picture to write, ending in .png; got {found}")
        if not 0 <= self.seed < 2**63:
            raise ConvMAEError(f"--seed must be between 0 and 2^63 - 1; got {self.seed}")
        if self.mask_ratio is not None and not 0 < self.mask_ratio < 1:
            raise ConvMAEError(f"--mask-ratio must be between 0 and 1; got {self.mask_ratio}")
        if self.image_size is not None:
            check_image_size(self.image_size)


def reconstruct(config: ReconstructConfig) -> None:
    """Prints the losses and writes the picture.

    Raises:
        ConvMAEError: no pretraining model, a photo that cannot be read, or masks that do not fit the image size.
    """
    check_can_create(config.out)
    photos = find_photos(config.photos)
    if len(photos) > MAX_PHOTOS:
        print(f"drawing the first {MAX_PHOTOS} of {len(photos)} photos")
        photos = photos[:MAX_PHOTOS]
    if config.out.resolve() in {photo.resolve() for photo in photos}:
        raise ConvMAEError(f"--out must be another file than the photos; {config.out} is one of them")
    model, record, report = load_initial_pretraining(config.checkpoint, image_size=config.image_size)
    print(*report, sep="\n", end="\n" if report else "")
    assert record.pretraining is not None
    preprocessing = record.preprocessing or standard_preprocessing(record.model.image_size)
    assert isinstance(preprocessing, Preprocessing)
    images = read_images(photos, preprocessing)

    masking = MASKING[record.pretraining.masking]
    generator = torch.Generator().manual_seed(config.seed)
    noise = draw_noise(len(photos), record.model.image_size, masking.cell_size, generator)
    kept = masking.choose(noise, config.mask_ratio or record.pretraining.mask_ratio)  # (G * B, K)

    losses = []
    for index, photo in enumerate(photos):
        with torch.inference_mode():  # one photo at a time, with all of its masks: rows index, B + index, ...
            losses.append(model(images[index : index + 1], kept[index :: len(photos)]).item())
        print(f"{readable(photo)}: loss {losses[-1]:.4f}")
    print(f"mean loss {sum(losses) / len(losses):.4f}")
    picture = reconstruction_picture(model, images, kept, preprocessing)
    with atomic_file(config.out) as temporary:
        picture.save(temporary, format="png")
    print(f"wrote {readable(config.out)}. {what_is_shown(model)}")


def read_images(photos: list[Path], preprocessing: Preprocessing) -> Tensor:
    """The photos as the model takes them, (B, 3, H, W).

    Raises:
        ConvMAEError: one of them cannot be read; the sentence names it.
    """
    images = []
    for photo in photos:
        try:
            images.append(torch.from_numpy(preprocess(read_photo(photo).image, preprocessing)))
        except ConvMAEError as error:
            raise ConvMAEError(f"{readable(photo)}: {error}") from None
    return torch.stack(images)


def main() -> None:
    """Command line."""
    reconstruct(tyro.cli(ReconstructConfig, prog="python -m training.reconstruct"))


if __name__ == "__main__":
    run_program(main)
