"""Settings that cannot be are refused by the name of the flag."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from convmae_deploy.engine import training_config
from convmae_deploy.engine.optimisation import OptimisationConfig
from convmae_deploy.engine.training_config import (
    RunConfig,
    TrainingConfig,
    ValidatedConfig,
    check_at_least,
    chosen_preset,
)
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.pretraining import PretrainingConfig
from convmae_deploy.models.video_pretraining import VideoPretrainingConfig
from training import finetune


def test_no_validation_at_all_is_refused() -> None:
    ValidatedConfig(data=Path("photos"), run=RunConfig(out=Path("run")), validation_epochs=1)
    with pytest.raises(ConvMAEError, match="validation_epochs must be at least 1; got 0"):
        ValidatedConfig(data=Path("photos"), run=RunConfig(out=Path("run")), validation_epochs=0)


def test_numbers_that_are_not_given_are_never_too_small() -> None:
    check_at_least(1, stride=None, train_images=1)
    with pytest.raises(ConvMAEError, match="stride must be at least 1; got 0"):
        check_at_least(1, train_images=None, stride=0)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**63}, "seed must be at least 0 and below 2"),
        ({"workers": -1}, "workers must be from 0 to 1024; got -1"),
        ({"workers": 10**12}, "workers must be from 0 to 1024"),
        ({"save_minutes": 0.0}, "save_minutes must be above 0; got 0"),
        ({"save_minutes": float("nan")}, "save_minutes must be above 0; got nan"),
    ],
)
def test_where_and_how_a_run_executes_is_within_bounds(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConvMAEError, match=sentence):
        RunConfig(out=Path("run"), **settings)


@pytest.mark.parametrize("licence", ["x" * 10_001, "\udcff"])
def test_a_licence_that_no_checkpoint_can_hold_is_refused(licence: str) -> None:
    with pytest.raises(ConvMAEError, match="licence must be a text that checkpoints can hold"):
        TrainingConfig(data="photos", licence=licence, run=RunConfig(out=Path("run")))


def test_no_setting_is_nan_or_infinity_however_deep_it_lies() -> None:
    run = RunConfig(out=Path("run"), save_minutes=float("inf"))
    with pytest.raises(ConvMAEError, match="save_minutes must be a finite number; got inf"):
        ValidatedConfig(data=Path("photos"), run=run)
    optimisation = OptimisationConfig(warmup_epochs=float("nan"))
    with pytest.raises(ConvMAEError, match="warmup_epochs must be a finite number; got nan"):
        ValidatedConfig(data=Path("photos"), run=RunConfig(out=Path("run")), optimisation=optimisation)


PRESETS = {
    "nano": ("Ours: for a CPU.", TrainingConfig()),
    "table5-full": ("Table 5.", TrainingConfig(optimisation=OptimisationConfig(epochs=800))),
}


@pytest.mark.parametrize(
    ("arguments", "found"), [([], "nothing"), (["--data", "photos"], "'--data'"), (["nona"], "'nona'")]
)
def test_a_forgotten_preset_lists_those_there_are_with_a_line_each(
    arguments: list[str], found: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    with pytest.raises(ConvMAEError, match=f"expected a preset first .* `python -m x nano --data .*; got {found}$"):
        chosen_preset(PRESETS, "python -m x")
    assert capsys.readouterr().err.splitlines() == [
        "the presets of python -m x:",
        "  nano         Ours: for a CPU.",
        "  table5-full  Table 5.",
    ]


def test_a_preset_is_taken_with_the_flags_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "table5-full", "--data", "photos", "--out", "run", "--seed", "3"])
    found = chosen_preset(PRESETS, "python -m x")
    assert (found.optimisation.epochs, found.data, found.run.seed) == (800, Path("photos"), 3)


@pytest.mark.parametrize(
    ("capabilities", "precision"), [({"avx512_bf16": True}, "bf16"), ({"avx512_bf16": False}, "fp32"), ({}, "fp32")]
)
def test_the_precision_is_what_the_cpu_is_fast_at_unless_one_is_asked_for(
    capabilities: dict[str, Any], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_config, "cpu_capabilities", lambda: capabilities)
    assert RunConfig(out=Path("run")).decided()[0].precision == precision
    for asked in ("fp32", "bf16"):
        run = RunConfig(out=Path("run"), precision=asked)
        assert run.decided() == (run, "as --precision says")


def test_a_resumed_run_keeps_its_precision_whatever_the_cpu_has(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"config": {"run": {"precision": "bf16"}}}))
    again = RunConfig(out=tmp_path, resume=True)
    assert (again.decided()[0].precision, again.decided()[1]) == ("bf16", "as in this run so far")
    assert RunConfig(out=tmp_path, resume=True, precision="fp32").decided()[0].precision == "fp32"
    assert RunConfig(out=tmp_path).decided()[0].precision == "fp32"
    (tmp_path / "run.json").write_text('{"config": {"run": {"precision": "auto"}}}')
    assert again.decided()[0].precision == "fp32"


@pytest.mark.parametrize(
    ("name", "value"),
    [("layer_decay", -1.0), ("layer_decay", 1e300), ("drop_path", -0.5), ("drop_path", 2.0), ("head_init_std", 0.0)],
)
def test_a_number_that_no_training_can_have_is_refused_by_its_name(name: str, value: float) -> None:
    changes: dict[str, Any] = {name: value}
    with pytest.raises(ConvMAEError, match=f"{name} must be from .* to .*; got"):
        replace(finetune.nano(), **changes)


@pytest.mark.parametrize(
    "changes",
    [{"decoder_heads": 0}, {"decoder_width": -128}, {"decoder_depth": 10**8}, {"decoder_mlp_ratio": -1.0}],
)
@pytest.mark.parametrize("config", [PretrainingConfig, VideoPretrainingConfig])
def test_a_decoder_that_cannot_be_made_is_refused(config: Any, changes: dict[str, float]) -> None:
    with pytest.raises(ConvMAEError, match="decoder_width, decoder_depth and decoder_heads must be from 1 to 8192"):
        config(**changes)
