"""The pretraining model gives what the authors' code gave: passes, gradients and updates of the weights."""

import pytest
import torch
from torch import Tensor

from convmae_deploy.models.convmae import build_convmae
from convmae_deploy.models.masking import keep_each_in_turn, keep_lowest
from convmae_deploy.models.pretraining import ConvMAEPretraining, patchify
from convmae_deploy.models.visible import VisibleCells
from tests.original_files import CONFIG, encoder_state, recorded, recorded_tensor, relative_error
from tests.recorded_pretraining import (
    needs_recorded_passes,
    original_names,
    pass_norms,
    pass_tensor,
    recorded_model,
    recorded_pass,
)

TOLERANCE = 1e-5  # relative
MASK_RATIO = 0.75
GRID = (14, 14)
FULL_GRADIENTS = [
    "patch_embed1.proj.weight",
    "blocks1.0.norm1.weight",
    "blocks1.0.conv1.weight",
    "blocks1.0.attn.weight",
    "blocks2.0.mlp.fc2.weight",
    "patch_embed4.weight",
    "blocks3.0.attn.qkv.weight",
    "stage1_output_decode.weight",
    "norm.weight",
    "mask_token",
    "decoder_pred.bias",
]


@pytest.fixture
def model() -> ConvMAEPretraining:
    return recorded_model()


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert relative_error(found, expected) <= TOLERANCE


def assert_norms_close(found: dict[str, float], expected: dict[str, float], tolerance: float = TOLERANCE) -> None:
    assert found.keys() == expected.keys()
    errors = {name: abs(found[name] - norm) / norm for name, norm in expected.items()}
    assert max(errors.values()) <= tolerance, max(errors.items(), key=lambda item: item[1])


def recorded_kept() -> Tensor:
    return keep_lowest(pass_tensor("pretrain", "noise"), MASK_RATIO)


def in_ascending_order(name: str) -> Tensor:
    """Recorded visible tokens (B, K, D), which are in the shuffled order of `ids_keep`, in the order of the cells."""
    order = pass_tensor("pretrain", "ids_keep").argsort(dim=1)[:, :, None]
    tokens = pass_tensor("pretrain", name)
    return tokens.gather(1, order.expand(-1, -1, tokens.shape[2]))


def at_visible_cells(name: str, visible: VisibleCells, side: int) -> Tensor:
    """A recorded map (B, C, H * s, W * s) at the visible cells, (M, s, s, C)."""
    return visible.gather(pass_tensor("pretrain", name).permute(0, 2, 3, 1), side)


def gradient_norms(model: ConvMAEPretraining) -> dict[str, float]:
    return {
        name: parameter.grad.norm().item()
        for name, parameter in original_names(model).items()
        if parameter.grad is not None
    }


def test_the_encoder_gives_the_recorded_stages_at_the_visible_cells() -> None:
    """Runs everywhere: from the small files of tests/fixtures."""
    images = recorded_tensor("classifier", "input")
    removed = torch.from_numpy(recorded("masked_stages")["mask"].copy())
    kept = keep_lowest(recorded_tensor("pretraining", "noise"), MASK_RATIO)
    visible = VisibleCells(kept, GRID)
    assert torch.equal(visible.removed(), removed.float())
    encoder = build_convmae(CONFIG)
    state = encoder.state_dict()
    encoder.load_state_dict({name: value.reshape(state[name].shape) for name, value in encoder_state().items()})
    with torch.no_grad():
        stage1, stage2, tokens = encoder.forward_visible(images, visible)
        embedded = encoder.patch_embed4(encoder.patch_embed3(stage2))
    assert_close(tokens[:, ::5], recorded_tensor("pretraining", "stage3_every_5th_visible"))
    maps = {"stage1_every_7th_cell": (stage1, 7), "stage2_every_5th_cell": (stage2, 5)}
    for name, (cells, step) in maps.items():
        map_bchw = visible.scatter(cells).permute(0, 3, 1, 2)[:, :, ::step, ::step]
        expected = recorded_tensor("masked_stages", name)
        assert_close(map_bchw, torch.where(map_bchw == 0, 0, expected))
        assert (map_bchw != 0).sum() > 5 * len(expected[0])
    shown = visible.scatter(embedded).flatten(1, 2)[:, ::13]
    assert_close(shown, torch.where(shown == 0, 0, recorded_tensor("masked_stages", "pe4_every_13th_token")))


def test_patches_are_the_recorded_targets() -> None:
    """Runs everywhere: from the small files of tests/fixtures."""
    patches = patchify(recorded_tensor("classifier", "input"))
    assert torch.equal(patches[0, 0], recorded_tensor("pretraining", "target_first_patch"))
    assert patches.double().sum().item() == pytest.approx(float(recorded("pretraining")["target_sum"]), rel=1e-6)


@needs_recorded_passes
@pytest.mark.parametrize(("norm_pix_loss", "name"), [(True, "loss_norm_pix"), (False, "loss_raw_pix")])
def test_the_loss_mask_and_prediction_are_the_recorded_ones(norm_pix_loss: bool, name: str) -> None:
    model = recorded_model(norm_pix_loss=norm_pix_loss)
    with torch.no_grad():
        result = model.reconstruct(pass_tensor("pretrain", "input"), recorded_kept())
    assert_close(result.loss, pass_tensor("pretrain", name))
    assert_close(result.prediction, pass_tensor("pretrain", "pred"))
    assert torch.equal(result.hidden.squeeze(2), pass_tensor("pretrain", "mask"))


