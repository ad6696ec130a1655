"""ConvMAE through `timm.create_model`."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import nn

from convmae_deploy.checkpoints import CheckpointRecord, save_checkpoint
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models import MODELS, ConvMAEClassifier, timm_registration
from convmae_deploy.models.timm_registration import register_with_timm


@pytest.fixture(autouse=True)
def registered() -> None:
    register_with_timm()


@pytest.fixture
def on_meta_device() -> Iterator[None]:
    """Shapes without memory or arithmetic."""
    with torch.device("meta"):
        yield


def created(name: str, **arguments: Any) -> Any:
    return timm.create_model(name, **arguments)


@pytest.mark.slow
def test_importing_the_models_registers_nothing() -> None:
    program = (
        "import timm, convmae_deploy.models, convmae_deploy.models.timm_registration as registration; "
        "assert not timm.list_models('convmae*'); registration.register_with_timm(); "
        "assert len(timm.list_models('convmae*')) == 9"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, cwd=Path(__file__).parents[2])


def test_every_variant_is_listed_and_registering_again_changes_nothing() -> None:
    before = timm.model_entrypoint("convmae_base")
    register_with_timm()  # a second registration in timm would warn, and warnings are errors here
    assert timm.model_entrypoint("convmae_base") is before
    assert set(timm.list_models("convmae_*")) == {f"convmae_{name}" for name in MODELS}
    assert timm_registration.__all__ == ["register_with_timm"]
    assert timm.list_models("convmae_*", pretrained=True) == []


@pytest.mark.parametrize("name", list(MODELS))
def test_features_only_gives_a_pyramid_of_strides_4_8_16_32(name: str) -> None:
    with torch.device("meta"):
        model = created(f"convmae_{name}", features_only=True)
        maps = model(torch.zeros(1, 3, 64, 96))
    channels = MODELS[name]().embed_dims
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    assert model.feature_info.channels() == [*channels, channels[2]]
    assert [tuple(feature.shape) for feature in maps] == [
        (1, count, 64 // stride, 96 // stride)
        for count, stride in zip((*channels, channels[2]), (4, 8, 16, 32), strict=True)
    ]


def test_out_indices_choose_among_the_maps_and_no_head_is_left() -> None:
    with torch.device("meta"):
        model = created("convmae_nano", features_only=True, out_indices=(1, -1))
        assert [feature.shape[-1] for feature in model(torch.zeros(1, 3, 64, 64))] == [8, 2]
    assert model.feature_info.reduction() == [8, 32]
    assert not [name for name, _ in model.named_parameters() if "head" in name or "fc_norm" in name]


@pytest.mark.usefixtures("on_meta_device")
def test_classifier_arguments_arrive() -> None:
    model = created(
        "convmae_nano", num_classes=7, drop_path_rate=0.1, drop_rate=0.0, img_size=(64, 96), global_pool="token"
    )
    assert isinstance(model, ConvMAEClassifier)
    assert model(torch.zeros(2, 3, 64, 96)).shape == (2, 7)
    assert (model.global_pool, model.encoder.grid_size) == ("token", (4, 6))
    last_block = model.encoder.blocks3[-1]
    assert last_block.drop_path.drop_prob == pytest.approx(0.1)  # type: ignore[union-attr]
    assert created("convmae_nano", img_size=64).encoder.grid_size == (4, 4)
    assert created("convmae_nano").num_classes == 1000
    assert created("convmae_nano", num_classes=0)(torch.zeros(1, 3, 32, 32)).shape == (1, model.num_features)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pretrained": True}, "no weights of convmae_nano are published through timm; .*checkpoint_path"),
        ({"in_chans": 1}, "RGB images"),
        ({"img_size": 100}, "multiples of 32, at most 4096; got 100 x 100"),
        ({"drop_rate": 0.1}, "has no dropout"),
        ({"global_pool": "max"}, "global_pool must be one of"),
    ],
)
def test_what_convmae_cannot_be_is_refused_in_one_sentence(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConvMAEError, match=message):
        created("convmae_nano", **arguments)


def test_the_data_configuration_and_layer_names_are_those_of_the_model() -> None:
    with torch.device("meta"):
        model = created("convmae_base", num_classes=3)
    resolve: Any = resolve_model_data_config
    data = resolve(model)
    assert data["input_size"] == (3, 224, 224)
    assert (data["crop_pct"], data["interpolation"]) == (0.875, "bicubic")
    assert (data["mean"], data["std"]) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    first, last = (model.get_submodule(model.pretrained_cfg[key]) for key in ("first_conv", "classifier"))
    assert isinstance(first, nn.Conv2d) and first.in_channels == 3
    assert last is model.get_classifier()


def test_weights_of_our_checkpoint_load_through_timm(tmp_path: Path) -> None:
    model = created("convmae_nano", num_classes=4)
    record = CheckpointRecord(kind="classification", variant="nano", model=MODELS["nano"](), classes=tuple("abcd"))
    save_checkpoint(tmp_path / "nano", model.state_dict(), record)
    weights = str(tmp_path / "nano" / "model.safetensors")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.eval()(images)
        loaded = created("convmae_nano", num_classes=4, checkpoint_path=weights).eval()
        assert torch.equal(loaded(images), expected)
        source = {"file": weights, "num_classes": 4}
        loaded = created("convmae_nano", num_classes=4, pretrained=True, pretrained_cfg_overlay=source).eval()
        assert torch.equal(loaded(images), expected)
