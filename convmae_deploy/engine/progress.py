"""The progress bar of a training run, and its curves."""

import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from convmae_deploy.files import atomic_file


def training_progress(console: Console) -> Progress:
    """A bar with epoch, updates, loss, images/s, peak memory and times."""
    counts = "{task.completed}/{task.total}  loss {task.fields[loss]:.4f}  {task.fields[speed]:.0f} images/s"
    return progress_bar(console, "epoch {task.fields[epoch]}", counts, "{task.fields[memory]:.1f} GB")


def progress_bar(console: Console, name: str, *columns: str) -> Progress:
    """A bar between its name and the columns, with elapsed and remaining time; none where nobody watches."""
    return Progress(
        TextColumn(name),
        BarColumn(),
        *map(TextColumn, columns),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
        disable=console.quiet or not console.is_terminal,
    )


def peak_memory_gb() -> float:
    """Most memory used so far in GB: of the GPU where there is one, else resident memory of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def draw_curves(
    path: Path, epochs: Sequence[dict[str, Any]], *, score: str | None = None, score_label: str = ""
) -> None:
    """Draws the training loss, and where there is a validation its loss and score, by epoch into a PNG.

    Args:
        path: the picture.
        epochs: lines with `epoch` (from 1), `train_loss`, and some with `val_loss` or the score.
        score: name of a number to draw beside the losses, larger is better.
        score_label: of its axis.
    """
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    scored = [] if score is None else [(line["epoch"], line[score]) for line in epochs if line.get(score) is not None]
    figure = Figure(figsize=(9 if scored else 5, 3.6), layout="constrained")
    panels = figure.subplots(1, 2 if scored else 1, squeeze=False)[0]
    panels[0].plot([line["epoch"] for line in epochs], [line["train_loss"] for line in epochs], label="training")
    panels[0].set(xlabel="epoch", ylabel="loss")
    validated = [line for line in epochs if "val_loss" in line]
    if validated:
        x = [line["epoch"] for line in validated]
        panels[0].plot(x, [line["val_loss"] for line in validated], label="validation")
        panels[0].legend(frameon=False)
    if scored:
        panels[1].set(xlabel="epoch", ylabel=score_label)
        _draw_score(panels[1], scored)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _draw_score(axes: Any, points: Sequence[tuple[int, float]]) -> None:
    """A curve of (epoch, score), the best of them marked."""
    axes.plot(*zip(*points, strict=True), color="tab:green")
    best = max(points, key=lambda point: point[1])
    axes.plot(*best, "o", color="tab:green")
    axes.annotate(f"{best[1]:.2f}", best, (0, -14), textcoords="offset points")
