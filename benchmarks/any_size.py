"""What does one graph for every size cost against one for each, in exactness and in time?

    python -m benchmarks.any_size runs/mine [--size 128x128,224x224,224x352,384x640,512x512] [--rounds 5]

The model is exported once with open sides, and once for each size alone. Both run as they are served, one image at a
time in turns, and are held against PyTorch at that size: the largest difference of any output, and the lowest
signal-to-noise ratio of one. Prints a table in Markdown.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import tyro

from convmae_deploy.backends.base import FloatArray, Outputs
from convmae_deploy.backends.runtimes import RUNTIMES, RuntimeName, RuntimeOptions, start_backend
from convmae_deploy.bundle.manifest import InputSpec, SideRange
from convmae_deploy.bundle.preprocessing import Size, parse_size
from convmae_deploy.program import run_program
from convmae_deploy.tasks import load_bundle, task_of
from convmae_deploy.tasks.base import Predictor
from export.benchmarking.timing import interleave, summarise, timed_turn
from export.comma_list import comma_list
from export.graphs.to_onnx import export_graph
from export.packaging import BundleContent, describe_file, write_manifest
from export.tasks import open_task
from export.tasks.base import ExportTask

SIZES = ((128, 128), (224, 224), (224, 352), (384, 640), (512, 512))
TURN_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class AnySizeConfig:
    """Holds a graph for every size against graphs for one, at several sizes."""

    checkpoint: Annotated[Path, tyro.conf.Positional]  # run folder or checkpoint of an encoder or a classifier
    size: Annotated[tuple[Size, ...], comma_list(parse_size, "384x640,...")] = SIZES
    runtime: tuple[RuntimeName, ...] = tuple(name for name, runtime in RUNTIMES.items() if "cpu" in runtime.devices)
    rounds: int = 5  # turns of each
    threads: int | None = None  # of a run (default: one a core)


def write_bundle(folder: Path, task: ExportTask, largest: int | None) -> Path:
    """The model as a bundle that nobody verified, for every size up to the largest or for its own alone."""
    folder.mkdir()
    shape = (3, *task.preprocessing.input_size)
    sides = None if largest is None else SideRange(largest=max(largest, *shape[1:]))
    graph = export_graph(task.wrapper, InputSpec(shape=shape, sides=sides, max_batch=2), task.outputs)
    onnx.save(graph.model, folder / "model.onnx")
    content = BundleContent(
        name="any-size",
        task=task.task,
        record=task.record,
        checkpoint=None,
        preprocessing=task.preprocessing,
        max_batch=2,
        sides=sides,
        licence_file=None,
    )
    shapes = {name: values.shape[1:] for name, values in task.reference(np.zeros((1, *shape), np.float32)).items()}
    write_manifest(folder, content, shapes=shapes, files={"model.onnx": describe_file(folder / "model.onnx", "fp32")})
    return folder


def open_on(folder: Path, runtime: RuntimeName, threads: int | None) -> Predictor:
    """A bundle as it is served on a CPU."""
    bundle, options = load_bundle(folder), RuntimeOptions(runtime=runtime)
    return task_of(bundle.manifest)(
        bundle, start_backend(bundle, device="cpu", threads=threads, options=options), options
    )


def distance(expected: Outputs, found: Outputs) -> str:
    """The largest difference of any output, and the lowest signal-to-noise ratio of one."""
    pairs = [(expected[name].astype(np.float64), found[name].astype(np.float64)) for name in expected]
    largest = max(float(np.abs(one - other).max()) for one, other in pairs)
    ratios = [float((one**2).sum() / max(((one - other) ** 2).sum(), 1e-300)) for one, other in pairs]
    return f"{largest:.1e} ({10 * np.log10(min(ratios)):.0f} dB)"


def measure(config: AnySizeConfig, folder: Path) -> Iterator[tuple[str, ...]]:
    """The rows of the table."""
    largest = max(max(size) for size in config.size)
    everything = write_bundle(folder / "every", open_task(config.checkpoint, None), largest)
    for number, size in enumerate(config.size):
        task = open_task(config.checkpoint, size)
        alone = write_bundle(folder / f"{number}", task, None)
        image: FloatArray = np.random.default_rng(number).standard_normal((1, 3, *size), dtype=np.float32)
        expected = task.reference(image)
        for runtime in config.runtime:
            models = {
                "one size": open_on(alone, runtime, config.threads),
                "every size": open_on(everything, runtime, config.threads).at(size),
            }
            runs = {name: partial(model.run, image, task.outputs) for name, model in models.items()}
            errors = [distance(expected, run()) for run in runs.values()]
            turns = {name: partial(timed_turn, run, at_least=TURN_SECONDS) for name, run in runs.items()}
            taken = interleave(turns, config.rounds, lambda: None)
            times = [f"{summarise(taken[name], 1).p50_ms:.2f}" for name in runs]
            yield (f"{size[0]} x {size[1]}", RUNTIMES[runtime].title, *errors, *times)


def main() -> None:
    """The command."""
    config = tyro.cli(AnySizeConfig, prog="python -m benchmarks.any_size", description=AnySizeConfig.__doc__)
    print("| size | runtime | one size: error | every size: error | one size: ms | every size: ms |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(config, Path(folder)):
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    run_program(main)
