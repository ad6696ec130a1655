"""ConvMAE through `timm.create_model`, after an import of `convmae_deploy.timm`.

The checks from `test_the_zoo` on are those that timm's own suite makes of each of its models.
"""

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.data.config import resolve_model_data_config
from timm.models import FeatureInfo, adapt_input_conv, save_for_hf
from torch import nn

from convmae_deploy.checkpoints import CheckpointRecord, save_checkpoint
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models import MODELS, ConvMAEClassifier
from convmae_deploy.models.positions import resize_position_embedding
from convmae_deploy.timm import fit_positions

ROOT = Path(__file__).parents[1]
NAMES = [f"convmae_{name}" for name in MODELS]
IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def on_meta_device() -> Iterator[None]:
    """Shapes without memory or arithmetic."""
    with torch.device("meta"):
        yield


def created(name: str, **arguments: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **arguments)


def trained(**arguments: Any) -> Any:
    """A model in evaluation mode of which no two parameters are alike, as after a training."""
    model = created("convmae_nano", **arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published weights of five classes for 64 x 96 pixels, and no square number of tokens."""
    directory = tmp_path_factory.mktemp("published")
    save_for_hf(trained(num_classes=5, img_size=(64, 96)), str(directory), safe_serialization=True)
    return directory


@pytest.mark.slow
def test_timm_knows_the_models_after_the_import_and_not_before() -> None:
    program = (
        "import timm, convmae_deploy.models; assert not timm.list_models('convmae*'); import convmae_deploy.timm; "
        "assert len(timm.list_models('convmae*')) == 9; from convmae_deploy.timm import *"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, cwd=ROOT)


def test_every_variant_is_listed_and_none_has_weights_of_its_own() -> None:
    assert set(timm.list_models("convmae_*")) == set(NAMES)
    assert timm.list_models("convmae_*", pretrained=True) == []


@pytest.mark.slow
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


@pytest.mark.parametrize(("levels", "blocks"), [((0,), (2, 0, 0)), ((0, 1), (2, 3, 0)), ((1, 3), (2, 3, 5))])
def test_stages_behind_the_chosen_maps_are_left_out(levels: tuple[int, ...], blocks: tuple[int, ...]) -> None:
    model = created("convmae_nano", features_only=True, out_indices=levels, img_size=64).eval()
    encoder = model["model"].encoder
    assert tuple(len(stage) for stage in (encoder.blocks1, encoder.blocks2, encoder.blocks3)) == blocks
    whole = created("convmae_nano", img_size=64).eval().encoder
    with torch.no_grad():
        for found, expected in zip(model(IMAGES), [whole(IMAGES)[level] for level in levels], strict=True):
            assert torch.equal(found, expected)


def test_out_indices_choose_among_the_maps_and_no_head_is_left() -> None:
    with torch.device("meta"):
        model = created("convmae_nano", features_only=True, out_indices=(1, -1))
        assert [feature.shape[-1] for feature in model(torch.zeros(1, 3, 64, 64))] == [8, 2]
    assert model.feature_info.reduction() == [8, 32]
    assert not [name for name, _ in model.named_parameters() if "head" in name or "fc_norm" in name]


@pytest.mark.slow
@pytest.mark.usefixtures("on_meta_device")
def test_classifier_arguments_arrive() -> None:
    model = created(
        "convmae_nano", num_classes=7, drop_path_rate=0.1, drop_rate=0.3, img_size=(64, 96), global_pool="token"
    )
    assert isinstance(model, ConvMAEClassifier)
    assert model(torch.zeros(2, 3, 64, 96)).shape == (2, 7)
    assert (model.global_pool, model.encoder.grid_size, model.head_drop.p) == ("token", (4, 6), 0.3)
    last_block = model.encoder.blocks3[-1]
    assert last_block.drop_path.drop_prob == pytest.approx(0.1)  # type: ignore[union-attr]
    assert created("convmae_nano", img_size=64).encoder.grid_size == (4, 4)
    assert created("convmae_nano").num_classes == 1000
    assert created("convmae_nano", num_classes=0)(torch.zeros(1, 3, 32, 32)).shape == (1, model.num_features)
    grey = created("convmae_nano", in_chans=1, features_only=True)
    assert grey(torch.zeros(1, 1, 32, 32))[0].shape == (1, 32, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pretrained": True}, "no weights of convmae_nano are published through timm; .*checkpoint_path"),
        ({"img_size": 100}, "multiples of 32, at most 4096; got 100 x 100"),
        ({"global_pool": "map"}, "global_pool must be one of .*; got 'map'"),
    ],
)
def test_what_convmae_cannot_be_is_refused_in_one_sentence(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConvMAEError, match=message):
        created("convmae_nano", **arguments)


@pytest.mark.slow
def test_weights_of_our_checkpoint_load_through_timm(tmp_path: Path) -> None:
    model = trained(num_classes=4)
    record = CheckpointRecord(kind="classification", variant="nano", model=MODELS["nano"](), classes=tuple("abcd"))
    save_checkpoint(tmp_path / "nano", model.state_dict(), record)
    weights = str(tmp_path / "nano" / "model.safetensors")
    with torch.no_grad():
        expected = model(IMAGES)
        loaded = created("convmae_nano", num_classes=4, checkpoint_path=weights).eval()
        assert torch.equal(loaded(IMAGES), expected)
        source = {"file": weights, "num_classes": 4}
        loaded = created("convmae_nano", num_classes=4, pretrained=True, pretrained_cfg_overlay=source).eval()
        assert torch.equal(loaded(IMAGES), expected)


@pytest.mark.slow
def test_published_weights_give_the_same_numbers(folder: Path) -> None:
    expected = trained(num_classes=5, img_size=(64, 96))
    loaded = created(f"local-dir:{folder}", pretrained=True).eval()
    headless = created(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    pyramid = created(f"local-dir:{folder}", pretrained=True, features_only=True).eval()
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), expected(IMAGES))
        assert torch.equal(headless(IMAGES), expected.forward_head(expected.forward_features(IMAGES), pre_logits=True))
        for found, wanted in zip(pyramid(IMAGES), expected.encoder(IMAGES), strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.slow
def test_published_weights_are_resized_for_another_image_size(folder: Path) -> None:
    loaded = created(f"local-dir:{folder}", pretrained=True, img_size=160)
    stored = trained(num_classes=5, img_size=(64, 96)).encoder.pos_embed
    assert torch.equal(loaded.encoder.pos_embed, resize_position_embedding(stored, (4, 6), (10, 10)))
    turned = created(f"local-dir:{folder}", pretrained=True, img_size=(96, 64))  # as many tokens, another grid
    assert torch.equal(turned.encoder.pos_embed, resize_position_embedding(stored, (4, 6), (6, 4)))
    pyramid = created(f"local-dir:{folder}", pretrained=True, features_only=True, img_size=160)
    assert pyramid(torch.zeros(1, 3, 160, 160))[2].shape[-2:] == (10, 10)


def test_positions_of_a_size_that_nobody_states_are_taken_for_a_square_or_refused(folder: Path) -> None:
    model = created("convmae_nano")  # states 128 x 128 pixels
    for tokens, shape in ((49, (1, 64, 192)), (24, (1, 24, 192))):
        state = fit_positions({"encoder.pos_embed": torch.zeros(1, tokens, 192)}, model)
        assert state["encoder.pos_embed"].shape == shape
    weights = {"file": str(folder / "model.safetensors"), "num_classes": 5}
    with pytest.raises(RuntimeError, match="size mismatch for encoder.pos_embed"):
        created("convmae_nano", num_classes=5, pretrained=True, pretrained_cfg_overlay=weights)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 4])
def test_published_weights_are_adapted_to_other_channels_as_timm_does(folder: Path, channels: int) -> None:
    loaded = created(f"local-dir:{folder}", pretrained=True, in_chans=channels)
    weight = load_file(folder / "model.safetensors")["encoder.patch_embed1.proj.weight"]
    assert torch.equal(loaded.encoder.patch_embed1.proj.weight, adapt_input_conv(channels, weight))
    assert loaded(torch.zeros(1, channels, 64, 96)).shape == (1, 5)
    if channels == 1:  # a grey photo gives what it gave as three equal channels
        grey = torch.randn(1, 1, 64, 96)
        expected = trained(num_classes=5, img_size=(64, 96))
        torch.testing.assert_close(loaded.eval()(grey), expected(grey.expand(1, 3, 64, 96)), atol=1e-4, rtol=1e-4)


def test_what_was_changed_after_the_model_was_made_is_saved_with_it(tmp_path: Path) -> None:
    model = trained(num_classes=5)
    model.set_input_size((96, 64))
    model.reset_classifier(3, "max")
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    loaded = created(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert (loaded.global_pool, loaded.num_classes, loaded.encoder.grid_size) == ("max", 3, (6, 4))
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), model(IMAGES))


@pytest.mark.slow
@pytest.mark.usefixtures("on_meta_device")
@pytest.mark.parametrize("name", NAMES)
def test_the_zoo_describes_itself_as_timm_s_models_do(name: str) -> None:
    model = created(name)
    config: Any = model.default_cfg
    images = torch.zeros(2, *config["input_size"])
    features = model.forward_features(images)
    pooled = model.forward_head(features, pre_logits=True)
    assert tuple(features.shape[2:]) == tuple(config["pool_size"])
    assert features.shape[1] == model.num_features and pooled.shape[1] == model.head_hidden_size
    assert f"{config['classifier']}.weight" in model.state_dict()
    assert model.get_submodule(config["classifier"]) is model.get_classifier()
    first = model.get_submodule(config["first_conv"])
    assert isinstance(first, nn.Conv2d) and first.in_channels == 3
    model.reset_classifier(0)
    assert model.num_classes == 0 and model(images).shape == pooled.shape
    model.reset_classifier(0, "")
    assert model(images).shape == features.shape
    assert created(name, num_classes=0, global_pool="")(images).shape == features.shape
    resolve: Any = resolve_model_data_config
    data = resolve(model)
    assert data["input_size"] == config["input_size"]
    assert (data["crop_pct"], data["interpolation"]) == (0.875, "bicubic")
    assert (data["mean"], data["std"]) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("name", ["convmae_nano", "convmae_tiny"])
def test_the_zoo_gives_a_gradient_to_every_parameter(name: str) -> None:
    model = created(name, num_classes=42, img_size=64).train()
    outputs = model(IMAGES[:, :, :64, :64])
    outputs.mean().backward()
    assert outputs.shape == (2, 42) and not outputs.isnan().any()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("name", ["convmae_nano", "convmae_tiny"])
def test_the_zoo_s_intermediates_are_what_feature_info_says(name: str, layout: str) -> None:
    model = created(name, img_size=64).eval()
    described = FeatureInfo(model.feature_info, len(model.feature_info))
    with torch.no_grad():
        final, maps = model.forward_intermediates(IMAGES, output_fmt=layout)
        assert torch.equal(final, model.forward_features(IMAGES))
    for count, stride, found in zip(described.channels(), described.reduction(), maps, strict=True):
        height, width = math.ceil(64 / stride), math.ceil(96 / stride)
        assert tuple(found.shape) == ((2, count, height, width) if layout == "NCHW" else (2, height, width, count))
    chosen = model.prune_intermediate_layers((0, 2), prune_norm=True)
    with torch.no_grad():
        kept = model.forward_intermediates(IMAGES, indices=chosen, output_fmt=layout, intermediates_only=True)
    assert all(torch.equal(found, maps[level]) for found, level in zip(kept, chosen, strict=True))


@pytest.mark.slow
def test_a_traced_model_gives_the_same_numbers() -> None:
    model = created("convmae_nano", num_classes=5, img_size=64, exportable=True).eval()
    traced = torch.export.export(model, (IMAGES,)).module()
    with torch.no_grad():
        torch.testing.assert_close(traced(IMAGES), model(IMAGES))
