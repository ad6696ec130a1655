"""What reading a hostile file may cost and may do: a call in a process of its own, bounded and watched.

Memory and processor time are bounded by the kernel, so that no test depends on how much else the machine has to do.
What the call starts, connects to and opens is told by Python's audit events.
"""

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from convmae_deploy.errors import ConvMAEError

MEGABYTE = 1024 * 1024
HANGING_SECONDS = 300.0  # of a call that waits for something that never comes; none that is bounded by work gets there
STARTS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.startfile",
    "pty.spawn",
)
CALLED_FROM = tuple(f"tests.hostile.{file.stem}" for file in sorted(Path(__file__).parent.glob("test_*.py")))
CONNECTS = ("socket.connect", "socket.sendto", "socket.getaddrinfo", "urllib.Request")
ROOT = Path(__file__).parents[2]
OWN = (
    ROOT,
    Path(sys.prefix),
    Path(sys.base_prefix),
    Path("/proc"),
    Path("/sys"),
    Path("/usr"),
    Path("/etc"),
    Path("/dev/null"),
)


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a call ended, and what it did on the way."""

    how: Literal["returned", "refused", "failed", "out of memory", "killed", "hung"]
    value: Any = None  # what it returned
    sentence: str = ""  # of the ConvMAEError that it refused with; else the exception, or the signal
    grown: int = 0  # bytes of memory at most, beyond what the process had before
    started: tuple[str, ...] = ()  # processes, as far as Python knows
    connected: tuple[str, ...] = ()
    opened: tuple[str, ...] = ()  # files, absolute, whose names lie outside of Python, this repository and the system

    def opened_outside(self, folder: Path) -> list[str]:
        """The files that lie outside of a folder, links followed."""
        return [name for name in self.opened if not Path(name).resolve().is_relative_to(folder.resolve())]


def bounded(
    call: Callable[..., Any], *arguments: Any, memory: int = 300 * MEGABYTE, processor_seconds: int = 20
) -> Ending:
    """Calls a function of a module in a process of its own.

    Args:
        call: a function at the top of a module, which the process imports before the bounds hold.
        arguments: that can be pickled, as what it returns must be.
        memory: bytes that it may have beyond what the process has at its start.
        processor_seconds: that it may use.
    """
    context = _forkserver()
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sending, memory, processor_seconds, call, arguments))
    process.start()
    sending.close()
    try:
        ending: Ending = receiving.recv() if receiving.poll(HANGING_SECONDS) else Ending(how="hung")
    except EOFError:
        process.join()
        code = process.exitcode or 0
        ending = Ending(how="killed", sentence=signal.Signals(-code).name if code < 0 else f"exit status {code}")
    finally:
        process.kill()
        process.join()
        receiving.close()
    return ending


@cache
def _forkserver() -> multiprocessing.context.ForkServerContext:
    """Processes begin as copies of one that has done the slow imports and has no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *CALLED_FROM])
    return context


def _call(
    sending: Connection, memory: int, processor_seconds: int, call: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    watched = _Watched()
    sys.addaudithook(watched)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    used = int(sum(os.times()[:2])) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (used + processor_seconds, used + processor_seconds))
    Path("/proc/self/clear_refs").write_text("5")  # the kernel begins to count anew what the process had at most
    before = _resident("VmRSS")
    watched.on = True
    ending = _ending(call, arguments)
    watched.on = False
    sending.send(
        replace(
            ending,
            grown=max(0, _resident("VmHWM") - before),
            started=tuple(watched.started),
            connected=tuple(watched.connected),
            opened=tuple(watched.opened),
        )
    )
    sending.close()


def _ending(call: Callable[..., Any], arguments: tuple[Any, ...]) -> Ending:
    try:
        return Ending(how="returned", value=call(*arguments))
    except ConvMAEError as error:
        return Ending(how="refused", sentence=str(error))
    except MemoryError:
        return Ending(how="out of memory")
    except Exception as error:
        return Ending(how="failed", sentence=f"{type(error).__name__}: {error}")


def _resident(name: str) -> int:
    """Bytes that the kernel says the process has or had at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


class _Watched:
    """A hook of `sys.addaudithook`, which can never be taken off again."""

    def __init__(self) -> None:
        self.on = False
        self.started: list[str] = []
        self.connected: list[str] = []
        self.opened: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in STARTS:
            self.started.append(f"{event} {arguments[:2]}")
        elif event in CONNECTS:
            self.connected.append(f"{event} {arguments}")
        elif event == "open" and isinstance(arguments[0], str | bytes):
            path = Path(os.path.abspath(os.fsdecode(arguments[0])))
            if not any(path.is_relative_to(own) for own in OWN):
                self.opened.append(str(path))
