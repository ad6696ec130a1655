"""Signals end a run after an update, and nothing outlives it."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from convmae_deploy.engine.interruption import interruptible
from tests.waiting import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
FAILING_RUN = """
from torch.utils.data import DataLoader
from convmae_deploy.data.workers import leave_signals_to_parent
from convmae_deploy.engine.interruption import interruptible

if __name__ == "__main__":
    loader = DataLoader(range(8), num_workers=1, worker_init_fn=leave_signals_to_parent, persistent_workers=True)
    with interruptible():
        next(iter(loader))
        raise RuntimeError("out of memory")
"""


def test_a_signal_is_noted_and_a_second_one_acts_at_once() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt), interruptible() as interruption:
            signal.raise_signal(signal.SIGINT)
            assert interruption.signal_number == signal.SIGINT
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_a_run_that_fails_ends_although_its_workers_ignore_signals(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(FAILING_RUN)
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1
    assert "RuntimeError: out of memory" in done.stderr
