"""Importing the authors' detection files, and training on from them."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from convmae_deploy.checkpoints import import_original, load_initial_encoder, save_checkpoint
from convmae_deploy.checkpoints.coco_classes import COCO_CLASSES
from convmae_deploy.checkpoints.loading import load_detector
from convmae_deploy.checkpoints.native import CheckpointRecord
from convmae_deploy.checkpoints.original_detector import background_first, infer_detector
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convmae import ConvMAEConfig, DenseConfig, build_convmae
from convmae_deploy.models.detector import ConvMAEDetector, DetectorConfig, build_detector
from tests.original_files import write_pth

SHARED = DenseConfig(relative_position="shared", window_size=3, global_blocks=(0, 3, 6, 10))
DECOMPOSED = DenseConfig(
    relative_position="decomposed", relative_size=(96, 96), window_size=3, global_blocks=(1,), conv_norm_eps=1e-6
)
ENCODER = ConvMAEConfig(
    embed_dims=(8, 12, 16), depths=(1, 1, 2), mlp_ratios=(2, 2, 2), num_heads=2, image_size=(64, 64)
)
FPN = DetectorConfig(channels=8, fc_width=16)
SIMPLE = DetectorConfig(channels=8, fc_width=16, pyramid="simple", norm="layer")
THEIRS = {  # our names -> theirs, written down apart from the code that maps them the other way
    r"^encoder\.window_position\.table": "backbone.bottom_up.windowed_rel_pos_bias.relative_position_bias_table",
    r"^encoder\.global_position\.table": "backbone.bottom_up.global_rel_pos_bias.relative_position_bias_table",
    r"^encoder\.(.*)attn\.position\.": r"backbone.net.\1attn.",
    r"^pyramid\.p(\d)\.(\d)\.0\.": r"backbone.simfp_\1.\2.",
    r"^pyramid\.p(\d)\.(\d)\.1\.": r"backbone.simfp_\1.\2.norm.",
    r"^pyramid\.p(\d)\.(\d)\.": r"backbone.simfp_\1.\2.",
    r"^rpn\.head\.conv\.(\d)\.0": r"proposal_generator.rpn_head.conv.conv\1",
    r"^rpn\.head\.cls_logits": "proposal_generator.rpn_head.objectness_logits",
    r"^rpn\.head\.bbox_pred": "proposal_generator.rpn_head.anchor_deltas",
    r"^roi_heads\.box_head\.5": "roi_heads.box_head.fc1",
    r"^roi_heads\.mask_predictor\.conv5_mask": "roi_heads.mask_head.deconv",
    r"^roi_heads\.mask_predictor\.mask_fcn_logits": "roi_heads.mask_head.predictor",
}
NUMBERED = {  # ours -> theirs, whose numbers start at `first`
    r"^pyramid\.inner_blocks\.(\d)\.": ("backbone.fpn_lateral", 2),
    r"^pyramid\.layer_blocks\.(\d)\.": ("backbone.fpn_output", 2),
    r"^roi_heads\.box_head\.([0-3])\.": ("roi_heads.box_head.conv", 1),
    r"^roi_heads\.mask_head\.([0-3])\.": ("roi_heads.mask_head.mask_fcn", 1),
}


def their_name(name: str, encoder: str) -> str:
    for pattern, (stem, first) in NUMBERED.items():
        if match := re.match(pattern, name):
            part, rest = name[match.end() :].split(".", 1)
            return f"{stem}{int(match[1]) + first}.{'norm.' if part == '1' else ''}{rest}"
    for pattern, theirs in THEIRS.items():
        if re.search(pattern, name):
            return re.sub(pattern, theirs, name)
    return re.sub(r"^encoder\.", encoder, name)


def detection_state(model: ConvMAEDetector) -> dict[str, Tensor]:
    """The model's state as detectron2 would hold it."""
    encoder = "backbone.net." if hasattr(model.pyramid, "p2") else "backbone.bottom_up."
    state = {their_name(name, encoder): value for name, value in model.state_dict().items()}
    for name, value in state.items():
        if re.search(r"blocks[12]\.\d\.(conv1|conv2|mlp\.fc1|mlp\.fc2)\.weight", name):
            state[name] = value[:, :, None, None]
        if "cls_score" in name:
            state[name] = torch.cat((value[1:], value[:1]))
    if encoder == "backbone.bottom_up.":
        state[f"{encoder}global_rel_pos_bias.relative_position_index"] = torch.zeros(16, 16, dtype=torch.int64)
    return state


