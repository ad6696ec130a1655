"""The classifier and timm's model interface on it."""

import json

import pytest
import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models import ConvMAEClassifier, ConvMAEConfig
from convmae_deploy.models.classifier import GlobalPool, build_classifier
from tests.original_files import CONFIG, REFERENCE

TINY = ConvMAEConfig(embed_dims=(8, 16, 32), depths=(1, 1, 2), mlp_ratios=(2, 3, 4), num_heads=4, image_size=(64, 64))
IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def classifier(num_classes: int = 5, global_pool: GlobalPool = "avg") -> ConvMAEClassifier:
    torch.manual_seed(0)
    return build_classifier(TINY, num_classes=num_classes, global_pool=global_pool).eval()


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


def test_intermediates_are_the_encoders_maps() -> None:
    model = classifier()
    with torch.no_grad():
        maps = model.encoder(IMAGES)
        final, all_of_them = model.forward_intermediates(IMAGES)
        last_two = model.forward_intermediates(IMAGES, indices=2, intermediates_only=True)
        chosen = model.forward_intermediates(IMAGES, indices=(0, -2), intermediates_only=True)
    assert torch.equal(final, maps[2])
    assert [tuple(found.shape) for found in all_of_them] == [tuple(expected.shape) for expected in maps]
    for found, expected in zip([*all_of_them, *last_two, *chosen], [*maps, *maps[2:], maps[0], maps[2]], strict=True):
        assert isinstance(found, Tensor) and torch.equal(found, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": True}, "un-normalised NCHW maps; got norm=True"),
        ({"output_fmt": "NLC"}, "un-normalised NCHW maps; got norm=False, output_fmt='NLC'"),
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
        model.reset_classifier(3, "max")  # type: ignore[arg-type]


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
