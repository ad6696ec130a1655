"""The other side of `benchmarking.worker`: starts the process of a combination, asks it, and says how it ended."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convmae_deploy.backends.base import Outputs
from convmae_deploy.errors import ConvMAEError
from export.benchmarking.worker import JOB, Job

ROOT = Path(__file__).parents[2]
SECONDS_TO_END = 10.0


class WorkerError(ConvMAEError):
    """A combination does not do what it was asked for, or its process is gone."""


@dataclass(frozen=True, kw_only=True)
class Started:
    """What starting a combination took."""

    seconds: float  # from the checked bundle, or the checkpoint, to something that runs
    peak_gb: float  # most resident memory until then
    description: str  # what runs, and where


class WorkerProcess:
    """A combination in a process of its own, which begins to start at once; all but `close` raise WorkerError."""

    def __init__(self, job: Job, folder: Path, environment: dict[str, str] | None = None) -> None:
        """Args:
        job: what the process is for.
        folder: for its files; made here.
        environment: variables that replace this process's own.
        """
        folder.mkdir()
        self._folder = folder
        self._log = folder / "stderr.txt"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "export.benchmarking.worker", JOB.dump_json(job).decode()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env=os.environ | (environment or {}),
                text=True,
                encoding="utf-8",
            )

    def start(self) -> Started:
        """Waits until it is ready."""
        return Started(**self._request("started"))

    def outputs(self, batch_size: int) -> Outputs:
        """What it gives for the first batch, (B, ...)."""
        path = self._folder / "outputs.npz"
        self._request("outputs", batch_size=batch_size, path=str(path))
        with np.load(path) as arrays:
            return dict(arrays)

    def warm_up(self, batch_size: int, runs: int) -> None:
        """Untimed runs."""
        self._request("warm_up", batch_size=batch_size, runs=runs)

    def turn(self, batch_size: int, at_least: float) -> tuple[list[float], float]:
        """Seconds of one or more timed runs, and GB of the most resident memory until now."""
        reply = self._request("turn", batch_size=batch_size, at_least=at_least)
        return reply["seconds"], reply["peak_gb"]

    def predictions(self, data: Path, limit: int) -> Path:
        """A pickle of what it makes of a user's data."""
        path = self._folder / "predictions.pickle"
        self._request("predictions", data=str(data), limit=limit, path=str(path))
        return path

    def close(self) -> None:
        """Ends the process: it does so by itself when nobody asks any more."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self._process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _request(self, action: str, **arguments: object) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(json.dumps({"action": action, **arguments}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(self._end())
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply

    def _end(self) -> str:
        """How the process ended, with the last thing that it said."""
        status = self._process.wait()
        said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = f": {said[-1].strip()}" if said else ""
        if status < 0:
            name = signal.Signals(-status).name
            memory = ", as where memory runs out" if name == "SIGKILL" else ""
            return f"its process was ended by {name}{memory}{last}"
        return f"its process ended with status {status}{last}"
