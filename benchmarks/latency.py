"""How fast is a model in PyTorch, compiled, and exported? All on this machine's CPU, in one run.

    python -m benchmarks.latency [--variant base] [--batch-sizes 1 8] [--rounds N] [--out latency.json]
    python -m benchmarks.latency --task segmentation --batch-sizes 1 --rounds 5
    python -m benchmarks.latency --task detection --batch-sizes 1 --rounds 3 --warm-up 1
    python -m benchmarks.latency --task video-classification --batch-sizes 1 --rounds 5 --warm-up 1

Where OpenVINO is installed it is measured too, in bf16 as well where it finds that on the CPU; detectors leave it out.

Random weights; 1000 classes, or 80 (detect, at the detector's size), 150 (segment, at 512 pixels) or 400 (video, of 16
frames). Timed: from a normalised float32 NumPy array (B, 3, H, W), or (B, 3, T, H, W), to the outputs as NumPy arrays;
decoding, preprocessing, compilation and session start are not. A detector's score threshold is 0 on both sides, so that
both give 100 boxes with masks; eager is the model's own inference with torchvision's operators. All contenders run once
in every round, in an order that rotates, so that a machine that slows down slows all of them. Every contender's logits
are held against eager PyTorch before anything is timed; of detections only their number, because random scores are
ties. The exported graph is what `python -m export` makes, without its full verification.

Before that the start of a session, with the bundle in the file cache, and the most memory with one image are measured
in processes of their own (`benchmarks.session`); they depend on neither rounds nor batch sizes.
"""

import json
import tempfile
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from benchmarks.machine import available_cores, quiet_loggers
from benchmarks.random_bundle import SEED, TaskName, random_task, write_random_bundle
from benchmarks.session import SessionConfig, SessionCost, measure_apart
from convmae_deploy.backends.base import Backend, ComputePrecision
from convmae_deploy.backends.onnxruntime_backend import OnnxRuntimeBackend
from convmae_deploy.backends.openvino_backend import OpenVinoBackend, openvino_precisions
from convmae_deploy.bundle.manifest import input_axes
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import atomic_file
from convmae_deploy.program import run_program
from convmae_deploy.tasks import load_bundle
from export.benchmarking.pytorch import compiled, torch_output
from export.benchmarking.report import machine_facts
from export.benchmarking.tables import figures_table, versions
from export.benchmarking.timing import REST_SECONDS, Rounds, interleave, summarise, timed_turn
from export.tasks.base import ExportTask
from export.verification.gates import FP32, compare

FloatArray = NDArray[np.float32]
Contender = Callable[[FloatArray], FloatArray]  # images (B, 3, H, W) or clips (B, 3, T, H, W) -> logits (B, K)

EAGER, COMPILED, ONNX, BF16 = "eager fp32", "torch.compile fp32", "ONNX Runtime fp32", "eager bf16"
OPENVINO: dict[ComputePrecision, str] = {"fp32": "OpenVINO fp32", "bf16": "OpenVINO bf16"}
MODEL_NAMES: dict[TaskName, str] = {
    "classification": "ConvMAE classifier, 1000 classes",
    "detection": "ConvMAE Mask R-CNN with an FPN, 80 classes, score threshold 0",
    "segmentation": "ConvMAE UperNet, 150 classes",
    "video-classification": "VideoConvMAE classifier, 16 frames, 400 classes",
}
REDUCED = {BF16, OPENVINO["bf16"]}  # whose logits may differ from eager fp32 by more than its gate


