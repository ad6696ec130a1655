"""The comparison of pretraining's parts: every arm runs, resumes, and is judged against its spread."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convmae import MODELS, ConvMAEConfig
from tests.photo_folders import make_photo_folder
from tests.training_runs import stop_after
from training import ablation as program
from training import finetune, linprobe, pretrain

TEST_MODEL = ConvMAEConfig(
    embed_dims=(8, 16, 32), depths=(1, 1, 1), mlp_ratios=(2, 2, 2), num_heads=2, image_size=(32, 32)
)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> program.AblationConfig:
    """Two seeds of one epoch each, on a small model."""
    monkeypatch.setitem(MODELS, "nano", lambda: TEST_MODEL)
    for module in (pretrain, finetune, linprobe):
        preset = module.nano()
        small = replace(preset.optimisation, warmup_epochs=0, batch_size=4, micro_batch_size=4)
        changed = replace(preset, optimisation=small, run=replace(preset.run, precision="fp32"))
        monkeypatch.setattr(module, "nano", lambda changed=changed: changed)
    return program.AblationConfig(
        data=make_photo_folder(tmp_path / "photos"),
        out=tmp_path / "out",
        train_photos=8,
        pretrain_epochs=1,
        finetune_epochs=1,
        probe_epochs=1,
        image_size=(32, 32),
        workers=0,
    )


@pytest.mark.slow
def test_every_arm_is_run_for_every_seed_and_an_interrupted_comparison_goes_on(
    config: program.AblationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        assert program.run_ablation(config, Console(quiet=True)) == 128 + signal.SIGTERM
    with pytest.raises(ConvMAEError, match="add --resume"):
        program.run_ablation(config, Console(quiet=True))
    assert program.run_ablation(replace(config, resume=True), Console(quiet=True)) == 0
    results = json.loads((config.out / "results.json").read_text())
    assert {(result["arm"], result["seed"]) for result in results} == {(arm, n) for arm in program.ARMS for n in (0, 1)}
    assert all((result["pretrain_loss"] is None) == (result["arm"] == program.SCRATCH) for result in results)
    rows = (config.out / "table.md").read_text().splitlines()
    assert [row.split("|")[1].strip() for row in rows[2:7]] == list(program.ARMS)
    assert (config.out / "table.png").stat().st_size > 5_000
    assert len(list((config.out / "photos" / "train").rglob("*.png"))) == 8


def result(arm: str, seed: int, top1: float) -> program.Result:
    return program.Result(arm=arm, seed=seed, finetune_top1=top1, probe_top1=top1, pretrain_loss=None, seconds=1.0)


def test_a_difference_within_the_spread_is_called_none() -> None:
    results = [result(program.BASELINE, 0, 50.0), result(program.BASELINE, 1, 52.0)]
    results += [result("near", 0, 49.0), result("near", 1, 50.0), result("far", 0, 40.0), result("far", 1, 41.0)]
    assert program.against_baseline(results, "near", "finetune_top1") == "none"
    assert program.against_baseline(results, "far", "finetune_top1") == "-10.50"
    assert program.against_baseline(results, program.BASELINE, "finetune_top1") == ""
    assert "| far | 40.50 | 1.00 | -10.50 | 40.50 | 1.00 | -10.50 | 2 |" in program.table(results)


def test_the_same_number_of_photos_of_every_class_is_taken_and_too_few_are_refused(tmp_path: Path) -> None:
    photos = make_photo_folder(tmp_path / "photos", per_class=5)
    program.link_photos(photos, tmp_path / "links", 6)
    for name in ("blue", "red"):
        assert len(list((tmp_path / "links" / "train" / name).iterdir())) == 3
        assert len(list((tmp_path / "links" / "val" / name).iterdir())) == 5
    with pytest.raises(ConvMAEError, match="12 photos need 6 of each class; blue has 5"):
        program.link_photos(photos, tmp_path / "more", 12)


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
    with pytest.raises(ConvMAEError, match="at least two different seeds"):
        program.AblationConfig(data=tmp_path, out=tmp_path / "out", seeds=(3, 3))
