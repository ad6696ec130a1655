"""What a server's processes hold, as Linux says it."""

import os
from pathlib import Path


def family(first: int) -> list[int]:
    """A process and all that it or these have started, as far as they still run."""
    found = [first]
    for pid in found:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                found += map(int, children.read_text(encoding="ascii").split())
            except OSError:  # it has ended meanwhile
                continue
    return found


def memory(first: int) -> int:
    """Bytes of a process and all that it has started, each page counted once."""
    return sum(_memory(pid) for pid in family(first))


def descriptors(first: int) -> int:
    """Open files and sockets of a process and all that it has started."""
    return sum(_entries(pid, "fd") for pid in family(first))


def threads(first: int) -> int:
    """Threads of a process and all that it has started."""
    return sum(_entries(pid, "task") for pid in family(first))


def _memory(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def _entries(pid: int, folder: str) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/{folder}"))
    except OSError:
        return 0
