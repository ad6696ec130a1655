"""How fast is `convmae features`, how much memory does it take, and what does Ray cost?

    python -m benchmarks.features [--parts rate memory ray] [--check]

- rate: photos a second of a whole job (files to shards) as a share of a bare loop of the model on arrays that were
  prepared before, in the same process, turn by turn; for small photos and for large ones.
- memory: most resident memory of the command for a thousand photos and for fifty thousand.
- ray: photos a second of actors on one machine, from the first shards on, as a share of one process that has as many
  threads for its model as there are actors.

The photos are made here: JPEG with the detail of real ones. The model computes on `--threads` cores, what is left of
the machine reads and decodes.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.bounded_process import run_bounded
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.extraction.cluster import RayOptions, run_on_ray
from convmae_deploy.extraction.job import ModelSpec, Part, prepare_job
from convmae_deploy.extraction.shards import Written
from convmae_deploy.extraction.sources import Plan, make_plan
from convmae_deploy.program import run_program
from convmae_deploy.tasks import open_predictor
from convmae_deploy.tasks.base import Predictor
from convmae_deploy.tasks.features import FeaturePredictor

MIN_RATE, MIN_RAY, MAX_GROWTH = 0.93, 0.8, 1.1  # gates
BATCH = 32
Part_ = Literal["rate", "memory", "ray"]


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """Measures feature extraction."""

    bundle: Annotated[Path, tyro.conf.Positional] = Path("serving/bundles/imagenette-nano")
    parts: tuple[Part_, ...] = ("rate", "memory", "ray")
    sizes: tuple[int, ...] = (160, 640)  # pixels of the longer side of the photos of "rate"
    photos: int = 512  # of "rate", a round
    rounds: int = 5  # of "rate"
    threads: int = 1  # of the model
    memory_photos: tuple[int, int] = (1_000, 50_000)
    ray_photos: int = 10_000
    check: bool = False  # end with 1 where a gate is missed


def make_photos(folder: Path, count: int, side: int) -> list[Path]:
    """JPEG files of `side` x 3/4 `side` pixels, of noise with the spectrum of photos."""
    generator = np.random.default_rng(side)
    files = []
    for index in range(count):
        image = np.zeros((side * 3 // 4, side, 3))
        for scale in (4, 16, 64):
            small = generator.uniform(-1, 1, (max(2, side * 3 // 4 // scale), max(2, side // scale), 3))
            pixels = Image.fromarray(((small + 1) * 127.5).astype(np.uint8)).resize(image.shape[1::-1])
            image += np.asarray(pixels) * scale / 84
        files.append(folder / f"{index:05}.jpg")
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(files[-1], quality=90)
    return files


def job_seconds(model: ModelSpec, predictor: FeaturePredictor, files: Iterable[Path], out: Path) -> float:
    """Seconds from names to shards, with a model that runs already."""
    begun = time.perf_counter()
    plan = plan_of(files, rows=10_000)
    maker, left, _ = prepare_job(model, plan, str(out), Part())
    opened = maker.open(predictor)
    with opened.stream:
        for _ in opened.run((index, plan.piece(index)) for index in left):
            pass
    plan.close()
    return time.perf_counter() - begun


def plan_of(files: Iterable[Path], rows: int) -> Plan:
    """Files by their names, so many in a shard."""
    return make_plan([str(file) for file in files], (".jpg",), "photos", shard_rows=rows)


def bare_seconds(predictor: Predictor, rows: np.ndarray) -> float:
    """Seconds of the model alone."""
    begun = time.perf_counter()
    for start in range(0, len(rows), BATCH):
        predictor.run(rows[start : start + BATCH], ("pooled",))
    return time.perf_counter() - begun


def measure_rate(config: FeaturesConfig, console: Console) -> list[str]:
    """Prints a row for each size of photos; returns the gates that are missed."""
    model = ModelSpec(bundle=config.bundle, threads=config.threads, device="cpu")
    predictor, missed = model.open(), []
    # the job shares its threads out to runs side by side; the loop has all of them for each run
    alone = open_predictor(config.bundle, device="cpu", threads=config.threads)
    table = Table("photos", "bare, a second", "job, a second", "ratio", "ratios of the rounds")
    for side in config.sizes:
        with tempfile.TemporaryDirectory() as folder:
            files = make_photos(Path(folder), config.photos, side)
            rows = np.concatenate([predictor.prepare(file).rows for file in files])
            pairs = []
            for number in range(config.rounds + 1):
                bare = bare_seconds(alone, rows)
                pairs.append((bare, job_seconds(model, predictor, files, Path(folder, f"out{number}"))))
        ratios = [bare / job for bare, job in pairs[1:]]  # the first round warms up
        ratio = statistics.median(ratios)
        rates = (config.photos / statistics.median(seconds) for seconds in zip(*pairs[1:], strict=True))
        table.add_row(f"{side} px", *(f"{rate:.1f}" for rate in rates), f"{ratio:.3f}", _listed(ratios))
        missed += [f"rate of {side} px is {ratio:.3f}, at least {MIN_RATE} is wanted"] if ratio < MIN_RATE else []
    console.print(table)
    return missed


def measure_memory(config: FeaturesConfig, console: Console) -> list[str]:
    """Prints the most memory of the command for few and for many photos; returns the gate where it is missed."""
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        files = make_photos(Path(folder), min(500, *config.memory_photos), 160)
        table = Table("photos", "most memory, MB", "seconds")
        for count in config.memory_photos:
            names = Path(folder, f"{count}.txt")
            names.write_text("".join(f"{files[index % len(files)]}\n" for index in range(count)))
            command = [sys.executable, "-m", "convmae_deploy.cli", "features", str(config.bundle), f"@{names}"]
            command += ["--out", f"{folder}/out{count}", "--threads", str(config.threads), "--device", "cpu"]
            outcome = run_bounded(command, Path(folder, f"{count}.log"), memory_gb=None, minutes=60)
            if outcome.status or outcome.peak_gb is None:
                raise ConvMAEError(f"the command ended with {outcome.status} ({outcome.said}); run it by hand")
            peaks.append(outcome.peak_gb)
            table.add_row(str(count), f"{1000 * outcome.peak_gb:.0f}", f"{outcome.seconds:.1f}")
    console.print(table)
    growth = peaks[1] / peaks[0]
    return [f"memory grows by {growth:.3f}, at most {MAX_GROWTH} is wanted"] if growth > MAX_GROWTH else []


def measure_ray(config: FeaturesConfig, console: Console) -> list[str]:
    """Prints rates of one process and of Ray's actors; returns the gates that are missed."""
    table, missed = Table("actors", "one process, a second", "Ray, a second", "ratio"), []
    with tempfile.TemporaryDirectory() as folder:
        files = make_photos(Path(folder), 500, 160)
        names = [files[index % len(files)] for index in range(config.ray_photos)]
        for actors in (1, 2):
            rates = [
                shards_a_second(config, names, Path(folder, f"{actors}{ray}"), actors, ray=ray) for ray in (False, True)
            ]
            ratio = rates[1] / rates[0]
            table.add_row(str(actors), *(f"{rate:.1f}" for rate in rates), f"{ratio:.3f}")
            missed += (
                [f"Ray's rate with {actors} is {ratio:.3f}, at least {MIN_RAY} is wanted"] if ratio < MIN_RAY else []
            )
    console.print(table)
    return missed


