"""The segmenter against parameter counts, a slow literal UperNet, and the authors' recorded maps."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convmae_deploy.checkpoints.original_keys import POINTWISE_KEY, dense_encoder_name, squeeze_pointwise
from convmae_deploy.engine.optimisation import OptimisationConfig, build_adamw
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convmae import ConvMAEConfig, DenseConfig, base
from convmae_deploy.models.segmenter import (
    ConvMAESegmenter,
    E4Form,
    NormedConvolution,
    SegmenterConfig,
    UperHead,
    authors_dense,
    build_segmenter,
)
from tests.original_files import relative_error
from tests.recorded_pretraining import needs_recorded_passes, pass_tensor, reference_folder

ARCHITECTURE = ConvMAEConfig(
    embed_dims=(8, 12, 16), depths=(1, 1, 3), mlp_ratios=(2, 2, 2), num_heads=2, image_size=(64, 96)
)
SMALL = SegmenterConfig(channels=10, auxiliary_channels=6)


def small_segmenter(e4: E4Form = "maxpool", dense: DenseConfig | None = None) -> ConvMAESegmenter:
    architecture = replace(ARCHITECTURE, dense=dense or DenseConfig())
    torch.manual_seed(0)
    return build_segmenter(architecture, replace(SMALL, e4=e4), num_classes=5)


def count(module: nn.Module | None) -> int:
    assert module is not None
    return sum(parameter.numel() for parameter in module.parameters())


def base_segmenter(dense: DenseConfig, e4: E4Form) -> ConvMAESegmenter:
    architecture = replace(base(), image_size=(512, 512), dense=dense)
    with torch.device("meta"):
        return build_segmenter(architecture, SegmenterConfig(e4=e4), num_classes=150)


@pytest.mark.slow
def test_the_form_of_the_authors_code_has_their_parameters() -> None:
    model = base_segmenter(authors_dense(), "convolution")
    assert count(model) == 160_175_664
    assert count(model.encoder) + count(model.downsample) == 91_091_716
    assert (count(model.decode_head), count(model.auxiliary_head)) == (67_275_414, 1_808_534)


def test_the_form_of_the_paper_has_its_153_million_without_the_auxiliary_head() -> None:
    plain = base_segmenter(DenseConfig(), "maxpool")
    assert count(plain) - count(plain.auxiliary_head) == 152_515_606
    tables = base_segmenter(authors_dense(), "maxpool")  # 153.06M: what is left of the code's without its E4
    assert count(tables) - count(tables.auxiliary_head) == 153_056_410


def test_logits_are_at_a_quarter_of_the_image_for_any_multiple_of_32() -> None:
    model = small_segmenter().eval()
    for height, width in ((32, 32), (64, 96), (160, 32)):
        images = torch.randn(2, 3, height, width)
        with torch.no_grad():
            logits, auxiliary = model(images, auxiliary=True)
            assert torch.equal(model(images), logits)
        assert logits.shape == (2, 5, height // 4, width // 4)
        assert auxiliary.shape == (2, 5, height // 16, width // 16)


def test_the_authors_e4_is_an_unpadded_convolution_and_needs_three_tokens() -> None:
    model = small_segmenter("convolution").eval()
    with torch.no_grad():
        maps = model.forward_features(torch.randn(1, 3, 128, 224))
        assert maps[2].shape[-2:] == (8, 14) and maps[3].shape[-2:] == (3, 6)
        assert isinstance(model.downsample, nn.Sequential)
        assert torch.equal(maps[3], F.gelu(model.downsample[1](F.conv2d(maps[2], *conv_weights(model), stride=2))))
    with pytest.raises(ConvMAEError, match="at least 64 x 64 pixels; got 32 x 64"):
        model(torch.randn(1, 3, 32, 64))


def conv_weights(model: ConvMAESegmenter) -> tuple[Tensor, Tensor]:
    assert model.downsample is not None
    state = model.downsample.state_dict()
    return state["0.weight"], state["0.bias"]


def literal_upernet(head: UperHead, maps: list[Tensor]) -> Tensor:
    """UperNet in evaluation, step by step from the tensors of its state dict."""
    state = head.state_dict()

    def block(name: str, x: Tensor) -> Tensor:
        weight = state[f"{name}.conv.weight"]
        x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        shape = (1, -1, 1, 1)
        mean, variance = (state[f"{name}.bn.running_{kind}"].reshape(shape) for kind in ("mean", "var"))
        x = (x - mean) / torch.sqrt(variance + 1e-5)
        x = x * state[f"{name}.bn.weight"].reshape(shape) + state[f"{name}.bn.bias"].reshape(shape)
        return x.clamp(min=0)

    def up(x: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)

    pooled = [maps[3]]
    for index, bins in enumerate((1, 2, 3, 6)):
        means = torch.zeros(*maps[3].shape[:2], bins, bins, dtype=maps[3].dtype)
        height, width = maps[3].shape[-2:]
        for row in range(bins):
            for column in range(bins):
                top, bottom = math.floor(row * height / bins), math.ceil((row + 1) * height / bins)
                left, right = math.floor(column * width / bins), math.ceil((column + 1) * width / bins)
                means[:, :, row, column] = maps[3][:, :, top:bottom, left:right].mean(dim=(2, 3))
        pooled.append(up(block(f"psp_modules.{index}.1", means), maps[3]))
    p4 = block("bottleneck", torch.cat(pooled, dim=1))
    p3 = block("lateral_convs.2", maps[2]) + up(p4, maps[2])
    p2 = block("lateral_convs.1", maps[1]) + up(p3, maps[1])
    p1 = block("lateral_convs.0", maps[0]) + up(p2, maps[0])
    outputs = [block(f"fpn_convs.{index}", level) for index, level in enumerate((p1, p2, p3))]
    fused = block("fpn_bottleneck", torch.cat([outputs[0], *(up(x, p1) for x in (outputs[1], outputs[2], p4))], dim=1))
    return F.conv2d(fused, state["conv_seg.weight"], state["conv_seg.bias"])


@torch.no_grad()
def test_the_upernet_head_equals_a_literal_one() -> None:
    torch.manual_seed(1)
    head = UperHead((4, 6, 8, 8), 7, 5).double()
    for module in head.modules():  # away from where normalisation does nothing
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    sizes = ((20, 28), (10, 14), (5, 7), (2, 3))
    maps = [torch.randn(2, width, *size).double() for width, size in zip((4, 6, 8, 8), sizes, strict=True)]
    expected = literal_upernet(head, maps)
    torch.testing.assert_close(head.eval()(maps), expected, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(head.train()(maps), expected)  # batch statistics, dropped channels


def test_both_heads_and_every_layer_of_the_encoder_learn() -> None:
    model = small_segmenter("convolution", authors_dense())
    logits, auxiliary = model(torch.randn(2, 3, 96, 96), auxiliary=True)
    (logits.square().sum() + auxiliary.square().sum()).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []


def test_layers_decay_from_the_heads_down_to_the_stem() -> None:
    model = small_segmenter("convolution", authors_dense())
    optimizer = build_adamw(model, OptimisationConfig(weight_decay=0.05), layer_decay=0.5)
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    found = {name: groups[id(parameter)] for name, parameter in model.named_parameters()}
    scales = {
        "encoder.pos_embed": 0.5**4,
        "encoder.blocks2.0.conv1.weight": 0.5**4,
        "encoder.blocks3.0.attn.position.table": 0.5**3,
        "encoder.blocks3.2.ls1.gamma": 0.5,
        "downsample.0.weight": 1.0,
        "decode_head.conv_seg.weight": 1.0,
        "auxiliary_head.convs.0.bn.weight": 1.0,
    }
    assert {name: found[name]["lr_scale"] for name in scales} == scales
    for name, parameter in model.named_parameters():  # the position embedding and the tables decay, as in their code
        assert found[name]["weight_decay"] == (0.0 if parameter.ndim == 1 else 0.05), name


@needs_recorded_passes
@torch.no_grad()
def test_all_four_maps_are_the_authors_for_their_recorded_weights() -> None:
    file = torch.load(reference_folder() / "seg_backbone.pth", weights_only=True)
    state = {}
    for source, value in file["state_dict"].items():
        name = source.removeprefix("backbone.")
        if name.startswith("fpn."):
            state[name.replace("fpn.", "downsample.")] = value
        elif not name.endswith("relative_position_index"):
            name = dense_encoder_name(name)
            state[f"encoder.{name}"] = squeeze_pointwise(name, value) if POINTWISE_KEY.fullmatch(name) else value
    architecture = ConvMAEConfig(
        embed_dims=(32, 48, 96),
        depths=(1, 1, 3),
        mlp_ratios=(2, 3, 4),
        num_heads=4,
        image_size=(128, 128),
        dense=authors_dense(),
    )
    model = build_segmenter(architecture, replace(SMALL, e4="convolution"), num_classes=2)
    loaded = model.load_state_dict(state, strict=False)
    assert not loaded.unexpected_keys
    assert all(name.startswith(("decode_head.", "auxiliary_head.")) for name in loaded.missing_keys)
    for level, found in enumerate(model.eval().forward_features(pass_tensor("seg_backbone", "input"))):
        assert relative_error(found, pass_tensor("seg_backbone", f"out{level}")) <= 1e-5


@pytest.mark.parametrize("wrong", [{"channels": 0}, {"pool_scales": ()}, {"dropout": 1.0}])
def test_heads_of_impossible_numbers_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConvMAEError, match="must be at least"):
        SegmenterConfig(**wrong)  # type: ignore[arg-type]


def test_convolutions_of_the_heads_begin_with_xavier() -> None:
    torch.manual_seed(0)
    weight = NormedConvolution(32, 16, 3).conv.weight
    bound = (6 / (9 * 32 + 9 * 16)) ** 0.5
    assert weight.abs().max() <= bound and weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
