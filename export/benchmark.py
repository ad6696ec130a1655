"""`python -m export.benchmark BUNDLE [--checkpoint RUN]`: what runs a bundle fastest on this machine?

    python -m export.benchmark bundles/mine
    python -m export.benchmark bundles/mine --choose latency --data photos/
    python -m export.benchmark bundles/mine --checkpoint runs/mine --data photos/ --batch-sizes 1 8 --out benchmark/

Measured is every file of the bundle with everything that can run it here: the runtimes of `convmae predict`
on the CPU (with every precision that the CPU has, for latency and for throughput), ONNX Runtime's CUDA and TensorRT
providers, and the TensorRT engines in the bundle's folder; with `--checkpoint` also PyTorch, eager and compiled, on
the CPU. What is not there is listed with the reason. On a GPU nothing of this has been run yet.

Each combination lives in a process of its own, pinned to the same cores, one for each thread, so that memory and
failures are its own. In every round each takes one turn, in an order that rotates; a turn is one run, or as many as
take 0.1 s. Timed is a batch from arrays as the graph takes them to outputs as NumPy arrays; decoding, preprocessing,
postprocessing, compilation and starting are not. Who computes in full precision on the CPU must give the first
combination's outputs before it is timed. With `--data` every combination then predicts those photos or videos, and it
is reported how often it says what the first one says, and the task's metric where there are labels.

Exit status: 0 where all went well, 1 where something failed or nothing could be measured, 2 where the request cannot
be carried out.
"""

import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.progress import Progress

from convmae_deploy.backends.choice import Goal, choice_path
from convmae_deploy.backends.runtimes import RUNTIMES
from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import atomic_directory, check_can_create, check_is_new
from convmae_deploy.machine import available_cores
from convmae_deploy.program import SOME_INPUTS_BAD, failures_in_words, run_program
from convmae_deploy.tasks import load_bundle, task_of
from convmae_deploy.terminal import Terminal
from export import failures
from export.benchmarking.choosing import choose, in_words, write_choice
from export.benchmarking.plot import draw_record
from export.benchmarking.process import WorkerError, WorkerProcess
from export.benchmarking.report import (
    BenchmarkRecord,
    Judged,
    LeftOutRecord,
    advise,
    combination_records,
    machine_facts,
    noise_warnings,
    rows_of,
    unit_of,
)
from export.benchmarking.rounds import Entry, Plan, measure, steps
from export.benchmarking.tables import print_record
from export.benchmarking.worker import Job
from export.runtimes.combinations import MEASURED, Combination, Measured, to_measure
from export.verification.samples import verification_samples

