"""The server beside others that do the same work: LitServe, and Starlette under uvicorn with nothing around it.

    python -m benchmarks.peers [--bundle PATH]

Every one does the server's own job (parse, decode, preprocess, infer, rank, write JSON) in as many threads, each with
one thread of ONNX Runtime; LitServe has processes in place of threads. The same clients send them the same photo. All
run at once and are measured in turn, round by round, with the work without HTTP in between, so that a machine that
slows down slows all; the figures are medians over the rounds. The peers have no limits, queue, key or metrics.
"""

import statistics
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import tyro

from benchmarks.load import Load, Plan, run_load
from benchmarks.processes import memory
from benchmarks.serving import (
    LoadOptions,
    default_settings,
    in_process_throughput,
    make_job,
    paired_latencies,
    serve,
    write_photo,
)
from convmae_deploy.machine import available_cores, processor
from convmae_deploy.program import run_program
from convmae_deploy.tasks import open_predictor
from convmae_deploy.tasks.classification import Classifier

SERVERS: Final = {
    "this server": ("-m", "serving"),
    "Starlette, uvicorn": ("-m", "benchmarks.peer_servers", "starlette"),
    "LitServe": ("-m", "benchmarks.peer_servers", "litserve"),
}
WARM_UP_REQUESTS: Final = 100


@dataclass(frozen=True)
class Options(LoadOptions):
    """Measures this server and others under the same load."""


@dataclass
class Peer:
    """A running server and what was measured of it, a value a round; times in seconds."""

    name: str
    process: "subprocess.Popen[str]"
    plan: Plan
    loads: list[Load] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    added: list[float] = field(default_factory=list)
    megabytes: float = 0.0

    def row(self) -> tuple[str, ...]:
        """The cells of its line in the table."""
        together = Load(1.0, [latency for load in self.loads for latency in load.latencies], 0)
        return (
            self.name,
            f"{statistics.median(load.rate for load in self.loads):.1f}",
            f"{statistics.median(self.ratios):.3f}",
            f"{1000 * together.percentile(50):.1f} / {1000 * together.percentile(99):.1f}",
            f"{1000 * statistics.median(self.added):.2f}",
            f"{self.megabytes:.0f}",
        )


HEADER: Final = ("", "requests/s", "of in process", "p50 / p99 ms", "added p50 ms", "MB")


def main(options: Options) -> int:
    """Measures and prints the table; 1 where a request failed."""
    print(f"machine {processor()}, {available_cores()} cores, which the {options.clients} clients use as well")
    print(f"{options.threads} threads or processes each, with one thread of ONNX Runtime")
    print(f"{options.rounds} rounds of {options.seconds:g} s; added p50: of one client, beyond the work without HTTP")
    names = [name for name in SERVERS if name != "LitServe" or find_spec("litserve")]
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        photo = options.photo or write_photo(folder / "photo.jpg")
        predictor = open_predictor(options.bundle, device="cpu", threads=1)
        assert isinstance(predictor, Classifier)
        peers = [start(stack, folder / str(index), name, photo, options) for index, name in enumerate(names)]
        rates = measure(make_job(predictor, photo.read_bytes(), default_settings()), peers, photo, options)
    print_table([HEADER, ("in process", f"{statistics.median(rates):.1f}", "1", "", "", ""), *(p.row() for p in peers)])
    if len(names) < len(SERVERS):
        print("LitServe is not installed, so it is left out; run pip install '.[peers]'")
    failures = {peer.name: sum(load.failures for load in peer.loads) for peer in peers}
    for name, count in failures.items():
        if count:
            print(f"{count} requests to {name} failed")
    return 1 if any(failures.values()) else 0


def start(stack: ExitStack, folder: Path, name: str, photo: Path, options: Options) -> Peer:
    """One of `SERVERS`, warmed up; it ends with `stack`."""
    folder.mkdir()
    settings = {"CONVMAE_BUNDLE": str(options.bundle.resolve()), "CONVMAE_THREADS": str(options.threads)}
    process, port = stack.enter_context(serve(settings, folder, SERVERS[name]))
    plan = Plan(port, "/v1/classify", str(photo), options.clients, options.seconds)
    run_load(Plan(port, plan.path, plan.body, options.clients, 0, WARM_UP_REQUESTS))
    return Peer(name, process, plan)


def measure(job: Callable[[], bytes], peers: Sequence[Peer], photo: Path, options: Options) -> list[float]:
    """Fills in what is measured of each peer; the rates of the work without HTTP, one a round."""
    rates = []
    for _ in range(options.rounds):
        rates.append(in_process_throughput(job, options.threads, options.seconds))
        for peer in peers:
            peer.loads.append(run_load(peer.plan))
            peer.ratios.append(peer.loads[-1].rate / rates[-1])
            here, served = paired_latencies(job, peer.plan.port, photo, options.seconds)
            peer.added.append(statistics.median(served) - statistics.median(here))
    for peer in peers:
        peer.megabytes = memory(peer.process.pid) / 1e6
    return rates


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Prints rows of cells, the first column to the left and the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print(
            "  ".join(
                cell.ljust(w) if at == 0 else cell.rjust(w)
                for at, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
        )


if __name__ == "__main__":
    run_program(lambda: main(tyro.cli(Options, prog="python -m benchmarks.peers", description=__doc__)))
