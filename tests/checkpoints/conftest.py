"""What tests of checkpoints share."""

from pathlib import Path

import pytest
import torch

from convmae_deploy.bundle.preprocessing import Preprocessing
from convmae_deploy.checkpoints import (
    CheckpointRecord,
    save_checkpoint,
)
from convmae_deploy.models import ConvMAEConfig
from convmae_deploy.models.classifier import build_classifier

CONFIG = ConvMAEConfig(embed_dims=(8, 16, 32), depths=(1, 1, 2), mlp_ratios=(2, 2, 2), num_heads=4, image_size=(64, 96))
RECORD = CheckpointRecord(
    kind="classification",
    variant="custom",
    model=CONFIG,
    classes=("gâteau", "a, b", "c"),
    global_pool="token",
    preprocessing=Preprocessing(resize=(73, 109), crop=(64, 96)),
    provenance={"seed": "0"},
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = build_classifier(CONFIG, num_classes=3, global_pool="token")
    save_checkpoint(tmp_path / "checkpoint", model.state_dict(), RECORD)
    return tmp_path / "checkpoint"
