"""The progress bar of a training run, and its curves."""

import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from convmae_deploy.files import atomic_file


def training_progress(*, disable: bool) -> Progress:
    """A bar with epoch, loss, images/s, peak memory, elapsed and remaining time."""
    return Progress(
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}  loss {task.fields[loss]:.3f}  {task.fields[speed]:.0f} images/s"),
        TextColumn("{task.fields[memory]:.1f} GB"),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        disable=disable or not sys.stdout.isatty(),
    )


def peak_memory_gb() -> float:
    """Most memory used so far in GB: of the GPU where there is one, else resident memory of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def draw_curves(path: Path, epochs: Sequence[dict[str, Any]]) -> None:
    """Draws loss and accuracy by epoch into a PNG.

    Args:
        path: the picture.
        epochs: lines with `epoch` (from 1), `train_loss`, `val_loss`, `val_top1` (percent).
    """
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, accuracy = figure.subplots(1, 2)
    x = [line["epoch"] for line in epochs]
    for key, name in (("train_loss", "training (augmented, smoothed)"), ("val_loss", "validation")):
        losses.plot(x, [line[key] for line in epochs], label=name)
    accuracy.plot(x, [line["val_top1"] for line in epochs], color="tab:green")
    best = max(epochs, key=lambda line: line["val_top1"])
    accuracy.plot(best["epoch"], best["val_top1"], "o", color="tab:green")
    accuracy.annotate(
        f"{best['val_top1']:.2f} %", (best["epoch"], best["val_top1"]), (0, -14), textcoords="offset points"
    )
    losses.set(xlabel="epoch", ylabel="cross-entropy")
    losses.legend(frameon=False)
    accuracy.set(xlabel="epoch", ylabel="validation top-1 (%)")
    for axes in (losses, accuracy):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
