"""The comparison of pretraining's parts: every arm runs, resumes, and is compared seed by seed."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from convmae_deploy.checkpoints import read_checkpoint
from convmae_deploy.engine.run_folder import RunFolder
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models import vit
from convmae_deploy.models.convmae import MODELS, ConvMAEConfig
from convmae_deploy.models.pretraining import PretrainingConfig
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
        changed = replace(preset, optimisation=small)
        monkeypatch.setattr(module, "nano", lambda changed=changed: changed)
    return program.AblationConfig(
        data=make_photo_folder(tmp_path / "photos"),
        out=tmp_path / "out",
        seeds=(0, 1),
        pretrain_epochs=1,
        finetune_epochs=1,
        labelled=0.5,
        image_size=(32, 32),
        precision="fp32",
        workers=0,
    )


@pytest.mark.slow
def test_every_arm_is_run_for_every_seed_and_an_interrupted_comparison_goes_on(
    config: program.AblationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vit.VITS, "vit_nano", lambda: vit.vit(width=32, depth=1, num_heads=2, image_size=(32, 32)))
    config = replace(config, arms=("no pretraining, no layer decay", "MAE with a ViT"))
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        assert program.run_ablation(config, Console(quiet=True)) == 128 + signal.SIGTERM
    with pytest.raises(ConvMAEError, match="add --resume"):
        program.run_ablation(config, Console(quiet=True))
    assert program.run_ablation(replace(config, resume=True), Console(quiet=True)) == 0
    record, _ = read_checkpoint(config.out / "mae-with-a-vit-seed0" / "finetune")
    assert record.variant == "vit_nano" and not record.model.has_stages
    results = json.loads((config.out / "results.json").read_text())
    arms = (program.BASELINE, *config.arms)
    assert {(result["arm"], result["seed"]) for result in results} == {(arm, n) for arm in arms for n in (0, 1)}
    assert all((result["pretrain_loss"] is None) == result["arm"].startswith("no pretraining") for result in results)
    rows = (config.out / "table.md").read_text().splitlines()
    assert [row.split("|")[1].strip() for row in rows[2:5]] == list(arms)
    assert (config.out / "table.png").stat().st_size > 5_000
    seen, all_of_them = (len(list((root / "train").rglob("*.png"))) for root in (config.out / "labelled", config.data))
    assert 2 * seen == all_of_them


@pytest.mark.slow
def test_an_arm_without_pretraining_is_the_weights_that_pretraining_begins_with(
    config: program.AblationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = pretrain.prepare(program.pretraining(config, program.ARMS[program.BASELINE], 1, config.out / "begun"))
    expected = {name: value.clone() for name, value in begun.run.bare_model.state_dict().items()}
    scratch = config.out / "no-pretraining-seed1" / "pretrain"
    for arm in ("no pretraining", "no pretraining, no layer decay"):
        settings = program.pretraining(config, program.ARMS[arm], 1, scratch.parent / arm)
        pretrain.prepare(settings).run.save()
        saved = load_file(scratch.parent / arm / "last" / "model.safetensors")
        assert all(torch.equal(saved[name], value) for name, value in expected.items())


def result(arm: str, seed: int, probe: float | None, finetuned: float) -> program.Result:
    return program.Result(
        arm=arm, seed=seed, probe_top1=probe, finetune_top1=finetuned, pretrain_loss=None, seconds=60.0
    )


def test_runs_are_compared_seed_by_seed_and_an_ordering_that_shows_is_bold() -> None:
    results = [result(program.BASELINE, seed, 50.0 + seed, 60.0 + seed) for seed in (0, 1, 2)]
    results += [result("worse", seed, None, 50.0 + seed + 0.1 * (seed % 2)) for seed in (2, 0, 1)]
    results += [result("near", seed, 50.0 + 2.0 * seed, 60.0) for seed in (0, 1)]
    compared = program.comparisons(results)
    assert set(compared) == {("worse", "finetune_top1"), ("near", "probe_top1"), ("near", "finetune_top1")}
    assert compared["worse", "finetune_top1"].shows and not compared["near", "probe_top1"].shows
    assert compared["worse", "finetune_top1"].difference.mean == pytest.approx(-29.9 / 3)
    assert compared["near", "probe_top1"].difference.mean == pytest.approx(0.5)
    rows = program.table(results).splitlines()
    assert rows[2] == "| ConvMAE | 51.00 |  |  | 61.00 |  |  | 3 |"
    assert rows[3].startswith("| worse |  |  |  | 51.03 | **-9.97 (-10.11 to -9.82)** | ")
    assert "+0.50 (-5.85 to +6.85)" in rows[4] and "**" not in rows[4]


@pytest.mark.slow
def test_runs_of_several_machines_are_brought_together(config: program.AblationConfig, tmp_path: Path) -> None:
    def settled(settings: program.AblationConfig, arm: str, seed: int) -> Path:
        file = config.out / f"{program.slug(arm)}-seed{seed}" / "result.json"
        file.parent.mkdir(parents=True)
        found = vars(result(arm, seed, 50.0 + seed, 60.0 + seed))
        file.write_text(json.dumps({"settings": program.settings_of(settings), "result": found}))
        return file

    elsewhere = replace(config, data=tmp_path / "elsewhere", seeds=(1,), workers=4)
    files = [settled(elsewhere, arm, seed) for arm in (program.BASELINE, "token masks") for seed in (0, 1)]
    both = replace(config, arms=("token masks",), resume=True)
    with pytest.raises(ConvMAEError, match="is no run"):
        program.run_ablation(replace(both, resume=False), Console(quiet=True))
    assert program.run_ablation(both, Console(quiet=True)) == 0
    assert [found["finetune_top1"] for found in json.loads((config.out / "results.json").read_text())] == [
        60,
        60,
        61,
        61,
    ]
    assert program.run_ablation(both, Console(quiet=True)) == 0
    assert len(RunFolder(config.out).description()["resumed"]) == 1
    with pytest.raises(ConvMAEError, match="a run with pretrain_epochs 1, and this comparison has 2"):
        program.read_result(files[0], replace(config, pretrain_epochs=2))
    files[0].write_text("[]")
    with pytest.raises(ConvMAEError, match="must hold the result of a run"):
        program.read_result(files[0], config)


def test_an_arm_changes_what_it_is_called_after(config: program.AblationConfig) -> None:
    def model(arm: str) -> PretrainingConfig:
        return program.pretraining(config, program.ARMS[arm], 0, config.out).model

    plain = model(program.BASELINE)
    assert model("no masked convolution") == replace(plain, masked_convolution=False)
    assert model("no multi-scale decoder") == replace(plain, multi_scale=False)
    assert model("token masks") == replace(plain, masking="token")


def test_data_that_are_not_there_leave_no_folder(config: program.AblationConfig, tmp_path: Path) -> None:
    with pytest.raises(ConvMAEError, match="must hold photos"):
        program.run_ablation(replace(config, data=tmp_path / "none"), Console(quiet=True))
    assert not config.out.exists()


def test_a_share_of_every_class_is_taken_and_all_of_val(tmp_path: Path) -> None:
    photos = make_photo_folder(tmp_path / "photos", per_class=5)
    program.link_photos(photos, tmp_path / "links", 0.6)
    for name in ("blue", "red"):
        assert len(list((tmp_path / "links" / "train" / name).iterdir())) == 3
        assert len(list((tmp_path / "links" / "val" / name).iterdir())) == 5


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"seeds": (3, 3)}, r"all different; got \(3, 3\)"),
        ({"seeds": ()}, "at least one, two for an interval"),
        ({"arms": ("ConvMAE",)}, "arms must be among no pretraining"),
        ({"arms": ("no masks",)}, r"got \['no masks'\]"),
        ({"labelled": 0.0}, "labelled must be above 0"),
        ({"finetune_epochs": -1}, "finetune_epochs must be at least 1; got -1"),
        ({"layer_decay": float("nan")}, "layer_decay must be a finite number"),
        ({"layer_decay": -1.0}, "layer_decay must be from 0.001 to 1; got -1"),
        ({"image_size": (33, 33)}, "33"),
        ({"seeds": (-1,)}, "seed must be at least 0"),
        ({"workers": -1}, "workers must be from 0 to 1024; got -1"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConvMAEError, match=sentence):
        program.AblationConfig(data=tmp_path, out=tmp_path / "out", **wrong)