BATCH_SIZES = (1, 8, 32)  # by default, as far as the bundle takes them
RECORD_NAME, PLOT_NAME = "benchmark.json", "benchmark.png"
FREE_MEMORY = 4  # times the largest file must be free for one more combination to start
INPUTS_NAME = "inputs.npy"
TOPOLOGY = Path("/sys/devices/system/cpu")
MEMORY_INFO = Path("/proc/meminfo")


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Measures everything on this machine that can run a bundle."""

    bundle: Annotated[Path, tyro.conf.Positional]  # folder that python -m export wrote
    checkpoint: Path | None = None  # run folder or checkpoint of the same model: PyTorch is measured too
    batch_sizes: tuple[int, ...] = ()  # images, or clips, a run; default: 1 8 32, as far as the bundle takes them
    rounds: int = 10  # turns of each combination at each batch size
    warm_up: int = 3  # runs before them, at each batch size
    threads: int = available_cores()  # CPU threads of every combination, each pinned to the same cores
    runtimes: tuple[Measured, ...] = MEASURED  # which to measure
    files: tuple[str, ...] = ()  # files of the bundle, for instance model.onnx; default: all
    # run the programs inside version-compatible engines, with all of your rights: built by you or somebody you trust
    trust_engine_code: bool = False
    data: Path | None = None  # photos or videos to measure with and to answer, labelled ones for the task's metric
    samples: int = 32  # of --data, at most
    # write the fastest file and runtime that hold to BUNDLE.choice.json beside the bundle, for runtime auto to follow
    choose: Goal | None = None
    out: Path | None = None  # folder for the figures as JSON and the plot; must not exist

    def __post_init__(self) -> None:
        smallest = min(*self.batch_sizes, self.rounds, self.warm_up, self.threads, self.samples)
        if smallest < 1:
            raise ConvMAEError(
                "--batch-sizes, --rounds, --warm-up, --threads and --samples must all be at least 1; got a smaller one"
            )
        if self.threads > available_cores():
            raise ConvMAEError(f"--threads must be at most {available_cores()}, the cores; got {self.threads}")
        if not self.runtimes:
            raise ConvMAEError("--runtimes must name at least one; leave it out for all")


def run_benchmark(config: BenchmarkConfig, console: Console) -> BenchmarkRecord:
    """Measures everything; progress goes to the console.

    Raises:
        ConvMAEError: the request cannot be carried out.
    """
    bundle = load_bundle(config.bundle)
    plan = Plan(batch_sizes=batch_sizes(config, bundle), rounds=config.rounds, warm_up=config.warm_up)
    data = None if config.data is None else config.data.absolute()
    combinations, left_out = to_measure(
        bundle,
        checkpoint=config.checkpoint is not None,
        runtimes=config.runtimes,
        files=config.files,
        trusted=config.trust_engine_code,
    )
    count = min(max(plan.batch_sizes), config.samples)
    task, spec = task_of(bundle.manifest), bundle.manifest.preprocessing
    samples = verification_samples(task, spec, data, None, count)
    facts, load = machine_facts(config.threads), load_average()
    with (
        tempfile.TemporaryDirectory() as temporary,
        pinned(config.threads) as cores,
        Progress(console=console, transient=True, auto_refresh=False) as progress,  # a thread of its own takes time
    ):
        np.save(Path(temporary) / INPUTS_NAME, np.stack(samples.inputs(task, spec, 0, count)))
        bar = progress.add_task("", total=steps(combinations, plan))

        def on_step(what: str, advance: int) -> None:
            progress.update(bar, description=what, advance=advance)
            progress.refresh()

        entries = measure(
            combinations,
            opener(config, bundle, Path(temporary)),
            plan,
            on_step,
            predict=None if data is None else lambda process: process.predictions(data, config.samples),
            exact_outputs=not task_of(bundle.manifest).GIVES_LISTS,
        )
    judged = Judged() if data is None else judge(entries, bundle, data, config.samples)
    rows = rows_of(entries, plan.batch_sizes)
    records = combination_records(entries, judged)
    return BenchmarkRecord(
        bundle=bundle.manifest.name,
        task=bundle.manifest.task,
        variant=bundle.manifest.variant,
        inputs=samples.name,
        rounds=config.rounds,
        warm_up=config.warm_up,
        threads=config.threads,
        machine=facts | {"pinned": "no" if cores is None else f"to cores {', '.join(map(str, cores))}"},
        warnings=noise_warnings(load, available_cores(), rows),
        counted=judged.counted,
        combinations=records,
        rows=rows,
        left_out=tuple(LeftOutRecord(name=name, reason=reason) for name, reason in left_out.items()),
        advice=advise(rows, records, unit_of(bundle.manifest.task), judged.counted),
    )


def batch_sizes(config: BenchmarkConfig, bundle: Bundle) -> tuple[int, ...]:
    """What to measure, ascending: then the most memory so far is that of the largest batch so far.

    Raises:
        ConvMAEError: the bundle does not take such a batch.
    """
    limits = bundle.manifest.input
    if not config.batch_sizes:
        return tuple(size for size in BATCH_SIZES if limits.min_batch <= size <= limits.max_batch) or (
            limits.max_batch,
        )
    sizes = tuple(sorted(set(config.batch_sizes)))
    if not limits.min_batch <= sizes[0] <= sizes[-1] <= limits.max_batch:
        raise ConvMAEError(
            f"--batch-sizes must be from {limits.min_batch} to {limits.max_batch}, which is what the bundle takes; got "
            f"{' '.join(map(str, sizes))}"
        )
    return sizes


def load_average() -> float | None:
    """Processes that wanted to run in the last minute; None: this system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def opener(config: BenchmarkConfig, bundle: Bundle, folder: Path) -> Callable[[Combination], WorkerProcess]:
    """What starts the processes, as long as there is memory for one more: all of them stay until the end."""
    least = FREE_MEMORY * max(file.bytes for file in bundle.manifest.files.values())

    def open_process(combination: Combination) -> WorkerProcess:
        free = free_memory()
        if free is not None and free < least:
            raise WorkerError(
                f"only {free / 1e9:.1f} GB of memory are free while the others wait for their turns; measure fewer at "
                "a time with --runtimes or --files"
            )
        job = Job(
            combination=combination,
            bundle=config.bundle.absolute(),
            checkpoint=None if config.checkpoint is None else config.checkpoint.absolute(),
            threads=config.threads,
            inputs=folder / INPUTS_NAME,
        )
        name = f"process-{len(list(folder.iterdir()))}"
        return WorkerProcess(job, folder / name, {"OMP_NUM_THREADS": str(config.threads)})

    return open_process


