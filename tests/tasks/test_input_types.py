"""Every task with a graph that takes levels, against the same graph that takes normalised values."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convmae_deploy.bundle.preprocessing import SlidingWindow
from convmae_deploy.tasks import open_predictor
from convmae_deploy.tasks.base import Predictor
from convmae_deploy.tasks.sliding_window import padded
from tests.bundle_factory import (
    make_bundle,
    make_detection_bundle,
    make_segmentation_bundle,
    make_video_bundle,
    take_levels,
)
from tests.video_files import make_video


def both(make: Callable[[Path], Path], folder: Path) -> tuple[Predictor, Predictor]:
    floats, levels = open_predictor(make(folder / "floats")), open_predictor(take_levels(make(folder / "levels")))
    assert (floats.manifest.input.dtype, levels.manifest.input.dtype) == ("float32", "uint8")
    assert 4 * levels.manifest.input.row_bytes == floats.manifest.input.row_bytes
    return floats, levels


def picture(size: tuple[int, int] = (150, 110)) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def scores_of(results: Any) -> list[tuple[str, float]]:
    return [(one.label, one.score) for one in results]


@pytest.mark.parametrize("make", [make_bundle, make_detection_bundle])
def test_photos_give_the_same(make: Callable[[Path], Path], tmp_path: Path) -> None:
    floats, levels = both(make, tmp_path)
    assert levels.prepare(picture()).rows.dtype == np.uint8
    assert scores_of(levels(picture())) == scores_of(floats(picture()))


def test_videos_give_the_same(tmp_path: Path) -> None:
    pytest.importorskip("av")
    floats, levels = both(make_video_bundle, tmp_path)
    video = make_video()
    assert levels.prepare(video).rows.dtype == np.uint8
    assert scores_of(levels(video)) == scores_of(floats(video))


def test_photos_larger_than_a_window_are_segmented_alike_and_smaller_ones_are_padded_with_levels(
    tmp_path: Path,
) -> None:
    floats, levels = both(make_segmentation_bundle, tmp_path)
    np.testing.assert_array_equal(levels(picture()).labels, floats(picture()).labels)
    np.testing.assert_array_equal(levels(picture()).scores, floats(picture()).scores)
    spec = levels.manifest.preprocessing
    assert isinstance(spec, SlidingWindow)
    small = padded(np.full((3, 10, 20), 7, np.uint8), spec)
    assert small.shape == (3, *spec.window) and small[:, :10, :20].tolist() == np.full((3, 10, 20), 7).tolist()
    assert small[:, -1, -1].tolist() == small[:, 0, -1].tolist() == [124, 116, 104]  # of 0.485, 0.456, 0.406
    assert "has the levels 124, 116, 104" in " ".join(spec.steps())
    np.testing.assert_allclose(levels(picture((30, 20))).scores, floats(picture((30, 20))).scores, atol=0.02)