def shards_a_second(config: FeaturesConfig, names: list[Path], out: Path, actors: int, *, ray: bool) -> float:
    """Photos a second, from the first shard of each actor on."""
    plan = plan_of(names, rows=max(1, len(names) // 20))
    model = ModelSpec(bundle=config.bundle, threads=config.threads * (1 if ray else actors), device="cpu")
    maker, left, _ = prepare_job(model, plan, str(out), Part())
    pieces = [(index, plan.piece(index)) for index in left]
    options = RayOptions(ray="local", ray_actors=actors, ray_cpus=0.5)
    opened = None if ray else maker.open()
    done = run_on_ray(maker, pieces, options) if opened is None else opened.run(pieces)
    times: list[tuple[float, Written]] = [(time.perf_counter(), written) for _, written in done]
    if opened is not None:
        opened.stream.close()
    plan.close()
    later = times[actors:]
    return sum(written.rows for _, written in later) / (later[-1][0] - times[actors - 1][0])


def _listed(ratios: Iterable[float]) -> str:
    return " ".join(f"{ratio:.3f}" for ratio in ratios)


def main() -> int:
    """The command."""
    config = tyro.cli(FeaturesConfig, prog="python -m benchmarks.features", description=FeaturesConfig.__doc__)
    config = replace(config, bundle=config.bundle.absolute())
    console, missed = Console(), []
    for part in config.parts:
        missed += {"rate": measure_rate, "memory": measure_memory, "ray": measure_ray}[part](config, console)
    for line in missed:
        console.print(f"missed: {line}")
    return int(bool(missed) and config.check)


if __name__ == "__main__":
    run_program(main)
