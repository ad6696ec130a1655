import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from convmae_deploy.tasks.masks import ObjectMask, encode_mask

FloatArray = NDArray[np.float32]


def literal(mask: ObjectMask) -> FloatArray:
    """Every pixel of the photo sampled from the mask at its centre, outside it 0; (H, W)."""
    left, top, right, bottom = mask.box
    y, x = (torch.arange(side, dtype=torch.float64) + 0.5 for side in mask.size)
    grid = torch.stack(
        torch.meshgrid((x - left) / (right - left) * 2 - 1, (y - top) / (bottom - top) * 2 - 1, indexing="xy"), dim=-1
    )
    cells = torch.from_numpy(mask.probabilities).double()[None, None]
    return F.grid_sample(cells, grid[None], align_corners=False)[0, 0].numpy().astype(np.float32)


@pytest.mark.parametrize(
    "box",
    [
        (10.0, 5.0, 38.0, 33.0),  # a cell is a pixel
        (3.3, 7.9, 61.2, 39.4),
        (0.0, 0.0, 64.0, 40.0),
        (20.2, 10.1, 20.9, 30.0),  # narrower than a pixel, around a centre
        (20.6, 10.1, 21.4, 30.0),  # narrower than a pixel, between two centres
        (-20.0, -7.5, 30.0, 20.0),  # beyond the edges
        (40.0, 20.0, 90.0, 77.0),
        (70.0, 50.0, 90.0, 77.0),  # outside
        (10.0, 5.0, 10.0, 33.0),  # nothing
    ],
)
def test_a_mask_is_sampled_at_the_centre_of_every_pixel(box: tuple[float, float, float, float]) -> None:
    probabilities = np.random.default_rng(0).random((28, 28), dtype=np.float32)
    mask = ObjectMask(probabilities=probabilities, box=box, size=(40, 64))
    found = mask.pixels()
    assert found.shape == (40, 64) and found.dtype == np.bool_
    if box[0] == box[2]:
        assert not found.any()
        return
    expected = literal(mask)
    certain = np.abs(expected - 0.5) > 1e-5
    assert np.array_equal(found[certain], expected[certain] >= 0.5)


def test_a_full_mask_fills_the_pixels_whose_centres_its_box_holds() -> None:
    mask = ObjectMask(probabilities=np.ones((28, 28), np.float32), box=(10.0, 5.0, 38.0, 30.4), size=(40, 64)).pixels()
    expected = np.zeros((40, 64), dtype=np.bool_)
    expected[5:30, 10:38] = True
    assert np.array_equal(mask, expected)


def random_masks() -> list[NDArray[np.bool_]]:
    random = np.random.default_rng(0)
    masks = [random.random((17, 23)) < share for share in (0.0, 0.02, 0.5, 0.98, 1.0)]
    masks += [np.ones((1, 1), np.bool_), np.zeros((1, 1), np.bool_), np.ones((1, 50), np.bool_)]
    blob = np.zeros((700, 900), np.bool_)
    blob[50:600, 30:850] = True
    blob[:, 200:300] = True  # columns that are full run into one another
    blob[-1, -1] = True
    return [*masks, blob, ~blob, blob.T.copy(), random.random((300, 200)) < 0.3]


@pytest.mark.parametrize("index", range(len(random_masks())))
def test_run_lengths_are_pycocotools_own(index: int) -> None:
    mask = random_masks()[index]
    expected = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert encode_mask(mask) == {"size": expected["size"], "counts": expected["counts"].decode()}
    assert np.array_equal(coco_mask.decode(encode_mask(mask)), mask)


@pytest.mark.parametrize("index", range(len(random_masks())))
@pytest.mark.parametrize(("top", "left", "bottom", "right"), [(0, 0, 3, 2), (5, 7, 0, 0), (1, 1, 1, 1), (0, 4, 0, 4)])
def test_run_lengths_of_a_part_are_those_of_the_whole_photo(
    index: int, top: int, left: int, bottom: int, right: int
) -> None:
    part = random_masks()[index]
    whole = np.pad(part, ((top, bottom), (left, right)))
    assert encode_mask(part, top=top, left=left, size=whole.shape) == encode_mask(whole)


def test_a_mask_s_forms_agree() -> None:
    probabilities = np.random.default_rng(0).random((28, 28), dtype=np.float32)
    mask = ObjectMask(probabilities=probabilities, box=(-3.3, 7.9, 61.2, 39.4), size=(40, 64))
    assert mask.pixels().any()
    assert np.array_equal(coco_mask.decode(mask.run_lengths()), mask.pixels())
    picture = Image.open(io.BytesIO(mask.png()))
    assert picture.mode == "L" and picture.size == (64, 40)
    assert np.array_equal(np.asarray(picture), mask.pixels().astype(np.uint8) * 255)


def test_a_mask_outside_the_photo_is_empty_in_every_form() -> None:
    mask = ObjectMask(probabilities=np.ones((28, 28), np.float32), box=(70, 50, 90, 77), size=(40, 64))
    assert mask.run_lengths() == encode_mask(np.zeros((40, 64), np.bool_))
    assert not mask.pixels().any()
