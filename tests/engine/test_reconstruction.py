"""Pictures of reconstructions: what each column shows, and what drawing them leaves alone."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from convmae_deploy.bundle.preprocessing import Preprocessing, standard_preprocessing
from convmae_deploy.engine.pictures import CAPTION_HEIGHT, GAP
from convmae_deploy.engine.reconstruction import reconstruction_columns, reconstruction_picture, what_is_shown
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convmae import ConvMAEConfig
from convmae_deploy.models.masking import MASKING, MaskingName
from convmae_deploy.models.pretraining import ConvMAEPretraining, PretrainingConfig, build_pretraining, patchify

SIZE = HEIGHT, WIDTH = 64, 128
CONFIG = ConvMAEConfig(embed_dims=(8, 8, 16), depths=(1, 1, 1), mlp_ratios=(1, 1, 1), num_heads=2, image_size=SIZE)
PREPROCESSING = standard_preprocessing(SIZE)
COLUMNS = ["original", "masked", "reconstruction", "pasted"]


def model_of(masking: MaskingName = "block", *, norm_pix_loss: bool = True) -> ConvMAEPretraining:
    torch.manual_seed(0)
    decoder = PretrainingConfig(
        decoder_width=16, decoder_depth=1, decoder_heads=2, masking=masking, norm_pix_loss=norm_pix_loss
    )
    return build_pretraining(CONFIG, decoder)


def photos(count: int = 2) -> NDArray[np.uint8]:
    """(B, H, W, 3) of noise."""
    return np.random.default_rng(0).integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)


def normalised(levels: NDArray[np.uint8], preprocessing: Preprocessing = PREPROCESSING) -> Tensor:
    values = (levels / 255 - preprocessing.mean) / preprocessing.std
    return torch.from_numpy(values).float().permute(0, 3, 1, 2)


def kept_of(masking: MaskingName, count: int = 2) -> Tensor:
    strategy = MASKING[masking]
    cells = HEIGHT // strategy.cell_size * (WIDTH // strategy.cell_size)
    return strategy.choose(torch.rand(count, cells, generator=torch.Generator().manual_seed(1)), 0.75)


def hidden_pixels(kept: Tensor, cell: int) -> NDArray[np.bool_]:
    """(B, H, W) from the definition of `kept`, a cell at a time."""
    hidden = np.ones((len(kept), HEIGHT, WIDTH), dtype=bool)
    for image, indices in zip(hidden, kept.tolist(), strict=True):
        for index in indices:
            row, column = divmod(index, WIDTH // cell)
            image[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = False
    return hidden


def columns_of(picture: Image.Image, count: int = 2) -> dict[str, NDArray[np.uint8]]:
    """Name -> (B, H, W, 3), cut out of a picture whose photos were not enlarged."""
    pixels = np.asarray(picture)
    found = {}
    for index, name in enumerate(COLUMNS):
        left = GAP + index * (WIDTH + GAP)
        tops = [CAPTION_HEIGHT + row * (HEIGHT + GAP) for row in range(count)]
        found[name] = np.stack([pixels[top : top + HEIGHT, left : left + WIDTH] for top in tops])
    return found


def predict_always(model: ConvMAEPretraining, prediction: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "decode", lambda *arguments: prediction)


@pytest.mark.slow
@pytest.mark.parametrize("masking", ["block", "complementary", "token"])
def test_visible_pixels_are_those_of_the_photo_and_hidden_ones_grey_or_predicted(masking: MaskingName) -> None:
    kept, levels = kept_of(masking), photos()
    columns = columns_of(reconstruction_picture(model_of(masking), normalised(levels), kept, PREPROCESSING))
    hidden = hidden_pixels(kept[:2], MASKING[masking].cell_size)
    assert np.array_equal(columns["original"], levels)
    for name in ("masked", "pasted"):
        assert np.array_equal(columns[name][~hidden], levels[~hidden])
    assert (columns["masked"][hidden] == 128).all()
    assert np.array_equal(columns["pasted"][hidden], columns["reconstruction"][hidden])
    assert (columns["reconstruction"][hidden] != levels[hidden]).mean() > 0.9


def test_a_prediction_of_the_normalised_patches_gives_the_photo(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = model_of(), normalised(photos())
    patches = patchify(images)
    target = (patches - patches.mean(2, keepdim=True)) / (patches.var(2, keepdim=True) + 1e-6).sqrt()
    predict_always(model, target, monkeypatch)
    columns = columns_of(reconstruction_picture(model, images, kept_of("block"), PREPROCESSING))
    assert np.array_equal(columns["reconstruction"], photos())
    assert np.array_equal(columns["pasted"], photos())


def test_without_normalised_patches_the_prediction_is_the_photo_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Preprocessing(resize=SIZE, crop=SIZE, mean=(0.5, 0.25, 0.75), std=(0.5, 0.1, 0.2))
    model, images = model_of(norm_pix_loss=False), normalised(photos(), own)
    predict_always(model, patchify(images.flip(0)), monkeypatch)
    columns = columns_of(reconstruction_picture(model, images, kept_of("block"), own))
    assert np.array_equal(columns["original"], photos())
    assert np.array_equal(columns["reconstruction"], photos()[::-1])


def test_predictions_out_of_range_are_clipped_and_those_not_finite_are_black(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = model_of(norm_pix_loss=False), normalised(photos(4))
    values = torch.tensor([100.0, -100.0, float("nan"), float("inf")])
    predict_always(model, values.reshape(4, 1, 1).expand(4, 32, 768), monkeypatch)
    picture = reconstruction_picture(model, images, kept_of("block", 4), PREPROCESSING)
    reconstruction = columns_of(picture, 4)["reconstruction"]
    assert [set(np.unique(photo)) for photo in reconstruction] == [{255}, {0}, {0}, {0}]


def test_the_first_of_several_masks_is_drawn() -> None:
    model, images, kept = model_of("complementary"), normalised(photos()), kept_of("complementary")
    assert len(kept) == 8
    drawn = reconstruction_picture(model, images, kept, PREPROCESSING)
    assert drawn == reconstruction_picture(model, images, kept[:2], PREPROCESSING)
    assert drawn != reconstruction_picture(model, images, kept[2:4], PREPROCESSING)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_keeps_its_mode_and_gets_no_gradient(training: bool) -> None:
    model = model_of().train(training)
    modes = []
    model.decoder_norm.register_forward_hook(lambda module, *_: modes.append(module.training))
    columns = reconstruction_columns(model, normalised(photos()), kept_of("block"), PREPROCESSING)
    assert modes == [False]
    assert not any(photos.requires_grad for photos in columns.values())
    with pytest.raises(ConvMAEError, match="multiples of 32"):
        reconstruction_columns(model, torch.zeros(2, 3, 64, 48), torch.zeros(2, 3, dtype=torch.int64), PREPROCESSING)
    assert {module.training for module in model.modules()} == {training}


@pytest.mark.gpu
def test_a_model_on_a_gpu_draws_the_photos_of_the_cpu() -> None:
    images, kept = normalised(photos()), kept_of("block")
    picture = columns_of(reconstruction_picture(model_of().cuda(), images, kept, PREPROCESSING))
    expected = columns_of(reconstruction_picture(model_of(), images, kept, PREPROCESSING))
    assert np.array_equal(picture["masked"], expected["masked"])
    assert np.abs(picture["pasted"].astype(int) - expected["pasted"]).max() <= 2


@pytest.mark.parametrize(
    ("norm_pix_loss", "words"), [(True, "mean and deviation of the original"), (False, "as predicted")]
)
def test_a_picture_says_what_its_hidden_pixels_are_made_of(norm_pix_loss: bool, words: str) -> None:
    model = model_of(norm_pix_loss=norm_pix_loss)
    assert words in what_is_shown(model)
    picture = reconstruction_picture(model, normalised(photos()), kept_of("block"), PREPROCESSING)
    below = np.asarray(picture)[CAPTION_HEIGHT + 2 * (HEIGHT + GAP) :]
    assert len(below) >= CAPTION_HEIGHT and (below < 128).any()
