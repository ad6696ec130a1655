"""The task's metrics of tiny bundles: each against a number known beforehand or computed another way."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convmae_deploy.backends.base import FloatArray, Outputs
from convmae_deploy.data.segmentation_metrics import confusion_of, scores_of
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks import load_bundle, open_predictor
from convmae_deploy.tasks.base import Predictor
from convmae_deploy.tasks.classification import Classifier
from export.runtimes.runners import onnx_runner
from export.tasks import read_task_data
from export.tasks.classification import ClassifiedData
from export.tasks.detection import DetectedData
from export.tasks.segmentation import SegmentedData, labels_of
from export.verification.task_data import Agreement, TaskMetric, spread
from export.verification.task_metrics import predictor_on
from tests.bundle_factory import (
    make_bundle,
    make_detection_bundle,
    make_segmentation_bundle,
    make_video_bundle,
    open_as,
)
from tests.coco_folders import edit_annotations, make_coco_folder, rectangle
from tests.photo_folders import make_photo_folder
from tests.segmentation_folders import make_segmentation_folder
from tests.video_folders import make_motion_folder

COLOURS = ("red", "green", "blue")


def make_colours(root: Path, per_class: int = 12) -> Path:
    """Plain pictures of random colours, spread over three classes."""
    generator = np.random.default_rng(0)
    for name in COLOURS:
        (root / "val" / name).mkdir(parents=True)
        for index in range(per_class):
            colour = tuple(int(level) for level in generator.integers(0, 256, 3))
            Image.new("RGB", (80, 80), colour).save(root / "val" / name / f"{index}.png")
    return root


def opened(bundle: Path) -> Predictor:
    return open_predictor(bundle, device="cpu")


def test_top1_goes_by_the_names_of_classes_and_not_by_their_order(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", classes=COLOURS)
    data = read_task_data(make_colours(tmp_path / "photos"), load_bundle(bundle).manifest)
    predictor = open_as(Classifier, bundle, device="cpu")
    right = sum(predictor([Image.open(path)], top_k=1)[0][0].label == path.parent.name for path in data.files)
    assert 0 < right < 36
    assert data.metrics(data.predictions(predictor)) == (TaskMetric(name="top-1", value=100 * right / 36, samples=36),)


def test_names_that_come_twice_keep_their_places(tmp_path: Path) -> None:
    classes = ("crane", "bee", "crane")
    root = make_photo_folder(tmp_path / "photos", classes=("1", "2", "3"), per_class=1)
    (root / "classes.json").write_text(json.dumps(dict(zip("123", classes, strict=True))))
    data = read_task_data(root, load_bundle(make_bundle(tmp_path / "bundle", classes=classes)).manifest)
    assert isinstance(data, ClassifiedData) and data.labels is not None
    assert list(data.labels) == [0, 1, 2]


def test_files_that_cannot_be_decoded_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos = make_colours(tmp_path / "photos", per_class=2)
    (photos / "val" / "red" / "0.png").write_bytes(b"no photo")
    data = read_task_data(photos, load_bundle(make_bundle(tmp_path / "bundle", classes=COLOURS)).manifest)
    predictor = opened(tmp_path / "bundle")
    predictions = data.predictions(predictor)
    assert [one is None for one in predictions] == [path.name == "0.png" and "red" in str(path) for path in data.files]
    assert data.metrics(predictions)[0].samples == 5
    data.predictions(predictor)
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith(f"1 of 6 photos cannot be decoded and are not measured, the first {photos}/val/red/0.png: ")
    for path in data.files:
        path.write_bytes(b"no photo")
    with pytest.raises(ConvMAEError, match="none of the 6 photos can be decoded"):
        data.predictions(predictor)


def test_another_mean_makes_other_classes_and_the_same_one_makes_none(tmp_path: Path) -> None:
    photos = make_colours(tmp_path / "photos")
    right = make_bundle(tmp_path / "right", classes=COLOURS)
    crop = {"resize": [73, 73], "crop": [64, 64]}
    wrong = make_bundle(tmp_path / "wrong", classes=COLOURS, preprocessing=crop | {"mean": [0.1, 0.9, 0.5]})
    data = read_task_data(photos, load_bundle(right).manifest)
    before, after = data.predictions(opened(right)), data.predictions(opened(wrong))
    same, other = data.agreement(before, before), data.agreement(before, after)
    assert same.share == 1 and 30 < same.decided <= 36
    assert other.decided == same.decided and other.agreeing < other.decided


def test_a_folder_without_the_split_has_photos_and_no_metric(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", classes=COLOURS)
    data = read_task_data(make_colours(tmp_path / "photos") / "val", load_bundle(bundle).manifest)
    assert not data.labelled and len(data.files) == 36
    predictor = opened(bundle)
    predictions = data.predictions(predictor)
    assert data.metrics(predictions) == ()
    assert data.agreement(predictions, predictions).share == 1


def test_another_split_is_read_where_it_is_asked_for(tmp_path: Path) -> None:
    photos = make_photo_folder(tmp_path / "photos", per_class=3)
    manifest = load_bundle(make_bundle(tmp_path / "bundle", classes=("red", "blue"))).manifest
    assert read_task_data(photos, manifest, split="train").files[0].parts[-3] == "train"


def test_a_limit_takes_samples_from_all_over_the_data_with_their_labels(tmp_path: Path) -> None:
    manifest = load_bundle(make_bundle(tmp_path / "bundle", classes=COLOURS)).manifest
    data = read_task_data(make_colours(tmp_path / "photos"), manifest, limit=6)
    assert isinstance(data, ClassifiedData) and data.labels is not None
    assert [path.parent.name for path in data.files] == [COLOURS[label] for label in data.labels]
    assert set(data.labels) == {0, 1, 2} and len(data.files) == 6


def test_samples_are_spread_evenly_and_never_come_twice() -> None:
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread(range(3), 8) == [0, 1, 2] == spread(range(3), None)


def test_the_classes_of_videos_are_found_in_clips(tmp_path: Path) -> None:
    videos = make_motion_folder(tmp_path / "videos", val=3)
    bundle = make_video_bundle(tmp_path / "bundle")
    data = read_task_data(videos, load_bundle(bundle).manifest)
    (top1,) = data.metrics(data.predictions(opened(bundle)))
    assert data.kind == "videos" and top1.samples == 6 and top1.name == "top-1"
    loose = read_task_data(videos / "val", load_bundle(bundle).manifest)
    assert not loose.labelled and len(loose.files) == 6


def areas(tmp_path: Path) -> tuple[SegmentedData, Path]:
    """Photos, and a segmenter that is right on some of their pixels, after their labels were shifted."""
    root = make_segmentation_folder(tmp_path / "photos")
    for path in (root / "labels" / "val").iterdir():
        levels = np.asarray(Image.open(path))
        Image.fromarray(np.where(levels == 255, levels, (levels + 1) % 3).astype(np.uint8)).save(path)
    bundle = make_segmentation_bundle(tmp_path / "bundle", classes=("left", "right", "square"))
    data = read_task_data(root, load_bundle(bundle).manifest)
    assert isinstance(data, SegmentedData)
    return data, bundle


def test_miou_is_that_of_all_pixels_together(tmp_path: Path) -> None:
    data, bundle = areas(tmp_path)
    predictor = opened(bundle)
    assert data.folder is not None
    confusion = np.zeros((3, 3), np.int64)
    for index in range(4):
        photo, labels = data.folder.read(index)
        confusion += confusion_of(labels, predictor.predict(photo).labels, 3)
    (miou,) = data.metrics(data.predictions(predictor))
    assert miou == TaskMetric(name="mIoU", value=100 * scores_of(confusion).mean_iou, samples=4)
    assert 0 < miou.value < 100


def test_what_a_reader_leaves_out_and_classes_without_pixels_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, bundle = areas(tmp_path)
    assert data.folder is not None
    for path in data.folder.label_maps:
        Image.fromarray(np.minimum(np.asarray(Image.open(path)), 1)).save(path)
    (data.folder.photos[0].parent / "notes.txt").write_text("")
    again = read_task_data(tmp_path / "photos", load_bundle(bundle).manifest)
    again.metrics(again.predictions(opened(bundle)))
    assert [record.getMessage().removeprefix(f"{tmp_path}/photos: ") for record in caplog.records] == [
        "files that end in .txt: 1, the first images/val/notes.txt",
        "1 of 3 classes have no pixel in 4 label maps, the first square",
    ]


def test_pixels_that_change_their_label_are_counted(tmp_path: Path) -> None:
    data, bundle = areas(tmp_path)
    runner = onnx_runner(bundle / "model.onnx", ("logits",))

    def swapped(images: FloatArray) -> Outputs:
        return {"logits": runner(images)["logits"][:, [1, 0, 2]]}

    manifest = load_bundle(bundle).manifest
    before = data.predictions(predictor_on(runner, manifest, "as it is"))
    after = data.predictions(predictor_on(swapped, manifest, "swapped"))
    found = data.agreement(before, after)
    assert not any(one is None for one in before)
    labels = np.concatenate([labels_of(one) for one in before if one is not None])
    assert found == Agreement(counted="pixels", decided=4 * 80 * 96, agreeing=int((labels == 2).sum()), by_chance=0.001)


def test_a_label_map_that_does_not_fit_is_an_error_and_no_bad_photo(tmp_path: Path) -> None:
    data, bundle = areas(tmp_path)
    assert data.folder is not None
    Image.new("L", (3, 3)).save(data.folder.label_maps[0])
    with pytest.raises(ConvMAEError, match="must have the size of its photo"):
        data.predictions(opened(bundle))


def test_classes_of_areas_must_be_the_models_own(tmp_path: Path) -> None:
    root = make_segmentation_folder(tmp_path / "photos")
    manifest = load_bundle(make_segmentation_bundle(tmp_path / "bundle")).manifest
    with pytest.raises(ConvMAEError, match="must have the model's 4 classes in the same order; it has 3"):
        read_task_data(root, manifest)


def objects(tmp_path: Path) -> tuple[DetectedData, Path]:
    """Photos whose annotations are what the tiny detector finds in bright ones: of two classes."""
    root = make_coco_folder(tmp_path / "photos", photos=2)
    for path in (root / "images" / "val").iterdir():
        Image.new("RGB", (64, 48), (220, 220, 220)).save(path)
    bundle = make_detection_bundle(tmp_path / "bundle", classes=("red thing", "blue thing", "bird"))
    data = read_task_data(root, load_bundle(bundle).manifest)
    assert isinstance(data, DetectedData)
    return data, bundle


def test_objects_where_the_detector_finds_them_score_full_marks(tmp_path: Path) -> None:
    data, bundle = objects(tmp_path)
    predictions = data.predictions(opened(bundle))
    assert predictions[0] is not None
    truth = [dict(result, iscrowd=0) for one in predictions for result in one or []]

    def annotate(content: dict[str, Any]) -> None:
        keep = ("image_id", "category_id", "bbox", "iscrowd")
        content["annotations"] = [
            {key: result[key] for key in keep} | {"id": number, "segmentation": rectangle(result["bbox"])}
            for number, result in enumerate(truth, 1)
        ]

    edit_annotations(tmp_path / "photos", "val", annotate)
    boxes, masks = read_task_data(tmp_path / "photos", load_bundle(bundle).manifest).metrics(predictions)
    assert (boxes.name, boxes.samples) == ("box AP", 2) and boxes.value == pytest.approx(100)
    # of one of the two classes the detector's mask is the left half of its box
    assert masks.name == "mask AP" and 40 < masks.value < 80


def test_detections_of_classes_that_the_data_do_not_have_are_left_out(tmp_path: Path) -> None:
    data, bundle = objects(tmp_path)
    (found, _) = data.predictions(opened(bundle))
    assert found is not None and {result["category_id"] for result in found} == {3, 7}
    loose = read_task_data(tmp_path / "photos" / "images" / "val", load_bundle(bundle).manifest)
    everything, _ = loose.predictions(opened(bundle))
    assert everything is not None
    assert {result["category_id"] for result in everything} == {0, 1, 2}


def test_a_sure_detection_needs_a_partner_of_its_class_in_its_place(tmp_path: Path) -> None:
    data, _ = objects(tmp_path)

    def found(score: float, *, left: float = 10.0, category: int = 3) -> list[dict[str, Any]]:
        return [{"image_id": 10, "category_id": category, "bbox": [left, 10.0, 40.0, 20.0], "score": score}]

    def share(after: list[dict[str, Any]]) -> tuple[int, int]:
        agreement = data.agreement([found(0.9), None], [after, None])
        return agreement.decided, agreement.agreeing

    assert share(found(0.9, left=11)) == (2, 2)
    assert share(found(0.45)) == (1, 1)
    assert share(found(0.3)) == (1, 0)
    assert share(found(0.9, category=7)) == (2, 0)
    assert share(found(0.9, left=20)) == (2, 0)
    assert share([]) == (1, 0)
    assert data.agreement([[], None], [[], None]).share == 1


@pytest.mark.parametrize(
    ("arrange", "sentence"),
    [
        (lambda root: root / "missing", "--data must be a folder; found nothing"),
        (
            lambda root: make_photo_folder(root / "photos", classes=("red", "zebra"), per_class=1),
            "for instance 'zebra'",
        ),
    ],
)
def test_data_that_are_not_for_the_model_are_refused(tmp_path: Path, arrange: Any, sentence: str) -> None:
    manifest = load_bundle(make_bundle(tmp_path / "bundle", classes=COLOURS)).manifest
    with pytest.raises(ConvMAEError, match=sentence):
        read_task_data(arrange(tmp_path), manifest)


def test_unknown_categories_and_an_empty_limit_are_refused(tmp_path: Path) -> None:
    root = make_coco_folder(tmp_path / "photos")
    manifest = load_bundle(make_detection_bundle(tmp_path / "bundle")).manifest
    with pytest.raises(ConvMAEError, match="for instance 'blue thing'"):
        read_task_data(root, manifest)
    with pytest.raises(ConvMAEError, match="must be at least 1; got 0"):
        read_task_data(root, manifest, limit=0)
