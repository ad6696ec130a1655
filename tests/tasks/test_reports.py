"""`convmae predict` for detectors and segmenters: what it prints and what it writes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from convmae_deploy.tasks.base import file_id
from convmae_deploy.tasks.detection import Detector
from convmae_deploy.tasks.segmentation import Segmenter
from tests.bundle_factory import make_detection_bundle, make_segmentation_bundle, open_as
from tests.media.photo_files import photo
from tests.test_cli import convmae


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """A bright photo, a dark one in which nothing is found, one that lies on its side, and none at all."""
    names = ("000000000042.png", "dark.png", "turned.jpg", "bad.png")
    bright, turned = Image.new("RGB", (192, 64), (210, 200, 190)), Image.Exif()
    turned[0x0112] = 6  # to be turned by a quarter
    bright.save(tmp_path / names[0])
    Image.new("RGB", (50, 50)).save(tmp_path / names[1])
    bright.save(tmp_path / names[2], exif=turned)
    (tmp_path / names[3]).write_text("hello", encoding="utf-8")
    return [tmp_path / name for name in names]


def opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.copy()


def test_a_detector_draws_its_objects_and_writes_them_in_cocos_format(
    tmp_path: Path, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, out = make_detection_bundle(tmp_path / "bundle"), tmp_path / "out"
    assert convmae("predict", bundle, *files, "--out", out, "--threshold", "0.3", "--json", "--device", "cpu") == 1
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert [len(line.get("detections", "bad")) for line in lines] == [2, 0, 1, 3] and "error" in lines[3]
    assert {path.name for path in out.iterdir()} == {
        *("000000000042.objects.jpg", "dark.objects.jpg", "turned.objects.jpg", "results.json")
    }
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert [entry["image_id"] for entry in results] == [42, 42, "turned"]
    assert [entry["category_id"] for entry in results[:2]] == [18, 17], "dog and cat, as the manifest numbers them"
    found = open_as(Detector, bundle, device="cpu")([opened(files[0])], threshold=0.3)[0]
    for item, entry, line in zip(found, results[:2], lines[0]["detections"], strict=True):
        left, top, right, bottom = item.box
        assert entry["bbox"] == pytest.approx([left, top, right - left, bottom - top])
        assert np.array_equal(coco_mask.decode(entry["segmentation"]), item.mask.pixels())
        assert line == {
            "label": item.label,
            "score": pytest.approx(item.score),
            "box": {"xmin": left, "ymin": top, "xmax": right, "ymax": bottom},
        }
    assert results[2]["segmentation"]["size"] == [192, 64], "upright"
    assert opened(out / "turned.objects.jpg").size == (160, 480)
    assert "3 objects in 3 photos" in captured.err


def test_results_of_photos_with_coco_s_names_are_read_by_pycocotools(tmp_path: Path, files: list[Path]) -> None:
    assert convmae("predict", make_detection_bundle(tmp_path / "bundle"), files[0], "--out", tmp_path / "out") == 0
    truth: dict[str, Any] = {
        "images": [{"id": 42, "height": 64, "width": 192, "file_name": files[0].name}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "bird"}],
        "annotations": [],
    }
    coco = COCO()
    coco.dataset = truth
    coco.createIndex()
    results = coco.loadRes(str(tmp_path / "out" / "results.json"))
    masks = [results.annToMask(annotation) for annotation in results.dataset["annotations"]]
    assert [mask.shape for mask in masks] == [(64, 192)] * 2 and all(mask.any() for mask in masks)


def test_a_segmenter_writes_its_labels_and_a_picture_with_a_legend(
    tmp_path: Path, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, out = make_segmentation_bundle(tmp_path / "bundle"), tmp_path / "out"
    image = photo(seed=3)
    image.save(files[1])
    assert convmae("predict", bundle, files[1], files[2], "--out", out, "--json", "--device", "cpu") == 0
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    labels = np.asarray(opened(out / "dark.labels.png"))
    expected = open_as(Segmenter, bundle, device="cpu")([image])[0]
    assert np.array_equal(labels, expected.labels)
    shares = {segment["label"]: segment["share"] for segment in lines[0]["segments"]}
    classes = ("sky", "road", "tree", "car")
    assert shares == {classes[index]: pytest.approx((labels == index).mean()) for index in np.unique(labels)}
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert all(0 < segment["score"] <= 1 for line in lines for segment in line["segments"])
    assert opened(out / "turned.labels.png").size == (64, 192)
    assert opened(out / "turned.overlay.jpg").height > 480, "with the legend"
    assert "labels and pictures of 2 photos" in captured.err


def test_without_a_folder_a_table_is_all_there_is(
    tmp_path: Path, files: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    before = set(tmp_path.rglob("*"))
    detector, segmenter = make_detection_bundle(tmp_path / "detector"), make_segmentation_bundle(tmp_path / "segmenter")
    made = {path for bundle in (detector, segmenter) for path in (bundle, *bundle.iterdir())}
    assert convmae("predict", detector, *files[:2]) == 0
    output = capsys.readouterr().out
    assert "19, 13, 96, 64" in output and "dog" in output and "nothing found" in output
    assert convmae("predict", segmenter, files[0]) == 0
    assert "1.0000" in capsys.readouterr().out
    assert set(tmp_path.rglob("*")) == before | made


def test_a_photo_s_id_is_its_number_or_its_name() -> None:
    names = {"000000397133.jpg": 397133, "a/12.png": 12, "IMG_12.jpg": "IMG_12", "x.y.jpg": "x.y", "²3.jpg": "²3"}
    assert {name: file_id(Path(name)) for name in names} == names
