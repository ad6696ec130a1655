"""Optimiser groups and schedule against the authors' recorded groups and hand-computed rates."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from convmae_deploy.engine.optimisation import (
    DenseOptimisationConfig,
    LarsConfig,
    OptimisationConfig,
    build_adamw,
    build_lars,
    set_lr,
)
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.classifier import build_classifier
from convmae_deploy.models.convmae import ConvMAEConfig
from convmae_deploy.models.pretraining import PretrainingConfig, build_pretraining

REFERENCE = Path(__file__).parents[1] / "fixtures" / "reference" / "layer_decay_groups_0.65.json"
REFERENCE_CONFIG = ConvMAEConfig(embed_dims=(32, 48, 96), depths=(1, 1, 2), mlp_ratios=(2, 4, 3), num_heads=4)


def test_layer_decay_groups_equal_the_recorded_ones() -> None:
    model = build_classifier(REFERENCE_CONFIG, num_classes=10)
    optimizer = build_adamw(model, OptimisationConfig(weight_decay=0.05), layer_decay=0.65)
    names = {id(parameter): name.removeprefix("encoder.") for name, parameter in model.named_parameters()}
    ours = {
        names[id(parameter)]: (group["lr_scale"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    recorded = json.loads(REFERENCE.read_text())
    assert ours.keys() == recorded.keys()
    for name, (lr_scale, weight_decay) in ours.items():
        assert lr_scale == pytest.approx(recorded[name]["lr_scale"], rel=1e-12), name
        assert weight_decay == recorded[name]["weight_decay"], name


def test_without_layer_decay_only_biases_norms_and_named_parameters_do_not_decay() -> None:
    model = build_pretraining(REFERENCE_CONFIG, PretrainingConfig(decoder_width=32, decoder_depth=1, decoder_heads=4))
    optimizer = build_adamw(model, OptimisationConfig(weight_decay=0.05))
    decay = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert decay[id(parameter)] == (0.0 if parameter.ndim == 1 else 0.05), name
    assert decay[id(model.mask_token)] == 0.05  # as in the authors' code
    assert id(model.encoder.pos_embed) not in decay and id(model.decoder_pos_embed) not in decay


def test_schedule_warms_up_from_zero_then_falls_by_half_a_cosine() -> None:
    config = OptimisationConfig(epochs=10, warmup_epochs=2, batch_size=512, base_lr=1e-3, min_lr=1e-5)
    peak = 2e-3
    assert config.learning_rate == pytest.approx(peak)
    assert config.learning_rate_at(0, 100) == 0
    assert config.learning_rate_at(50, 100) == pytest.approx(peak * 0.25)
    assert config.learning_rate_at(200, 100) == pytest.approx(peak)
    assert config.learning_rate_at(600, 100) == pytest.approx((peak + 1e-5) / 2)
    assert config.learning_rate_at(1000, 100) == pytest.approx(1e-5)


def test_the_linear_schedule_of_dense_tasks_is_that_of_mmcv() -> None:
    config = DenseOptimisationConfig(
        epochs=4, batch_size=16, base_lr=1.6e-3, min_lr=0.0, schedule="linear", warmup_steps=15, warmup_factor=1e-6
    )
    total, peak = 40, 1e-4
    for step in range(total):
        regular = peak * (1 - step / total) ** 1.0
        expected = regular * (1 - (1 - step / 15) * (1 - 1e-6)) if step < 15 else regular
        assert config.learning_rate_at(step, 10) == pytest.approx(expected, rel=1e-12)


def test_the_cosine_of_dense_tasks_starts_with_the_first_update() -> None:
    config = DenseOptimisationConfig(epochs=2, batch_size=256, base_lr=1e-3, min_lr=1e-4)
    assert [config.learning_rate_at(step, 10) for step in (0, 10, 20)] == pytest.approx([1e-3, 5.5e-4, 1e-4])
    with pytest.raises(ConvMAEError, match="warmup_factor between 0 and 1; got 5, 1.5"):
        DenseOptimisationConfig(warmup_steps=5, warmup_factor=1.5)


def test_steps_divide_the_rate_by_ten_where_the_authors_do() -> None:
    config = DenseOptimisationConfig(
        epochs=1, batch_size=16, base_lr=1.6e-3, schedule="steps", warmup_steps=250, warmup_factor=1e-3
    )
    total = 184_375
    rates = [config.learning_rate_at(step, total) for step in (0, 250, 163_888, 163_889, 177_545, 177_547, total - 1)]
    assert rates == pytest.approx([1e-7, 1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6])


@pytest.mark.parametrize("layer_decay", [None, 0.8])
def test_biases_decay_where_asked_for_and_norms_never_do(layer_decay: float | None) -> None:
    model = build_classifier(REFERENCE_CONFIG, num_classes=10)
    config = OptimisationConfig(weight_decay=0.1)
    optimizer = build_adamw(model, config, layer_decay=layer_decay, decay_biases=True)
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    plain = build_adamw(model, config, layer_decay=layer_decay)
    scales = {id(parameter): group.get("lr_scale") for group in plain.param_groups for parameter in group["params"]}
    assert groups.keys() == scales.keys()
    for name, parameter in model.named_parameters():
        unchanged = "norm" in name or name.endswith("pos_embed")
        assert groups[id(parameter)]["weight_decay"] == (0.0 if unchanged else 0.1), name
        assert groups[id(parameter)].get("lr_scale") == scales[id(parameter)], name


def test_each_group_gets_the_rate_times_its_scale() -> None:
    groups = [{"lr": 0.0, "lr_scale": 0.5}, {"lr": 0.0}]
    set_lr(groups, 0.2)
    assert [group["lr"] for group in groups] == [0.1, 0.2]


def test_a_run_of_no_epochs_is_refused() -> None:
    with pytest.raises(ConvMAEError, match="at least 1; got 0, 1024, 128"):
        OptimisationConfig(epochs=0, warmup_epochs=0)


def test_a_warm_up_that_would_not_end_within_the_run_takes_a_tenth_of_it_and_says_so() -> None:
    config = OptimisationConfig(epochs=1, warmup_epochs=5, batch_size=256, base_lr=1e-3, min_lr=0.0)
    rates = [config.learning_rate_at(step, 100) for step in (0, 5, 10, 55)]
    assert rates == pytest.approx([0.0, 5e-4, 1e-3, 5e-4])
    notice = "warm-up takes 10 of the 100 updates of this run: --warmup-epochs 5 would not end within them"
    assert config.warmup_notice(100) == notice
    assert replace(config, epochs=6).warmup_notice(100) is None
    assert replace(config, epochs=6).learning_rate_at(250, 100) == pytest.approx(5e-4)


def test_the_updates_of_warm_up_of_dense_tasks_are_shortened_alike() -> None:
    config = DenseOptimisationConfig(
        epochs=2, batch_size=256, base_lr=1e-3, min_lr=0.0, schedule="linear", warmup_steps=1500, warmup_factor=0.5
    )
    assert [config.learning_rate_at(step, 10) for step in (0, 1, 2)] == pytest.approx([5e-4, 0.75 * 9.5e-4, 9e-4])
    assert config.warmup_notice(10) == (
        "warm-up takes 2 of the 20 updates of this run: --warmup-steps 1500 would not end within them"
    )
    assert config.warmup_notice(751) is None and DenseOptimisationConfig(epochs=1).warmup_notice(1) is None


@pytest.mark.parametrize("config", [OptimisationConfig(epochs=1), DenseOptimisationConfig(epochs=1, warmup_steps=99)])
def test_the_shortest_runs_reach_their_learning_rate(config: OptimisationConfig) -> None:
    assert config.learning_rate_at(0, 1) == config.learning_rate
    assert [config.learning_rate_at(step, 4) for step in (0, 1)] == pytest.approx([0, config.learning_rate], rel=0.15)


def test_a_negative_warm_up_is_refused() -> None:
    with pytest.raises(ConvMAEError, match="warmup_epochs must be at least 0; got -1"):
        OptimisationConfig(warmup_epochs=-1)


def test_the_position_embedding_and_vectors_are_not_decayed() -> None:
    optimizer = build_adamw(build_classifier(REFERENCE_CONFIG, num_classes=3), OptimisationConfig())
    assert isinstance(optimizer.param_groups[0]["params"][0], nn.Parameter)
    for group in optimizer.param_groups:
        vectors = [parameter.ndim == 1 or parameter.shape[:1] == (1,) for parameter in group["params"]]
        assert set(vectors) == {group["weight_decay"] == 0}


def test_lars_moves_a_matrix_by_a_share_of_its_norm_and_a_vector_by_plain_momentum() -> None:
    layer = nn.Linear(3, 2).double()
    weight, bias = (parameter.detach().clone() for parameter in (layer.weight, layer.bias))
    gradients = [(torch.randn_like(weight), torch.randn_like(bias)) for _ in range(3)]
    gradients.append((torch.zeros_like(weight), torch.zeros_like(bias)))
    config = LarsConfig(batch_size=256, base_lr=0.5, momentum=0.9, trust_coefficient=0.01)
    optimizer = build_lars(layer, config)
    weight_momentum, bias_momentum = torch.zeros_like(weight), torch.zeros_like(bias)
    for weight_gradient, bias_gradient in gradients:
        layer.weight.grad, layer.bias.grad = weight_gradient.clone(), bias_gradient.clone()
        optimizer.step()
        norm = weight_gradient.norm()
        ratio = 0.01 * weight.norm() / norm if norm > 0 else 1.0
        weight_momentum = 0.9 * weight_momentum + ratio * weight_gradient
        bias_momentum = 0.9 * bias_momentum + bias_gradient
        weight, bias = weight - 0.5 * weight_momentum, bias - 0.5 * bias_momentum
        torch.testing.assert_close(layer.weight.data, weight, rtol=1e-12, atol=0)
        torch.testing.assert_close(layer.bias.data, bias, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"base_lr": -1.0}, "base_lr, min_lr and weight_decay must be at least 0; got -1"),
        ({"weight_decay": float("nan")}, "must be at least 0; got 0.0005, 1e-06, nan"),
        ({"betas": (2.0, 0.9)}, "betas must be at least 0 and less than 1; got 2.0, 0.9"),
        ({"clip_grad": -1.0}, "clip_grad must be above 0; got -1"),
    ],
)
def test_rates_that_cannot_be_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConvMAEError, match=sentence):
        OptimisationConfig(**settings)


@pytest.mark.parametrize("kind", [OptimisationConfig, DenseOptimisationConfig, LarsConfig])
def test_an_update_that_holds_fewer_images_has_as_much_less_of_a_learning_rate(kind: type[OptimisationConfig]) -> None:
    asked = kind(epochs=4, batch_size=1024, base_lr=4e-3, min_lr=1e-3)
    held = asked.holding(16)
    assert held.learning_rate == pytest.approx(2.5e-4)
    for step in range(8):
        assert held.learning_rate_at(step, 2) == pytest.approx(asked.learning_rate_at(step, 2) / 64)
    assert asked.holding(1024) is asked
