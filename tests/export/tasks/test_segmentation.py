"""What differs from one kind of model to another."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from convmae_deploy.bundle.preprocessing import SlidingWindow
from convmae_deploy.checkpoints.native import CheckpointRecord, save_checkpoint
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convmae import ConvMAEConfig, DenseConfig
from convmae_deploy.models.segmenter import SegmenterConfig, authors_dense, build_segmenter
from convmae_deploy.tasks import open_predictor
from convmae_deploy.tasks.segmentation import Segmenter
from convmae_deploy.tasks.sliding_window import segment_photo
from export.__main__ import ExportConfig, export_bundle
from export.tasks import open_task

WINDOW = (64, 96)
CLASSES = ("sky", "road", "tree")


@pytest.fixture(scope="module", params=[DenseConfig(), authors_dense()], ids=["plain", "relative positions"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmenter with random weights that tells its classes apart."""
    config = ConvMAEConfig(
        embed_dims=(8, 16, 32),
        depths=(1, 1, 1),
        mlp_ratios=(2, 2, 2),
        num_heads=2,
        image_size=WINDOW,
        dense=request.param,
    )
    torch.manual_seed(0)
    segmenter = SegmenterConfig(channels=16)
    model = build_segmenter(config, segmenter, num_classes=len(CLASSES))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    record = CheckpointRecord(
        kind="segmentation",
        variant="custom",
        model=config,
        segmenter=segmenter,
        classes=CLASSES,
        preprocessing=SlidingWindow(window=WINDOW, stride=(40, 60)),
    )
    path = tmp_path_factory.mktemp("run") / "best"
    save_checkpoint(path, model.state_dict(), record)
    return path


@pytest.mark.slow
def test_a_segmenter_s_bundle_segments_photos_as_pytorch_does(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    written = export_bundle(ExportConfig(checkpoint=checkpoint, out=out, max_batch=2), Console(quiet=True), ["test"])
    row = written["model.onnx"].verification.report.outputs["logits"]
    assert row.passed and row.top1_agreement == 1.0
    predictor = open_predictor(out, device="cpu")
    assert isinstance(predictor, Segmenter)
    pixels = np.random.default_rng(0).integers(0, 256, (11, 13, 3), np.uint8)
    photo = Image.fromarray(pixels).resize((131, 117), Image.Resampling.BICUBIC)
    task = open_task(checkpoint, None)
    assert isinstance(task.preprocessing, SlidingWindow)
    expected = segment_photo(photo, task.preprocessing, lambda windows: task.reference(windows)["logits"])
    found = predictor([photo])[0]
    assert (found.labels == expected.labels).mean() > 0.999
    assert len(np.unique(found.labels)) > 1


def test_another_task_or_preprocessing_is_one_sentence(
    checkpoint: Path, tmp_path: Path, edited: Callable[[Path, Path, dict[str, object]], Path]
) -> None:
    with pytest.raises(
        ConvMAEError, match="holds: segmenter, which can be exported for segmentation or features, not for"
    ):
        open_task(checkpoint, None, "detection")
    wrong = edited(checkpoint, tmp_path / "wrong", {"preprocessing": {"size": list(WINDOW)}})
    with pytest.raises(ConvMAEError, match="must be SlidingWindow"):
        open_task(wrong, None)


@pytest.fixture
def edited() -> Callable[[Path, Path, dict[str, object]], Path]:
    """Copies a checkpoint and changes fields of its config."""

    def edit(source: Path, target: Path, fields: dict[str, object]) -> Path:
        shutil.copytree(source, target)
        path = target / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")
        return target

    return edit
