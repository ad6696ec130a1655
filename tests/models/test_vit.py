"""The baseline: timm's ViT, bit for bit, with what stands around a ConvMAE."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

from convmae_deploy.checkpoints import CheckpointRecord, load_initial_encoder, load_pretraining, save_checkpoint
from convmae_deploy.checkpoints.loading import load_classifier
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.classifier import build_classifier, build_video_classifier
from convmae_deploy.models.convmae import ConvMAEConfig, DenseConfig, nano
from convmae_deploy.models.masking import MASKING, draw_noise
from convmae_deploy.models.pretraining import PretrainingConfig, build_pretraining, patchify
from convmae_deploy.models.segmenter import SegmenterConfig, build_segmenter
from convmae_deploy.models.video import VideoConfig
from convmae_deploy.models.visible import VisibleCells
from convmae_deploy.models.vit import ViT, build_encoder, variant_config, vit, vit_base, vit_nano

SMALL = vit(width=16, depth=3, num_heads=2, image_size=(64, 64))
DECODER = PretrainingConfig(
    decoder_width=16, decoder_depth=1, decoder_heads=2, decoder_mlp_ratio=2.0, multi_scale=False
)
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def timm_vit(num_classes: int = 5) -> timm.models.VisionTransformer:
    torch.manual_seed(0)
    return timm.models.VisionTransformer(
        img_size=64,
        patch_size=16,
        embed_dim=16,
        depth=3,
        num_heads=2,
        num_classes=num_classes,
        class_token=False,
        global_pool="avg",
    ).eval()


def our_name(name: str) -> str:
    """Of a tensor of timm's model."""
    name = name.replace("patch_embed.", "patch_embed3.").replace("blocks.", "blocks3.")
    return name if name.startswith(("fc_norm", "head")) else f"encoder.{name}"


def test_a_classifier_with_timms_weights_gives_timms_logits() -> None:
    theirs, ours = timm_vit(), build_classifier(SMALL, num_classes=5).eval()
    ours.load_state_dict({our_name(name): value for name, value in theirs.state_dict().items()})
    with torch.no_grad():
        torch.testing.assert_close(ours(IMAGES), theirs(IMAGES), rtol=1e-5, atol=1e-6)


def test_its_maps_are_those_of_stage_3_alone() -> None:
    e1, e2, e3, e4 = build_encoder(SMALL)(torch.zeros(2, 3, 64, 96))
    assert e1.shape == (2, 0, 16, 24) and e2.shape == (2, 0, 8, 12)
    assert e3.shape == (2, 16, 4, 6) and e4.shape == (2, 16, 2, 3)


def test_pretraining_is_maes_encoder_on_the_visible_patches_and_knows_nothing_of_the_others() -> None:
    torch.manual_seed(0)
    model = build_pretraining(SMALL, DECODER).eval()
    encoder = model.encoder
    kept = MASKING["block"].choose(draw_noise(2, (64, 64), 16, torch.Generator().manual_seed(1)), 0.75)
    with torch.no_grad():
        patches = encoder.patch_embed3.proj(IMAGES).flatten(2).transpose(1, 2) + encoder.pos_embed  # as MAE does it
        tokens = patches.gather(1, kept[:, :, None].expand(-1, -1, 16))
        for block in encoder.blocks3:
            tokens = block(tokens)
        prediction, hidden, loss = model.reconstruct(IMAGES, kept)
        torch.testing.assert_close(model.encode(IMAGES, visible_cells(kept)), model.norm(tokens))
        target = patchify(IMAGES)
        target = (target - target.mean(2, keepdim=True)) / (target.var(2, keepdim=True) + 1e-6).sqrt()
        by_patch = (prediction - target).square().mean(2)
        torch.testing.assert_close(loss, (by_patch * hidden[:, :, 0]).sum() / hidden.sum())
        mask = torch.ones(2, 16).scatter(1, kept, 0.0).reshape(2, 1, 4, 4)
        noisy = IMAGES + 100 * mask.repeat_interleave(16, 2).repeat_interleave(16, 3)
        assert torch.equal(model.reconstruct(noisy, kept).prediction, prediction)


