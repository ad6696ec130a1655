"""Memory that training frees stays with its process, and the most memory of a process is its own."""

import subprocess
import sys

import numpy as np
import pytest

from convmae_deploy.machine import available_cores, peak_memory_bytes

# what a step allocates and frees, and the pages that the kernel maps for it: 64 MB are 16 384 of them
PROGRAM = """
import resource, sys
import numpy as np
from convmae_deploy.machine import keep_freed_memory

if sys.argv[1] == "kept" and not keep_freed_memory():
    sys.exit("not glibc")
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    maps = [np.ones(64 * 2**20, np.uint8) for _ in range(2)]
    del maps
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def mapped_pages(mode: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, timeout=60)
    if done.returncode and "not glibc" in done.stderr:
        pytest.skip("this machine's malloc is not glibc's")
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


def test_freed_memory_is_used_again_without_new_pages_where_a_program_asks_for_that() -> None:
    kept = mapped_pages("kept")
    assert kept[0] > 10 * max(kept[1:])
    given_back = mapped_pages("given back")
    assert min(given_back) > 0.5 * given_back[0]


def test_there_is_a_core() -> None:
    assert available_cores() >= 1


def test_the_most_memory_stays_after_it_is_freed_and_is_not_that_of_the_parent() -> None:
    before = peak_memory_bytes()
    held = np.ones(300 * 2**20, np.uint8)
    during = peak_memory_bytes()
    del held
    uncounted = 10_000_000  # the kernel keeps some pages of each thread apart
    assert during > 300_000_000 and peak_memory_bytes() + uncounted >= during >= before
    program = "from convmae_deploy.machine import peak_memory_bytes; print(peak_memory_bytes())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 5_000_000 < int(done.stdout) < 300_000_000
