"""The most memory of a process is its own."""

import subprocess
import sys

import numpy as np

from benchmarks.machine import peak_memory_gb
from benchmarks.session import ROOT


def test_the_most_memory_stays_after_it_is_freed_and_is_not_that_of_the_parent() -> None:
    before = peak_memory_gb()
    held = np.ones(300 * 2**20, np.uint8)
    during = peak_memory_gb()
    del held
    uncounted = 0.01  # the kernel keeps some pages of each thread apart
    assert during > 0.3 and peak_memory_gb() + uncounted >= during >= before
    program = "from benchmarks.machine import peak_memory_gb; print(peak_memory_gb())"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0.005 < float(done.stdout) < 0.3
