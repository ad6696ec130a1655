"""Commands in a process of their own: what they needed, and how they ended."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.bounded_process import high_water_gb, run_bounded

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says and bounds what another process has")


def test_a_command_that_ends_is_described_and_its_output_kept(tmp_path: Path) -> None:
    code = "import sys; print('first'); print('last', file=sys.stderr); print(); sys.exit(3)"
    outcome = run_bounded([sys.executable, "-c", code], tmp_path / "log", memory_gb=None, minutes=5)
    assert outcome.status == 3 and outcome.said in ("first", "last")
    assert set((tmp_path / "log").read_text().split()) == {"first", "last"}
    assert not outcome.timed_out and not outcome.ran_out_of_memory


@pytest.mark.slow
@needs_linux
def test_the_memory_of_the_largest_moment_is_told_whatever_this_process_has() -> None:
    mine = bytearray(600_000_000)
    code = "large = bytearray(150_000_000); del large; print('ready', flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == b"ready\n"
        peak_gb = high_water_gb(process.pid)
        process.communicate(b"\n")
    assert peak_gb is not None and 0.15 < peak_gb < 0.4 < len(mine) / 1e9
    assert high_water_gb(process.pid) is None  # it is gone


@needs_linux
def test_a_command_that_needs_more_memory_than_it_may_is_told_from_one_that_fails(tmp_path: Path) -> None:
    code = "large = bytearray(400_000_000)"
    outcome = run_bounded([sys.executable, "-c", code], tmp_path / "log", memory_gb=0.2, minutes=5)
    assert outcome.status == 1 and outcome.said == "MemoryError" and outcome.ran_out_of_memory


def test_a_command_that_the_kernel_ends_counts_as_too_large(tmp_path: Path) -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    outcome = run_bounded([sys.executable, "-c", code], tmp_path / "log", memory_gb=None, minutes=5)
    assert outcome.status == -9 and outcome.ran_out_of_memory and outcome.said == "nothing"


def test_a_command_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    code = "import signal; signal.pause()"
    outcome = run_bounded([sys.executable, "-c", code], tmp_path / "log", memory_gb=None, minutes=0)
    assert outcome.timed_out and outcome.status == -9 and not outcome.ran_out_of_memory
