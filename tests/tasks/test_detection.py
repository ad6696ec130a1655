from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from convmae_deploy.bundle.preprocessing import Letterbox
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks import load_bundle
from convmae_deploy.tasks.base import ModelOutputError
from convmae_deploy.tasks.detection import Detector, coco_result, find_detections
from tests.bundle_factory import OBJECTS, make_bundle, make_detection_bundle, open_as

PHOTO = Image.new("RGB", (192, 64), (200, 190, 180))  # becomes 96 x 32 of the input of 96 x 64
SPEC = Letterbox(size=(64, 96))
SIZE = (128, 150)  # halved, to 64 x 75
CLASSES = ("cat", "dog")


def outputs(*rows: tuple[tuple[float, float, float, float], float, int]) -> dict[str, Any]:
    """What a detector gives for one image that has room for five objects; every mask is full."""
    found: dict[str, Any] = {
        "boxes": np.zeros((5, 4), np.float32),
        "scores": np.zeros(5, np.float32),
        "labels": np.zeros(5, np.int64),
        "masks": np.zeros((5, 28, 28), np.float32),
        "num": np.int64(len(rows)),
        "converged": np.int64(1),
    }
    for index, (box, score, label) in enumerate(rows):
        found["boxes"][index], found["scores"][index], found["labels"][index] = box, score, label
        found["masks"][index] = 1
    return found


def test_objects_are_in_pixels_of_the_photo_and_have_names() -> None:
    first, second = find_detections(outputs(((10, 20, 30, 40), 0.9, 1), ((0, 0, 75, 64), 0.25, 0)), SIZE, SPEC, CLASSES)
    assert (first.label, first.index, first.box) == ("dog", 1, (20, 40, 60, 80)) and first.score == pytest.approx(0.9)
    assert (second.label, second.box) == ("cat", (0, 0, 150, 128))
    mask = first.mask.pixels()
    assert mask.shape == SIZE and mask[40:80, 20:60].all() and mask.sum() == 40 * 40


def test_rows_below_the_threshold_and_behind_the_number_are_no_objects() -> None:
    found = outputs(((10, 20, 30, 40), 0.9, 1), ((0, 0, 75, 64), 0.5, 0), ((0, 0, 75, 64), 0.25, 0))
    assert len(find_detections(found, SIZE, SPEC, CLASSES)) == 3
    assert len(find_detections(found, SIZE, SPEC, CLASSES, threshold=0.5)) == 2
    assert find_detections(outputs(), SIZE, SPEC, CLASSES) == []


def test_without_a_number_every_row_is_an_object() -> None:
    found = {name: value[:2] for name, value in outputs(*[((1, 1, 9, 9), 0.5, 0)] * 5).items() if value.ndim}
    assert len(find_detections(found, SIZE, SPEC, CLASSES)) == 2


def test_a_box_that_reaches_into_the_padding_ends_with_the_photo_and_its_mask_is_not_squeezed() -> None:
    row = outputs(((55, 10, 95, 30), 0.9, 1))
    row["masks"][0, :, 14:] = 0  # the object is the left half of the box: 55 to 75
    detection = find_detections(row, SIZE, SPEC, CLASSES)[0]
    assert detection.box == (110, 20, 150, 60)
    mask = detection.mask.pixels()
    assert mask[20:60, 110:150].all() and mask.sum() == 40 * 40


def test_what_lies_in_the_padding_alone_is_left_out() -> None:
    assert find_detections(outputs(((76, 10, 95, 30), 0.9, 1)), SIZE, SPEC, CLASSES) == []


def test_an_entry_of_coco_s_results_has_width_and_height_and_run_lengths() -> None:
    detection = find_detections(outputs(((10, 20, 30, 45), 0.9, 1)), SIZE, SPEC, CLASSES)[0]
    entry = coco_result(detection, 42, 7)
    assert (entry["image_id"], entry["category_id"], entry["bbox"]) == (42, 7, [20, 40, 40, 50])
    assert entry["score"] == pytest.approx(0.9)
    assert np.array_equal(coco_mask.decode(entry["segmentation"]), detection.mask.pixels())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_detection_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def detector(bundle: Path) -> Detector:
    return open_as(Detector, bundle, device="cpu", threads=1)


