"""The classifier and timm's model interface on it."""

import json

import pytest
import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models import ConvMAEClassifier, ConvMAEConfig
from convmae_deploy.models.classifier import Pooling, build_classifier, build_video_classifier
from convmae_deploy.models.video import VideoConfig
from tests.original_files import CONFIG, REFERENCE

TINY = ConvMAEConfig(embed_dims=(8, 16, 32), depths=(1, 1, 2), mlp_ratios=(2, 3, 4), num_heads=4, image_size=(64, 64))
IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def classifier(num_classes: int = 5, global_pool: Pooling = "avg", drop_rate: float = 0.0) -> ConvMAEClassifier:
    torch.manual_seed(0)
    return build_classifier(TINY, num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate).eval()


def test_forward_is_the_head_on_the_features() -> None:
    model = classifier()
    with torch.no_grad():
        e3 = model.forward_features(IMAGES)
        assert e3.shape == (2, 32, 4, 6)
        assert torch.equal(model(IMAGES), model.forward_head(e3))
        pooled = model.forward_head(e3, pre_logits=True)
    assert pooled.shape == (2, 32)
    torch.testing.assert_close(pooled, model.fc_norm(e3.mean(dim=(2, 3))))


def test_token_pooling_takes_the_top_left_token() -> None:
    model = classifier(global_pool="token")
    e3 = torch.randn(2, 32, 2, 3)
    assert torch.equal(model.forward_head(e3, pre_logits=True), model.fc_norm(e3[:, :, 0, 0]))


@pytest.mark.parametrize(("global_pool", "share"), [("max", 1.0), ("avgmax", 0.5)])
def test_pooling_takes_the_largest_value_or_its_mean_with_the_average(global_pool: Pooling, share: float) -> None:
    model = classifier(global_pool=global_pool)
    e3 = torch.randn(2, 32, 2, 3)
    pooled = share * e3.amax(dim=(2, 3)) + (1 - share) * e3.mean(dim=(2, 3))
    torch.testing.assert_close(model.forward_head(e3, pre_logits=True), model.fc_norm(pooled))
    torch.testing.assert_close(model.forward_head(e3), model.head(model.fc_norm(pooled)))


def test_without_pooling_each_token_has_its_own_logits() -> None:
    model, single = classifier(global_pool=""), classifier(global_pool="token")
    e3 = torch.randn(2, 32, 2, 3)
    maps, hidden = model.forward_head(e3), model.forward_head(e3, pre_logits=True)
    assert maps.shape == (2, 5, 2, 3) and hidden.shape == (2, 32, 2, 3)
    torch.testing.assert_close(maps[:, :, 1, 2], single.forward_head(e3[:, :, 1:, 2:]))


def test_dropout_in_front_of_the_head_is_for_training() -> None:
    model = classifier(drop_rate=0.5)
    e3 = torch.randn(2, 32, 2, 3)
    expected = classifier().forward_head(e3)
    assert torch.equal(model.forward_head(e3), expected)
    dropped = model.train().forward_head(e3, pre_logits=True)
    assert 0.2 < (dropped == 0).float().mean() < 0.8


def test_a_set_input_size_stores_the_resized_positions_and_changes_no_number() -> None:
    model = classifier()
    with torch.no_grad():
        expected = model(IMAGES)
        model.set_input_size((64, 96), patch_size=16)
        assert model.encoder.grid_size == (4, 6) and model.encoder.pos_embed.shape == (1, 24, 32)
        assert model.encoder.pos_embed.requires_grad
        assert torch.equal(model(IMAGES), expected)
        model.set_input_size(img_size=32)
        assert model.encoder.grid_size == (2, 2)
        model.set_input_size()
        assert model.encoder.grid_size == (2, 2)
    for arguments, message in (({"img_size": 100}, "multiples of 32"), ({"patch_size": 8}, "patches of 16 pixels")):
        with pytest.raises(ConvMAEError, match=message):
            model.set_input_size(**arguments)
    with torch.device("meta"):
        video = build_video_classifier(TINY, VideoConfig(frames=4), num_classes=2)
    with pytest.raises(ConvMAEError, match="model of images .*; got a VideoConvMAE"):
        video.set_input_size(64)


def test_intermediates_are_the_encoders_maps() -> None:
    model = classifier()
    with torch.no_grad():
        maps = model.encoder(IMAGES)
        final, all_of_them = model.forward_intermediates(IMAGES)
        last_two = model.forward_intermediates(IMAGES, indices=2, intermediates_only=True)
        chosen = model.forward_intermediates(IMAGES, indices=(0, -2), intermediates_only=True)
    assert isinstance(final, Tensor) and torch.equal(final, maps[2])
    assert [tuple(torch.as_tensor(found).shape) for found in all_of_them] == [
        tuple(expected.shape) for expected in maps
    ]
    for found, expected in zip([*all_of_them, *last_two, *chosen], [*maps, *maps[2:], maps[0], maps[2]], strict=True):
        assert isinstance(found, Tensor) and torch.equal(found, expected)