def visible_cells(kept: torch.Tensor) -> VisibleCells:
    return VisibleCells(kept, (4, 4))


def test_layers_decay_as_in_timms_model() -> None:
    model, theirs = build_classifier(SMALL, num_classes=5), timm_vit()

    def scales(model: torch.nn.Module, unchanged: set[str]) -> dict[tuple[int, ...], list[float]]:
        groups = param_groups_layer_decay(model, 0.05, unchanged, layer_decay=0.5)
        found: dict[tuple[int, ...], list[float]] = {}
        for group in groups:
            for parameter in group["params"]:
                found.setdefault(tuple(parameter.shape), []).append(group["lr_scale"] + group["weight_decay"])
        return {shape: sorted(values) for shape, values in found.items()}

    assert scales(model, model.no_weight_decay()) == scales(theirs, {"pos_embed"})


def test_sizes_are_beside_those_of_convmae() -> None:
    with torch.device("meta"):
        counts = {name: count(variant_config(name, None)) for name in ("vit_nano", "vit_base")}
    assert counts == {"vit_nano": 2_829_504, "vit_base": 85_797_120}
    assert vit_nano().image_size == nano().image_size and vit_nano().embed_dims[2] == nano().embed_dims[2]
    assert vit_base().grid_size == (14, 14)


def count(config: ConvMAEConfig) -> int:
    return sum(parameter.numel() for parameter in build_classifier(config, num_classes=0).parameters())


def test_checkpoints_hold_it_and_a_classifier_starts_from_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_pretraining(SMALL, DECODER)
    record = CheckpointRecord(kind="pretraining", variant="vit_nano", model=SMALL, pretraining=DECODER)
    save_checkpoint(tmp_path / "mae", model.state_dict(), record)
    loaded, found = load_pretraining(tmp_path / "mae")
    assert found.model == SMALL and isinstance(loaded.encoder, ViT)
    larger = replace(SMALL, image_size=(96, 64))
    state, _ = load_initial_encoder(tmp_path / "mae", larger)
    classifier = build_classifier(larger, num_classes=3)
    classifier.encoder.load_state_dict(state)
    tensors = (encoder.state_dict()["blocks3.0.attn.qkv.weight"] for encoder in (classifier.encoder, model.encoder))
    assert torch.equal(*tensors)
    with pytest.raises(ConvMAEError, match="initial weights must be an encoder of"):
        load_initial_encoder(tmp_path / "mae", nano())
    record = CheckpointRecord(kind="classification", variant="vit_nano", model=larger, classes=("a", "b", "c"))
    save_checkpoint(tmp_path / "classifier", classifier.state_dict(), record)
    again, _ = load_classifier(tmp_path / "classifier")
    with torch.no_grad():
        assert torch.equal(again(IMAGES), classifier.eval()(IMAGES))


def test_what_takes_convolution_stages_is_refused_in_a_sentence() -> None:
    for change, sentence in (
        ({"masking": "token"}, "block or complementary masks"),
        ({"masked_convolution": False}, "leave --masking and --masked-convolution as they are"),
        ({"multi_scale": True}, "no stages to fuse; give --no-multi-scale"),
    ):
        with pytest.raises(ConvMAEError, match=sentence):
            build_pretraining(SMALL, replace(DECODER, **change))
    with pytest.raises(ConvMAEError, match="must be a ConvMAE"):
        build_segmenter(SMALL, SegmenterConfig(), num_classes=3)
    with pytest.raises(ConvMAEError, match="a video model must be a ConvMAE"):
        build_video_classifier(SMALL, VideoConfig(), num_classes=3)
    with pytest.raises(ConvMAEError, match="a plain ViT has no windows"):
        replace(SMALL, dense=DenseConfig(layer_scale=True))
    with pytest.raises(ConvMAEError, match="embed_dims must be above 0; got 0, 0, 16"):
        replace(SMALL, depths=(0, 1, 2))
