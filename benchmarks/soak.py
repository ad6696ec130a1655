"""A server under mixed load for a long time: what it answers, and whether its memory and descriptors stay flat.

    python -m benchmarks.soak --minutes 10 [--check]

Starts `python -m serving`, measures how many requests a second it answers at most, and then sends 80 % of that at a
constant rate, whatever becomes of the requests before, beside clients that send broken files and wrong requests, and
clients that are slow, silent or gone. The model is loaded anew twice meanwhile. Memory is that of the server and all of
its processes, each page counted once. What the first fifth of the time holds is warm-up and is not judged.
"""

import asyncio
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import tyro

from benchmarks.load import Load, Plan, run_load
from benchmarks.processes import descriptors, memory, threads
from benchmarks.serving import serve, write_photo
from benchmarks.soak_clients import (
    BAD,
    GOOD,
    PLANNED,
    SLOW,
    GoodClients,
    Outcomes,
    Target,
    message,
    outcome_of,
    repeat,
)
from convmae_deploy.bundle.loading import read_bundle
from convmae_deploy.machine import available_cores, processor
from convmae_deploy.program import run_program
from serving.settings import default_bundles

CAPACITY_SECONDS: Final = 5.0
CAPACITY_CLIENTS: Final = 8
WARM_UP_SHARE: Final = 0.2  # of the time, which is not judged
WINDOW_SHARE: Final = 0.2  # of the time, whose samples are compared at its beginning and its end
SWAPS: Final = (0.4, 0.7)  # shares of the time at which the model is replaced
FLAT_SHARE: Final = 0.05  # that memory may grow
SERVED_SHARE: Final = 0.95  # of good requests, so that a server which refuses most of them does not pass
MORE_DESCRIPTORS: Final = 3  # that may be open after the last client has left
SETTLE_SECONDS: Final = 3.0
SWAP: Final = "model replaced"
EXPECTED: Final = {GOOD: "200", SWAP: "200"} | {kind.name: kind.expected for kind in (*BAD, *SLOW)}
KEY: Final = "soak-admin-key-0123456789"


@dataclass(frozen=True)
class Options:
    """Keeps a server busy for a long time and watches what it holds."""

    minutes: float = 10.0
    """Length of the load."""
    bundle: Path = default_bundles()[0]
    """Classifier to serve."""
    threads: int = available_cores()
    """Threads of the server."""
    share: float = 0.8
    """Good requests, as a share of what the server answers at most."""
    sample_seconds: float = 2.0
    """From one look at the server to the next."""
    picture: Path = Path("soak.png")
    """Where the picture of memory and descriptors goes."""
    check: bool = False
    """Exit with status 1 when a gate fails."""


@dataclass(frozen=True)
class Sample:
    """One look at the server."""

    seconds: float  # since the load began
    megabytes: float
    descriptors: int
    threads: int
    good: int  # answers of 200 so far


@dataclass
class Soak:
    """What was seen."""

    seconds: float  # of load
    rate: float  # good requests a second
    outcomes: Outcomes = field(default_factory=Outcomes)
    samples: list[Sample] = field(default_factory=list)
    idle: tuple[int, int] = (0, 0)  # descriptors before the first client and after the last one

    def window(self, *, late: bool) -> list[Sample]:
        """The samples that are compared: those after the warm-up, or the last ones."""
        begin = self.seconds * (1 - WINDOW_SHARE if late else WARM_UP_SHARE)
        return [sample for sample in self.samples if begin <= sample.seconds <= begin + self.seconds * WINDOW_SHARE]

    def medians(self, name: str) -> tuple[float, float]:
        """Of one of a sample's figures in the two windows."""
        first, last = (
            statistics.median(getattr(sample, name) for sample in self.window(late=late)) for late in (False, True)
        )
        return first, last

    def growth(self) -> float:
        """Share by which memory grew between the two windows."""
        first, last = self.medians("megabytes")
        return last / first - 1

    def failed_gates(self) -> list[str]:
        """Sentences about the gates that were missed."""
        sentences = []
        if self.growth() > FLAT_SHARE:
            sentences.append(f"memory grew by {100 * self.growth():.1f} %, at most {100 * FLAT_SHARE:g} % is flat")
        if self.idle[1] > self.idle[0] + MORE_DESCRIPTORS:
            sentences.append(f"{self.idle[1]} descriptors stay open, {self.idle[0]} were open before")
        good = self.outcomes.counts.get(GOOD, Counter())
        served = good["200"] / max(1, good.total())
        if served < SERVED_SHARE:
            sentences.append(
                f"{100 * served:.0f} % of good requests were served, at least {100 * SERVED_SHARE:g} % must be"
            )
        for name, counts in self.outcomes.counts.items():
            others = {outcome: count for outcome, count in counts.items() if outcome not in (EXPECTED[name], PLANNED)}
            if others:
                sentences.append(f"{name}: expected {EXPECTED[name]}, found {counted(others)}")
        return sentences


def counted(counts: dict[str, int]) -> str:
    """Outcomes with their numbers, the most frequent first."""
    return ", ".join(f"{outcome}: {count}" for outcome, count in Counter(counts).most_common())


