"""Features without a head: from which checkpoints, which numbers, and what they are held to."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from convmae_deploy.bundle.preprocessing import Letterbox, Preprocessing
from convmae_deploy.checkpoints.native import CheckpointKind, CheckpointRecord, save_checkpoint
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.classifier import build_classifier, build_video_classifier
from convmae_deploy.models.convmae import ConvMAEConfig, build_convmae
from convmae_deploy.models.detector import DetectorConfig, build_detector
from convmae_deploy.models.pretraining import PretrainingConfig, build_pretraining
from convmae_deploy.models.video import VideoConfig
from convmae_deploy.models.video_pretraining import VideoPretrainingConfig, build_video_pretraining
from convmae_deploy.tasks import load_bundle, open_predictor
from export.__main__ import ExportConfig, export_bundle
from export.tasks import EXPORTS, open_task
from export.tasks.features import FeatureData, nearest_of
from export.verification.task_data import TaskMetric

SIZE = (64, 64)
ENCODER = ConvMAEConfig(embed_dims=(16, 24, 32), depths=(1, 1, 2), mlp_ratios=(2, 2, 2), num_heads=2, image_size=SIZE)
CLASSES = ("cat", "dog", "bird")


def save(folder: Path, kind: CheckpointKind, model: torch.nn.Module, **fields: object) -> Path:
    record = CheckpointRecord.model_validate({"kind": kind, "variant": "custom", "model": ENCODER, **fields})
    save_checkpoint(folder, model.state_dict(), record)
    return folder


@pytest.fixture
def images() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, *SIZE)).astype(np.float32))


@pytest.mark.parametrize("kind", ["features", "pretraining", "classification", "detection"])
def test_every_checkpoint_with_an_encoder_gives_its_four_maps(
    tmp_path: Path, images: torch.Tensor, kind: CheckpointKind
) -> None:
    torch.manual_seed(0)
    small = PretrainingConfig(decoder_width=32, decoder_depth=1, decoder_heads=2)
    heads = DetectorConfig(channels=8, fc_width=16)
    encoder: torch.nn.Module
    if kind == "features":
        encoder = build_convmae(ENCODER)
        path = save(tmp_path / kind, kind, encoder)
    elif kind == "pretraining":
        model = build_pretraining(ENCODER, small)
        path = save(tmp_path / kind, kind, model, pretraining=small)
        encoder = model.encoder
    elif kind == "classification":
        classifier = build_classifier(ENCODER, num_classes=3)
        path = save(tmp_path / kind, kind, classifier, classes=CLASSES)
        encoder = classifier.encoder
    else:
        detector = build_detector(ENCODER, heads, num_classes=3)
        path = save(
            tmp_path / kind, kind, detector, detector=heads, classes=CLASSES, preprocessing=Letterbox(size=SIZE)
        )
        encoder = detector.encoder
    task = open_task(path, None, "features")
    found = task.reference(images.numpy())
    with torch.inference_mode():
        expected = encoder.eval()(images)
    assert task.record.classes == () and isinstance(task.preprocessing, Preprocessing)
    for level, values in zip(("e1", "e2", "e3", "e4"), expected, strict=True):
        np.testing.assert_allclose(found[level], values.numpy(), rtol=0, atol=1e-5)
    if kind != "classification":
        mean = expected[2].mean(dim=(2, 3))
        normalised = torch.nn.functional.layer_norm(mean, mean.shape[-1:], eps=1e-6)
        np.testing.assert_allclose(found["pooled"], normalised.numpy(), rtol=0, atol=1e-5)


def test_a_classifier_s_pooled_vector_is_what_its_head_was_fed(tmp_path: Path, images: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = build_classifier(ENCODER, num_classes=3)
    torch.nn.init.normal_(model.fc_norm.weight)
    path = save(tmp_path / "classifier", "classification", model, classes=CLASSES)
    found = open_task(path, None, "features").reference(images.numpy())["pooled"]
    with torch.inference_mode():
        logits = model.eval()(images)
        np.testing.assert_allclose(model.head(torch.from_numpy(found)).numpy(), logits.numpy(), atol=1e-5)


@pytest.mark.slow
def test_an_encoder_is_exported_verified_and_extracted_with(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = save(tmp_path / "encoder", "features", build_convmae(ENCODER))
    config = ExportConfig(checkpoint=encoder, out=tmp_path / "bundle", max_batch=2)
    written = export_bundle(config, Console(quiet=True), ["export"])
    assert not written["model.onnx"].verification.failures
    manifest = load_bundle(tmp_path / "bundle").manifest
    assert (manifest.task, manifest.classes, list(manifest.outputs)) == (
        "features",
        (),
        ["pooled", "e1", "e2", "e3", "e4"],
    )
    model = open_predictor(tmp_path / "bundle", device="cpu")
    photo = np.random.default_rng(1).integers(0, 256, (90, 70, 3), np.uint8)
    assert {level: values.shape for level, values in model(Image.fromarray(photo)).items()} == {
        "pooled": (32,),
        "e1": (16, 16, 16),
        "e2": (24, 8, 8),
        "e3": (32, 4, 4),
        "e4": (32, 2, 2),
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["video-pretraining", "video-classification"])
def test_encoders_of_videos_give_features_of_clips(tmp_path: Path, kind: CheckpointKind) -> None:
    torch.manual_seed(0)
    video = VideoConfig(frames=4)
    if kind == "video-pretraining":
        decoder = VideoPretrainingConfig(decoder_width=32, decoder_depth=1, decoder_heads=2)
        model = build_video_pretraining(ENCODER, video, decoder)
        path = save(tmp_path / kind, kind, model, video=video, video_pretraining=decoder)
    else:
        path = save(
            tmp_path / kind, kind, build_video_classifier(ENCODER, video, num_classes=3), video=video, classes=CLASSES
        )
    task = open_task(path, None, "video-features")
    found = task.reference(np.zeros((1, 3, 4, *SIZE), np.float32))
    assert {name: values.shape[1:] for name, values in found.items()} == {
        "pooled": (32,),
        "pooled_frames": (2, 32),
        "e1": (16, 2, 16, 16),
        "e2": (24, 2, 8, 8),
        "e3": (32, 2, 4, 4),
        "e4": (32, 2, 2, 2),
    }


def test_the_first_task_of_a_checkpoint_is_what_it_was_trained_for(tmp_path: Path) -> None:
    first = {
        kind: next(name for name, one in EXPORTS.items() if kind in one.kinds)
        for kind in (
            "features",
            "pretraining",
            "classification",
            "detection",
            "segmentation",
            "video-pretraining",
            "video-classification",
        )
    }
    assert first == {
        "features": "features",
        "pretraining": "features",
        "classification": "classification",
        "detection": "detection",
        "segmentation": "segmentation",
        "video-pretraining": "video-features",
        "video-classification": "video-classification",
    }
    path = save(tmp_path / "encoder", "features", build_convmae(ENCODER))
    with pytest.raises(ConvMAEError, match="holds: encoder, which can be exported for features, not for detection"):
        open_task(path, None, "detection")


def test_the_nearest_neighbour_is_that_of_a_literal_search() -> None:
    vectors = np.random.default_rng(2).normal(size=(20, 5)).astype(np.float32)
    nearest, margin = nearest_of(vectors)
    for index in range(20):
        lengths = np.linalg.norm(vectors, axis=1)
        cosines = [
            -2.0 if other == index else float(vectors[index] @ vectors[other] / lengths[index] / lengths[other])
            for other in range(20)
        ]
        first, second = sorted(cosines)[-1:-3:-1]
        assert nearest[index] == cosines.index(first) and margin[index] == pytest.approx(first - second, abs=1e-5)


def test_labels_are_told_by_neighbours_and_two_models_by_whose_neighbours_differ() -> None:
    files, labels = [Path(str(index)) for index in range(5)], (0, 0, 1, 1, 1)
    data = FeatureData(files, labels, "photos")
    vectors = [np.array(values, np.float32) for values in ((1, 0), (1, 0.1), (0, 1), (0.1, 1), (1, 0.3))]
    assert data.metrics(vectors) == (TaskMetric(name="nearest neighbour", value=80.0, samples=5),)
    assert data.agreement(vectors, vectors).share == 1.0
    moved = [*vectors[:4], np.array((0.05, 1), np.float32)]
    agreement = data.agreement(vectors, moved)
    assert 0 < agreement.share < 1
