import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from convmae_deploy.bundle.preprocessing import Letterbox
from convmae_deploy.tasks.letterbox import boxes_to_photo, fitted_size, letterbox

SPEC = Letterbox(size=(64, 96), fill=10)


def random_photo(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("photo", "expected"),
    [
        ((64, 96), (64, 96)),
        ((32, 48), (64, 96)),  # enlarged
        ((640, 480), (64, 48)),
        ((480, 640), (64, 85)),  # 85.33 is rounded down
        ((100, 200), (48, 96)),
        ((101, 200), (48, 96)),  # 48.48
        ((64, 1), (64, 1)),
        ((1, 1000), (1, 96)),  # 0.096, but nothing vanishes
        ((16384, 163), (64, 1)),
        ((77, 115), (64, 96)),  # 95.58
    ],
)
def test_a_photo_is_as_large_as_fits(photo: tuple[int, int], expected: tuple[int, int]) -> None:
    assert fitted_size(photo, (64, 96)) == expected


def test_every_photo_fits_and_touches_both_edges_of_one_side() -> None:
    random = np.random.default_rng(0)
    for height, width in random.integers(1, 3000, (500, 2)).tolist():
        fitted = fitted_size((height, width), (608, 1024))
        assert fitted[0] <= 608 and fitted[1] <= 1024
        assert fitted[0] == 608 or fitted[1] == 1024


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(50, 30), (30, 50), (200, 300), (64, 96)])
def test_the_photo_lies_at_the_top_left_and_the_rest_is_filled(size: tuple[int, int], interpolation: str) -> None:
    spec = Letterbox.model_validate(SPEC.model_dump() | {"interpolation": interpolation})
    photo = random_photo(*size)
    height, width = fitted_size(size, spec.size)
    padded = np.full((64, 96, 3), 10, dtype=np.uint8)
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    padded[:height, :width] = np.asarray(photo.resize((width, height), filters[interpolation]))
    scaled = v2.functional.to_dtype(torch.from_numpy(padded).permute(2, 0, 1), torch.float32, scale=True)
    expected = v2.functional.normalize(scaled, list(spec.mean), list(spec.std)).numpy()
    assert np.allclose(letterbox(photo, spec), expected, atol=1e-6)


def test_boxes_come_back_to_the_pixels_they_were_drawn_around() -> None:
    # 101 x 200 becomes 48 x 96: the ratios of the two axes differ a little.
    boxes = np.array([[0, 0, 96, 48], [48, 24, 96, 48], [9.6, 12, 19.2, 36]], dtype=np.float32)
    found = boxes_to_photo(boxes, (101, 200), SPEC)
    expected = np.array([[0, 0, 200, 101], [100, 50.5, 200, 101], [20, 25.25, 40, 75.75]])
    assert np.allclose(found, expected, atol=1e-5)
    assert found.dtype == np.float32


def test_no_boxes_stay_no_boxes() -> None:
    assert boxes_to_photo(np.zeros((0, 4), dtype=np.float32), (10, 10), SPEC).shape == (0, 4)


def test_a_bright_square_is_found_where_it_is() -> None:
    levels = np.zeros((480, 640, 3), dtype=np.uint8)
    levels[120:240, 400:560] = 255
    seen = letterbox(Image.fromarray(levels), Letterbox(size=(64, 96), fill=0, mean=(0, 0, 0), std=(1, 1, 1)))[0] > 0.5
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    box = np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], dtype=np.float32)
    assert np.abs(boxes_to_photo(box, (480, 640), SPEC) - [400, 120, 560, 240]).max() < 640 / 85 / 2 + 0.1