@needs_recorded_passes
def test_every_step_on_the_way_is_the_recorded_one(model: ConvMAEPretraining) -> None:
    images, visible = pass_tensor("pretrain", "input"), VisibleCells(recorded_kept(), GRID)
    assert torch.equal(visible.kept, pass_tensor("pretrain", "ids_keep").sort(dim=1).values)
    with torch.no_grad():
        stage1, stage2, tokens = model.encoder.forward_visible(images, visible)
        assert_close(visible.scatter(stage1).permute(0, 3, 1, 2), pass_tensor("pretrain", "stage1_visible"))
        assert_close(stage2, at_visible_cells("stage2_dense", visible, 2))
        assert_close(tokens, in_ascending_order("stage3_visible"))
        for number, stage in ((1, stage1), (2, stage2)):
            fused = getattr(model, f"stage{number}_output_decode")(stage.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            assert_close(fused, at_visible_cells(f"s{number}_decode", visible, 1))
        both = at_visible_cells("s1_decode", visible, 1) + at_visible_cells("s2_decode", visible, 1)
        assert_close(model._fused(stage1, stage2), both)
        latent = model.encode(images, visible)
        assert_close(latent, in_ascending_order("latent"))
        assert_close(model.decoder_embed(latent), in_ascending_order("dec_in"))


@needs_recorded_passes
def test_the_decoder_turns_recorded_tokens_into_the_recorded_prediction(model: ConvMAEPretraining) -> None:
    outputs: list[Tensor] = []
    model.decoder_norm.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.no_grad():
        prediction = model.decode(in_ascending_order("dec_in"), VisibleCells(recorded_kept(), GRID), GRID)
    assert_close(outputs[0], pass_tensor("pretrain", "dec_out"))
    assert_close(prediction, pass_tensor("pretrain", "pred"))


@needs_recorded_passes
def test_the_norm_of_every_gradient_is_the_recorded_one(model: ConvMAEPretraining) -> None:
    model(pass_tensor("pretrain", "input"), recorded_kept()).backward()
    assert_norms_close(gradient_norms(model), pass_norms("pretrain", "grad"))


@needs_recorded_passes
def test_the_recorded_gradients_are_equalled_in_full(model: ConvMAEPretraining) -> None:
    model(pass_tensor("pretrain", "input"), recorded_kept()).backward()
    names = [key.removeprefix("grad__") for key in recorded_pass("pretrain") if key.startswith("grad__")]
    assert sorted(names) == sorted(FULL_GRADIENTS)
    parameters = original_names(model)
    for name in names:
        gradient = parameters[name].grad
        assert gradient is not None
        expected = pass_tensor("pretrain", f"grad__{name}").reshape(gradient.shape)  # theirs of 1x1 convolutions
        assert relative_error(gradient, expected) <= TOLERANCE, name


@needs_recorded_passes
def test_three_updates_give_the_recorded_losses_and_weights(model: ConvMAEPretraining) -> None:
    """AdamW as in their training: no decay of one-dimensional parameters, the same batch and mask in each step."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": 0.05},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.2e-3, betas=(0.9, 0.95), eps=1e-8, fused=True)
    images, kept = pass_tensor("pretrain", "input"), recorded_kept()
    losses = []
    for _ in range(3):
        loss = model(images, kept)
        losses.append(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        losses.append(model(images, kept))
    for found, expected in zip(losses, pass_tensor("pretrain", "adamw_losses"), strict=True):
        assert_close(found, expected)
    norms = {name: parameter.norm().item() for name, parameter in original_names(model).items()}
    expected_norms = pass_norms("pretrain", "after3")
    # the gradient of a key's bias is zero but for rounding, and AdamW divides it by its own size
    noisy = [name for name in norms if name.endswith("attn.qkv.bias")]
    assert_norms_close(
        {name: norms.pop(name) for name in noisy}, {name: expected_norms.pop(name) for name in noisy}, 1e-4
    )
    assert_norms_close(norms, expected_norms)


@needs_recorded_passes
def test_complementary_masks_give_what_the_fast_variant_of_the_authors_gave(model: ConvMAEPretraining) -> None:
    kept = keep_each_in_turn(pass_tensor("fast_pretrain", "noise"), MASK_RATIO)
    assert torch.equal(kept, pass_tensor("fast_pretrain", "ids_keep").flatten(0, 1).sort(dim=1).values)
    result = model.reconstruct(pass_tensor("fast_pretrain", "input"), kept)
    assert_close(result.loss, pass_tensor("fast_pretrain", "loss"))
    assert_close(result.prediction, pass_tensor("fast_pretrain", "pred"))
    assert torch.equal(result.hidden.squeeze(2), pass_tensor("fast_pretrain", "mask"))
    result.loss.backward()  # type: ignore[no-untyped-call]
    assert_norms_close(gradient_norms(model), pass_norms("fast_pretrain", "grad"))
