"""Polygons and run lengths, judged before pycocotools sees them."""

import re

import numpy as np
import pytest
from pycocotools import mask as run_lengths

from convmae_deploy.data.coco_masks import (
    MAX_COORDINATE,
    MAX_OUTLINE,
    area_of,
    check_box,
    check_polygons,
    check_run_lengths,
    mask_of,
)
from convmae_deploy.errors import ConvMAEError

HEIGHT, WIDTH = 37, 53


def random_mask(seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    generator = np.random.default_rng(seed)
    coarse = generator.random((4, 5)) < 0.5 if seed % 2 else generator.random((HEIGHT, WIDTH)) < seed / 40
    mask: np.ndarray[tuple[int, int], np.dtype[np.uint8]] = np.zeros((HEIGHT, WIDTH), np.uint8)
    large = np.kron(coarse, np.ones((10, 11))) if seed % 2 else coarse
    mask[:] = large[:HEIGHT, :WIDTH]
    return mask


@pytest.mark.parametrize("seed", range(40))
def test_run_lengths_as_pycocotools_writes_them_are_taken_and_one_pixel_more_or_less_is_not(seed: int) -> None:
    mask = random_mask(seed)
    text = run_lengths.encode(np.asfortranarray(mask))["counts"].decode()
    check_run_lengths(text, HEIGHT, WIDTH)
    for height in (HEIGHT - 1, HEIGHT + 1):
        with pytest.raises(ConvMAEError, match=f"cover the .* pixels of their photo; they cover {HEIGHT * WIDTH}$"):
            check_run_lengths(text, height, WIDTH)
    segmentation = {"size": (HEIGHT, WIDTH), "counts": text}
    assert np.array_equal(mask_of(segmentation, HEIGHT, WIDTH), mask)
    assert area_of(segmentation, HEIGHT, WIDTH) == mask.sum()


def test_runs_of_the_largest_photo_are_added_up() -> None:
    runs = [4_000_000_000, 65_535 * 65_535 - 4_000_000_000]
    text = run_lengths.frPyObjects({"size": [65_535, 65_535], "counts": runs}, 65_535, 65_535)["counts"].decode()
    check_run_lengths(text, 65_535, 65_535)
    check_run_lengths(runs, 65_535, 65_535)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ([10, 5], "they cover 15"),
        ([], "they cover 0"),
        ([10, 100_000], "they cover 100010"),
        ([-10, HEIGHT * WIDTH + 10], "must not be negative; found '-10'"),
        ([10**30, 5], "they cover far more"),
        ([-(10**400)], "must not be negative; found '-1000"),
        ("", "they cover 0"),
        ("5", "they cover 5"),
        ("o", "ends within a number"),
        ("k" * 5, "ends within a number"),
        ("oooooooo0", "a number in the text of run lengths is too large"),
        ("O", "must not be negative; found '-1'"),
        ("0 1", "characters from 0 to o"),
        ("\u732b", "characters from 0 to o"),
        ("a\x1b[31mp", "characters from 0 to o"),
        ("p" * 10_000, r"characters from 0 to o; found '.{40}' \.\.\. \(10000 characters\)"),
        ("0" * 5_000_000, "the text of run lengths is too long for 53 x 37 pixels: 5000000"),
    ],
)
def test_run_lengths_that_do_not_cover_their_photo_are_refused(counts: str | list[int], words: str) -> None:
    with pytest.raises(ConvMAEError, match=words) as caught:
        check_run_lengths(counts, HEIGHT, WIDTH)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


def test_an_outline_is_as_long_as_what_pycocotools_walks() -> None:
    side = MAX_OUTLINE / 4
    square = [0.0, 0.0, side - 2, 0.0, side - 2, side - 2, 0.0, side - 2]
    check_polygons([square])
    with pytest.raises(ConvMAEError, match=re.escape("may be 1000000 pixels long; found 1000012")):
        check_polygons([[coordinate + 4 * (coordinate > 0) for coordinate in square]])
    check_polygons([[0.0, 0.0, 900.0, 900.0, 0.0, 900.0]] * 300)  # 900 000 pixels together
    with pytest.raises(ConvMAEError, match="may be 1000000 pixels long"):
        check_polygons([[0.0, 0.0, 900.0, 900.0, 0.0, 900.0]] * 400)


@pytest.mark.parametrize("value", [2 * MAX_COORDINATE, -2 * MAX_COORDINATE, 1e300])
def test_coordinates_that_leave_every_photo_far_behind_are_refused(value: float) -> None:
    with pytest.raises(
        ConvMAEError, match="within 1000000 pixels of their photo's corner; found " + re.escape(f"{value:g}")
    ):
        check_polygons([[0.0, 0.0, 1.0, value, 2.0, 2.0]])
    with pytest.raises(ConvMAEError, match="a box must lie within 1000000 pixels"):
        check_box((0.0, 0.0, 1.0, value))


def test_outlines_that_leave_their_photo_a_little_and_empty_ones_are_taken() -> None:
    check_polygons([[-20.5, -3.0, 700.0, -3.0, 700.0, 500.0], [], [1.0, 2.0]])
    check_box((-5.0, -5.0, 900.0, 900.0))
