"""The pretraining benchmark: its arithmetic, its check of the losses, and short runs of the command."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from benchmarks import pretraining, pretraining_steps
from benchmarks.pretraining import PretrainingBenchmark, gates, main, print_figures, run_benchmark, summarise, workloads
from benchmarks.pretraining_steps import (
    DENSE,
    DENSE_ENCODER,
    UNMASKED,
    VIDEO_CONTENDERS,
    VISIBLE,
    VISIBLE_ENCODER,
    Bench,
    BenchProcess,
    Workload,
    check_losses,
    measure,
)
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convmae import base, nano
from convmae_deploy.models.pretraining import PretrainingConfig

SMALL = Workload(
    encoder=replace(nano(), image_size=(64, 32)),
    batch_size=1,
    mask_ratio=0.75,
    precision="fp32",
    compiled=False,
    threads=torch.get_num_threads(),
    device="cpu",
)
TINY: Any = {"variant": "nano", "batch_size": 1, "rounds": 1, "device": "cpu", "compiled": False} | {
    "precisions": ("fp32",),
    "threads": torch.get_num_threads(),
}
QUIET = Console(quiet=True)
PEAKS = {VISIBLE: 1.0, DENSE: 3.0, UNMASKED: 2.0}
LOSSES = {VISIBLE: 1.0, DENSE: 1.0, UNMASKED: 1.1}


class BenchHere(Bench):
    """In the process of the tests, which is faster than one of its own."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def small_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    small = partial(PretrainingConfig, decoder_width=16, decoder_depth=1, decoder_heads=2)
    monkeypatch.setattr(pretraining_steps, "PretrainingConfig", small)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, small_decoder: None) -> None:
    monkeypatch.setattr(pretraining, "BenchProcess", BenchHere)


def test_ratios_are_of_the_medians_and_against_the_dense_masked_step() -> None:
    seconds = {VISIBLE: [0.4, 0.2, 0.3], DENSE: [0.6, 0.9, 0.3], UNMASKED: [0.4, 0.4, 0.1]}
    visible, dense, unmasked = summarise(SMALL, seconds, PEAKS, LOSSES)
    assert (visible.contender, dense.contender, unmasked.contender) == (VISIBLE, DENSE, UNMASKED)
    assert visible.step_ms == pytest.approx(300)
    assert visible.images_per_second == pytest.approx(1 / 0.3)
    assert visible.speed_against_dense == pytest.approx(2)
    assert dense.speed_against_dense == 1
    assert unmasked.speed_against_dense == pytest.approx(1.5)
    assert (visible.peak_gb, dense.peak_gb, unmasked.peak_gb) == (1, 3, 2)


@pytest.mark.parametrize(("ratio", "holds"), [(1.9, True), (1.89, False)])
def test_a_gate_is_the_least_ratio_of_dense_to_visible(ratio: float, holds: bool) -> None:
    figures = summarise(SMALL, {VISIBLE: [1.0], DENSE: [ratio], UNMASKED: [0.1]}, PEAKS, LOSSES)
    assert list(gates(figures, pretraining.GATES).values()) == [holds]


class Recorded(Bench):
    """A contender that notes its steps among those of all."""

    def __init__(self, name: str, steps: list[tuple[str, int]], first_loss: float = 1.0) -> None:
        self.name, self.steps, self.first_loss = name, steps, first_loss

    def loss(self, turn: int) -> float:
        return self.first_loss

    def step(self, turn: int) -> float:
        self.steps.append((self.name, turn))
        return float(len(self.steps))

    def peak_gb(self) -> float:
        return 0.0


def test_every_contender_steps_once_a_round_on_the_same_masks_and_each_leads_in_turn() -> None:
    steps: list[tuple[str, int]] = []
    seconds = measure({name: Recorded(name, steps) for name in "abc"}, 1, 3, lambda: None)
    assert "".join(name for name, _ in steps) == "cababcbcacab"
    assert [turn for _, turn in steps] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert seconds == {"a": [4.0, 9.0, 11.0], "b": [5.0, 7.0, 12.0], "c": [6.0, 8.0, 10.0]}


@pytest.mark.usefixtures("small_decoder")
def test_all_contenders_of_a_round_have_the_same_masks_and_the_next_round_has_others() -> None:
    workload = replace(SMALL, encoder=replace(SMALL.encoder, image_size=(128, 128)))
    visible, dense = (Bench(workload, name) for name in (VISIBLE, DENSE))
    assert visible.draw_masks(0).shape == (1, 16)
    assert torch.equal(visible.draw_masks(3), dense.draw_masks(3))
    assert not torch.equal(visible.draw_masks(3), visible.draw_masks(4))


@pytest.mark.slow
@pytest.mark.usefixtures("small_decoder")
def test_visible_cells_and_the_dense_masked_step_learn_the_same_from_the_same_start() -> None:
    visible, dense, unmasked = (Bench(SMALL, name) for name in (VISIBLE, DENSE, UNMASKED))
    before = check_losses({VISIBLE: visible, DENSE: dense}, "fp32")
    assert unmasked.loss(0) != pytest.approx(before[VISIBLE], rel=1e-5)
    assert min(bench.step(0) for bench in (visible, dense, unmasked)) > 0
    after = check_losses({VISIBLE: visible, DENSE: dense}, "bf16")
    assert after[VISIBLE] == pytest.approx(after[DENSE], rel=1e-3)
    assert after[VISIBLE] < before[VISIBLE]


