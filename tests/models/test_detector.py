"""The detector as a whole: sizes, losses on every kind of image, detections."""

from dataclasses import replace

import pytest
import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convmae import ConvMAEConfig, DenseConfig
from convmae_deploy.models.detector import DETECTORS, ConvMAEDetector, DetectorConfig, build_detector
from convmae_deploy.models.pyramid import NormKind, PyramidKind

ENCODER = ConvMAEConfig(
    embed_dims=(8, 12, 16), depths=(1, 1, 2), mlp_ratios=(2, 2, 2), num_heads=2, image_size=(64, 64)
)
SMALL = DetectorConfig(channels=8, fc_width=16)
LOSSES = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"}
IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def detector(pyramid: PyramidKind = "fpn", norm: NormKind = "batch") -> ConvMAEDetector:
    torch.manual_seed(0)
    return build_detector(ENCODER, replace(SMALL, pyramid=pyramid, norm=norm), num_classes=3)


def objects(*boxes: tuple[int, int, int, int]) -> dict[str, Tensor]:
    """The targets of an image of 64 x 96 pixels, each object filling its box, of the classes 2, 1, 0."""
    masks = torch.zeros(len(boxes), 64, 96, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = 1
    labels = torch.arange(2, 2 - len(boxes), -1)
    return {"boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), "labels": labels, "masks": masks}


@pytest.mark.parametrize(
    ("name", "millions"), [("base_fpn", 110.17), ("base_simple", 109.70), ("tiny_fpn", 12.89), ("nano_fpn", 3.74)]
)
def test_detectors_have_their_number_of_parameters(name: str, millions: float) -> None:
    """Parameters alone: BatchNorm's statistics and the authors' index tables are buffers and do not count."""
    with torch.device("meta"):
        model = build_detector(*DETECTORS[name](), num_classes=80)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == millions


@pytest.mark.slow
@pytest.mark.parametrize(  # every pair
    ("pyramid", "norm", "precision"),
    [
        ("fpn", "batch", torch.float32),
        ("fpn", "layer", torch.bfloat16),
        ("simple", "batch", torch.bfloat16),
        ("simple", "layer", torch.float32),
    ],
)
def test_all_images_give_finite_losses_and_gradients_for_all_parameters(
    pyramid: PyramidKind, norm: NormKind, precision: torch.dtype
) -> None:
    model = detector(pyramid, norm).train()
    none, some = objects(), objects((4, 8, 40, 50), (60, 2, 90, 30))
    for targets in ([some, none], [none, none]):
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
            losses = model(IMAGES, targets)
        assert isinstance(losses, dict) and set(losses) == LOSSES
        total = torch.stack(list(losses.values()))
        assert total.isfinite().all() and total.dtype == torch.float32
        total.sum().backward()  # type: ignore[no-untyped-call]
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if not len(targets[0]["boxes"]):
            assert losses["loss_rpn_box_reg"] == losses["loss_box_reg"] == losses["loss_mask"] == 0
    assert all(buffer.isfinite().all() for buffer in model.buffers())


def test_labels_of_targets_count_from_zero() -> None:
    model = detector().train()
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias.copy_(torch.tensor([0.0, 50, 0, 0]))  # background first
        right = model(IMAGES, [objects((0, 0, 96, 64)) | {"labels": torch.tensor([0])}] * 2)
        wrong = model(IMAGES, [objects((0, 0, 96, 64)) | {"labels": torch.tensor([2])}] * 2)
    assert isinstance(right, dict) and isinstance(wrong, dict)
    assert right["loss_classifier"] < wrong["loss_classifier"]


def test_evaluation_gives_detections_within_the_image() -> None:
    model = detector().eval()
    with torch.no_grad():
        found = model(IMAGES)
    assert isinstance(found, list) and len(found) == 2
    for image in found:
        count = len(image["boxes"])
        assert 0 < count <= 100  # a fresh head gives every class a quarter, far above the threshold
        assert image["boxes"].shape == (count, 4) and image["scores"].shape == image["labels"].shape == (count,)
        assert image["masks"].shape == (count, 28, 28)
        assert (image["boxes"] >= 0).all() and (image["boxes"] <= torch.tensor([96, 64, 96, 64])).all()
        assert set(image["labels"].tolist()) <= {0, 1, 2}
        assert torch.equal(image["scores"], image["scores"].sort(descending=True).values)


def test_images_of_a_batch_do_not_influence_one_another_in_evaluation() -> None:
    model = detector().eval()
    with torch.no_grad():
        together, alone = model(IMAGES), model(IMAGES[1:])
    assert isinstance(together, list) and isinstance(alone, list)
    for name, expected in alone[0].items():
        torch.testing.assert_close(together[1][name][:20], expected[:20])


def test_nothing_found_is_empty() -> None:
    model = detector().eval()
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias[0] = 50.0
        found = model(IMAGES)
    assert isinstance(found, list)
    assert [tuple(value.shape) for value in found[0].values()] == [(0, 4), (0,), (0,), (0, 28, 28)]


def test_training_needs_targets() -> None:
    with pytest.raises(ConvMAEError, match="in training needs targets; give them, or call eval"):
        detector().train()(IMAGES)


@pytest.mark.parametrize("field", ["channels", "fc_width", "rpn_convolutions"])
def test_widths_of_nothing_are_refused(field: str) -> None:
    with pytest.raises(ConvMAEError, match=f"{field} of a detector must be at least 1; got 0"):
        DetectorConfig(**{field: 0})  # type: ignore[arg-type]
    with pytest.raises(ConvMAEError, match="at least one class; got 0"):
        build_detector(ENCODER, SMALL, num_classes=0)


def test_layer_decay_follows_the_authors_order() -> None:
    dense = DenseConfig(relative_position="shared", window_size=2, global_blocks=(0,))
    model = build_detector(replace(ENCODER, dense=dense), SMALL, num_classes=3)
    groups = param_groups_layer_decay(
        model, weight_decay=0.1, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.5
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert found["encoder.pos_embed"] == (1.0, 0.0)  # in the authors' code the rate of the heads
    assert found["encoder.blocks2.0.conv1.weight"] == (0.125, 0.1)
    assert found["encoder.blocks3.0.mlp.fc1.weight"] == (0.25, 0.1)
    assert found["encoder.blocks3.1.mlp.fc1.bias"] == (0.5, 0.0)
    assert found["encoder.global_position.table"] == (1.0, 0.0) == found["encoder.window_position.table"]
    assert found["rpn.head.conv.0.0.weight"] == (1.0, 0.1)
    assert found["roi_heads.box_predictor.cls_score.bias"] == (1.0, 0.0)