def free_memory() -> int | None:
    """Bytes that programs can have without swapping; None: this system does not tell."""
    if not MEMORY_INFO.exists():
        return None
    lines = MEMORY_INFO.read_text(encoding="utf-8").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def judge(entries: Sequence[Entry], bundle: Bundle, data: Path, limit: int) -> Judged:
    """How often each answers a user's data as the first one does, and the task's metrics."""
    from export.tasks import read_task_data  # it imports torch

    task_data = read_task_data(data, bundle.manifest, limit=limit)
    predicted = {entry.combination: entry.predictions for entry in entries if entry.predictions is not None}
    if not predicted:
        return Judged()
    first = next(iter(predicted.values()))
    agreements = {one: task_data.agreement(first, predictions) for one, predictions in predicted.items()}
    return Judged(
        counted=next(iter(agreements.values())).counted,
        agreement={one: agreement.share for one, agreement in agreements.items()},
        metrics={
            one: {metric.name: metric.value for metric in task_data.metrics(predictions)}
            for one, predictions in predicted.items()
        }
        if task_data.labelled
        else {},
    )


@contextmanager
def pinned(threads: int) -> Iterator[list[int] | None]:
    """Lets this thread, and every process that it starts, run on as many cores only; None: this system cannot."""
    if not hasattr(os, "sched_setaffinity"):
        yield None
        return
    allowed = os.sched_getaffinity(0)
    cores = pick_cores(allowed, threads)
    os.sched_setaffinity(0, cores)
    try:
        yield cores
    finally:
        os.sched_setaffinity(0, allowed)


def pick_cores(allowed: Collection[int], count: int, topology: Path = TOPOLOGY) -> list[int]:
    """The first `count` of the allowed cores, such that no two are halves of one as long as there are others."""

    def turn(core: int) -> tuple[int, int]:
        """Whether it is the first, second, ... half of its core."""
        siblings = topology / f"cpu{core}" / "topology" / "thread_siblings_list"
        if not siblings.exists():
            return 0, core
        named = [int(number) for number in re.findall(r"\d+", siblings.read_text(encoding="utf-8"))]
        return sum(other in allowed and other < core for other in named), core

    return sorted(sorted(allowed, key=turn)[:count])


def write_record(out: Path, record: BenchmarkRecord) -> None:
    """The figures as JSON, and the plot where there is something to draw."""
    with atomic_directory(out) as directory:
        (directory / RECORD_NAME).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
        if any(row.timing is not None for row in record.rows):
            draw_record(directory / PLOT_NAME, record)


@failures_in_words(failures.in_words)
def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    config = tyro.cli(BenchmarkConfig, args=arguments, prog="python -m export.benchmark")
    if config.out is not None:  # before minutes of work
        check_is_new(config.out)
    if config.choose is not None:
        check_can_create(choice_path(config.bundle))
    record = run_benchmark(config, Terminal(stderr=True))
    print_record(record, Terminal())
    if config.out is not None:
        write_record(config.out, record)
    if config.choose is not None:
        bundle = load_bundle(config.bundle)
        choice, passed_over = choose(record, bundle, config.choose)
        title = RUNTIMES[choice.runtime].title
        print(f"{write_choice(bundle, choice)}: {choice.file} in {title} for {choice.goal}, {choice.figures}")
        if passed_over:
            print(f"passed over, as they do not hold: {in_words(passed_over)}")
    return 0 if record.complete else SOME_INPUTS_BAD


if __name__ == "__main__":
    run_program(main)
