"""What batches bring to a server whose models are on a device, with a device that only takes time.

    python -m benchmarks.batching [--batch-ms 20] [--photo-ms 1] [--clients 1 8 32]

Two servers, one with batches and one without (CONVMAE_MAX_BATCH=1), each with a simulated device that takes so much a
batch and so much more a photo; decoding, preprocessing and HTTP are real, on this machine's cores, which the clients
need too. The two are measured in turn, round by round. It says what the batcher makes of a device, not how fast any
device is.
"""

import re
import statistics
import tempfile
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import tyro

from benchmarks.load import Load, Plan, run_load
from benchmarks.serving import serve, write_photo
from benchmarks.simulated_device import BATCH_SIZES
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.machine import available_cores, processor
from convmae_deploy.program import run_program
from serving.settings import default_bundles

PHOTO_SIZE: Final = (200, 150)  # in pixels; small, so that the device is what requests wait for
WITHOUT, WITH = "one by one", "in batches"
MAX_BATCH: Final = {WITHOUT: 1, WITH: BATCH_SIZES[-1]}


@dataclass(frozen=True)
class Options:
    """Measures what batches bring, on a simulated device."""

    batch_ms: float = 20.0
    """Time of the device for a batch, whatever its size."""
    photo_ms: float = 1.0
    """Time of the device for each photo of a batch, on top."""
    clients: tuple[int, ...] = (1, 8, 32)
    """Clients at the same time, one measurement each."""
    rounds: int = 3
    """Measurements of each, in turn; the figures are medians."""
    seconds: float = 3.0
    """Length of each measurement."""
    bundle: Path = default_bundles()[0]
    """Classifier whose photos are decoded and preprocessed; it is not run."""


def main(options: Options) -> int:
    """Measures and prints."""
    print(f"simulated device: {options.batch_ms:g} ms a batch and {options.photo_ms:g} ms a photo in it")
    print(f"machine: {processor()}, {available_cores()} cores, for decoding and for the clients")
    print(f"a JPEG of {PHOTO_SIZE[0]} x {PHOTO_SIZE[1]} a request; batches of up to {BATCH_SIZES[-1]}")
    header = f"{'clients':>7}  {'':<10}  {'requests/s':>10}  {'p50 ms':>7}  {'p99 ms':>7}  {'photos a batch':>14}"
    print(f"median of {options.rounds} rounds of {options.seconds:g} s\n{header}")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        photo = write_photo(folder / "photo.jpg", PHOTO_SIZE)
        command = ("-m", "benchmarks.simulated_device", str(options.batch_ms), str(options.photo_ms))
        ports = {}
        for mode, largest in MAX_BATCH.items():
            (folder / mode).mkdir()
            settings = {
                "CONVMAE_BUNDLE": str(options.bundle),
                "CONVMAE_MAX_BATCH": str(largest),
                "CONVMAE_MAX_QUEUE_SECONDS": "60",  # without batches the last client waits for all others
                "CONVMAE_REQUEST_TIMEOUT_SECONDS": "60",
            }
            _, ports[mode] = stack.enter_context(serve(settings, folder / mode, command))
        for clients in options.clients:
            measured = measure(ports, clients, options, photo)
            for mode, (rate, p50, p99, rows) in measured.items():
                print(f"{clients:>7}  {mode:<10}  {rate:>10.1f}  {p50:>7.1f}  {p99:>7.1f}  {rows:>14.1f}")
            print(f"{'':>7}  {'gain':<10}  {measured[WITH][0] / measured[WITHOUT][0]:>9.2f}x")
    return 0


def measure(
    ports: dict[str, int], clients: int, options: Options, photo: Path
) -> dict[str, tuple[float, float, float, float]]:
    """Requests a second, 50th and 99th percentile in ms, and photos a batch by mode, as medians over the rounds."""
    found: dict[str, list[tuple[float, float, float, float]]] = {mode: [] for mode in ports}
    for _ in range(options.rounds):
        for mode, port in ports.items():
            before = batches_so_far(port)
            load = checked(run_load(Plan(port, "/v1/classify", str(photo), clients, options.seconds)))
            rows, batches = (after - start for after, start in zip(batches_so_far(port), before, strict=True))
            found[mode].append((load.rate, 1000 * load.percentile(50), 1000 * load.percentile(99), rows / batches))
    return {mode: tuple(map(statistics.median, zip(*rounds, strict=True))) for mode, rounds in found.items()}


def checked(load: Load) -> Load:
    """The load, if every request was answered.

    Raises:
        ConvMAEError: some were not.
    """
    if load.failures:
        raise ConvMAEError(f"{load.failures} of {len(load.latencies)} requests failed; use fewer clients")
    return load


def batches_so_far(port: int) -> tuple[float, float]:
    """Photos run and batches run by the server so far, as its metrics say."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as page:
        text = page.read().decode()
    rows, batches = (re.search(rf"convmae_batch_rows_{what}{{[^}}]*}} (\S+)", text) for what in ("sum", "count"))
    assert rows is not None and batches is not None, text
    return float(rows[1]), float(batches[1])


if __name__ == "__main__":
    run_program(lambda: main(tyro.cli(Options, prog="python -m benchmarks.batching", description=__doc__)))
