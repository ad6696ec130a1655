"""What the server costs: its throughput and latency against the same work without HTTP, in one run.

    python -m benchmarks.serving [--bundle PATH] [--check]

In process: the server's own job (parse, decode, preprocess, infer, rank, encode JSON), in as many threads as the server
has. Server: `python -m serving` with that bundle on this machine, and clients on kept connections in a third process.
The two alternate in rounds, so that a machine that slows down slows both; the figures are medians over the rounds.
"""

import contextlib
import math
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from benchmarks.load import ROOT, Load, Plan, connected, run_load
from benchmarks.processes import family
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.machine import available_cores, processor
from convmae_deploy.program import run_program
from convmae_deploy.tasks import open_predictor
from convmae_deploy.tasks.classification import Classifier
from serving.api.inference import Inference
from serving.api.job import Received
from serving.api.models import Models, warm_up
from serving.api.routes import ROUTES
from serving.settings import Settings, default_bundles
from serving.work.pool import Ticket
from serving.work.runs import Timings

MIN_RATIO = 0.92  # share of the in-process throughput, at `clients` clients
MAX_ADDED_MS = 1.2  # to the median latency, at one client
MAX_SPREAD = 2.0  # 99th percentile / median, at `clients` clients
PHOTO_SIZE = (500, 375)
START_SECONDS = 120.0
END_SECONDS = 60.0


@dataclass(frozen=True)
class LoadOptions:
    """What servers are measured with, and for how long."""

    bundle: Path = default_bundles()[0]
    """Classifier to serve."""
    photo: Path | None = None
    """Photo to send; by default a generated JPEG of 500 x 375 pixels and about 100 KB."""
    clients: int = 8
    """Clients at the same time, for the throughput."""
    threads: int = available_cores()
    """Threads, or processes, of each server and of the work without HTTP."""
    rounds: int = 5
    """Rounds, in each of which every server is measured once, and the work without HTTP."""
    seconds: float = 3.0
    """Length of each measurement."""


@dataclass(frozen=True)
class Options(LoadOptions):
    """Measures the server against the same work without HTTP."""

    memory_requests: int = 1000
    """Requests after which memory is read, twice; fewer for a slow model."""
    check: bool = False
    """Exit with status 1 when a gate fails."""


@dataclass(frozen=True)
class Figures:
    """What was measured; times in milliseconds, memory in MB, rates per second."""

    in_process_rate: float
    server_rate: float
    ratio: float  # median over the rounds of server rate / in-process rate
    in_process_p50: float  # one thread, one request after another
    server_p50: float  # one client
    added_p50: float
    loaded_p50: float
    loaded_p99: float
    added_cpu: float  # CPU seconds of the server a request, beyond those of the in-process work
    failures: int
    memory_requests: int
    memory_idle: float
    memory_later: float
    memory_last: float

    def failed_gates(self) -> list[str]:
        """Sentences about the gates that were missed."""
        gates = {
            f"ratio {self.ratio:.3f} must be at least {MIN_RATIO}": self.ratio >= MIN_RATIO,
            f"added p50 {self.added_p50:.2f} ms must be at most {MAX_ADDED_MS} ms": self.added_p50 <= MAX_ADDED_MS,
            f"p99 / p50 under load {self.loaded_p99 / self.loaded_p50:.2f} must be at most {MAX_SPREAD}": (
                self.loaded_p99 <= MAX_SPREAD * self.loaded_p50
            ),
            f"{self.failures} requests failed": self.failures == 0,
        }
        return [sentence for sentence, passed in gates.items() if not passed]


def main(options: Options) -> int:
    """Measures, prints, and says whether the gates hold."""
    with tempfile.TemporaryDirectory() as folder:
        photo = options.photo or write_photo(Path(folder) / "photo.jpg")
        predictor = open_predictor(options.bundle, device="cpu", threads=1)
        assert isinstance(predictor, Classifier)
        describe(options, predictor, photo)
        settings = {"CONVMAE_BUNDLE": str(options.bundle), "CONVMAE_THREADS": str(options.threads)}
        with serve(settings, Path(folder)) as (process, port):
            figures = measure(options, predictor, photo, process, port)
    print_figures(figures)
    failed = figures.failed_gates()
    for sentence in failed:
        print(f"gate missed: {sentence}")
    return 1 if options.check and failed else 0


