"""A command in a process of its own, bounded in memory and time, with what it needed of both."""

import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convmae_deploy.errors import ConvMAEError

# how Linux, PyTorch and Python say that there is no memory left
OUT_OF_MEMORY = ("allocate memory", "Cannot allocate", "MemoryError", "bad_alloc", "out of memory")
LOOK_SECONDS = 0.2  # from one look at the process to the next


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a command ended."""

    status: int  # exit status; minus the number of the signal that ended it
    seconds: float
    peak_gb: float | None  # most resident memory of its first process; None: not on Linux, or gone before a look at it
    timed_out: bool
    said: str  # the last line of what it printed

    @property
    def ran_out_of_memory(self) -> bool:
        """Whether it ended for want of memory; the kernel's own end of a process that is too large is signal 9."""
        killed = self.status == -9 and not self.timed_out
        return killed or (self.status != 0 and any(words in self.said for words in OUT_OF_MEMORY))


def run_bounded(command: Sequence[str], log: Path, *, memory_gb: float | None, minutes: float) -> Outcome:
    """Runs a command to its end, its output in a file.

    Args:
        command: with its arguments.
        log: written, output and errors.
        memory_gb: most data of a process of it (Linux only); None: what the machine has.
        minutes: after which it is ended.

    Raises:
        ConvMAEError: a memory bound where the system has none.
    """
    if memory_gb is not None and sys.platform != "linux":
        raise ConvMAEError("a bound of memory needs Linux; leave --memory-gb out")
    began, peak_gb, timed_out = time.monotonic(), None, False
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            if memory_gb is not None:
                resource.prlimit(process.pid, resource.RLIMIT_DATA, (int(memory_gb * 1e9),) * 2)
            while process.poll() is None:
                peak_gb = high_water_gb(process.pid) or peak_gb
                if time.monotonic() - began > 60 * minutes:
                    timed_out = True
                    process.kill()
                try:
                    process.wait(LOOK_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            process.terminate()
            process.wait()
    seconds = time.monotonic() - began
    return Outcome(
        status=process.returncode, seconds=seconds, peak_gb=peak_gb, timed_out=timed_out, said=last_line(log)
    )


def high_water_gb(pid: int) -> float | None:
    """Most resident memory so far of a process that runs; None where the system does not say.

    `ru_maxrss` would do for one that ended, were it not at least what this process has.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("VmHWM:")), None)


def last_line(log: Path) -> str:
    """Of a log, the last line with something in it."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
