"""What a reader does with one input: keeps its promises, or breaks one in a way that has a name."""

import hashlib
import json
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.fuzz.target import Check, Violation, require

ROOT = Path(__file__).parents[2]
MAX_CPU_SECONDS = 5.0  # for one input; the seeds take milliseconds
MAX_BYTES = 256 << 20  # of memory that one input may take for a while
_ADDRESS_SPACE = 4 << 30  # beyond what the process holds already; allocators reserve more than they use


@dataclass(frozen=True)
class Broken:
    """A promise that an input breaks.

    Attributes:
        kind: the same for all inputs that break it in the same place, for instance "ValueError at tiff.py:_scalar:117".
        sentence: what the exception says, or what was measured.
        traceback: where it was raised; empty where there was no exception.
    """

    kind: str
    sentence: str
    traceback: str = ""

    @property
    def short(self) -> str:
        """A name for files."""
        return hashlib.sha256(self.kind.encode()).hexdigest()[:12]


def broken_by(error: BaseException) -> Broken:
    """The promise that an exception breaks.

    Its place is the innermost line of this project in its traceback; of an error whose message is at fault, in that
    error's.
    """
    blamed = error.__cause__ if isinstance(error, Violation) and error.__cause__ else error
    frames = [frame for frame in traceback.extract_tb(blamed.__traceback__) if frame.name != require.__name__]
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT) and ".venv" not in frame.filename]
    inner = (ours or frames)[-1]
    where = f"{Path(inner.filename).name}:{inner.name}:{inner.lineno}"
    sentence = " ".join(str(error).split())
    return Broken(f"{type(error).__name__} at {where}", sentence, "".join(traceback.format_exception(error)))


def observe(check: Check, data: bytes) -> Broken | None:
    """Runs a check in this process; None where every promise was kept."""
    memory, start = _peak_bytes(), time.process_time()
    try:
        check(data)
    except BaseException as error:  # whatever a reader raises that is not its own
        if isinstance(error, KeyboardInterrupt):
            raise
        return broken_by(error)
    seconds, grown = time.process_time() - start, _peak_bytes() - memory
    if seconds > MAX_CPU_SECONDS:
        return Broken("too slow", f"{seconds:.1f} s of CPU time, at most {MAX_CPU_SECONDS:g} are allowed")
    if grown > MAX_BYTES:
        return Broken("too much memory", f"{grown >> 20} MiB, at most {MAX_BYTES >> 20} are allowed")
    return None


def observe_apart(check: Check, data: bytes) -> Broken | None:
    """As `observe`, in a copy of this process that may crash or hang."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _limit_this_process()
        found = observe(check, data)
        if found is not None:
            with os.fdopen(writer, "wb") as answer:
                answer.write(json.dumps(asdict(found)).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number in (signal.SIGXCPU, signal.SIGKILL):
            return Broken("too slow", f"stopped after {MAX_CPU_SECONDS:g} s of CPU time")
        return Broken(f"killed by {signal.Signals(number).name}", "the process crashed: no exception, no traceback")
    return Broken(**json.loads(text)) if text else None


def smallest(data: bytes, breaks: Callable[[bytes], bool], tries: int = 1000) -> bytes:
    """Leaves out what an input need not have to break the same promise, and makes zeros of what need not be other.

    Args:
        data: the input.
        breaks: whether another input breaks it too.
        tries: inputs tried at most.
    """
    for shorten in (True, False):
        step = max(len(data) // 2, 1)
        while step and tries > 0:
            position = 0
            while position < len(data) and tries > 0:
                middle = b"" if shorten else bytes(min(step, len(data) - position))
                candidate = data[:position] + middle + data[position + step :]
                tries -= 1
                if candidate != data and breaks(candidate):
                    data = candidate
                    position += 0 if shorten else step
                else:
                    position += step
            step //= 2
    return data


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _limit_this_process() -> None:
    used = time.process_time()
    # One second more than is allowed, so that what returns in time is measured and not stopped.
    resource.setrlimit(resource.RLIMIT_CPU, (int(used + MAX_CPU_SECONDS) + 2, int(used + MAX_CPU_SECONDS) + 4))
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + _ADDRESS_SPACE, held + _ADDRESS_SPACE))