class ChangedBackend:
    """The graph's own answer, but for one output."""

    name, providers = "changed", ("test",)

    def __init__(self, detector: Detector, name: str, value: int) -> None:
        self.real, self.changed, self.value = detector.backend, name, value

    def run(self, image: NDArray[np.float32], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        answer = self.real.run(image, outputs)
        answer[self.changed] = np.full_like(answer[self.changed], self.value)
        return answer


def test_objects_have_boxes_in_pixels_of_the_photo_best_first(detector: Detector) -> None:
    found = detector([PHOTO], threshold=0)[0]
    assert [item.label for item in found] == ["dog", "cat"], "the third lies in the padding alone"
    for item, (shares, _, label) in zip(found, OBJECTS, strict=False):
        left, top, right, bottom = (np.array(shares) * [192, 128, 192, 128]).tolist()
        assert item.index == label and item.box == pytest.approx((left, top, right, min(bottom, 64)), abs=1e-4)
    assert found[0].score > found[1].score > 0.4


def test_masks_are_where_their_boxes_are(detector: Detector) -> None:
    whole, left_half = (item.mask.pixels() for item in detector([PHOTO])[0][:2])
    assert whole.shape == (64, 192)
    rows, columns = np.flatnonzero(whole.any(axis=1)), np.flatnonzero(whole.any(axis=0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (13, 63, 19, 95)
    columns = np.flatnonzero(left_half.any(axis=0))
    assert (columns[0], columns[-1]) == (77, 124), "half of 76.8 to 172.8"


def test_more_photos_than_the_graph_takes_are_run_in_chunks(detector: Detector) -> None:
    photos = [Image.new("RGB", (40 + 10 * index, 64), (130 + 10 * index,) * 3) for index in range(9)]
    photos[4] = Image.new("RGB", (30, 30))  # dark: no object
    found = detector(photos, threshold=0.3)
    for photo, items in zip(photos, found, strict=True):
        alone = detector([photo], threshold=0.3)[0]
        assert [(item.label, item.box) for item in items] == [(item.label, item.box) for item in alone]
        assert [item.score for item in items] == pytest.approx([item.score for item in alone])
    assert found[4] == [] and len({items[0].score for items in found if items}) == 8
    assert detector([]) == []


def test_the_threshold_leaves_out_what_is_less_sure(detector: Detector) -> None:
    photo = Image.new("RGB", (96, 64), "white")
    scores = [item.score for item in detector([photo], threshold=0)[0]]
    assert len(scores) == 3
    assert len(detector([photo], threshold=scores[1])[0]) == 2
    assert len(detector([photo], threshold=1)[0]) == 0
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConvMAEError, match="threshold must be between 0 and 1"):
            detector([photo], threshold=wrong)


def test_a_suppression_that_did_not_end_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    detector = open_as(Detector, make_detection_bundle(tmp_path, converged=False), device="cpu")
    assert len(detector([PHOTO])[0]) == 2
    assert "boxes may have left boxes that overlap" in caplog.text


@pytest.mark.parametrize(("output", "value"), [("num", 101), ("num", -1), ("labels", 3), ("labels", -1)])
def test_an_answer_out_of_range_is_not_blamed_on_the_input(
    bundle: Path, detector: Detector, output: str, value: int
) -> None:
    broken = Detector(load_bundle(bundle), ChangedBackend(detector, output, value))
    with pytest.raises(ModelOutputError, match=f"'{output}' must be between 0 and"):
        broken([PHOTO])


def test_a_classifier_does_not_detect(tmp_path: Path) -> None:
    with pytest.raises(ConvMAEError, match="tiny is a classification model; give a detection bundle"):
        open_as(Detector, make_bundle(tmp_path))