def random_detector(dense: DenseConfig, config: DetectorConfig, num_classes: int = 3) -> ConvMAEDetector:
    torch.manual_seed(0)
    model = build_detector(replace(ENCODER, dense=dense), config, num_classes=num_classes).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point() and (value.ndim == 1 or "position" in name):
                value.uniform_(0.5, 1.5)
    return model


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(("dense", "heads"), [(SHARED, FPN), (DECOMPOSED, SIMPLE)], ids=["fpn", "simple"])
def test_an_imported_detector_computes_what_its_source_did(
    tmp_path: Path, dense: DenseConfig, heads: DetectorConfig
) -> None:
    original = random_detector(dense, heads)
    file = {"model": detection_state(original), "optimizer": {}, "scheduler": {}, "iteration": 92_186}
    source = write_pth(tmp_path / "det.pth", file)
    report = import_original(source, tmp_path / "out", num_heads=2)
    model, record = load_detector(tmp_path / "out")
    assert (record.kind, record.model, record.detector) == ("detection", original_config(dense), heads)
    assert record.classes == ("class 0", "class 1", "class 2")
    images = torch.randn(1, 3, 96, 96)
    (found,), (expected,) = model(images), original(images)
    assert len(expected["boxes"]) > 0
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    lines = report.lines()
    assert lines[0] == f'{source} is a detection file, weights under "model"'
    names = "roi_heads.box_predictor.cls_score.weight, roi_heads.box_predictor.cls_score.bias"
    assert f"moved the background in front of the classes: {names}" in lines
    assert "left behind: optimizer, scheduler, iteration" in lines
    licence = "MIT" if heads == FPN else "Apache-2.0"
    assert lines[-2].startswith(f"licence of the weights: {licence} (authors' repository)")


def original_config(dense: DenseConfig) -> ConvMAEConfig:
    return replace(ENCODER, dense=dense)


def test_eighty_classes_are_those_of_coco(tmp_path: Path) -> None:
    source = write_pth(tmp_path / "det.pth", {"model": detection_state(random_detector(SHARED, FPN, 80))})
    report = import_original(source, tmp_path / "out", num_heads=2)
    assert report.record.classes == COCO_CLASSES and len(set(COCO_CLASSES)) == 80
    assert "classes named person to toothbrush: the file has no names" in report.lines()


def test_another_image_size_resizes_shared_tables_of_the_whole_image(tmp_path: Path) -> None:
    source = write_pth(tmp_path / "det.pth", {"model": detection_state(random_detector(SHARED, FPN))})
    report = import_original(source, tmp_path / "out", num_heads=2, image_size=(96, 128))
    assert report.resized == {
        "encoder.pos_embed": "4 x 4 to 6 x 8, bicubic",
        "encoder.global_position.table": "from 4 x 4 to 6 x 8 tokens",
    }
    model, record = load_detector(tmp_path / "out", image_size=(64, 96))
    assert record.model.image_size == (64, 96)
    assert model.encoder.pos_embed.shape == (1, 24, 16)


def test_the_background_moves_from_the_last_row_to_the_first() -> None:
    rows = torch.tensor([[1.0, 1], [2, 2], [0, 0]])  # class 0, class 1, background
    assert torch.equal(background_first(rows), torch.tensor([[0.0, 0], [1, 1], [2, 2]]))
    assert torch.equal(background_first(rows[:, 0]), torch.tensor([0.0, 1, 2]))


def test_tables_that_are_for_no_square_grid_are_refused() -> None:
    state = random_detector(SHARED, FPN).state_dict()
    state["encoder.window_position.table"] = torch.zeros(24, 2)
    with pytest.raises(
        ConvMAEError, match="window_position.table must have a row for every offset in a square grid; fou"
    ):
        infer_detector(state, (4, 4))
    state = random_detector(DECOMPOSED, SIMPLE).state_dict()
    state["encoder.blocks3.0.attn.position.rel_pos_w"] = torch.zeros(7, 8)
    with pytest.raises(ConvMAEError, match="for square windows in some blocks and for the whole image in the others"):
        infer_detector(state, (4, 4))


def test_a_detector_starts_from_a_pretrained_encoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = build_convmae(ENCODER)
    record = CheckpointRecord(kind="features", variant="custom", model=ENCODER)
    save_checkpoint(tmp_path / "encoder", encoder.state_dict(), record)
    architecture = replace(ENCODER, image_size=(96, 128), dense=SHARED)
    state, report = load_initial_encoder(tmp_path / "encoder", architecture)
    model = build_detector(architecture, FPN, num_classes=2)
    model.encoder.load_state_dict(state)
    assert model.encoder.pos_embed.shape == (1, 48, 16)
    assert not model.state_dict()["encoder.global_position.table"].any()
    name = "blocks1.0.conv1.weight"
    assert torch.equal(model.encoder.state_dict()[name], encoder.state_dict()[name])
    assert any("started without effect: 2 relative positions" in line for line in report)
