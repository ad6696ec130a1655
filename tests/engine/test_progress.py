"""Curves are drawn into a picture, whole or not at all."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convmae_deploy.engine.progress import draw_curves, peak_memory_gb

EPOCHS = [{"epoch": n, "train_loss": 2 / n, "val_loss": 1.5 / n, "val_top1": 20.0 * n} for n in (1, 2, 3)]


def test_curves_are_a_picture_with_ink(tmp_path: Path) -> None:
    draw_curves(tmp_path / "curves.png", EPOCHS, score="val_top1", score_label="validation top-1 (%)")
    with Image.open(tmp_path / "curves.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[1] > 2 * pixels.shape[0]
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_a_failed_drawing_leaves_the_old_picture(tmp_path: Path) -> None:
    (tmp_path / "curves.png").write_bytes(b"old")
    with pytest.raises(KeyError):
        draw_curves(tmp_path / "curves.png", [{"epoch": 1}])
    assert (tmp_path / "curves.png").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_peak_memory_is_that_of_a_process_with_torch() -> None:
    assert 0.05 < peak_memory_gb() < 100
