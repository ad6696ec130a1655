"""One combination of a benchmark in a process of its own: `python -m export.benchmarking.worker JOB`, JOB being JSON.

It answers requests, a line of JSON each, with a line of JSON each, and ends with its standard input. So nothing that
another backend loads, allocates or breaks is in its memory or in its time. The other side is `benchmarking.process`.
"""

import json
import os
import pickle
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from pydantic import TypeAdapter

from convmae_deploy.backends.base import InputArray, describe_backend
from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.bundle.manifest import Manifest
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.machine import peak_memory_bytes
from convmae_deploy.tasks import load_bundle, task_of
from export.benchmarking.timing import timed_turn
from export.runtimes.combinations import TORCH, Combination, open_backend

if TYPE_CHECKING:
    from export.runtimes.runners import Runner  # it imports torch, which counts as memory


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a process is for."""

    combination: Combination
    bundle: Path
    checkpoint: Path | None
    threads: int  # CPU threads of a run
    inputs: Path  # .npy: images (N, 3, H, W) or clips (N, 3, T, H, W), normalised


JOB: TypeAdapter[Job] = TypeAdapter(Job)


def timed_outputs(manifest: Manifest) -> tuple[str, ...]:
    """What a run is asked for: the key output, of lists everything."""
    task = task_of(manifest)
    return tuple(manifest.outputs) if task.GIVES_LISTS else (task.KEY_OUTPUT,)


class Worker:
    """A combination that was started."""

    def __init__(self, job: Job) -> None:
        self.bundle = load_bundle(job.bundle)
        begun = time.perf_counter()
        self.run, self.description = start(job, self.bundle)
        self.start_seconds = time.perf_counter() - begun
        self.inputs: InputArray = np.load(job.inputs, mmap_mode="r")

    def started(self) -> dict[str, Any]:
        """What starting took: seconds from the open bundle or checkpoint to a session, and the most memory."""
        return {"seconds": self.start_seconds, "peak_gb": peak_memory_bytes() / 1e9, "description": self.description}

    def outputs(self, batch_size: int, path: str) -> dict[str, Any]:
        """Runs the first batch, and leaves what it gives in a .npz file."""
        np.savez(path, **self.run(self.batch(batch_size)))  # type: ignore[arg-type]  # its stub takes no mapping
        return {}

    def warm_up(self, batch_size: int, runs: int) -> dict[str, Any]:
        """Untimed runs; the compiler works here, once for each batch size."""
        images = self.batch(batch_size)
        for _ in range(runs):
            self.run(images)
        return {}

    def turn(self, batch_size: int, at_least: float) -> dict[str, Any]:
        """Timed runs, and the most resident memory until now."""
        images = self.batch(batch_size)
        seconds = timed_turn(lambda: self.run(images), at_least=at_least)
        return {"seconds": seconds, "peak_gb": peak_memory_bytes() / 1e9}

    def predictions(self, data: str, limit: int, path: str) -> dict[str, Any]:
        """Runs a user's photos or videos as they are served, and leaves its predictions in a file for the parent."""
        from export.tasks import read_task_data  # it imports torch, which counts as memory
        from export.verification.task_metrics import predictor_on

        manifest = self.bundle.manifest
        predictor = predictor_on(self.run, manifest, self.description)
        found = read_task_data(Path(data), manifest, limit=limit).predictions(predictor)
        Path(path).write_bytes(pickle.dumps(found))
        return {}

    def batch(self, size: int) -> InputArray:
        """The first inputs, again and again where there are fewer."""
        return np.ascontiguousarray(self.inputs[np.arange(size) % len(self.inputs)])


def start(job: Job, bundle: Bundle) -> tuple["Runner", str]:
    """What runs a combination, and its name with the device's."""
    if job.combination.runtime in TORCH:
        from export.benchmarking.pytorch import torch_run

        assert job.checkpoint is not None  # without one there is no such combination
        return torch_run(job.combination, bundle, job.checkpoint, job.threads)
    backend = open_backend(job.combination, bundle, threads=job.threads)
    names = timed_outputs(bundle.manifest)
    return lambda images: backend.run(images, names), describe_backend(backend)


def serve(job: Job, requests: TextIO, replies: TextIO) -> None:
    """Answers every request; what goes wrong is answered in one sentence."""
    worker: Worker | None = None
    for line in requests:
        request: dict[str, Any] = json.loads(line)
        action = request.pop("action")
        try:
            if worker is None:
                worker = Worker(job)
            reply = getattr(worker, action)(**request)
        except Exception as error:  # whatever a backend raises is this combination's row
            reply = {"error": sentence(error)}
        print(json.dumps(reply), file=replies, flush=True)


def sentence(error: Exception) -> str:
    """What went wrong, in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ConvMAEError) else f"{type(error).__name__}: {text}"


def main(arguments: Sequence[str] | None = None) -> None:
    """The process."""
    (text,) = sys.argv[1:] if arguments is None else arguments
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever libraries print
    serve(JOB.validate_json(text), sys.stdin, replies)


if __name__ == "__main__":
    main()
