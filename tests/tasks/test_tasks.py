"""What a manifest must say for its task."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from convmae_deploy.bundle.loading import BundleError
from convmae_deploy.bundle.manifest import Manifest, OutputSpec
from convmae_deploy.bundle.preprocessing import ClipPreprocessing, Letterbox, SlidingWindow, standard_clips
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks import TASKS, check_manifest, load_bundle, open_predictor
from convmae_deploy.tasks.detection import DETECTOR_OUTPUTS
from tests.bundle_factory import make_bundle, video_fields, write_manifest


def checked(fields: dict[str, Any]) -> Manifest:
    """The manifest, which fits its task."""
    manifest = Manifest.model_validate(fields)
    check_manifest(manifest)
    return manifest


def classifier_fields(tmp_path: Path) -> dict[str, Any]:
    text = (make_bundle(tmp_path) / "manifest.json").read_text(encoding="utf-8")
    return Manifest.model_validate_json(text).model_dump()


def detector_fields(tmp_path: Path) -> dict[str, Any]:
    size = (64, 96)
    changed = {"task": "detection", "preprocessing": Letterbox(size=size), "outputs": dict(DETECTOR_OUTPUTS)}
    fields = classifier_fields(tmp_path) | changed
    return fields | {"input": fields["input"] | {"shape": (3, *size)}}


@pytest.mark.parametrize("missing", ["logits", "pooled", "e1", "e4"])
def test_a_classifier_without_one_of_its_outputs_is_refused(tmp_path: Path, missing: str) -> None:
    fields = classifier_fields(tmp_path)
    del fields["outputs"][missing]
    with pytest.raises(BundleError, match=f"must include {missing}"):
        checked(fields)


def test_a_detector_has_its_six_outputs_and_a_letterbox(tmp_path: Path) -> None:
    fields = detector_fields(tmp_path)
    manifest = checked(fields)
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
    floats = fields["outputs"] | {"labels": OutputSpec(shape=(100,))}
    with pytest.raises(BundleError, match=r"labels must be int64 \(100,\), found float32"):
        checked(fields | {"outputs": floats})
    with pytest.raises(BundleError, match="needs Letterbox"):
        checked(fields | {"preprocessing": SlidingWindow(window=(64, 96), stride=(32, 32))})


def test_a_segmenter_s_logits_have_a_quarter_of_the_window_s_sides(tmp_path: Path) -> None:
    fields = detector_fields(tmp_path)
    fields |= {"task": "segmentation", "preprocessing": SlidingWindow(window=(64, 96), stride=(32, 32))}
    logits = OutputSpec(shape=(len(fields["classes"]), 16, 24), stride=4)
    assert checked(fields | {"outputs": {"logits": logits}}).task == "segmentation"
    with pytest.raises(BundleError, match="logits must be float32"):
        checked(fields | {"outputs": {"logits": OutputSpec(shape=(3, 64, 96))}})


def test_a_video_model_has_clips_of_the_frames_that_its_preprocessing_says(tmp_path: Path) -> None:
    fields = classifier_fields(tmp_path) | video_fields(3, (64, 64), 16)
    manifest = checked(fields)
    assert manifest.preprocessing == ClipPreprocessing(resize=(64, 64), crop=(64, 64), frames=16, stride=1)
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
    with pytest.raises(ValidationError, match=r"must be \(3, 8, 64, 64\)"):
        checked(fields | {"preprocessing": standard_clips((64, 64), frames=8)})
    with pytest.raises(BundleError, match="needs ClipPreprocessing"):
        photos = {"shape": (3, 64, 64)}
        checked(fields | {"preprocessing": {"resize": [64, 64], "crop": [64, 64]}, "input": fields["input"] | photos})


@pytest.mark.parametrize("missing", ["logits", "pooled", "pooled_frames", "e1", "e4"])
def test_a_video_model_without_one_of_its_outputs_is_refused(tmp_path: Path, missing: str) -> None:
    fields = classifier_fields(tmp_path) | video_fields(3, (64, 64), 16)
    del fields["outputs"][missing]
    with pytest.raises(BundleError, match=f"must include {missing};"):
        checked(fields)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("logits", {"shape": [4]}, r"logits must be float32 \(3,\)"),
        ("pooled_frames", {"shape": [7, 8]}, r"slots and cells \(8,\), found the shape \(7, 8\)"),
        ("pooled_frames", {"time_stride": None}, "pooled_frames must have a time_stride"),
        ("e2", {"shape": [6, 8, 8, 7]}, r"slots and cells \(8, 8, 8\)"),
        ("e3", {"shape": [8, 16, 4, 4]}, r"slots and cells \(8, 4, 4\)"),
        ("e3", {"shape": [8, 4, 4]}, r"slots and cells \(8, 4, 4\)"),
    ],
)
def test_slots_and_cells_of_a_video_model_follow_from_its_strides(
    tmp_path: Path, name: str, wrong: dict[str, Any], message: str
) -> None:
    fields = classifier_fields(tmp_path) | video_fields(3, (64, 64), 16)
    fields["outputs"][name] |= wrong
    with pytest.raises(BundleError, match=message):
        checked(fields)


def test_a_bundle_of_a_task_from_the_future_is_refused_in_one_sentence(tmp_path: Path) -> None:
    fields = classifier_fields(tmp_path) | {"task": "pose-estimation"}
    write_manifest(tmp_path, Manifest.model_validate(fields).model_dump(mode="json"))
    with pytest.raises(BundleError, match=r"is for the task 'pose-estimation', this release knows classification, .*"):
        load_bundle(tmp_path)


def test_tasks_are_called_what_their_table_says() -> None:
    assert all(task.TASK == name for name, task in TASKS.items()) and len(TASKS) == 6


def test_a_bundle_without_a_head_gives_features_and_no_classes(tmp_path: Path) -> None:
    fields = classifier_fields(tmp_path) | {"task": "features", "classes": ()}
    del fields["outputs"]["logits"]
    write_manifest(tmp_path, checked(fields).model_dump(mode="json"))
    model, photo = open_predictor(tmp_path, device="cpu"), Image.new("RGB", (80, 60), (10, 200, 30))
    found = model(photo)
    assert list(found) == ["pooled", "e1", "e2", "e3", "e4"]
    assert all(values.shape == fields["outputs"][level]["shape"] for level, values in found.items())
    assert [one["pooled"].tolist() for one in model([photo, photo])] == [found["pooled"].tolist()] * 2
    with pytest.raises(ConvMAEError, match="top_k says nothing to a features model, which takes levels"):
        model(photo, top_k=3)