def test_a_fast_contender_with_another_loss_is_refused() -> None:
    contenders = {VISIBLE: Recorded(VISIBLE, [], 1.0001), DENSE: Recorded(DENSE, [], 1.0)}
    with pytest.raises(ConvMAEError, match="must give the loss of dense masked, 1.0000000; got 1.0001000"):
        check_losses(contenders, "fp32")


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_figures_are_printed_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    config = PretrainingBenchmark(**TINY, image_size=(64, 32))
    figures = run_benchmark(config, QUIET)
    print_figures(figures, config, Console())
    printed = capsys.readouterr().out
    for words in ("ConvMAE nano", "batch 1, 64 x 32 pixels", "threads", "warm-up", "timed: forward, backward, AdamW"):
        assert words in printed
    for contender in (VISIBLE, DENSE, UNMASKED):
        assert f" {contender} " in printed
    assert [figure.contender for figure in figures] == [VISIBLE, DENSE, UNMASKED]
    visible, dense, _ = figures
    assert visible.loss == pytest.approx(dense.loss, rel=1e-5)
    assert visible.speed_against_dense == pytest.approx(dense.step_ms / visible.step_ms)


@pytest.mark.slow
def test_the_encoder_alone_has_a_loss_that_masks_and_updates_change() -> None:
    bench = Bench(replace(SMALL, encoder=replace(SMALL.encoder, image_size=(64, 64)), frames=2), VISIBLE_ENCODER)
    assert bench.loss(0) != pytest.approx(bench.loss(1), rel=1e-3)
    before = bench.loss(0)
    bench.step(0)
    assert bench.loss(0) != pytest.approx(before, rel=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_videos_are_measured_whole_and_by_their_encoder_alone(capsys: pytest.CaptureFixture[str]) -> None:
    config = PretrainingBenchmark(**TINY, video=True, image_size=(64, 64), frames=4)
    found = {figure.contender: figure for figure in run_benchmark(config, QUIET)}
    print_figures(list(found.values()), config, Console())
    assert "VideoConvMAE nano" in (printed := capsys.readouterr().out) and "4 x 64 x 64 pixels" in printed
    assert tuple(found) == VIDEO_CONTENDERS
    for visible, dense in ((VISIBLE, DENSE), (VISIBLE_ENCODER, DENSE_ENCODER)):
        assert found[visible].loss == pytest.approx(found[dense].loss, rel=1e-5)
        ratio = found[dense].step_ms / found[visible].step_ms
        assert found[visible].speed_against_dense == pytest.approx(ratio)
    assert found[VISIBLE].mask_ratio == 0.9


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_a_sweep_is_printed_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretraining, "SWEEP_SIZES", (32, 64))
    monkeypatch.setattr(pretraining, "SWEEP_RATIOS", (0.5,))
    arguments = ["--sweep", "--variant", "nano", "--batch-size", "1", "--rounds", "1", "--device", "cpu"]
    arguments += ["--no-compiled", "--precisions", "fp32", "--threads", str(torch.get_num_threads())]
    assert main([*arguments, "--image-size", "64", "64", "--plot", str(tmp_path / "cost.png")]) == 0
    printed = capsys.readouterr().out
    assert "gate" not in printed
    rows = [line.split()[:4] for line in printed.splitlines() if " x " in line]
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
    assert {(workload.encoder, workload.batch_size) for workload in workloads(config)} == {(base(), 8)}


@pytest.mark.slow
def test_a_process_of_its_own_gives_the_same_losses_and_its_own_peak_memory() -> None:
    """It holds weights, gradients and AdamW's two averages, 16 bytes a parameter, and PyTorch."""
    with BenchProcess(SMALL, VISIBLE) as process:
        assert process.loss(2) == pytest.approx(Bench(SMALL, VISIBLE).loss(2), rel=1e-6)
        assert process.step(0) > 0
        assert 28e6 * 16 / 1e9 < process.peak_gb() < 4


@pytest.mark.slow
def test_a_process_that_ends_is_one_sentence() -> None:
    with (
        BenchProcess(replace(SMALL, threads=0), VISIBLE) as process,
        pytest.raises(ConvMAEError, match="the process of visible cells ended with status 1"),
    ):
        process.loss(0)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"rounds": 0}, "at least 1"),
        ({"precisions": ()}, "--precisions named"),
        ({"variant": "giant"}, "--variant must be one of nano.*got 'giant'"),
        ({"plot": Path("cost.png")}, "add --sweep"),
        ({"video": True, "sweep": True}, "leave out --video"),
        ({"check": True, "video": True, "frames": 8}, "--check holds the gates of ConvMAE-B"),
        ({"check": True, "variant": "nano"}, "--check holds the gates of ConvMAE-B"),
        ({"check": True, "sweep": True}, "--check holds the gates of ConvMAE-B"),
    ],
)
def test_settings_that_measure_nothing_are_refused(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConvMAEError, match=sentence):
        PretrainingBenchmark(**settings)  # type: ignore[arg-type]