@dataclass(frozen=True, kw_only=True)
class LatencyConfig:
    """Measures eager PyTorch, torch.compile, ONNX Runtime and OpenVINO on the CPU."""

    task: TaskName = "classification"
    variant: str = "base"  # nano, tiny, small, base, base_plus, large or huge; detect: nano, tiny or base
    batch_sizes: tuple[int, ...] = (1, 8)  # images, or clips, a run
    rounds: int = 20  # timed runs of each contender at each batch size
    warm_up: int = 3  # runs before them, at each batch size
    threads: int = available_cores()  # of every contender
    out: Path | None = None  # where to write the figures as JSON

    def __post_init__(self) -> None:
        smallest = min((*self.batch_sizes, self.rounds, self.warm_up, self.threads), default=0)
        if not self.batch_sizes or smallest < 1:
            raise ConvMAEError(
                "--batch-sizes, --rounds, --warm-up and --threads must all be at least 1; got a smaller one"
            )


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One contender at one batch size."""

    contender: str
    batch_size: int
    p50_ms: float  # of a run of the whole batch
    p90_ms: float
    images_per_second: float  # at the median
    speed_against_eager: float  # eager's median / this one's; above 1 is faster
    max_abs_difference: float  # of the logits, from eager fp32


def contenders(task: ExportTask, bundle: Path, threads: int) -> dict[str, Contender]:
    """Everything that is compared, by name; eager fp32 first."""
    opened = load_bundle(bundle)
    backend = OnnxRuntimeBackend(opened, device="cpu", threads=threads)
    if task.task == "detection":  # with lengths that depend on the image it is neither compiled nor cast as a whole
        return {
            EAGER: lambda images: task.reference(images)["scores"],
            ONNX: lambda images: backend.run(images, task.outputs)["scores"],
        }
    model = task.model
    return {
        EAGER: torch_output(model),
        COMPILED: torch_output(compiled(model)),
        ONNX: backend_contender(backend),
        BF16: torch_output(deepcopy(model).to(torch.bfloat16), torch.bfloat16),
    } | {
        OPENVINO[precision]: backend_contender(OpenVinoBackend(opened, threads=threads, precision=precision))
        for precision in openvino_precisions()
    }


def backend_contender(backend: Backend) -> Contender:
    """The exported graph's logits."""
    return lambda images: backend.run(images, ["logits"])["logits"]


def check_logits(entries: dict[str, Contender], images: FloatArray) -> dict[str, float]:
    """Largest difference of each contender's logits from eager fp32.

    Raises:
        ConvMAEError: one in full precision is beyond the gate of the export.
    """
    reference = entries[EAGER](images)
    differences = {}
    for name, run in entries.items():
        comparison = compare(reference, run(images), FP32, top1=True)
        if comparison.problem is not None and name not in REDUCED:
            raise ConvMAEError(
                f"{name} must give eager PyTorch's logits, but {comparison.problem}; its speed means nothing"
            )
        differences[name] = comparison.max_abs
    return differences


def check_detections(entries: dict[str, Contender], images: FloatArray) -> dict[str, float]:
    """Largest difference of each contender's scores, best first, from eager's.

    Raises:
        ConvMAEError: one gives another number of detections.
    """
    found = {name: run(images) for name, run in entries.items()}
    for name, scores in found.items():
        if not (scores > 0).all():
            raise ConvMAEError(f"{name} must give {scores.shape[1]} detections; it gave fewer: its speed means nothing")
    return {name: float(np.abs(scores - found[EAGER]).max()) for name, scores in found.items()}


def figures_of(taken: dict[str, Rounds], differences: dict[str, float], batch_size: int) -> list[Figure]:
    """Percentiles and ratios of one batch size's runs."""
    statistics = {name: summarise(rounds, batch_size) for name, rounds in taken.items()}
    return [
        Figure(
            contender=name,
            batch_size=batch_size,
            p50_ms=own.p50_ms,
            p90_ms=own.p90_ms,
            images_per_second=own.images_per_second,
            speed_against_eager=statistics[EAGER].p50_ms / own.p50_ms,
            max_abs_difference=differences[name],
        )
        for name, own in statistics.items()
    ]


def session_costs(config: LatencyConfig, bundle: Path) -> dict[str, SessionCost]:
    """What starting eager PyTorch and ONNX Runtime takes, by contender."""
    eager = SessionConfig(task=config.task, variant=config.variant, threads=config.threads)
    return {EAGER: measure_apart(eager), ONNX: measure_apart(replace(eager, bundle=bundle))}


