"""Importing the authors' segmentation files, and training on from them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from convmae_deploy.bundle.preprocessing import SlidingWindow
from convmae_deploy.checkpoints import import_original, load_initial_encoder, save_checkpoint
from convmae_deploy.checkpoints.loading import load_segmenter
from convmae_deploy.checkpoints.native import CheckpointRecord
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convmae import ConvMAEConfig, DenseConfig, build_convmae
from convmae_deploy.models.segmenter import ConvMAESegmenter, SegmenterConfig, authors_dense, build_segmenter
from tests.original_files import segmentation_state, write_pth

CONFIG = ConvMAEConfig(
    embed_dims=(8, 12, 16),
    depths=(1, 1, 2),
    mlp_ratios=(2, 2, 2),
    num_heads=2,
    image_size=(64, 64),
    dense=authors_dense(),
)
HEADS = SegmenterConfig(channels=6, auxiliary_channels=4, e4="convolution")
CLASSES = ("wall", "building", "sky")


def random_segmenter() -> ConvMAESegmenter:
    torch.manual_seed(0)
    model = build_segmenter(CONFIG, HEADS, num_classes=3).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point() and (value.ndim == 1 or "position" in name):
                value.uniform_(0.5, 1.5)
    return model


def mmcv_file(state: dict[str, Tensor], **meta: object) -> dict[str, object]:
    """What mmcv's runner saves."""
    return {
        "meta": {"mmcv_version": "1.3.0", "config": "model = dict()", "epoch": 1, "iter": 160_000, **meta},
        "state_dict": state,
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]},
        "amp": {"loss_scaler0": {"loss_scale": 65536.0, "unskipped": 3}},
    }


@torch.no_grad()
def test_an_imported_segmenter_computes_what_its_source_did(tmp_path: Path) -> None:
    original = random_segmenter()
    source = write_pth(tmp_path / "seg.pth", mmcv_file(segmentation_state(original), CLASSES=CLASSES))
    report = import_original(source, tmp_path / "out", num_heads=2)
    model, record = load_segmenter(tmp_path / "out")
    assert (record.kind, record.model, record.segmenter, record.classes) == ("segmentation", CONFIG, HEADS, CLASSES)
    assert "ADE20K" in record.licence.name
    assert record.preprocessing == SlidingWindow(window=(64, 64), stride=(42, 42), short_side=512, long_side=2048)
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(images), original(images))
    lines = report.lines()
    assert lines[0] == f'{source} is a segmentation file, weights under "state_dict"'
    assert "classes named as in the file: wall, building, sky" in lines
    assert "left behind: meta, optimizer, amp" in lines
    assert not any(line.startswith("cast") for line in lines)
    dropped = [line for line in lines if line.startswith("dropped ")]
    assert len(dropped) == 2 and all("relative_position_index: it follows from the size" in line for line in dropped)


@pytest.mark.slow
def test_classes_without_usable_names_are_numbered(tmp_path: Path) -> None:
    state = segmentation_state(random_segmenter())
    metas: tuple[dict[str, object], ...] = ({}, {"CLASSES": None}, {"CLASSES": ["wall"]}, {"CLASSES": [1, 2, 3]})
    for index, meta in enumerate(metas):
        source = write_pth(tmp_path / f"{index}.pth", mmcv_file(state, **meta))
        report = import_original(source, tmp_path / f"out{index}", num_heads=2)
        assert report.record.classes == ("class 0", "class 1", "class 2")
        assert "classes named class 0 to class 2: the file has no names" in report.lines()


def test_another_image_size_resizes_the_relative_positions_as_well(tmp_path: Path) -> None:
    source = write_pth(tmp_path / "seg.pth", {"state_dict": segmentation_state(random_segmenter())})
    report = import_original(source, tmp_path / "out", num_heads=2, image_size=(96, 128))
    assert report.resized["encoder.pos_embed"] == "4 x 4 to 6 x 8, bicubic"
    assert report.resized["encoder.blocks3.1.attn.position.table"] == "from 4 x 4 to 6 x 8 tokens"
    assert load_segmenter(tmp_path / "out")[1].model.image_size == (96, 128)


def test_a_segmenter_in_the_form_of_the_paper_is_recognised(tmp_path: Path) -> None:
    heads = replace(HEADS, e4="maxpool")
    model = build_segmenter(replace(CONFIG, dense=DenseConfig()), heads, num_classes=3)
    source = write_pth(tmp_path / "seg.pth", {"state_dict": segmentation_state(model)})
    import_original(source, tmp_path / "out", num_heads=2)
    _, record = load_segmenter(tmp_path / "out")
    assert record.segmenter == heads and record.model.dense == DenseConfig()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("auxiliary_head.conv_seg.weight", "auxiliary_head.conv_seg.weight must be a tensor with 4 axes"),
        ("decode_head.bottleneck.bn.running_mean", "found 1 missing .*bottleneck.bn.running_mean"),
        ("backbone.blocks3.1.gamma_2", "1 missing .first encoder.blocks3.1.ls2.gamma"),
    ],
)
def test_a_segmenter_that_lacks_a_tensor_is_refused(missing: str, message: str, tmp_path: Path) -> None:
    state = segmentation_state(random_segmenter())
    del state[missing]
    with pytest.raises(ConvMAEError, match=message):
        import_original(write_pth(tmp_path / "seg.pth", state), tmp_path / "out", num_heads=2)
    assert not (tmp_path / "out").exists()


def test_relative_positions_without_layer_scale_are_refused(tmp_path: Path) -> None:
    state = {name: value for name, value in segmentation_state(random_segmenter()).items() if "gamma_" not in name}
    with pytest.raises(ConvMAEError, match="relative positions alone"):
        import_original(write_pth(tmp_path / "seg.pth", state), tmp_path / "out", num_heads=2)


def test_the_encoder_of_a_segmentation_file_starts_another_training(tmp_path: Path) -> None:
    original = random_segmenter()
    source = write_pth(tmp_path / "seg.pth", {"state_dict": segmentation_state(original)})
    state, report = load_initial_encoder(source, CONFIG)
    assert all(torch.equal(state[name], value) for name, value in original.encoder.state_dict().items())
    plain, report = load_initial_encoder(source, replace(CONFIG, dense=DenseConfig(), image_size=(96, 96)))
    build_convmae(replace(CONFIG, dense=DenseConfig(), image_size=(96, 96))).load_state_dict(plain)
    assert report[-1].startswith("left behind: 6 relative positions and LayerScales (first blocks3.0.")


@torch.no_grad()
def test_a_plain_encoder_starts_a_segmenter_that_computes_the_same_maps_at_first(tmp_path: Path) -> None:
    plain = replace(CONFIG, dense=DenseConfig(transformer_norm_eps=1e-5))
    encoder = build_convmae(plain).eval()
    save_checkpoint(
        tmp_path / "encoder", encoder.state_dict(), CheckpointRecord(kind="features", variant="custom", model=plain)
    )
    state, report = load_initial_encoder(tmp_path / "encoder", CONFIG)
    assert report == [
        "started without effect: 6 relative positions and LayerScales (first blocks3.0.attn.position.table)"
    ]
    dense = build_convmae(CONFIG).eval()
    nn.init.ones_(dense.state_dict()["blocks3.0.attn.position.table"])  # not what it starts with
    dense.load_state_dict(state)
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(dense(images)[2], encoder(images)[2])
