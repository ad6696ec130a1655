"""The command that runs every preset: what it runs, what it makes of how that ends, and one preset for real."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from benchmarks import presets as program
from benchmarks.bounded_process import Outcome
from benchmarks.presets import PROGRAMS, PresetsConfig, chosen, judged, run_presets, table, training_command
from convmae_deploy.errors import ConvMAEError
from tests.photo_folders import make_photo_folder

QUIET = Console(quiet=True)
GOOD = Outcome(status=0, seconds=12.3, peak_gb=1.5, timed_out=False, said="done")


def config(tmp_path: Path, **changes: Any) -> PresetsConfig:
    plain: dict[str, Any] = {"photos": tmp_path / "photos", "out": tmp_path / "out", "programs": ("pretrain",)}
    return PresetsConfig(**plain | changes)


def test_by_default_every_preset_of_every_program_is_run(tmp_path: Path) -> None:
    everything = config(tmp_path, programs=tuple(PROGRAMS), coco=tmp_path, segmentation=tmp_path, videos=tmp_path)
    rows = list(chosen(everything))
    assert len(rows) == len(set(rows)) == sum(len(module.PRESETS) for module in PROGRAMS.values())
    assert set(PROGRAMS) == {path.stem for path in Path(program.__file__).parents[1].glob("training/*.py")} - {
        *("__init__", "ablation", "reconstruct", "video_test")
    }
    some = replace(everything, programs=("finetune", "detect"), presets=("base", "nano"))
    assert list(chosen(some)) == [("finetune", "nano"), ("finetune", "base"), ("detect", "nano")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"programs": ("train",)}, "--programs must be among .*; got train"),
        ({"presets": ("gigantic",)}, "--presets must be among .*; got gigantic"),
        ({"programs": ("detect",)}, "detect needs data; give --coco or name other --programs"),
        ({"updates": 0}, "--updates must be at least 1; got 0"),
    ],
)
def test_what_cannot_be_run_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConvMAEError, match=message):
        config(tmp_path, **changes)


@pytest.mark.parametrize("name", PROGRAMS)
def test_commands_are_those_of_users_and_take_every_flag(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = training_command(name, "nano", tmp_path / "data", tmp_path)
    assert command[:4] == [sys.executable, "-m", f"training.{name}", "nano"]
    seen: list[Any] = []

    def prepare(parsed: Any) -> SimpleNamespace:
        seen.append(parsed)
        return SimpleNamespace(fit=lambda: 0)

    monkeypatch.setattr(PROGRAMS[name], "prepare", prepare)
    monkeypatch.setattr(sys, "argv", command[2:])
    assert PROGRAMS[name].main() == 0
    (parsed,) = seen
    preset = PROGRAMS[name].PRESETS["nano"][1]
    assert (parsed.optimisation.epochs, parsed.optimisation.batch_size, parsed.run.out) == (1, 4, tmp_path / "run")
    assert parsed.optimisation.base_lr == preset.optimisation.base_lr
    assert getattr(parsed, "drop_path", None) == getattr(preset, "drop_path", None)


@pytest.mark.parametrize(
    ("outcome", "losses", "state", "reason"),
    [
        (GOOD, [2.0, 1.0, 1.5, 0.5], "ran", ""),
        (GOOD, [2.0, 1.0, float("nan"), 0.5], "failed", "3 of 4 updates with a finite loss"),
        (GOOD, [], "failed", "0 of 4 updates with a finite loss"),
        (replace(GOOD, status=2, said="error: no"), [2.0], "failed", "status 2: error: no"),
        (replace(GOOD, status=-9, timed_out=True), [2.0], "failed", "took longer than 20 minutes"),
        (replace(GOOD, status=-9), [2.0], "did not fit", "needs more memory than this machine after 1 updates"),
        (replace(GOOD, status=1, said="MemoryError"), [], "did not fit", "needs more memory than .* after 0 updates"),
    ],
)
def test_what_became_of_a_preset(
    outcome: Outcome, losses: list[float], state: str, reason: str, tmp_path: Path
) -> None:
    row = judged("pretrain", "base", outcome, losses, config(tmp_path))
    assert row.state == state and (row.first_loss, row.last_loss) == ((2.0, losses[-1]) if losses else (None, None))
    assert re.fullmatch(reason, row.reason)


def test_the_table_says_what_was_reduced_once_a_program_and_why_a_preset_did_not_run(tmp_path: Path) -> None:
    rows = [
        judged("detect", "nano", GOOD, [2.0, 1.0, 1.5, 0.5], config(tmp_path)),
        judged("detect", "base-25", replace(GOOD, status=1, said="error: no"), [2.0], config(tmp_path)),
    ]
    assert table(rows).splitlines()[2:] == [
        "| detect | 128 pixels, batch 4 in 2s, 1 epoch, 1 worker | `nano` | 4 | 2.000 0.500 | 12 | 1.5 |",
        "|  |  | `base-25` | 1, failed: status 1: error: no | 2.000 2.000 | 12 | 1.5 |",
    ]


@pytest.mark.slow
def test_a_preset_runs_and_is_kept_when_the_others_are_run_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_photo_folder(tmp_path / "photos", classes=tuple("abcd"), per_class=2)
    one = config(tmp_path, presets=("nano",), updates=2)
    (row,) = run_presets(one, QUIET)
    assert (row.state, row.updates, row.reason) == ("ran", 2, "") and (row.peak_gb or 1) > 0.2
    folder = tmp_path / "out" / "pretrain" / "nano"
    assert not (folder / "run" / "last").exists() and "epoch 1/1" in (folder / "log.txt").read_text()
    with pytest.raises(ConvMAEError, match="add --resume"):
        run_presets(one, QUIET)
    monkeypatch.setattr(program, "run_bounded", lambda *_, **__: replace(GOOD, status=1, said="error: broken"))
    arguments = ["presets", "--photos", str(tmp_path / "photos"), "--out", str(tmp_path / "out"), "--resume"]
    monkeypatch.setattr(
        sys, "argv", [*arguments, "--programs", "pretrain", "--presets", "nano", "tiny", "--updates", "2"]
    )
    assert program.main() == 1
    assert capsys.readouterr().out.splitlines()[-1] == "1 ran, 0 did not fit, 1 failed"
    kept = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(found["preset"], found["state"]) for found in kept] == [("nano", "ran"), ("tiny", "failed")]
    assert "error: broken" in (tmp_path / "out" / "table.md").read_text()
