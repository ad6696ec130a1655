"""The pretraining model: equal to the dense masked computation, blind to what is hidden, and its loss."""

import math
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.dense_masked import DenseMaskedPretraining
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convmae import MODELS, ConvMAEConfig
from convmae_deploy.models.masking import MASKING, draw_noise
from convmae_deploy.models.pretraining import (
    ConvMAEPretraining,
    PretrainingConfig,
    build_pretraining,
    patchify,
    unpatchify,
)
from convmae_deploy.models.visible import VisibleCells
from tests.models.gradients import assert_gradients_equal, gradients
from tests.original_files import relative_error

ENCODER = ConvMAEConfig(
    embed_dims=(8, 16, 32), depths=(2, 2, 1), mlp_ratios=(2, 3, 2), num_heads=4, image_size=(64, 64)
)
DECODER = PretrainingConfig(decoder_width=16, decoder_depth=1, decoder_heads=2, decoder_mlp_ratio=2)
SQUARE = {"image_size": (64, 64)}
WIDE = {"image_size": (32, 96)}
TALL = {"image_size": (96, 64)}


def seeded(encoder: dict[str, Any] = SQUARE, **pretraining: Any) -> ConvMAEPretraining:
    """A small model whose trained parameters all differ from their initial zeros and ones."""
    torch.manual_seed(0)
    model = build_pretraining(replace(ENCODER, **encoder), replace(DECODER, **pretraining))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def seeded_images(batch: int, image_size: tuple[int, int] = (64, 64)) -> Tensor:
    return torch.randn(batch, 3, *image_size, generator=torch.Generator().manual_seed(1))


def seeded_mask(
    batch: int, image_size: tuple[int, int] = (64, 64), mask_ratio: float = 0.75, masking: str = "block"
) -> Tensor:
    strategy = next(strategy for name, strategy in MASKING.items() if name == masking)
    noise = draw_noise(batch, image_size, strategy.cell_size, torch.Generator().manual_seed(2))
    return strategy.choose(noise, mask_ratio)