def run_benchmark(config: LatencyConfig, console: Console) -> tuple[list[Figure], dict[str, SessionCost]]:
    """Builds, exports, compiles, checks and measures."""
    torch.set_num_threads(config.threads)
    task = random_task(config.task, config.variant)
    generator = np.random.default_rng(SEED)
    figures: list[Figure] = []
    with (
        # that the bundle was not verified is stated in the heading; the compiler reports what it does not find
        quiet_loggers("convmae_deploy", "torch"),
        tempfile.TemporaryDirectory() as folder,
        Progress(console=console, transient=True) as progress,
    ):
        bar = progress.add_task("Exporting", total=len(config.batch_sizes) * (config.rounds + 1) + 1)
        write_random_bundle(Path(folder) / "bundle", task, max(config.batch_sizes))
        progress.update(bar, description="Starting each in a process of its own")
        costs = session_costs(config, Path(folder) / "bundle")
        entries = contenders(task, Path(folder) / "bundle", config.threads)
        for batch_size in config.batch_sizes:
            progress.update(bar, advance=1, description=f"Batch {batch_size}: compiling, warm-up")
            images = generator.standard_normal((batch_size, 3, *input_axes(task.preprocessing)), dtype=np.float32)
            check = check_detections if config.task == "detection" else check_logits
            differences = check(entries, images)
            for _ in range(config.warm_up):
                for run in entries.values():
                    run(images)
            progress.update(bar, description=f"Batch {batch_size}: measuring")
            turns = {name: partial(timed_turn, partial(run, images)) for name, run in entries.items()}
            taken = interleave(turns, config.rounds, lambda: progress.advance(bar))
            figures += figures_of(taken, differences, batch_size)
    return figures, costs


def machine(config: LatencyConfig) -> dict[str, str]:
    """What the figures depend on besides the code."""
    return machine_facts(config.threads) | {"torch": str(torch.__version__)}  # with its build


def print_figures(figures: Sequence[Figure], config: LatencyConfig, console: Console) -> None:
    """The heading that a figure must not be quoted without, and the table."""
    facts = machine(config)
    for line in (
        f"{MODEL_NAMES[config.task]}, {config.variant}, random weights; the exported graph is not fully verified here",
        f"{facts['device']}; {config.threads} threads",
        versions(facts),
        f"{config.rounds} interleaved rounds after {config.warm_up} warm-up runs; {REST_SECONDS:g} s rest before",
        "timed: normalised float32 array to outputs; not timed: decoding, preprocessing, compilation, session start",
    ):
        console.print(line, highlight=False)
    headings = ("batch", "p50 ms", "p90 ms", "images/s", "x eager", "max |diff|")
    rows = [
        (
            figure.contender,
            str(figure.batch_size),
            f"{figure.p50_ms:.2f}",
            f"{figure.p90_ms:.2f}",
            f"{figure.images_per_second:.1f}",
            f"{figure.speed_against_eager:.2f}",
            f"{figure.max_abs_difference:.1e}",
        )
        for figure in figures
    ]
    console.print(figures_table("", headings, rows))


def print_costs(costs: dict[str, SessionCost], console: Console) -> None:
    """The second table."""
    rows = []
    for name, cost in costs.items():
        seconds = "" if cost.start_seconds is None else f"{cost.start_seconds:.2f}"
        rows.append((name, seconds, f"{cost.started_gb:.2f}", f"{cost.peak_gb:.2f}"))
    headings = ("session start s", "peak GB until then", "peak GB with one image")
    console.print(figures_table("a process of its own", headings, rows))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    config = tyro.cli(LatencyConfig, args=arguments, prog="python -m benchmarks.latency")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's advice about settings and hardware
        figures, costs = run_benchmark(config, Console(stderr=True))
    print_figures(figures, config, Console())
    print_costs(costs, Console())
    if config.out is not None:
        settings = {"task": config.task, "variant": config.variant, "rounds": config.rounds, "warm_up": config.warm_up}
        processes = {name: asdict(cost) for name, cost in costs.items()}
        record = (
            settings | machine(config) | {"figures": [asdict(figure) for figure in figures], "processes": processes}
        )
        with atomic_file(config.out) as path:
            path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_program(main)