def main(options: Options) -> int:
    """Loads, watches, prints, draws, and says whether the gates hold."""
    print(f"machine {processor()}, {available_cores()} cores, which the clients use as well; {options.threads} threads")
    settings = {"CONVMAE_THREADS": str(options.threads), "CONVMAE_ADMIN_KEY": KEY}
    model = read_bundle(options.bundle).manifest.name
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photo = write_photo(folder / "photo.jpg")
        with serve(settings | {"CONVMAE_BUNDLE": str(options.bundle.resolve())}, folder) as (process, port):
            run_load(Plan(port, "/v1/classify", str(photo), CAPACITY_CLIENTS, 1.0))
            capacity = run_load(Plan(port, "/v1/classify", str(photo), CAPACITY_CLIENTS, CAPACITY_SECONDS)).rate
            soak = Soak(60 * options.minutes, options.share * capacity)
            print(f"capacity {capacity:.1f} requests/s, good requests at {soak.rate:.1f}/s for {options.minutes:g} min")
            time.sleep(SETTLE_SECONDS)
            before = descriptors(process.pid)
            target = Target(port, photo.read_bytes())
            asyncio.run(load(soak, target, process.pid, model, options.sample_seconds))
            time.sleep(SETTLE_SECONDS)
            soak.idle = (before, descriptors(process.pid))
    print_soak(soak)
    draw(soak, options.picture)
    print(f"picture: {options.picture}")
    failed = soak.failed_gates()
    for sentence in failed:
        print(f"gate missed: {sentence}")
    return 1 if options.check and failed else 0


async def load(soak: Soak, target: Target, pid: int, model: str, sample_seconds: float) -> None:
    """All clients together for the time of the soak, the looks at the server, and the models replaced."""
    tasks = [asyncio.create_task(repeat(kind, target, soak.outcomes)) for kind in (*BAD, *SLOW)]
    tasks.append(asyncio.create_task(watch(soak, pid, sample_seconds)))
    good = GoodClients(target, soak.outcomes).run(soak.rate, soak.seconds)
    await asyncio.gather(good, replace_models(soak, target, model))
    while not all(kind.name in soak.outcomes.counts for kind in BAD):  # in a load of a second, on a slow machine
        await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(ended, Exception):
            raise ended


async def watch(soak: Soak, pid: int, sample_seconds: float) -> None:
    """Looks at the server again and again, and prints a line a minute."""
    loop = asyncio.get_running_loop()
    started, printed = loop.time(), 0
    while True:
        seconds = loop.time() - started
        good = soak.outcomes.counts.get(GOOD, Counter())["200"]
        soak.samples.append(Sample(seconds, memory(pid) / 1e6, descriptors(pid), threads(pid), good))
        if seconds >= 60 * printed:
            printed += 1
            print(sample_line(soak.samples[-1]), flush=True)
        await asyncio.sleep(sample_seconds)


async def replace_models(soak: Soak, target: Target, name: str) -> None:
    """Has the server load its model anew, twice: opened, checked and run before the old one leaves."""
    passed = 0.0
    for share in SWAPS:
        await asyncio.sleep(soak.seconds * (share - passed))
        passed = share
        soak.outcomes.add(SWAP, await outcome_of(target.ask(replacement(name))))


def replacement(name: str) -> bytes:
    """The request that has the server load a model anew."""
    return message("POST", f"/v2/repository/models/{name}/load", b"", f"Authorization: Bearer {KEY}")


def sample_line(sample: Sample) -> str:
    """A sample in words."""
    return (
        f"  {sample.seconds / 60:5.1f} min  {sample.megabytes:6.0f} MB  {sample.descriptors:4d} descriptors  "
        f"{sample.threads:3d} threads  {sample.good:8d} good answers"
    )


def print_soak(soak: Soak) -> None:
    """Prints what came of each kind of client, and what the server held."""
    print(f"{'clients':<24} {'expected':>8}  answers")
    for name, counts in soak.outcomes.counts.items():
        print(f"{name:<24} {EXPECTED[name]:>8}  {counted(counts)}")
    waits = Load(soak.seconds, soak.outcomes.latencies, 0)
    p50, p99 = (1000 * waits.percentile(percent) for percent in (50, 99))
    print(f"good answers, from the moment that they were due: p50 {p50:.0f} ms, p99 {p99:.0f} ms")
    for title in ("megabytes", "descriptors", "threads"):
        first, last = soak.medians(title)
        most = max(getattr(sample, title) for sample in soak.samples)
        print(f"{title:<12} after the warm-up {first:.0f}, at the end {last:.0f}, at most {most:.0f}")
    print(f"memory grew by {100 * soak.growth():.1f} % (gate: at most {100 * FLAT_SHARE:g} %)")
    print(f"descriptors without clients: {soak.idle[0]} before, {soak.idle[1]} after")


def draw(soak: Soak, path: Path) -> None:
    """Draws memory and descriptors over time, with the end of the warm-up and the replacements of the model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    minutes = [sample.seconds / 60 for sample in soak.samples]
    above.plot(minutes, [sample.megabytes for sample in soak.samples], color="#0f6a70")
    above.set_ylabel("memory, MB")
    above.set_ylim(0, 1.1 * max(sample.megabytes for sample in soak.samples))
    below.plot(minutes, [sample.descriptors for sample in soak.samples], color="#8a5a00")
    below.set_ylabel("descriptors")
    below.set_ylim(bottom=0)
    below.set_xlabel("minutes; dotted: the end of the warm-up, dashed: the model is replaced")
    for axes in (above, below):
        axes.axvline(WARM_UP_SHARE * soak.seconds / 60, color="grey", linestyle=":")
        for share in SWAPS:
            axes.axvline(share * soak.seconds / 60, color="grey", linestyle="--")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    run_program(lambda: main(tyro.cli(Options, prog="python -m benchmarks.soak", description=__doc__)))
