"""What processes hold, read of this one and of one that it starts."""

import os
import subprocess
import sys
import threading

import pytest

from benchmarks.processes import descriptors, family, memory, threads


@pytest.mark.slow
def test_a_process_is_counted_with_all_that_it_has_started() -> None:
    alone = (memory(os.getpid()), descriptors(os.getpid()), threads(os.getpid()))
    read, write = os.pipe()
    waiting = threading.Event()
    thread = threading.Thread(target=waiting.wait)
    thread.start()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert family(os.getpid())[0] == os.getpid() and child.pid in family(os.getpid())
        assert descriptors(os.getpid()) >= alone[1] + 2 + 3  # the pipe, and the child's own three
        assert threads(os.getpid()) >= alone[2] + 2
        assert memory(os.getpid()) > 0 < alone[0]
    finally:
        waiting.set()
        thread.join()
        child.communicate()
        os.close(read)
        os.close(write)
    assert family(child.pid) == [child.pid] and (memory(child.pid), descriptors(child.pid)) == (0, 0)