def describe(options: Options, predictor: Classifier, photo: Path) -> None:
    """Prints what is measured and on what."""
    manifest = predictor.manifest
    with Image.open(photo) as image:
        size = image.size
    print(
        f"model {manifest.name} ({manifest.variant}), {manifest.input.shape}, float32, batch 1, ONNX Runtime on the CPU"
    )
    print(f"machine {processor()}, {available_cores()} cores; {options.threads} threads, one ONNX Runtime thread each")
    print(f"photo {size[0]} x {size[1]}, {photo.stat().st_size / 1000:.0f} KB; {options.clients} clients over loopback")
    print(f"{options.rounds} rounds of {options.seconds:g} s, after a warm-up of 1 s each; the load takes CPU as well")
    print("included: parsing, JPEG decoding, preprocessing, inference, ranking, JSON; server: HTTP and sockets too")


def measure(
    options: Options, predictor: Classifier, photo: Path, process: "subprocess.Popen[str]", port: int
) -> Figures:
    """Alternates in-process and server measurements."""
    job = make_job(predictor, photo.read_bytes(), default_settings())
    plan = Plan(port, "/v1/classify", str(photo), options.clients, options.seconds)
    memory = [resident_mb(process.pid)]
    for _ in range(2):
        run_load(Plan(port, "/v1/classify", str(photo), options.clients, 0, options.memory_requests))
        memory.append(resident_mb(process.pid))
    in_process_throughput(job, options.threads, 1.0)
    rates, loads, added_cpu = [], [], []
    alone: list[float] = []
    singles: list[float] = []
    for _ in range(options.rounds):
        cpu = time.process_time()
        rates.append(in_process_throughput(job, options.threads, options.seconds))
        own_cpu = (time.process_time() - cpu) / (rates[-1] * options.seconds)
        cpu = cpu_seconds(process.pid)
        loads.append(run_load(plan))
        added_cpu.append((cpu_seconds(process.pid) - cpu) / len(loads[-1].latencies) - own_cpu)
        here, served = paired_latencies(job, port, photo, 2 * options.seconds)
        alone += here
        singles += served
    in_process_p50 = 1000 * statistics.median(alone)
    server_p50 = 1000 * statistics.median(singles)
    together = Load(1.0, [latency for load in loads for latency in load.latencies], 0)
    return Figures(
        in_process_rate=statistics.median(rates),
        server_rate=statistics.median(load.rate for load in loads),
        ratio=statistics.median(load.rate / rate for load, rate in zip(loads, rates, strict=True)),
        in_process_p50=in_process_p50,
        server_p50=server_p50,
        added_p50=server_p50 - in_process_p50,
        loaded_p50=1000 * together.percentile(50),
        loaded_p99=1000 * together.percentile(99),
        added_cpu=1000 * statistics.median(added_cpu),
        failures=sum(load.failures for load in loads),
        memory_requests=options.memory_requests,
        memory_idle=memory[0],
        memory_later=memory[1],
        memory_last=memory[2],
    )


def print_figures(figures: Figures) -> None:
    """Prints the figures as a table."""
    rows = {
        "in-process throughput": f"{figures.in_process_rate:.1f} requests/s",
        "server throughput": f"{figures.server_rate:.1f} requests/s",
        f"ratio (gate: at least {MIN_RATIO})": f"{figures.ratio:.3f}",
        "in-process p50, alone": f"{figures.in_process_p50:.2f} ms",
        "server p50, one client": f"{figures.server_p50:.2f} ms",
        f"added p50 (gate: at most {MAX_ADDED_MS:g} ms)": f"{figures.added_p50:.2f} ms",
        "server p50 / p99 under load": f"{figures.loaded_p50:.1f} / {figures.loaded_p99:.1f} ms",
        "CPU of the server beyond the work itself": f"{figures.added_cpu:.2f} ms a request",
        "memory of the server, idle": f"{figures.memory_idle:.0f} MB",
        f"memory after {figures.memory_requests} requests": f"{figures.memory_later:.0f} MB",
        f"memory after {2 * figures.memory_requests} requests": f"{figures.memory_last:.0f} MB",
    }
    for name, value in rows.items():
        print(f"  {name:<42} {value}")


