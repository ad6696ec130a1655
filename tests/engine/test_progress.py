"""How far a training is, and its curves, which are drawn whole or not at all."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from convmae_deploy.engine import progress
from convmae_deploy.engine.progress import Lines, TrainingProgress, draw_curves, peak_memory_gb

EPOCHS = [{"epoch": n, "train_loss": 2 / n, "val_loss": 1.5 / n, "val_top1": 20.0 * n} for n in (1, 2, 3)]


@pytest.mark.slow
def test_curves_are_a_picture_with_ink(tmp_path: Path) -> None:
    draw_curves(tmp_path / "curves.png", EPOCHS, score="val_top1", score_label="validation top-1 (%)")
    with Image.open(tmp_path / "curves.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[1] > 2 * pixels.shape[0]
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_a_failed_drawing_leaves_the_old_picture(tmp_path: Path) -> None:
    (tmp_path / "curves.png").write_bytes(b"old")
    with pytest.raises(ValueError, match="inhomogeneous"):
        draw_curves(tmp_path / "curves.png", [{"epoch": [1, 2], "train_loss": 3}, {"epoch": 2, "train_loss": 2}])
    assert (tmp_path / "curves.png").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_line_that_is_of_no_epoch_is_not_drawn(tmp_path: Path) -> None:
    more: list[dict[str, Any]] = [*EPOCHS, {"step": 9}]
    for name, lines in (("all", EPOCHS), ("more", more)):
        draw_curves(tmp_path / name, lines, score="val_top1")
    assert (tmp_path / "more").read_bytes() == (tmp_path / "all").read_bytes()


def test_peak_memory_is_that_of_a_process_with_torch() -> None:
    assert 0.05 < peak_memory_gb() < 100


def told_at(seconds: Sequence[float], *, terminal: bool = False) -> list[str]:
    """What is printed of a line for each of these times."""
    text = io.StringIO()
    times = iter(seconds)
    lines = Lines(Console(file=text, force_terminal=terminal), clock=lambda: next(times))
    for second in seconds:
        lines.tell(f"at {second:g}")
    return text.getvalue().splitlines()


def test_without_a_terminal_there_is_a_line_at_once_and_then_one_a_minute() -> None:
    assert told_at([0, 1, 59.9, 60, 61, 119, 200]) == ["at 0", "at 60", "at 200"]
    assert told_at([0, 60, 120], terminal=True) == []


@pytest.mark.parametrize("kind", ["images", "videos"])
def test_a_line_says_how_far_the_training_is(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "peak_memory_gb", lambda: 1.25)
    text, now = io.StringIO(), [0.0]
    console = Console(file=text, width=200)
    lines = Lines(console, clock=lambda: now[0])
    shown = TrainingProgress(console, done=100, total=1000, lines=lines, kind=kind, clock=lambda: now[0])
    with shown.bar:
        for second in (10.0, 20.0, 75.0):
            now[0] = second
            shown.advance("2/20", 64, 0.5)
    assert text.getvalue().splitlines() == [
        f"epoch 2/20, update 101/1000: loss 0.5000, 6.4 {kind}/s, 1.2 GB, 2:29:50 left",
        f"epoch 2/20, update 103/1000: loss 0.5000, 2.6 {kind}/s, 1.2 GB, 6:13:45 left",
    ]


def test_a_bar_says_nothing_of_a_loss_before_the_first_update() -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=True)
    shown = TrainingProgress(console, done=0, total=10, lines=Lines(console))
    assert "loss" not in told_by(shown)
    shown.advance("1/2", 64, 0.5)
    assert "loss 0.5000" in told_by(shown) and "epoch 1/2" in told_by(shown)


def told_by(shown: TrainingProgress) -> str:
    """What the bar shows at this moment."""
    console = Console(file=io.StringIO(), width=200)
    with console.capture() as captured:
        console.print(shown.bar.get_renderable())
    return captured.get()
