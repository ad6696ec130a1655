"""Pictures of predictions beside labels."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convmae_deploy.bundle.manifest import standard_windows
from convmae_deploy.data.segmentation_folder import read_segmentation_folder
from convmae_deploy.engine.segmentation_pictures import TILE, segmentation_picture
from convmae_deploy.tasks.label_colours import palette
from tests.segmentation_folders import make_segmentation_folder

WINDOWS = standard_windows((64, 64), None)


def all_of_class_one(windows: NDArray[np.float32]) -> NDArray[np.float32]:
    logits = np.zeros((len(windows), 3, 16, 16), np.float32)
    logits[:, 1] = 1
    return logits


def test_a_row_for_each_photo_and_a_legend(tmp_path: Path) -> None:
    folder = read_segmentation_folder(make_segmentation_folder(tmp_path / "data"), "val")
    one, two = (segmentation_picture(folder, range(count), WINDOWS, all_of_class_one) for count in (1, 2))
    assert one is not None and two is not None
    assert two.height - one.height >= TILE[1] and one.width > 3 * TILE[0]
    colours = {tuple(colour) for colour in np.asarray(one).reshape(-1, 3).tolist()}
    assert {tuple(colour) for colour in palette(3)[:3].tolist()} <= colours  # of the legend


def test_unreadable_photos_are_left_out(tmp_path: Path) -> None:
    folder = read_segmentation_folder(make_segmentation_folder(tmp_path / "data", val=2), "val")
    folder.photos[0].write_bytes(b"no photo")
    one = segmentation_picture(folder, range(1, 2), WINDOWS, all_of_class_one)
    left = segmentation_picture(folder, range(2), WINDOWS, all_of_class_one)
    assert one is not None and left is not None and np.array_equal(np.asarray(left), np.asarray(one))
    assert segmentation_picture(folder, range(1), WINDOWS, all_of_class_one) is None
