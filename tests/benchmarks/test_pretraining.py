"""The pretraining benchmark: its arithmetic, its check of the losses, and short runs of the command."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import pretraining
from benchmarks.pretraining import PretrainingBenchmark, gates, main, summarise, workloads
from benchmarks.pretraining_steps import (
    DENSE,
    UNMASKED,
    VISIBLE,
    Bench,
    Workload,
    check_losses,
    measure,
    peak_gb_alone,
)
from convmae_deploy.errors import ConvMAEError

SMALL = Workload(
    variant="nano",
    image_size=(64, 32),
    batch_size=1,
    mask_ratio=0.75,
    precision="fp32",
    compiled=False,
    threads=torch.get_num_threads(),
    device="cpu",
)
TINY_RUN = [
    *("--variant", "nano", "--batch-size", "1", "--rounds", "1", "--device", "cpu", "--no-compiled", "--no-memory"),
    *("--precisions", "fp32", "--threads", str(torch.get_num_threads())),
]
NO_PEAKS = dict.fromkeys((VISIBLE, DENSE, UNMASKED))
LOSSES = {VISIBLE: 1.0, DENSE: 1.0, UNMASKED: 1.1}


def test_ratios_are_of_the_medians_and_against_the_dense_masked_step() -> None:
    seconds = {VISIBLE: [0.4, 0.2, 0.3], DENSE: [0.6, 0.9, 0.3], UNMASKED: [0.4, 0.4, 0.1]}
    visible, dense, unmasked = summarise(SMALL, seconds, NO_PEAKS, LOSSES)
    assert (visible.contender, dense.contender, unmasked.contender) == (VISIBLE, DENSE, UNMASKED)
    assert visible.step_ms == pytest.approx(300)
    assert visible.images_per_second == pytest.approx(1 / 0.3)
    assert visible.speed_against_dense == pytest.approx(2)
    assert dense.speed_against_dense == 1
    assert unmasked.speed_against_dense == pytest.approx(1.5)


@pytest.mark.parametrize(("ratio", "holds"), [(1.9, True), (1.89, False)])
def test_a_gate_is_the_least_ratio_of_dense_to_visible(ratio: float, holds: bool) -> None:
    figures = summarise(SMALL, {VISIBLE: [1.0], DENSE: [ratio], UNMASKED: [0.1]}, NO_PEAKS, LOSSES)
    assert list(gates(figures).values()) == [holds]


def test_every_contender_steps_once_a_round_on_the_same_mask_and_each_leads_in_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(SMALL, (VISIBLE, DENSE, UNMASKED))
    steps: list[tuple[str, int]] = []

    def step(name: str, kept: torch.Tensor) -> float:
        steps.append((name, id(kept)))
        return float(len(steps))

    monkeypatch.setattr(bench, "step", step)
    seconds = measure(bench, "abc", 1, 3, lambda: None)
    assert "".join(name for name, _ in steps) == "cababcbcacab"
    assert all(len({mask for _, mask in steps[start : start + 3]}) == 1 for start in (0, 3, 6, 9))
    assert seconds == {"a": [4.0, 9.0, 11.0], "b": [5.0, 7.0, 12.0], "c": [6.0, 8.0, 10.0]}


def test_a_step_updates_the_weights_that_all_contenders_share() -> None:
    bench = Bench(SMALL, (VISIBLE, DENSE, UNMASKED))
    kept = bench.draw_mask()
    assert kept.shape == (1, 2)
    before = check_losses(bench, (VISIBLE, DENSE, UNMASKED))
    assert before[UNMASKED] != pytest.approx(before[VISIBLE], rel=1e-5)
    for name in (VISIBLE, DENSE, UNMASKED):
        losses = [bench.loss(each, kept).item() for each in (VISIBLE, DENSE)]
        assert bench.step(name, kept) > 0
        after = [bench.loss(each, kept).item() for each in (VISIBLE, DENSE)]
        assert after == pytest.approx([after[0]] * 2, rel=1e-5)
        assert after[0] < losses[0]


def test_a_fast_contender_with_another_loss_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(SMALL, (VISIBLE, DENSE))
    monkeypatch.setattr(bench, "loss", lambda name, kept: torch.tensor(1.0 if name == DENSE else 1.0001))
    with pytest.raises(ConvMAEError, match="must give the loss of dense masked, 1.0000000; got 1.0001000"):
        check_losses(bench, (VISIBLE, DENSE))


def test_the_command_prints_a_table_and_writes_the_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY_RUN, "--image-size", "64", "32", "--out", str(tmp_path / "figures.json")]) == 0
    printed = capsys.readouterr().out
    for words in ("ConvMAE nano", "batch 1, 64 x 32 pixels", "threads", "warm-up", "timed: forward, backward, AdamW"):
        assert words in printed
    for contender in (VISIBLE, DENSE, UNMASKED):
        assert f" {contender} " in printed
    assert "gate" not in printed
    record = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert [figure["contender"] for figure in record["figures"]] == [VISIBLE, DENSE, UNMASKED]
    visible, dense, _ = record["figures"]
    assert visible["loss"] == pytest.approx(dense["loss"], rel=1e-5)
    assert visible["speed_against_dense"] == pytest.approx(dense["step_ms"] / visible["step_ms"])
    assert record["threads"] == str(torch.get_num_threads())


def test_a_sweep_is_printed_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretraining, "SWEEP_SIZES", (32, 64))
    monkeypatch.setattr(pretraining, "SWEEP_RATIOS", (0.5,))
    arguments = ["--sweep", "--image-size", "64", "64", "--plot", str(tmp_path / "cost.png")]
    assert main([*TINY_RUN, *arguments]) == 0
    rows = [line.split()[:4] for line in capsys.readouterr().out.splitlines() if " x " in line]
    assert rows[-3:] == [["32", "x", "32", "0.75"], ["64", "x", "64", "0.75"], ["64", "x", "64", "0.5"]]
    with Image.open(tmp_path / "cost.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_every_precision_is_measured_eager_and_where_asked_compiled() -> None:
    config = PretrainingBenchmark(precisions=("fp32", "bf16"), compiled=True, device="cpu")
    assert [(workload.precision, workload.compiled) for workload in workloads(config)] == [
        ("fp32", False),
        ("fp32", True),
        ("bf16", False),
        ("bf16", True),
    ]
    assert {(workload.variant, workload.batch_size) for workload in workloads(config)} == {("base", 8)}


@pytest.mark.slow
def test_peak_memory_is_that_of_a_process_of_its_own() -> None:
    """Which holds weights, gradients and AdamW's two averages, 16 bytes a parameter, and PyTorch."""
    assert 28e6 * 16 / 1e9 < peak_gb_alone(SMALL, VISIBLE) < 4


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"rounds": 0}, "at least 1"),
        ({"precisions": ()}, "--precisions named"),
        ({"variant": "giant"}, "--variant must be one of nano.*got 'giant'"),
        ({"plot": Path("cost.png")}, "add --sweep"),
        ({"check": True, "variant": "nano"}, "--check holds the gates of ConvMAE-B"),
        ({"check": True, "sweep": True}, "--check holds the gates of ConvMAE-B"),
    ],
)
def test_settings_that_measure_nothing_are_refused(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConvMAEError, match=sentence):
        PretrainingBenchmark(**settings)  # type: ignore[arg-type]