def default_settings() -> Settings:
    """The settings of the server that is measured, which gets no others from the environment either."""
    return Settings.model_construct()


def make_work(predictor: Classifier, settings: Settings) -> Callable[[bytes], bytes]:
    """What the server's threads do for one classification request, from the body to the answer's bytes."""
    inference = Inference(settings, Models({predictor.manifest.name: predictor}))
    route = next(route for route in ROUTES if route.task == predictor.TASK)

    def work(body: bytes) -> bytes:
        received = Received(body=body, ticket=Ticket(), timings=Timings(), deadline=math.inf)
        return bytes(inference.do(route, received).response.body)

    warm_up(predictor)
    return work


def make_job(predictor: Classifier, body: bytes, settings: Settings) -> Callable[[], bytes]:
    """That work for one body, done once already."""
    job = partial(make_work(predictor, settings), body)
    job()
    return job


def in_process_throughput(job: Callable[[], bytes], threads: int, seconds: float) -> float:
    """Jobs per second with `threads` threads, none of which ever waits for work."""
    counts = [0] * threads
    begun = time.perf_counter()

    def work(index: int) -> None:
        while time.perf_counter() - begun < seconds:
            job()
            counts[index] += 1

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - begun)


def paired_latencies(
    job: Callable[[], bytes], port: int, photo: Path, seconds: float
) -> tuple[list[float], list[float]]:
    """Seconds of the job here and of one request to the server, in turn, so that a machine that drifts slows both."""
    here, served = [], []
    with connected(Plan(port, "/v1/classify", str(photo), 1, seconds)) as request:
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            begun = time.perf_counter()
            job()
            here.append(time.perf_counter() - begun)
            served.append(request())
    return here, served


@contextlib.contextmanager
def serve(
    settings: Mapping[str, str],
    folder: Path,
    command: Sequence[str] = ("-m", "serving"),
) -> Iterator["tuple[subprocess.Popen[str], int]"]:
    """A server on a free port, with no other settings; yields its process and the port.

    Args:
        settings: environment variables.
        folder: where its log goes.
        command: arguments of Python.
    """
    own = {"CONVMAE_DEVICE": "cpu", "CONVMAE_HOST": "127.0.0.1", "CONVMAE_PORT": "0"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CONVMAE_")}
    log = folder / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=kept | own | dict(settings),
            stdout=output,
            stderr=output,
            text=True,
        )
    try:
        yield process, wait_for_port(process, log)
    finally:
        members = family(process.pid)
        process.terminate()
        try:
            process.wait(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pid in members[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def wait_for_port(process: "subprocess.Popen[str]", log: Path) -> int:
    """The port that the server says it listens on, once it does.

    Raises:
        ConvMAEError: it ended, or said nothing in time.
    """
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        match = re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text(encoding="utf-8"))
        if match is not None:
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", int(match[1]))):
                return int(match[1])
        time.sleep(0.05)
    raise ConvMAEError(f"the server did not start: {log.read_text(encoding='utf-8').strip()}")


def write_photo(path: Path, size: tuple[int, int] = PHOTO_SIZE) -> Path:
    """Writes a JPEG with the statistics of a photo (power falling with frequency), the same on every machine.

    Args:
        path: where to.
        size: (width, height) in pixels.
    """
    random = np.random.default_rng(0)
    width, height = size
    total = np.zeros((height, width, 3), dtype=np.float32)
    for octave in range(8):
        cells = (max(2, height >> (7 - octave)), max(2, width >> (7 - octave)), 3)
        noise = Image.fromarray(random.integers(0, 256, cells, dtype=np.uint8))
        layer = np.asarray(noise.resize(size, Image.Resampling.BICUBIC), dtype=np.float32) - 127.5
        total += layer * 0.85**octave
    pixels = np.clip(127.5 + 0.5 * total, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=90)
    return path


def resident_mb(pid: int) -> float:
    """Resident memory of a process in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    run_program(lambda: main(tyro.cli(Options, prog="python -m benchmarks.serving", description=__doc__)))