def cells(model: ConvMAEPretraining, kept: Tensor, image_size: tuple[int, int] = (64, 64)) -> VisibleCells:
    return VisibleCells(kept, (image_size[0] // model.cell_size, image_size[1] // model.cell_size))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("encoder", "mask_ratio", "pretraining"),
    [
        (SQUARE, 0.5, {}),
        (SQUARE, 0.75, {}),
        (SQUARE, 0.9, {}),
        (WIDE, 0.75, {}),
        (TALL, 0.6, {}),
        (SQUARE, 0.75, {"multi_scale": False}),
        (SQUARE, 0.6, {"norm_pix_loss": False}),
        (TALL | {"kernel_size": 7}, 0.75, {}),
        (SQUARE | {"kernel_size": 9}, 0.5, {}),
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_visible_cells_alone_give_the_loss_and_gradients_of_the_dense_masked_computation(
    encoder: dict[str, Any],
    mask_ratio: float,
    pretraining: dict[str, Any],
    batch: int,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    model = seeded(encoder, **pretraining).to(dtype)
    dense = DenseMaskedPretraining(model)
    image_size = encoder["image_size"]
    images, kept = seeded_images(batch, image_size).to(dtype), seeded_mask(batch, image_size, mask_ratio)
    latent = model.encode(images, cells(model, kept, image_size))
    assert relative_error(latent, dense.latent(images, kept)) <= tolerance
    found, expected = model(images, kept), dense(images, kept)
    assert found.dtype == dtype
    assert relative_error(found, expected) <= tolerance
    assert_gradients_equal(gradients(model, found), gradients(model, expected), tolerance)


def test_images_of_another_size_than_the_stored_embeddings_equal_the_dense_computation() -> None:
    model = seeded()
    images, kept = seeded_images(2, (96, 32)), seeded_mask(2, (96, 32))
    expected = DenseMaskedPretraining(model)(images, kept)
    assert relative_error(model(images, kept), expected) <= 1e-5


@pytest.mark.parametrize("masks", [2, 4, 8])
def test_complementary_masks_are_as_many_passes_over_the_same_images(masks: int) -> None:
    model = seeded(masking="complementary").double()
    images = seeded_images(2).double()
    kept = seeded_mask(2, mask_ratio=1 - 1 / masks, masking="complementary")
    assert len(kept) == 2 * masks
    together = model.reconstruct(images, kept)
    passes = [model.reconstruct(images, part) for part in kept.reshape(masks, 2, -1)]
    loss = torch.stack([each.loss for each in passes]).mean()
    assert relative_error(together.prediction, torch.cat([each.prediction for each in passes])) <= 1e-12
    assert torch.equal(together.hidden, torch.cat([each.hidden for each in passes]))
    assert relative_error(together.loss, loss) <= 1e-12
    assert_gradients_equal(gradients(model, together.loss), gradients(model, loss), 1e-12)


def hidden_pixels_changed(model: ConvMAEPretraining, images: Tensor, kept: Tensor, value: float | None) -> Tensor:
    """The images with other noise, or `value`, wherever they are hidden."""
    hidden = model.hidden_pixels(cells(model, kept)).expand(-1, -1, 768)
    other = torch.randn(images.shape) if value is None else torch.full_like(images, value)
    return torch.where(unpatchify(hidden, (4, 4)) == 1, other, images)


@pytest.mark.parametrize("value", [None, 1e30, math.nan])
@pytest.mark.parametrize("masking", ["block", "complementary", "token"])
def test_hidden_pixels_change_the_latent_by_exactly_nothing(masking: str, value: float | None) -> None:
    model = seeded(masking=masking)
    kept = seeded_mask(2, masking=masking)
    images = seeded_images(2).repeat(len(kept) // 2, 1, 1, 1)
    changed = hidden_pixels_changed(model, images, kept, value)
    assert not torch.equal(changed, images)
    visible = cells(model, kept)
    assert torch.equal(model.encode(changed, visible), model.encode(images, visible))


@pytest.mark.parametrize("masking", ["block", "token"])
def test_the_latent_depends_on_every_visible_pixel(masking: str) -> None:
    model, images, kept = seeded(masking=masking), seeded_images(2).requires_grad_(), seeded_mask(2, masking=masking)
    visible = cells(model, kept)
    latent = model.encode(images, visible)
    (gradient,) = torch.autograd.grad(latent, images, torch.randn(latent.shape))
    hidden = unpatchify(model.hidden_pixels(visible).expand(-1, -1, 768), (4, 4))
    assert torch.equal(gradient == 0, hidden == 1)


def test_without_masked_convolutions_hidden_pixels_leak_into_the_latent() -> None:
    model, images, kept = seeded(masked_convolution=False), seeded_images(1), seeded_mask(1)
    visible = cells(model, kept)
    latent = model.encode(images, visible)
    assert (model.encode(hidden_pixels_changed(model, images, kept, None), visible) - latent).abs().max() > 1e-3
    assert not torch.allclose(latent, seeded().encode(images, visible))


def test_without_masked_convolutions_the_encoder_sees_what_the_backbone_sees() -> None:
    model, images, kept = seeded(masked_convolution=False, multi_scale=False), seeded_images(2), seeded_mask(2)
    everything = torch.arange(16).expand(2, -1)
    e3 = model.encoder(images)[2].flatten(2).transpose(1, 2)  # (B, N, D)
    torch.testing.assert_close(model.encode(images, cells(model, everything)), model.norm(e3))
    assert model.encode(images, cells(model, kept)).shape == (2, 4, 32)


def test_tokens_take_the_places_of_their_cells_and_the_mask_token_all_others() -> None:
    model, kept = seeded(), torch.tensor([[2, 7], [0, 15]])
    inputs: list[Tensor] = []
    model.decoder_blocks[0].register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    tokens = torch.randn(2, 2, 16)
    model.decode(tokens, cells(model, kept), (4, 4))
    expected = model.mask_token.repeat(2, 16, 1)
    for image, row in enumerate(kept.tolist()):
        for position, cell in enumerate(row):
            expected[image, cell] = tokens[image, position]
    assert torch.equal(inputs[0], expected + model.decoder_pos_embed)


def test_patches_hold_row_column_and_colour_in_this_order() -> None:
    images = seeded_images(2, (32, 48))
    patches = patchify(images)
    assert patches.shape == (2, 6, 768)
    for cell in range(6):
        for row, column, colour in ((0, 0, 0), (0, 0, 2), (0, 1, 0), (3, 7, 1), (15, 15, 2)):
            pixel = images[:, colour, cell // 3 * 16 + row, cell % 3 * 16 + column]
            assert torch.equal(patches[:, cell, (row * 16 + column) * 3 + colour], pixel)


@pytest.mark.parametrize("grid_size", [(4, 4), (2, 6), (6, 2)])
def test_unpatchify_is_the_inverse_of_patchify(grid_size: tuple[int, int]) -> None:
    images = seeded_images(2, (16 * grid_size[0], 16 * grid_size[1]))
    assert torch.equal(unpatchify(patchify(images), grid_size), images)
    patches = torch.randn(2, grid_size[0] * grid_size[1], 768)
    assert torch.equal(patchify(unpatchify(patches, grid_size)), patches)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_the_loss_is_that_of_a_literal_loop_over_hidden_patches(norm_pix_loss: bool) -> None:
    model, images = seeded(WIDE, norm_pix_loss=norm_pix_loss), seeded_images(1, (32, 96))
    kept = torch.tensor([[0, 3, 4, 6, 7, 8, 9, 11]])
    prediction = torch.randn(1, 12, 768, generator=torch.Generator().manual_seed(4))
    squares = []
    for cell in (1, 2, 5, 10):
        top, left = cell // 6 * 16, cell % 6 * 16
        patch = [
            images[0, colour, top + row, left + column].item()
            for row in range(16)
            for column in range(16)
            for colour in range(3)
        ]
        mean = sum(patch) / 768
        variance = sum((value - mean) ** 2 for value in patch) / 767
        if norm_pix_loss:
            patch = [(value - mean) / math.sqrt(variance + 1e-6) for value in patch]
        squares += [(found - value) ** 2 for found, value in zip(prediction[0, cell].tolist(), patch, strict=True)]
    hidden = model.hidden_pixels(cells(model, kept, (32, 96)))
    assert model.loss(images, prediction, hidden).item() == pytest.approx(sum(squares) / len(squares), rel=1e-5)


def test_the_loss_of_token_masks_counts_hidden_stage_1_pixels_alone() -> None:
    model, images = seeded(masking="token", norm_pix_loss=False), seeded_images(2)
    kept = seeded_mask(2, masking="token")
    hidden = torch.zeros(2, 3, 64, 64)
    for image, row in enumerate(kept.tolist()):
        for cell in set(range(256)) - set(row):
            top, left = cell // 16 * 4, cell % 16 * 4
            hidden[image, :, top : top + 4, left : left + 4] = 1
    found = model.hidden_pixels(cells(model, kept))
    assert torch.equal(unpatchify(found, (4, 4)), hidden)
    prediction = torch.randn(2, 16, 768)
    expected = (unpatchify(prediction, (4, 4)) - images)[hidden == 1].square().mean()
    torch.testing.assert_close(model.loss(images, prediction, found), expected)
    elsewhere = torch.where(found == 1, prediction, 1e3)
    assert torch.equal(model.loss(images, elsewhere, found), model.loss(images, prediction, found))


@pytest.mark.parametrize("masking", ["block", "complementary", "token"])
def test_bfloat16_autocast_gives_nearly_the_same_loss_and_finite_gradients(masking: str) -> None:
    model, images, kept = seeded(masking=masking), seeded_images(2), seeded_mask(2, masking=masking)
    expected = model(images, kept)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(images, kept)
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0)
    reference = gradients(model, expected)
    for name, gradient in gradients(model, found).items():
        assert gradient.isfinite().all(), name
        assert nn.functional.cosine_similarity(gradient.flatten(), reference[name].flatten(), dim=0) > 0.9, name


@pytest.mark.parametrize("masking", ["block", "token"])
def test_gradient_checkpointing_recomputes_every_block_and_changes_no_gradient(masking: str) -> None:
    images, kept = seeded_images(2), seeded_mask(2, masking=masking)
    found, runs = [], []
    for enabled in (False, True):
        model = seeded(masking=masking)
        model.set_grad_checkpointing(enabled)
        passes: list[None] = []
        encoder = model.encoder
        for block in (*encoder.blocks1, *encoder.blocks2, *encoder.blocks3, *model.decoder_blocks):
            block.register_forward_pre_hook(lambda *arguments, passes=passes: passes.append(None))
        found.append(gradients(model, model(images, kept)))
        runs.append(len(passes))
    assert runs == [6, 12]
    assert_gradients_equal(found[1], found[0], 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("masking", ["block", "token"])
def test_a_compiled_model_gives_the_same_loss_and_gradients(masking: str) -> None:
    model = seeded(SQUARE | {"depths": (1, 1, 1)}, masking=masking)
    images, kept = seeded_images(1), seeded_mask(1, masking=masking)
    expected = model(images, kept)
    expected_gradients = gradients(model, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's advice about settings and hardware
        found = torch.compile(model, fullgraph=False, dynamic=False, backend="aot_eager")(images, kept)
        found_gradients = gradients(model, found)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    assert_gradients_equal(found_gradients, expected_gradients, 1e-4)


@pytest.mark.parametrize(
    "pretraining",
    [
        {},
        {"masking": "complementary"},
        {"masking": "token"},
        {"multi_scale": False},
        {"masked_convolution": False},
    ],
    ids=str,
)
def test_every_trained_parameter_gets_a_gradient(pretraining: dict[str, Any]) -> None:
    model = seeded(**pretraining)
    masking = pretraining.get("masking", "block")
    model(seeded_images(1), seeded_mask(1, masking=masking)).backward()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"encoder.pos_embed", "decoder_pos_embed"} | ({"mask_token"} if masking == "token" else set())
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (name not in frozen), name


@pytest.mark.parametrize(
    ("variant", "total", "trained"),
    [
        ("small", 49_035_008, 48_859_392),
        ("base", 115_041_408, 114_790_528),
        ("base_plus", 135_248_000, 134_997_120),
        ("large", 374_424_960, 374_123_904),
        ("huge", 743_596_288, 743_245_056),
    ],
)
def test_parameter_counts_are_those_of_the_authors_class(variant: str, total: int, trained: int) -> None:
    config = MODELS[variant]()
    with torch.device("meta"):
        model = build_pretraining(config, PretrainingConfig(decoder_mlp_ratio=config.mlp_ratios[0]))
    parameters = list(model.parameters())
    assert sum(parameter.numel() for parameter in parameters) == total
    assert sum(parameter.numel() for parameter in parameters if parameter.requires_grad) == trained


def test_fresh_weights_are_drawn_as_in_the_authors_code() -> None:
    torch.manual_seed(0)
    model = build_pretraining(replace(ENCODER, embed_dims=(64, 64, 128)), replace(DECODER, decoder_width=64))

    def largest(name: str) -> float:
        return model.get_parameter(f"{name}.weight").abs().max().item()

    for name in ("decoder_embed", "decoder_pred", "encoder.patch_embed4", "encoder.blocks3.0.attn.qkv"):
        fan_out, fan_in = model.get_parameter(f"{name}.weight").shape
        assert largest(name) == pytest.approx(math.sqrt(6 / (fan_in + fan_out)), rel=0.03), name
    assert largest("encoder.patch_embed3.proj") == pytest.approx(math.sqrt(6 / (4 * 64 + 128)), rel=0.03)
    for name in ("blocks1.0.conv1", "blocks1.0.mlp.fc1", "blocks2.0.attn", "patch_embed1.proj"):
        fan_in = model.encoder.get_parameter(f"{name}.weight")[0].numel()
        assert largest(f"encoder.{name}") == pytest.approx(math.sqrt(1 / fan_in), rel=0.03), name
    assert 0.01 < model.mask_token.std() < 0.03


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"decoder_width": 30}, r"multiple of decoder_heads \(2\) and of 4; got 30$"),
        ({"decoder_heads": 5}, r"multiple of decoder_heads \(5\) and of 4; got 16$"),
        ({"masking": "token", "masked_convolution": False}, "token masks need masked convolutions"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConvMAEError, match=sentence):
        replace(DECODER, **changes)
