"""How far a training run is, as a bar or as lines, and its curves."""

import resource
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from convmae_deploy.files import atomic_file

LINE_SECONDS = 60.0  # between two lines where nobody watches a bar


class Lines:
    """A line at once and then one a minute, where the console is no terminal, for logs."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            console: where the main process speaks.
            clock: seconds.
        """
        self._console, self._clock = console, clock
        self._told: float | None = None

    def tell(self, line: str) -> None:
        """Prints it where one is due."""
        now = self._clock()
        if self._console.is_terminal or (self._told is not None and now - self._told < LINE_SECONDS):
            return
        self._told = now
        self._console.print(line)


class TrainingProgress:
    """How far a training is: a bar where somebody watches, with epoch, loss, speed, memory and times; else lines."""

    def __init__(
        self,
        console: Console,
        *,
        done: int,
        total: int,
        lines: Lines,
        kind: str = "images",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            console: where the main process speaks.
            done: updates before.
            total: updates of the whole run.
            lines: of the whole run.
            kind: what the speed counts.
            clock: seconds.
        """
        self._done, self._total, self._lines, self._clock = done, total, lines, clock
        self._kind = kind
        self._begun, self._began_at, self._images = done, clock(), 0
        self.bar = progress_bar(console, "{task.fields[epoch]}", "{task.completed}/{task.total}", "{task.fields[said]}")
        self._task = self.bar.add_task("", total=total, completed=done, epoch="", said="")

    def advance(self, epoch: str, images: int, loss: float) -> None:
        """Shows one more update.

        Args:
            epoch: and how many there are, for instance "3/40".
            images: or videos, of the update.
            loss: mean of the epoch so far.
        """
        self._done += 1
        self._images += images
        seconds = max(self._clock() - self._began_at, 1e-9)
        speed, memory = self._images / seconds, peak_memory_gb()
        said = f"loss {loss:.4f}  {speed:.0f} {self._kind}/s  {memory:.1f} GB"
        self.bar.update(self._task, advance=1, epoch=f"epoch {epoch}", said=said)
        left = seconds / (self._done - self._begun) * (self._total - self._done)
        self._lines.tell(
            f"epoch {epoch}, update {self._done}/{self._total}: loss {loss:.4f}, {speed:.1f} {self._kind}/s, "
            f"{memory:.1f} GB, {timedelta(seconds=round(left))} left"
        )


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
        epochs: lines with `epoch` (from 1), `train_loss`, and some with `val_loss` or the score; others are not drawn.
        score: name of a number to draw beside the losses, larger is better.
        score_label: of its axis.
    """
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    epochs = [line for line in epochs if {"epoch", "train_loss"} <= line.keys()]
    scored = [] if score is None else [(line["epoch"], line[score]) for line in epochs if line.get(score) is not None]
    width = 9 if scored else 5  # inches
    figure = Figure(figsize=(width, 3.6))
    figure.subplots_adjust(left=0.95 / width, right=1 - 0.3 / width, bottom=0.14, top=0.96, wspace=0.3)
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
        axes.xaxis.get_major_locator().set_params(integer=True)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _draw_score(axes: Any, points: Sequence[tuple[int, float]]) -> None:
    """A curve of (epoch, score), the best of them marked."""
    axes.plot(*zip(*points, strict=True), color="tab:green")
    best = max(points, key=lambda point: point[1])
    axes.plot(*best, "o", color="tab:green")
    axes.annotate(f"{best[1]:.2f}", best, (0, -14), textcoords="offset points", ha="center")
