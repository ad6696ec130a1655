"""Bundles of models with random weights, and the checkpoints that PyTorch is measured with beside them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import random_bundle
from benchmarks.random_bundle import RANDOM_MODELS, random_model, random_task, write_random_bundle
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convmae import MODELS, nano
from convmae_deploy.models.detector import DETECTORS, nano_fpn
from convmae_deploy.models.segmenter import authors_dense
from convmae_deploy.tasks import load_bundle
from convmae_deploy.tasks.classification import Classifier
from convmae_deploy.tasks.detection import Detector
from export.tasks import EXPORTS, open_task
from tests.bundle_factory import open_as
from tests.export.tiny_detectors import little_suppression


@pytest.fixture
def small_nano(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest variants are smaller still: what is tested is the same for every model."""
    changes: dict[str, Any] = {"depths": (1, 1, 1), "image_size": (64, 64)}
    encoder, detector = nano_fpn()
    monkeypatch.setitem(MODELS, "nano", lambda: replace(nano(), **changes))
    monkeypatch.setitem(DETECTORS, "nano_fpn", lambda: (replace(encoder, **changes), detector))
    monkeypatch.setattr(random_bundle, "WINDOW", (64, 64))


def test_every_task_that_can_be_exported_has_a_random_model() -> None:
    assert set(RANDOM_MODELS) == set(EXPORTS)


def test_an_unknown_variant_is_refused() -> None:
    for task in RANDOM_MODELS:
        with pytest.raises(ConvMAEError, match="--variant must be one of nano.*got 'giant'"):
            random_task(task, "giant")


@pytest.mark.slow
@pytest.mark.usefixtures("small_nano")
def test_a_random_bundle_runs_and_says_that_nobody_verified_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = random_task("classification", "nano")
    write_random_bundle(tmp_path / "bundle", task, 2)
    manifest = load_bundle(tmp_path / "bundle").manifest
    assert manifest.files["model.onnx"].numerics is None
    assert "never verified" in caplog.text
    predictor = open_as(Classifier, tmp_path / "bundle", device="cpu")
    images = np.zeros((1, *manifest.input.shape), dtype=np.float32)
    with torch.inference_mode():
        expected = task.model(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(predictor.run(images, ["logits"])["logits"], expected, atol=1e-5)


@pytest.mark.slow
def test_a_random_segmenter_is_the_authors_at_512_pixels() -> None:
    _, record = random_model("segmentation", "nano")
    assert record.model is not None and record.model.image_size == (512, 512)
    assert record.model.dense == authors_dense() and len(record.classes) == 150


def test_int8_without_photos_is_refused_before_anything_is_exported(tmp_path: Path) -> None:
    with pytest.raises(ConvMAEError, match="int8-fp16 and --calibrate FOLDER.*need each other"):
        random_bundle.main(["--variant", "nano", "--precision", "int8", "--out", str(tmp_path / "bundle")])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("small_nano")
def test_a_random_detector_gives_as_many_objects_as_its_graph_holds_and_so_does_its_checkpoint(tmp_path: Path) -> None:
    out, checkpoint = tmp_path / "bundle", tmp_path / "checkpoint"
    arguments = ["--task", "detection", "--variant", "nano", "--max-batch", "1", "--out", str(out)]
    with little_suppression():
        random_bundle.main([*arguments, "--checkpoint", str(checkpoint)])
        predictor = open_as(Detector, out, device="cpu")
        image = np.random.default_rng(0).standard_normal((1, *predictor.manifest.input.shape), dtype=np.float32)
        assert predictor.run(image, ["num"])["num"] == open_task(checkpoint, None).reference(image)["num"] == [100]


def test_random_weights_are_the_same_every_time_and_leave_the_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = random_task("classification", "nano").model, random_task("classification", "nano").model
    assert torch.equal(torch.rand(1), expected)
    assert all(map(torch.equal, first.parameters(), second.parameters()))


@pytest.mark.slow
@pytest.mark.usefixtures("small_nano")
def test_a_random_video_model_takes_clips_and_is_verified_when_asked(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    random_bundle.main(
        ["--task", "video-classification", "--variant", "nano", "--max-batch", "1", "--verify", "--out", str(out)]
    )
    manifest = load_bundle(out).manifest
    numerics = manifest.files["model.onnx"].numerics
    assert numerics is not None and numerics.passed and "random batch 1" in numerics.inputs
    assert (manifest.task, manifest.input.shape, len(manifest.classes)) == (
        "video-classification",
        (3, 16, 64, 64),
        400,
    )
