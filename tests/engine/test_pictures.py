"""Columns of photos under captions."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convmae_deploy.engine.pictures import CAPTION_HEIGHT, GAP, draw_columns, draw_rows, first_photos

HEIGHT, WIDTH = 64, 128
CAPTIONS = ("original", "masked", "reconstruction", "pasted")


def photos() -> NDArray[np.uint8]:
    """(B, H, W, 3) of noise."""
    return np.random.default_rng(0).integers(0, 256, (2, HEIGHT, WIDTH, 3), dtype=np.uint8)


def column() -> Tensor:
    return torch.from_numpy(photos()).permute(0, 3, 1, 2) / 255


def test_captions_stand_on_white_above_photos_with_a_gap_between() -> None:
    picture = draw_columns(dict.fromkeys(CAPTIONS, column()))
    assert picture.mode == "RGB"
    assert picture.size == (4 * WIDTH + 5 * GAP, CAPTION_HEIGHT + 2 * (HEIGHT + GAP))
    pixels = np.asarray(picture)
    assert (pixels[CAPTION_HEIGHT:, :GAP] == 255).all() and (pixels[-GAP:] == 255).all()
    captions = pixels[:CAPTION_HEIGHT]
    for index in range(4):
        left = GAP + index * (WIDTH + GAP)
        assert (captions[:, left : left + WIDTH] < 128).any()
        assert (captions[:, left - GAP : left] == 255).all(), "a caption is wider than its column"
    assert (captions[[0, -1]] == 255).all(), "a caption is cut or touches its photo"


def test_narrow_photos_are_enlarged_without_blur() -> None:
    picture = draw_columns(dict.fromkeys(CAPTIONS, column()[:, :, :32, :32]))
    assert picture.size == (4 * 128 + 5 * GAP, CAPTION_HEIGHT + 2 * (128 + GAP))
    original = np.asarray(picture)[CAPTION_HEIGHT : CAPTION_HEIGHT + 128, GAP : GAP + 128]
    assert np.array_equal(original, photos()[0, :32, :32].repeat(4, 0).repeat(4, 1))


def test_a_note_stands_below_the_photos_in_as_many_lines_as_it_takes() -> None:
    plain = draw_columns({"original": column()})
    short = draw_columns({"original": column()}, "a b")
    long = draw_columns({"original": column()}, "a sentence that is wider than a photo of 128 pixels")
    assert short.height == plain.height + CAPTION_HEIGHT and short.width == plain.width
    assert long.height >= plain.height + 3 * CAPTION_HEIGHT
    for picture in (short, long):
        pixels = np.asarray(picture)
        assert np.array_equal(pixels[: plain.height], np.asarray(plain))
        assert (pixels[plain.height :] < 128).any() and (pixels[plain.height :, -GAP:] == 255).all()


def test_no_row_is_no_picture_and_a_small_split_is_drawn_as_a_whole() -> None:
    assert draw_rows([], (32, 32)) is None
    assert (first_photos("abc"), first_photos("abcdefgh")) == (range(3), range(6))
