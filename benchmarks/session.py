"""What a model costs a process that has nothing else: seconds until it can run, and the most memory.

    python -m benchmarks.session --task detection --bundle B
    python -m benchmarks.session --task detection --variant base       # eager PyTorch, random weights

`python -m benchmarks.latency` runs both, each in a process of its own. The one of a bundle never loads torch. Memory is
resident, libraries included: first when the model is ready, then after one image.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from numpy.typing import NDArray

from benchmarks.machine import available_cores, peak_memory_gb, quiet_loggers
from convmae_deploy.backends.onnxruntime_backend import OnnxRuntimeBackend
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.program import run_program
from convmae_deploy.tasks import load_bundle

ROOT = Path(__file__).parents[1]

Run = Callable[[NDArray[np.float32]], object]


@dataclass(frozen=True, kw_only=True)
class SessionConfig:
    """Starts a model, runs one image, and prints what that took as JSON."""

    task: Literal["classification", "detection", "segmentation", "video-classification"] = "classification"
    bundle: Path | None = None  # to run in ONNX Runtime on the CPU; None: eager PyTorch with random weights
    variant: str = "base"  # of the model in PyTorch
    threads: int = available_cores()  # of a run


@dataclass(frozen=True, kw_only=True)
class SessionCost:
    """What it took."""

    start_seconds: float | None  # from the bundle on disk to a session; None in PyTorch, where weights are drawn
    started_gb: float  # most resident memory until then
    peak_gb: float  # and with one image


def start(config: SessionConfig) -> tuple[Run, tuple[int, ...]]:
    """What runs images or clips, and their (3, height, width) or (3, frames, height, width)."""
    if config.bundle is not None:
        bundle = load_bundle(config.bundle)
        backend = OnnxRuntimeBackend(bundle, device="cpu", threads=config.threads)
        outputs = list(bundle.manifest.outputs) if config.task == "detection" else ["logits"]
        return lambda images: backend.run(images, outputs), bundle.manifest.input.shape
    import torch  # not where a bundle is measured

    from benchmarks.random_bundle import random_model

    torch.set_num_threads(config.threads)
    model, record = random_model(config.task, config.variant)
    frames = () if record.video is None else (record.video.frames,)
    return torch.inference_mode()(lambda images: model(torch.from_numpy(images))), (
        3,
        *frames,
        *record.model.input_size,
    )


def measure(config: SessionConfig) -> SessionCost:
    """Starts and runs in this process, which should have done nothing else."""
    begun = time.perf_counter()
    run, shape = start(config)
    seconds, started = time.perf_counter() - begun, peak_memory_gb()
    run(np.random.default_rng(0).standard_normal((1, *shape), dtype=np.float32))
    told = None if config.bundle is None else seconds
    return SessionCost(start_seconds=told, started_gb=started, peak_gb=peak_memory_gb())


def measure_apart(config: SessionConfig) -> SessionCost:
    """The same in a new process.

    Raises:
        ConvMAEError: it failed.
    """
    flags = ["--task", config.task, "--variant", config.variant, "--threads", str(config.threads)]
    if config.bundle is not None:
        flags += ["--bundle", str(config.bundle.absolute())]
    command = [sys.executable, "-m", "benchmarks.session", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ConvMAEError(f"{' '.join(command[1:])} ended with status {done.returncode}: {last}")
    return SessionCost(**json.loads(done.stdout))


def main() -> None:
    """The command."""
    config = tyro.cli(SessionConfig, prog="python -m benchmarks.session")
    with quiet_loggers("convmae_deploy"):  # that a random bundle was never verified
        print(json.dumps(asdict(measure(config))))


if __name__ == "__main__":
    run_program(main)
