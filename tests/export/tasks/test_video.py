"""A video classifier from its checkpoint to a bundle that classifies videos as PyTorch does."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from rich.console import Console

from convmae_deploy.bundle.manifest import InputSpec
from convmae_deploy.bundle.preprocessing import Preprocessing, standard_clips
from convmae_deploy.checkpoints.native import CheckpointRecord, save_checkpoint
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.media.video_formats import find_videos
from convmae_deploy.models.classifier import ConvMAEClassifier, build_video_classifier
from convmae_deploy.models.convmae import ConvMAEConfig
from convmae_deploy.models.video import VideoConfig
from convmae_deploy.tasks import open_predictor
from convmae_deploy.tasks.clips import ClipViews, average_views, read_clips
from convmae_deploy.tasks.video import VIDEO_OUTPUTS, VideoClassifier
from export.__main__ import ExportConfig, export_bundle
from export.graphs.to_onnx import ExportedGraph, export_graph
from export.tasks import open_task
from export.tasks.base import TaskExport
from export.tasks.video import VIDEO_CLASSIFICATION, VIDEO_FEATURES
from export.verification.elementwise import VerificationError
from tests.bundle_factory import open_as, options_of
from tests.export.conftest import copy_of
from tests.video_files import make_video
from tests.video_packs import ASL20, MOTION8, needs_asl20, needs_motion8

CONFIG = ConvMAEConfig(embed_dims=(8, 16, 32), depths=(1, 1, 1), mlp_ratios=(2, 2, 2), num_heads=2, image_size=(32, 64))
VIDEO = VideoConfig(frames=4)
CLASSES = ("left", "right", "up")
MAX_BATCH = 3


@pytest.fixture(scope="module")
def model() -> ConvMAEClassifier:
    """One whose every parameter is random, and whose features of a slot depend on its neighbours."""
    torch.manual_seed(0)
    model = build_video_classifier(CONFIG, VIDEO, num_classes=len(CLASSES), head_init_std=0.5).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


@pytest.fixture(scope="module")
def checkpoint(model: ConvMAEClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    record = CheckpointRecord(
        kind="video-classification",
        variant="custom",
        model=CONFIG,
        video=VIDEO,
        classes=CLASSES,
        preprocessing=standard_clips(CONFIG.image_size, frames=4, stride=None),
    )
    path = tmp_path_factory.mktemp("run") / "best"
    save_checkpoint(path, model.state_dict(), record)
    return path


@pytest.fixture(scope="module")
def graph(checkpoint: Path) -> ExportedGraph:
    task = open_task(checkpoint, None)
    return export_graph(task.wrapper, InputSpec(name="clip", shape=(3, 4, 32, 64), max_batch=MAX_BATCH), task.outputs)


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, graph: ExportedGraph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "motion"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.precisions.export_graph", lambda *_: graph)
        export_bundle(ExportConfig(checkpoint=checkpoint, out=out, max_batch=MAX_BATCH), Console(quiet=True), ["test"])
    return out


def test_the_manifest_says_what_the_graph_takes_and_gives(bundle: Path) -> None:
    manifest = open_predictor(bundle, device="cpu").manifest
    assert (manifest.task, manifest.input.name, manifest.input.shape) == (
        "video-classification",
        "clip",
        (3, 4, 32, 64),
    )
    assert manifest.preprocessing == standard_clips((32, 64), frames=4, stride=None)
    assert {name: (spec.shape, spec.time_stride, spec.stride) for name, spec in manifest.outputs.items()} == {
        "logits": ((3,), None, None),
        "pooled": ((32,), None, None),
        "pooled_frames": ((2, 32), 2, None),
        "e1": ((8, 2, 8, 16), 2, 4),
        "e2": ((16, 2, 4, 8), 2, 8),
        "e3": ((32, 2, 2, 4), 2, 16),
        "e4": ((32, 2, 1, 2), 2, 32),
    }


def test_every_output_was_verified_on_clips_of_every_kind(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    report = manifest["files"]["model.onnx"]["numerics"]
    assert report["passed"] and tuple(report["outputs"]) == VIDEO_OUTPUTS
    kinds = {"random batch", "made clips batch", "zeros batch", "black batch", "constants batch"}
    assert kinds <= {name.rsplit(" ", 1)[0] for name in report["inputs"]}
    assert {name.rsplit(" ", 1)[1] for name in report["inputs"] if name.startswith("made clips")} >= {"1", "2", "3"}


def test_a_video_gets_pytorch_s_classes_and_features(bundle: Path, model: ConvMAEClassifier) -> None:
    predictor = open_predictor(bundle, device="cpu")
    assert isinstance(predictor, VideoClassifier)
    video, views = make_video(frames=12, size=(48, 96)), ClipViews(temporal=2, spatial=3)
    clips = torch.from_numpy(read_clips(video, predictor.sampling, views=views))
    with torch.inference_mode():
        logits, maps = model(clips).numpy(), model.encoder(clips[:1])
        slots = model.fc_norm(maps[2].mean(dim=(3, 4)).transpose(1, 2))
        pooled = model.forward_head(model.encoder(clips)[2], pre_logits=True).numpy()
    expected = average_views(logits)
    found = {prediction.label: prediction.score for prediction in predictor(video, **options_of(views))}
    assert [found[name] for name in CLASSES] == pytest.approx(expected.tolist(), abs=1e-5)
    np.testing.assert_allclose(
        predictor(video, levels=("pooled",), **options_of(views))["pooled"], pooled.mean(axis=0), atol=1e-4
    )
    run = predictor.run(clips[:1].numpy(), ("pooled_frames", "e1", "e4"))
    for name, value in (("pooled_frames", slots), ("e1", maps[0]), ("e4", maps[3])):
        np.testing.assert_allclose(run[name], value.numpy(), atol=1e-4)


@needs_motion8
def test_clips_of_real_videos_take_part_in_the_verification(
    checkpoint: Path, graph: ExportedGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.precisions.export_graph", lambda *_: graph)
    config = ExportConfig(checkpoint=checkpoint, out=tmp_path / "mine", max_batch=2, data=MOTION8)
    report = export_bundle(config, Console(quiet=True), ["test"])["model.onnx"].verification.report
    assert report.passed and {"videos batch 1", "videos batch 2"} <= set(report.inputs)


@needs_asl20
def test_a_real_video_gets_pytorch_s_classes(bundle: Path, model: ConvMAEClassifier) -> None:
    predictor, views = open_as(VideoClassifier, bundle, device="cpu"), ClipViews(temporal=5, spatial=3)
    video = find_videos([ASL20])[0]
    with torch.inference_mode():
        logits = model(torch.from_numpy(read_clips(video, predictor.sampling, views=views))).numpy()
    assert np.ptp(logits, axis=0).max() > 1e-3, "its views differ"
    expected = dict(zip(CLASSES, average_views(logits).tolist(), strict=True))
    found = {prediction.label: prediction.score for prediction in predictor(video, **options_of(views))}
    assert found == pytest.approx(expected, abs=1e-5)


def test_the_graph_has_no_3d_convolution(graph: ExportedGraph) -> None:
    weights = {tensor.name: tensor.dims for tensor in graph.model.graph.initializer}
    kernels = [weights.get(node.input[1]) for node in graph.model.graph.node if node.op_type == "Conv"]
    assert len(kernels) == 2 * 3 and all(kernel is not None and len(kernel) == 4 for kernel in kernels)


def test_a_wrong_slot_fails_the_export_and_its_layer_is_named(
    checkpoint: Path, graph: ExportedGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = copy_of(graph)
    swap_slots(broken.model, "encoder.blocks2.0.attn")
    monkeypatch.setattr("export.precisions.export_graph", lambda *_: broken)
    config = ExportConfig(checkpoint=checkpoint, out=tmp_path / "mine", max_batch=2)
    with pytest.raises(VerificationError, match=r"first diverging layer: encoder\.blocks2\.0\.attn"):
        export_bundle(config, Console(quiet=True), ["test"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.failed"]
    with np.load(tmp_path / "mine.failed" / "inputs.npz") as arrays:
        assert arrays["clip"].shape[1:] == (3, 4, 32, 64)
        assert arrays["expected_pooled_frames"].shape[1:] == (2, 32)


def swap_slots(model: onnx.ModelProto, module: str) -> None:
    """Lets a depthwise convolution mistake the slot before for the slot after."""
    nodes = [
        node
        for node in model.graph.node
        if node.op_type == "Conv" and any(entry.value == module for entry in node.metadata_props)
    ]
    first, _, last = nodes
    first.input[1], last.input[1] = last.input[1], first.input[1]


def test_another_image_size_resizes_clips_and_positions(checkpoint: Path) -> None:
    task = open_task(checkpoint, (64, 64))
    assert task.preprocessing.input_size == (64, 64)
    assert task.reference(np.zeros((1, 3, 4, 64, 64), np.float32))["e3"].shape == (1, 32, 2, 4, 4)


def test_a_checkpoint_with_the_preprocessing_of_photos_is_one_sentence(
    model: ConvMAEClassifier, tmp_path: Path
) -> None:
    record = CheckpointRecord(
        kind="video-classification",
        variant="custom",
        model=CONFIG,
        video=VIDEO,
        classes=CLASSES,
        preprocessing=Preprocessing(resize=(32, 64), crop=(32, 64)),
    )
    save_checkpoint(tmp_path / "wrong", model.state_dict(), record)
    with pytest.raises(ConvMAEError, match="preprocessing of a video-classification model must be ClipPreprocessing"):
        open_task(tmp_path / "wrong", None)


@pytest.mark.parametrize("task", [VIDEO_CLASSIFICATION, VIDEO_FEATURES])
def test_videos_that_a_list_names_and_that_are_not_there_are_said(
    task: TaskExport, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.avi").write_bytes(b"")
    (tmp_path / "val.csv").write_text("a.avi,left\ngone.avi,left\n")
    manifest: Any = SimpleNamespace(classes=("left",))
    task.read_data(tmp_path, manifest, "val", None)
    assert "videos of val.csv that are not there: 1, the first gone.avi" in caplog.text
