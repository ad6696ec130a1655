"""The backbone: sizes, shapes, position embedding, drop path, recorded masked stages."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models import MODELS, ConvMAE, ConvMAEConfig, build_convmae
from convmae_deploy.models.attention import Attention
from convmae_deploy.models.classifier import build_classifier
from convmae_deploy.models.convmae import DenseConfig
from convmae_deploy.models.positions import resize_position_embedding
from tests.original_files import (
    CONFIG,
    encoder_state,
    recorded,
    recorded_tensor,
    relative_error,
)

TINY = ConvMAEConfig(embed_dims=(8, 16, 32), depths=(1, 1, 2), mlp_ratios=(2, 3, 4), num_heads=4, image_size=(64, 64))


def seeded(config: ConvMAEConfig = TINY, *, drop_path_rate: float = 0.0) -> ConvMAE:
    torch.manual_seed(0)
    return build_convmae(config, drop_path_rate=drop_path_rate).eval()


@pytest.mark.parametrize(
    ("name", "without_head"),
    [
        ("small", 21_942_528),
        ("base", 84_605_824),
        ("base_plus", 88_018_816),
        ("large", 321_952_384),
        ("huge", 679_457_792),
    ],
)
def test_parameter_counts_are_those_of_the_authors_classes(name: str, without_head: int) -> None:
    config = MODELS[name]()
    with torch.device("meta"):
        encoder = build_convmae(config)
    fc_norm = 2 * config.embed_dims[2]
    assert sum(parameter.numel() for parameter in encoder.parameters()) + fc_norm == without_head


@pytest.mark.parametrize("name", MODELS)
def test_the_readme_has_the_parameter_counts_of_the_code(name: str) -> None:
    with torch.device("meta"):
        counts = [
            sum(parameter.numel() for parameter in build_classifier(MODELS[name](), num_classes=classes).parameters())
            for classes in (0, 1000)
        ]
    readme = (Path(__file__).parents[2] / "training" / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| {name} .*$", readme, flags=re.MULTILINE)
    assert [f"{count:,}" for count in counts] == [cell.strip() for cell in row.split("|")[2:4]]


def test_each_part_of_base_has_the_size_of_the_authors_class() -> None:
    with torch.device("meta"):
        encoder = build_convmae(MODELS["base"]())
    sizes = {name: sum(parameter.numel() for parameter in part.parameters()) for name, part in encoder.named_children()}
    assert sizes == {
        "patch_embed1": 13_056,
        "blocks1": 1_329_664,
        "patch_embed2": 394_368,
        "blocks2": 2_977_536,
        "patch_embed3": 1_181_952,
        "patch_embed4": 590_592,
        "blocks3": 77_966_592,
    }
    assert encoder.pos_embed.numel() == 150_528


def test_layer_norms_have_the_epsilons_of_the_authors_code() -> None:
    norms = {name: module.eps for name, module in seeded().named_modules() if isinstance(module, nn.LayerNorm)}
    assert {name: eps for name, eps in norms.items() if eps == 1e-6}.keys() == {
        f"blocks3.{block}.norm{norm}" for block in (0, 1) for norm in (1, 2)
    }
    assert {eps for name, eps in norms.items() if not name.startswith("blocks3")} == {1e-5}
    assert len(norms) == 3 + 2 + 2 + 4


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 64), (32, 96), (128, 64)])
def test_features_have_strides_4_8_16_32_at_any_multiple_of_32(height: int, width: int) -> None:
    features = seeded()(torch.zeros(2, 3, height, width))
    assert [tuple(feature.shape) for feature in features] == [
        (2, channels, height // stride, width // stride)
        for channels, stride in zip((8, 16, 32, 32), (4, 8, 16, 32), strict=True)
    ]


def test_e4_is_the_largest_of_each_two_by_two_cells_of_e3() -> None:
    _, _, e3, e4 = seeded()(torch.randn(1, 3, 64, 96))
    assert torch.equal(e4, e3.unflatten(2, (2, 2)).unflatten(4, (3, 2)).amax(dim=(3, 5)))


@pytest.mark.parametrize(("height", "width"), [(225, 224), (64, 48), (16, 32), (0, 32), (4128, 32)])
def test_other_sizes_are_refused_in_one_sentence(height: int, width: int) -> None:
    with pytest.raises(ConvMAEError, match=f"positive multiples of 32, at most 4096; got {height} x {width}$"):
        seeded()(torch.zeros(1, 3, height, width))
    with pytest.raises(ConvMAEError, match=f"got {height} x {width}$"):
        replace(TINY, image_size=(height, width))


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ConvMAEError, match=r"multiple of num_heads \(5\) and of 4; got 32"):
        replace(TINY, num_heads=5)


def test_each_image_of_a_batch_is_computed_alone() -> None:
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together = seeded()(images)
        alone = [seeded()(image.unsqueeze(0)) for image in images]
    for level, maps in enumerate(together):
        torch.testing.assert_close(maps, torch.cat([features[level] for features in alone]))


def test_the_stored_embedding_is_resized_for_another_image() -> None:
    encoder = seeded()
    assert torch.equal(encoder.position_embedding((2, 6)), resize_position_embedding(encoder.pos_embed, (4, 4), (2, 6)))
    assert encoder.position_embedding((4, 4)) is encoder.pos_embed


def test_drop_path_grows_over_all_blocks_as_recorded() -> None:
    encoder = build_convmae(CONFIG, drop_path_rate=0.1)
    rates = {name: module.drop_prob for name, module in encoder.named_modules() if name.endswith("drop_path")}
    assert rates == {
        "blocks1.0.drop_path": 0.0,
        "blocks2.0.drop_path": 0.03333333507180214,
        "blocks3.0.drop_path": 0.06666666269302368,
        "blocks3.1.drop_path": 0.10000000149011612,
    }


def test_drop_path_acts_in_training_only() -> None:
    encoder = seeded(drop_path_rate=0.9)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert torch.equal(encoder(images)[2], seeded()(images)[2])
        assert not torch.equal(encoder.train()(images)[2], seeded()(images)[2])


def test_gradient_checkpointing_changes_no_gradient() -> None:
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    gradients = []
    for enabled in (False, True):
        encoder = seeded().train()
        encoder.grad_checkpointing = enabled
        encoder(images)[3].square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in encoder.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None and gradients[1][name] is not None, name
        torch.testing.assert_close(gradients[1][name], gradient)


def test_masking_the_depthwise_input_gives_the_recorded_pretraining_stages() -> None:
    """The recorded pretraining pass computed everything densely and zeroed masked cells before each 5x5 convolution."""
    reference = recorded("masked_stages")
    kept = 1.0 - torch.from_numpy(reference["mask"].copy()).float().reshape(2, 1, 14, 14)  # 1 = visible
    encoder = build_convmae(CONFIG).eval()
    encoder.load_state_dict(
        {name: value.reshape(encoder.state_dict()[name].shape) for name, value in encoder_state().items()}
    )

    def keep_visible(module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        return inputs[0] * F.interpolate(kept, size=inputs[0].shape[-2:])

    for block in (encoder.blocks1[0], encoder.blocks2[0]):
        depthwise = block.attn
        assert isinstance(depthwise, nn.Conv2d)
        depthwise.register_forward_pre_hook(keep_visible)
    with torch.no_grad():
        stage1 = encoder.forward_stage1(recorded_tensor("classifier", "input").permute(0, 2, 3, 1))
        stage2 = encoder.forward_stage2(stage1)
        pe4 = encoder.patch_embed4(encoder.patch_embed3(stage2)).flatten(1, 2)
    stage1, stage2 = (
        stage.permute(0, 3, 1, 2) * F.interpolate(kept, size=stage.shape[1:3]) for stage in (stage1, stage2)
    )
    visible2 = F.interpolate(kept, size=(28, 28))[:, :, ::5, ::5]
    visible4 = kept.flatten(2).transpose(1, 2)[:, ::13]
    expected2 = recorded_tensor("masked_stages", "stage2_every_5th_cell") * visible2
    expected4 = recorded_tensor("masked_stages", "pe4_every_13th_token") * visible4
    assert visible2.sum() > 5 and visible4.sum() > 5
    assert relative_error(stage1[:, :, ::7, ::7], recorded_tensor("masked_stages", "stage1_every_7th_cell")) <= 1e-5
    assert relative_error(stage2[:, :, ::5, ::5], expected2) <= 1e-5
    assert relative_error(pe4[:, ::13] * visible4, expected4) <= 1e-5


def test_every_parameter_of_the_encoder_is_trained() -> None:
    encoder = seeded()
    encoder(torch.randn(1, 3, 32, 32))[3].square().sum().backward()
    assert not [name for name, parameter in encoder.named_parameters() if parameter.grad is None]


def test_windowed_blocks_are_shifted_in_turn_and_global_ones_are_not_counted() -> None:
    dense = DenseConfig(window_size=7, global_blocks=(0, 3), shifted_windows=True, relative_position="per_block")
    encoder = build_convmae(replace(TINY, depths=(1, 1, 6), dense=dense))
    blocks = [block.attn for block in encoder.blocks3.children() if isinstance(block.attn, Attention)]
    assert [attention.window_size for attention in blocks] == [None, 7, 7, None, 7, 7]
    assert [attention.shift for attention in blocks] == [0, 0, 3, 0, 0, 3]


def test_a_window_is_needed_for_global_blocks() -> None:
    with pytest.raises(ConvMAEError, match="need a window_size"):
        DenseConfig(global_blocks=(0,))
