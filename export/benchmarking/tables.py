"""A benchmark's record on the terminal."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from export.benchmarking.report import PACKAGES, BenchmarkRecord


def figures_table(first: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A column of names and columns of figures."""
    table = Table(box=box.SIMPLE, padding=0)
    table.add_column(first, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def versions(machine: dict[str, str]) -> str:
    """The packages of a machine's facts."""
    return ", ".join(f"{package} {machine[package]}" for package in (*PACKAGES, "onnxruntime") if package in machine)


def print_record(record: BenchmarkRecord, console: Console) -> None:
    """The heading that a figure must not be quoted without, the tables, what failed, and what to pick."""
    machine = record.machine
    for line in (
        f"{record.bundle}: {record.variant}, {record.task}; on {record.inputs}",
        f"{machine['device']}; threads: {record.threads}, pinned: {machine['pinned']}",
        versions(machine),
        f"{record.rounds} interleaved rounds after {record.warm_up} warm-up runs, each combination in its own process",
        f"timed: {record.timed}",
    ):
        console.print(line, highlight=False)
    for size in sorted({row.batch_size for row in record.rows}):
        console.print(_rows_table(record, size))
    console.print(_combinations_table(record))
    for entry in record.combinations:
        if entry.problem is not None:
            console.print(f"Failed: {entry.name}: {entry.problem}", style="red", highlight=False, markup=False)
    for row in record.rows:
        if row.problem is not None:
            line = f"Failed: {row.combination} at batch {row.batch_size}: {row.problem}"
            console.print(line, style="red", highlight=False, markup=False)
    for left_out in record.left_out:
        console.print(f"Not measured: {left_out.name}: {left_out.reason}", highlight=False, markup=False)
    for warning in record.warnings:
        console.print(f"Warning: {warning}", style="yellow", highlight=False, markup=False)
    console.print(record.advice.latency, highlight=False, markup=False)
    console.print(record.advice.throughput, highlight=False, markup=False)


def _rows_table(record: BenchmarkRecord, batch_size: int) -> Table:
    """A batch size's figures."""
    rows: list[tuple[str, ...]] = []
    for row in (row for row in record.rows if row.batch_size == batch_size):
        if row.timing is None:
            rows.append((row.combination, "failed"))
            continue
        timing, peak = row.timing, "" if row.peak_gb is None else f"{row.peak_gb:.2f}"
        times = (_milliseconds(value) for value in (timing.p50_ms, timing.p90_ms, timing.p99_ms))
        rows.append((row.combination, *times, f"{timing.images_per_second:.1f}", f"{timing.spread:.0%}", peak))
    headings = ("p50 ms", "p90 ms", "p99 ms", f"{record.unit}s/s", "spread", "peak GB")
    return figures_table(f"batch {batch_size}", headings, rows)


def _milliseconds(value: float) -> str:
    return f"{value:.2f}" if value < 1000 else f"{value:.0f}"


def _combinations_table(record: BenchmarkRecord) -> Table:
    """What a combination takes to start, and how far its answers are the first one's."""
    metrics = list(dict.fromkeys(name for entry in record.combinations for name in entry.metrics))
    headings = ["start s", "GB then", "difference"]
    if record.counted is not None:
        headings += ["agreement", *(f"{name} %" for name in metrics)]
    rows = []
    for entry in record.combinations:
        figures = [
            "failed" if entry.start_seconds is None else f"{entry.start_seconds:.2f}",
            "" if entry.start_gb is None else f"{entry.start_gb:.2f}",
            "" if entry.difference is None else f"{entry.difference:.1e}",
        ]
        if record.counted is not None:
            figures.append("" if entry.agreement is None else f"{entry.agreement:.2%}")
            figures += [f"{entry.metrics[name]:.2f}" if name in entry.metrics else "" for name in metrics]
        rows.append((entry.name, *figures))
    return figures_table("", headings, rows)