def test_intermediates_come_by_name_and_in_both_layouts() -> None:
    model = classifier()
    with torch.no_grad():
        final, maps = model.forward_intermediates(IMAGES)
        named = model.forward_intermediates(IMAGES, output_dict=True, output_fmt="NHWC")
        assert isinstance(named, dict) and named.keys() == {"image_features", "image_intermediates"}
        assert isinstance(final, Tensor) and torch.equal(torch.as_tensor(named["image_features"]), final)
        for found, expected in zip(named["image_intermediates"], maps, strict=True):
            assert torch.equal(found, torch.as_tensor(expected).permute(0, 2, 3, 1))
        alone = model.forward_intermediates(IMAGES, indices=1, output_dict=True, intermediates_only=True)
    assert (
        isinstance(alone, dict) and alone.keys() == {"image_intermediates"} and len(alone["image_intermediates"]) == 1
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": True}, "un-normalised maps in NCHW or NHWC; got norm=True"),
        ({"output_fmt": "NLC"}, "un-normalised maps in NCHW or NHWC; got norm=False, output_fmt='NLC'"),
        ({"indices": [4]}, r"feature indices must be 0 to 3.*; got \[4\]"),
        ({"indices": 5}, "feature indices must be 0 to 3.*; got 5"),
    ],
)
def test_other_intermediates_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConvMAEError, match=message):
        classifier().forward_intermediates(IMAGES, **arguments)  # type: ignore[arg-type]


def test_feature_info_describes_the_maps() -> None:
    model = classifier()
    for info, feature in zip(model.feature_info, model.encoder(IMAGES), strict=True):
        assert feature.shape[1] == info["num_chs"]
        assert feature.shape[2] == 64 // info["reduction"]
        model.get_submodule(info["module"])


def test_resetting_the_classifier_gives_a_fresh_head_of_the_given_size() -> None:
    model = classifier()
    model.reset_classifier(7, "token")
    assert (model.num_classes, model.global_pool) == (7, "token")
    assert model(IMAGES).shape == (2, 7)
    head = model.get_classifier()
    assert isinstance(head, nn.Linear) and torch.equal(head.bias, torch.zeros(7))
    model.reset_classifier(0)
    assert model(IMAGES).shape == (2, 32)
    assert model.global_pool == "token"
    with pytest.raises(ConvMAEError, match="global_pool must be one of"):
        model.reset_classifier(3, "map")  # type: ignore[arg-type]


def test_a_fresh_head_has_the_precision_of_the_model() -> None:
    model = classifier().double()
    model.reset_classifier(3)
    assert model(IMAGES.double()).dtype == torch.float64


@pytest.mark.parametrize("std", [2e-5, 0.02])
def test_the_head_starts_from_the_given_spread(std: float) -> None:
    model = build_classifier(TINY, num_classes=1000, head_init_std=std)
    head = model.head
    assert isinstance(head, nn.Linear)
    assert 0.8 * std < head.weight.std().item() < 1.1 * std


def test_timms_layer_decay_gives_the_recorded_groups() -> None:
    with torch.device("meta"):
        model = build_classifier(CONFIG, num_classes=10)
    groups = param_groups_layer_decay(
        model, weight_decay=0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.65
    )
    names = {id(parameter): name.removeprefix("encoder.") for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: {"lr_scale": pytest.approx(group["lr_scale"]), "weight_decay": group["weight_decay"]}
        for group in groups
        for parameter in group["params"]
    }
    assert found == json.loads((REFERENCE / "layer_decay_groups_0.65.json").read_text())


def test_gradient_checkpointing_is_switched_on_the_encoder() -> None:
    model = classifier().train()
    model(IMAGES).square().sum().backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    model.set_grad_checkpointing()
    assert model.encoder.grad_checkpointing
    model(IMAGES).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected[name])
    model.set_grad_checkpointing(False)
    assert not model.encoder.grad_checkpointing


def test_from_scratch_1x1_convolutions_and_positions_begin_as_in_the_authors_code() -> None:
    """PyTorch's default of a convolution is uniform up to 1 / sqrt(inputs), of weights and of biases."""
    torch.manual_seed(0)
    config = ConvMAEConfig(
        embed_dims=(64, 64, 64), depths=(1, 1, 1), mlp_ratios=(4, 4, 4), num_heads=4, image_size=(128, 128)
    )
    video = build_video_classifier(config, VideoConfig(frames=4), num_classes=2)
    for model in (build_classifier(config, num_classes=2), video):
        tensors = model.state_dict()
        for name, inputs in (("conv1", 64), ("conv2", 64), ("mlp.fc1", 64), ("mlp.fc2", 256)):
            theirs = nn.Conv2d(inputs, 64, 1).state_dict()
            for kind in ("weight", "bias"):
                ours = tensors[f"encoder.blocks2.0.{name}.{kind}"]
                assert ours.abs().max() <= inputs**-0.5
                assert ours.std().item() == pytest.approx(theirs[kind].std().item(), rel=0.25)
        qkv = (tensors[f"encoder.blocks3.0.attn.qkv.{kind}"] for kind in ("weight", "bias"))
        assert next(qkv).std().item() == pytest.approx(0.02, rel=0.1) and not next(qkv).any()
    positions = build_classifier(config, num_classes=2).encoder.pos_embed
    assert positions.requires_grad and positions.std().item() == pytest.approx(0.02, rel=0.1)
    assert not video.encoder.pos_embed.requires_grad and video.encoder.pos_embed.std() > 0.5  # a sinusoid, kept
