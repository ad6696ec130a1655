"""What does it save to compute visible cells alone? One pretraining step against the dense masked one, in one run.

    python -m benchmarks.pretraining [--variant base] [--image-size 224 224] [--batch-size 8] [--rounds N] [--compiled]
        [--precisions fp32 bf16] [--device cpu] [--check]
    python -m benchmarks.pretraining --sweep [--variant small] [--plot cost.png]
    python -m benchmarks.pretraining --video [--frames 16] [--batch-size 1] [--rounds N] [--check] …

Timed: forward, backward and AdamW of one batch on the device; loading photos and drawing masks are not. Each
contender has a process of its own for a workload, with the same weights, images and, in each round, masks. They take
their steps one after the other, each once a round, in an order that rotates, so that a machine that slows down slows
all of them. They are

- visible cells: `ConvMAEPretraining` as `python -m training.pretrain` runs it: fused AdamW and, on a CPU, freed memory
  kept (`convmae_deploy.machine.keep_freed_memory`);
- dense masked: `DenseMaskedPretraining`, the authors' computation operation by operation, with AdamW and memory as
  PyTorch has them by default. The first one must give its loss before anything is timed;
- dense, our gradients: whole maps and no mask, but with all else of the first: channels last, attention without its
  matrix, gradients of convolutions, fused AdamW, freed memory kept. What it gains on the second comes from those, what
  the first gains on it from skipping hidden cells.

With `--video` they are `VideoPretraining` on visible tubes; `DenseMaskedVideo` with all else of the first but for its
depthwise convolution, which is PyTorch's own, channels last, with PyTorch's gradients; the same with our gradients; and
of the first two the encoder alone, trained by the square of its output along one direction.

Peak memory is that of the same processes: resident memory, PyTorch itself included, or allocated memory of the GPU; all
of them are there at once. `--check` holds the gates, which are for ConvMAE-B at 224 x 224 and batch 8 on a CPU (16
frames and batch 1 with `--video`), without torch.compile. On a GPU, where bfloat16 is the default and torch.compile is
measured too, this was never run by us.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import torch
import tyro
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.pretraining_steps import (
    DENSE,
    DENSE_ENCODER,
    IMAGE_CONTENDERS,
    VIDEO_CONTENDERS,
    VISIBLE,
    VISIBLE_ENCODER,
    BenchProcess,
    Precision,
    Workload,
    check_losses,
    measure,
)
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import atomic_file
from convmae_deploy.machine import available_cores, processor
from convmae_deploy.models.convmae import MODELS
from convmae_deploy.program import run_program

GATES: dict[Precision, float] = {"fp32": 1.9, "bf16": 1.6}  # least ratio of dense masked to visible cells
VIDEO_GATES: dict[Precision, float] = {"fp32": 2.4, "bf16": 2.0}
SWEEP_SIZES = (128, 160, 192, 224, 288, 320)  # pixels, at the mask ratio that is asked for
SWEEP_RATIOS = (0.5, 0.6, 0.75, 0.9)  # at the image size that is asked for


def default_device() -> str:
    """The GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def default_precisions() -> tuple[Precision, ...]:
    """What people train in."""
    return ("bf16",) if torch.cuda.is_available() else ("fp32", "bf16")


