"""A segmenter is measured as it is served, on any number of processes, and drawn beside the labels."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from convmae_deploy.bundle.preprocessing import SlidingWindow, standard_windows
from convmae_deploy.data.segmentation_folder import read_segmentation_folder
from convmae_deploy.data.segmentation_metrics import confusion_of, scores_of
from convmae_deploy.engine.evaluation import Validation
from convmae_deploy.engine.segmentation import (
    TILE,
    ConfusionMetric,
    EvaluationSegmentation,
    evaluate_segmenter,
    segmentation_picture,
    window_runner,
)
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.label_colours import palette
from tests.segmentation_folders import CLASSES, make_segmentation_folder

WINDOWS = standard_windows((64, 64), None)


class ByColour(nn.Module):
    """Every cell of 4 x 4 pixels is of the class of its strongest colour, which is right but for cells at borders."""

    def forward(self, windows: Tensor) -> Tensor:
        assert not self.training
        return F.avg_pool2d(windows, 4) * 10


@pytest.fixture
def photos(tmp_path: Path) -> EvaluationSegmentation:
    folder = read_segmentation_folder(make_segmentation_folder(tmp_path / "data"), "val")
    return EvaluationSegmentation(folder, WINDOWS)


def evaluate(photos: EvaluationSegmentation) -> Validation:
    return evaluate_segmenter(ByColour().train(), photos, Accelerator(cpu=True), batch_size=3, workers=0)


def test_a_segmenter_that_sees_colours_scores_nearly_everything(photos: EvaluationSegmentation) -> None:
    result = evaluate(photos)
    assert (result.images, result.unreadable) == (4, 0)
    assert {f"iou/{name}" for name in CLASSES} < result.scores.keys()
    assert 90 < result.scores["miou"] < 100 and result.scores["aacc"] > 95


def test_scores_are_those_of_whole_photos_in_a_slow_reference(photos: EvaluationSegmentation) -> None:
    whole = SlidingWindow(window=(96, 96), stride=(96, 96))  # one window a photo, padded
    confusion = np.zeros((3, 3), np.int64)
    for index in range(4):
        photo, labels = photos.folder.read(index)
        pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (whole.mean, whole.std))
        padded = F.pad((pixels - mean) / std, (0, 0, 0, 16))[None]
        logits = F.interpolate(ByColour().eval()(padded), scale_factor=4, mode="bilinear", align_corners=False)
        confusion += confusion_of(labels, logits[0, :, :80].argmax(0).numpy(), 3)
    found = evaluate(EvaluationSegmentation(photos.folder, whole)).scores
    assert found["miou"] == pytest.approx(100 * scores_of(confusion).mean_iou, abs=0.1)


def test_unreadable_photos_are_counted_and_left_out(photos: EvaluationSegmentation) -> None:
    photos.folder.photos[1].write_bytes(b"no photo")
    result = evaluate(photos)
    assert (result.images, result.unreadable) == (3, 1)
    for photo in photos.folder.photos:
        photo.write_bytes(b"no photo")
    with pytest.raises(ConvMAEError, match="none of the 4 validation files could be decoded"):
        evaluate(photos)


def test_photos_without_any_label_are_no_validation(photos: EvaluationSegmentation) -> None:
    for label_map in photos.folder.label_maps:
        Image.fromarray(np.full((80, 96), 255, np.uint8)).save(label_map)
    with pytest.raises(ConvMAEError, match="no pixel of the validation photos has a class"):
        evaluate(photos)


def test_a_wrong_label_map_is_an_error_in_any_process(photos: EvaluationSegmentation) -> None:
    Image.fromarray(np.full((80, 96), 7, np.uint8)).save(photos.folder.label_maps[0])
    for workers in (0, 1):
        with pytest.raises(ConvMAEError, match=r"^[^\n]*0.png must hold the levels 0 to 2 [^\n]*; found 7$"):
            evaluate_segmenter(ByColour(), photos, Accelerator(cpu=True), batch_size=3, workers=workers)


def test_what_there_is_to_tell_is_in_percent() -> None:
    metric = ConfusionMetric(CLASSES)
    metric.confusion += np.array([[6, 2, 0], [0, 8, 0], [0, 0, 0]])
    scores = metric.compute(Accelerator(cpu=True))
    assert metric.summary(scores) == "mIoU 77.50 %, mAcc 87.50 %, aAcc 87.50 %"
    numbers = Validation(scores=scores, summary="", images=4, unreadable=1).numbers
    assert numbers["val_miou"] == pytest.approx(77.5)
    assert numbers["val_iou/right"] == pytest.approx(80) and numbers["unreadable_val"] == 1


@pytest.mark.slow
def test_windows_run_in_batches_of_the_size_asked_for() -> None:
    sizes = []

    class Counting(ByColour):
        def forward(self, windows: Tensor) -> Tensor:
            sizes.append(len(windows))
            return super().forward(windows)

    windows = np.random.default_rng(0).normal(size=(5, 3, 32, 32)).astype(np.float32)
    logits = window_runner(Counting().eval(), Accelerator(cpu=True), 2)(windows)
    assert sizes == [2, 2, 1] and logits.shape == (5, 3, 8, 8) and logits.dtype == np.float32


def all_of_class_one(windows: NDArray[np.float32]) -> NDArray[np.float32]:
    logits = np.zeros((len(windows), 3, 16, 16), np.float32)
    logits[:, 1] = 1
    return logits


@pytest.mark.slow
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