@dataclass(frozen=True, kw_only=True)
class PretrainingBenchmark:
    """Measures a pretraining step on visible cells alone against the dense masked one."""

    variant: str | None = None  # one of MODELS; None: base, small for a sweep
    image_size: tuple[int, int] = (224, 224)  # (height, width) in pixels
    batch_size: int | None = None  # images or clips a step; None: 8, 2 for a sweep, 1 for videos
    mask_ratio: float | None = None  # share of the cells that is hidden; None: 0.75, 0.9 of videos
    precisions: tuple[Precision, ...] = field(default_factory=default_precisions)  # bf16: autocast
    compiled: bool = field(default_factory=torch.cuda.is_available)  # also by torch.compile
    rounds: int = 5  # timed steps of each contender
    warm_up: int = 1  # steps of each before them
    threads: int = available_cores()  # CPU threads
    device: str = field(default_factory=default_device)  # cpu or cuda
    sweep: bool = False  # image sizes and mask ratios instead, in the first precision, eager
    video: bool = False  # the video model instead
    frames: int = 16  # frames a clip, with --video
    check: bool = False  # exit with status 1 where a gate is missed
    plot: Path | None = None  # where to draw a sweep, PNG

    def __post_init__(self) -> None:
        smallest = min(self.rounds, self.warm_up, self.threads, self.images)
        if smallest < 1 or not self.precisions:
            raise ConvMAEError(
                f"--rounds, --warm-up, --threads and --batch-size must be at least 1 and --precisions named; "
                f"got {smallest}, {self.precisions}"
            )
        if self.model not in MODELS:
            raise ConvMAEError(f"--variant must be one of {', '.join(MODELS)}; got {self.model!r}")
        if self.plot is not None and not self.sweep:
            raise ConvMAEError("--plot draws a sweep; add --sweep")
        if self.video and self.sweep:
            raise ConvMAEError("--sweep is for images; leave out --video")
        if self.check and not self.gated:
            raise ConvMAEError(
                "--check holds the gates of ConvMAE-B, 224 x 224, batch 8, mask ratio 0.75 on a CPU (16 frames, batch "
                "1, 0.9 with --video); leave --variant, --image-size, --frames, --batch-size, --mask-ratio, --device "
                "and --sweep as they are"
            )

    @property
    def model(self) -> str:
        """The variant that is measured."""
        return self.variant or ("small" if self.sweep else "base")

    @property
    def images(self) -> int:
        """The batch size that is measured."""
        return (1 if self.video else 2 if self.sweep else 8) if self.batch_size is None else self.batch_size

    @property
    def hidden(self) -> float:
        """The share of the cells that is hidden."""
        return (0.9 if self.video else 0.75) if self.mask_ratio is None else self.mask_ratio

    @property
    def gated(self) -> bool:
        """Whether the gates are meant for these settings."""
        settings = self.model, self.image_size, self.device, self.images, self.hidden
        gated = ("base", (224, 224), "cpu", *((1, 0.9) if self.video else (8, 0.75)))
        return settings == gated and not self.sweep and self.frames == 16


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One contender under one workload."""

    contender: str
    precision: Precision
    compiled: bool
    image_size: tuple[int, int]
    mask_ratio: float
    step_ms: float  # median
    images_per_second: float  # at the median
    speed_against_dense: float  # the dense masked median (of the encoder for one) / this one's; above 1 is faster
    peak_gb: float
    loss: float  # before the first step


def workloads(config: PretrainingBenchmark) -> Iterator[Workload]:
    """Every row of the table, or every point of the sweep."""
    encoder = replace(MODELS[config.model](), image_size=config.image_size)
    point = Workload(
        encoder=encoder,
        batch_size=config.images,
        mask_ratio=config.hidden,
        precision=config.precisions[0],
        compiled=False,
        threads=config.threads,
        device=config.device,
        frames=config.frames if config.video else None,
    )
    if config.sweep:
        yield from (replace(point, encoder=replace(encoder, image_size=(side, side))) for side in SWEEP_SIZES)
        yield from (replace(point, mask_ratio=ratio) for ratio in SWEEP_RATIOS)
        return
    for precision in config.precisions:
        for compiled in (False, True) if config.compiled else (False,):
            yield replace(point, precision=precision, compiled=compiled)


def run_benchmark(config: PretrainingBenchmark, console: Console) -> list[Figure]:
    """Checks and measures every workload."""
    names = VIDEO_CONTENDERS if config.video else IMAGE_CONTENDERS[:2] if config.sweep else IMAGE_CONTENDERS
    figures: list[Figure] = []
    points = list(workloads(config))
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=len(points) * (config.warm_up + config.rounds))
        for workload in points:
            label = f"{workload.precision}, {workload.encoder.image_size[0]} px, mask {workload.mask_ratio:g}"
            progress.update(task, description=f"{label}: losses")
            with ExitStack() as stack:
                contenders = {name: stack.enter_context(BenchProcess(workload, name)) for name in names}
                losses = check_losses(contenders, workload.precision)
                progress.update(task, description=f"{label}: steps")
                seconds = measure(contenders, config.warm_up, config.rounds, lambda: progress.advance(task))
                peaks = {name: contender.peak_gb() for name, contender in contenders.items()}
            figures += summarise(workload, seconds, peaks, losses)
    return figures


def summarise(
    workload: Workload, seconds: dict[str, list[float]], peaks: dict[str, float], losses: dict[str, float]
) -> list[Figure]:
    """Medians and ratios of one workload."""
    medians = {name: median(taken) for name, taken in seconds.items()}
    encoders = VISIBLE_ENCODER, DENSE_ENCODER
    return [
        Figure(
            contender=name,
            precision=workload.precision,
            compiled=workload.compiled,
            image_size=workload.encoder.image_size,
            mask_ratio=workload.mask_ratio,
            step_ms=1000 * taken,
            images_per_second=workload.batch_size / taken,
            speed_against_dense=medians[DENSE_ENCODER if name in encoders else DENSE] / taken,
            peak_gb=peaks[name],
            loss=losses[name],
        )
        for name, taken in medians.items()
    ]


def gates(figures: Sequence[Figure], least: Mapping[Precision, float]) -> dict[str, bool]:
    """A sentence for each gate, and whether it holds; torch.compile has none."""
    return {
        f"{figure.precision}: {DENSE} / {VISIBLE} {figure.speed_against_dense:.2f}, at least "
        f"{least[figure.precision]}": figure.speed_against_dense >= least[figure.precision]
        for figure in figures
        if figure.contender == VISIBLE and not figure.compiled
    }


def device_in_words(config: PretrainingBenchmark) -> str:
    """What the figures depend on besides the code."""
    return torch.cuda.get_device_name() if config.device == "cuda" else f"CPU, {processor()}, {available_cores()} cores"


def print_figures(figures: Sequence[Figure], config: PretrainingBenchmark, console: Console) -> None:
    """The heading that a figure must not be quoted without, and the table."""
    height, width = config.image_size
    pixels, precisions = f"{height} x {width} pixels, mask ratio {config.hidden:g}", config.precisions
    if config.video:
        pixels = f"{config.frames} x {pixels}"
    if config.sweep:
        pixels, precisions = "image size and mask ratio as in the table", config.precisions[:1]
    model, decoder = ("VideoConvMAE", "384 and 4") if config.video else ("ConvMAE", "512 and 8")
    dense = (
        "PyTorch's depthwise convolution, channels last"
        if config.video
        else "the authors' operations, PyTorch's defaults"
    )
    for line in (
        f"{model} {config.model} with a decoder of width {decoder} blocks, random weights and inputs",
        f"batch {config.images}, {pixels}; {', '.join(precisions)} (bf16: autocast, weights and AdamW in fp32)",
        f"{device_in_words(config)}; {config.threads} threads; torch {torch.__version__}",
        f"medians of {config.rounds} interleaved rounds after {config.warm_up} warm-up rounds",
        "timed: forward, backward, AdamW; not timed: photos, drawing of masks, compilation",
        f"{DENSE}: {dense}; otherwise this project's model, fused AdamW, freed memory kept",
    ):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(sweep_table(figures) if config.sweep else contender_table(figures))


def contender_table(figures: Sequence[Figure]) -> Table:
    """A row for each contender in each precision."""
    table = Table(box=box.SIMPLE, padding=0)
    table.add_column("", no_wrap=True)
    for heading in ("precision", "ms/step", "images/s", "x dense", "peak GB", "loss"):
        table.add_column(heading, justify="right", no_wrap=True)
    for figure in figures:
        table.add_row(
            figure.contender,
            figure.precision + (", compiled" if figure.compiled else ""),
            f"{figure.step_ms:.0f}",
            f"{figure.images_per_second:.2f}",
            f"{figure.speed_against_dense:.2f}",
            f"{figure.peak_gb:.2f}",
            f"{figure.loss:.5f}",
        )
    return table


def sweep_table(figures: Sequence[Figure]) -> Table:
    """A row for each point of a sweep."""
    table = Table(box=box.SIMPLE, padding=0)
    for heading in ("pixels", "mask ratio", f"ms/step {DENSE}", f"ms/step {VISIBLE}", "x dense"):
        table.add_column(heading, justify="right", no_wrap=True)
    for visible, dense in zip(figures[::2], figures[1::2], strict=True):
        table.add_row(
            f"{visible.image_size[0]} x {visible.image_size[1]}",
            f"{visible.mask_ratio:g}",
            f"{dense.step_ms:.0f}",
            f"{visible.step_ms:.0f}",
            f"{visible.speed_against_dense:.2f}",
        )
    return table


def draw_sweep(path: Path, figures: Sequence[Figure], title: str) -> None:
    """Draws the cost of a step against image size and mask ratio into a PNG; above it how many times it is saved.

    Args:
        path: the picture.
        figures: of a sweep, in its order.
        title: what was measured on what.
    """
    from matplotlib.figure import Figure as Drawing  # not pyplot: no window system, no global state

    drawing = Drawing(figsize=(9, 3.8), layout="constrained")
    drawing.suptitle(title, fontsize=9)
    panels = drawing.subplots(1, 2)
    split = 2 * len(SWEEP_SIZES)  # figures: two contenders at each point
    series: tuple[tuple[Sequence[Figure], str, Callable[[Figure], float]], ...] = (
        (figures[:split], "image size (pixels)", lambda figure: figure.image_size[0]),
        (figures[split:], "mask ratio", lambda figure: figure.mask_ratio),
    )
    for axes, (points, label, place) in zip(panels, series, strict=True):
        for name, colour in ((DENSE, "tab:gray"), (VISIBLE, "tab:blue")):
            own = [figure for figure in points if figure.contender == name]
            costs = [figure.step_ms for figure in own]
            axes.plot([place(figure) for figure in own], costs, "o-", color=colour, label=name)
        for figure in own:
            ratio = f"{figure.speed_against_dense:.1f}x"
            axes.annotate(ratio, (place(figure), figure.step_ms), (0, 7), textcoords="offset points", ha="center")
        axes.set(xlabel=label, ylabel="ms a training step")
        axes.set_ylim(bottom=0)
        axes.margins(x=0.08)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    with atomic_file(path) as temporary:
        drawing.savefig(temporary, format="png", dpi=120)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 where `--check` finds a gate missed."""
    config = tyro.cli(PretrainingBenchmark, args=arguments, prog="python -m benchmarks.pretraining")
    console = Console()
    figures = run_benchmark(config, Console(stderr=True))
    print_figures(figures, config, console)
    held = gates(figures, VIDEO_GATES if config.video else GATES) if config.gated else {}
    for sentence, holds in held.items():
        console.print(f"gate {'held' if holds else 'missed'}: {sentence}", highlight=False)
    if config.plot is not None:
        title = f"ConvMAE {config.model}, batch {config.images}, {config.precisions[0]}; {device_in_words(config)}"
        draw_sweep(config.plot, figures, title)
    return 1 if config.check and not all(held.values()) else 0


if __name__ == "__main__":
    run_program(main)
