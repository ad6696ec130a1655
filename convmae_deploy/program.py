"""How a command of this project ends: one sentence and an exit status for what its user can mend."""

import errno
import importlib.util
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from convmae_deploy.errors import ConvMAEError, ModelError, missing_extra
from convmae_deploy.files import shortened
from convmae_deploy.printing import printable

SOME_INPUTS_BAD = 1
REFUSED = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
TERMINATED = 143  # 128 + SIGTERM
NO_READER = 141  # 128 + SIGPIPE
FULL = (errno.ENOSPC, errno.EDQUOT)  # what a system says of a disk, or of a user's share of it
BROKEN = (errno.EIO, errno.EROFS, errno.ESTALE, errno.EFBIG)  # of a disk that refuses for another reason
NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|Cannot allocate memory|bad_alloc|bad allocation")


def run_program(main: Callable[[], int | None]) -> NoReturn:
    """Runs `main` and exits with its status (None: 0).

    A `ConvMAEError` or `ModelError`, or a path that the system refuses, is printed as `error: <sentence>` with status
    2; Ctrl-C ends quietly with 130, SIGTERM with 143 and nothing half-written left behind; a reader of the output that
    has gone away (`| head`) ends it with 141, as other programs. Anything else is a bug and keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name need not fit the terminal's encoding
    signal.signal(signal.SIGTERM, _terminate)
    try:
        _check_flags(sys.argv[1:])
        status = main() or 0
        sys.stdout.flush()  # a closed pipe shows here, not in the interpreter's last moments
    except (ConvMAEError, ModelError) as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        status = REFUSED
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more while it exits; that must not fail a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = NO_READER
    except OSError as error:  # of a path that is too long, or lies behind a folder that may not be entered
        if error.filename is None and error.errno not in FULL:
            raise
        print(f"error: {unusable(error)}", file=sys.stderr)
        status = REFUSED
    sys.exit(status)


@contextmanager
def failures_in_words(explain: Callable[[Exception], str | None]) -> Iterator[None]:
    """Turns what the machine refused within the block into one sentence, with which the program ends.

    Args:
        explain: gives it; None for what is no such failure, which is raised as it is.

    Raises:
        ConvMAEError: with the sentence.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        sentence = explain(error)
        if sentence is None:
            raise
        raise ConvMAEError(sentence) from None


def _check_flags(arguments: Sequence[str]) -> None:
    """Refuses what begins like a flag and could drive the terminal: the parser shows it as it is.

    A pattern of the shell (`*.jpg`) makes flags of files whose names begin with a dash.

    Raises:
        ConvMAEError: with the argument.
    """
    for argument in arguments:
        if argument == "--":
            return
        if argument.startswith("-") and not argument.isprintable():
            raise ConvMAEError(
                f"a flag must be printable text; got {shortened(argument)}; put -- before the names of files"
            )


def unusable(error: OSError) -> str:
    """The sentence for a path that the system refuses before anything looks at it, and for a disk that is full."""
    if error.errno in FULL:
        return f"a disk is full ({error.strerror}); free some room where the output goes, and run this again"
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
    return f"{printable(shortened(name))} cannot be used ({error.strerror}); check the path and its permissions"


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """Ends by way of an exception, so that temporary files are removed on the way out."""
    sys.exit(TERMINATED)


def require_extra(extra: str, packages: Sequence[str]) -> None:
    """Exits with one sentence where a package of an optional extra is missing.

    Args:
        extra: of this project, for instance "train".
        packages: import names that the extra brings.
    """
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        print(f"error: {missing_extra('this program', ', '.join(missing), extra)}", file=sys.stderr)
        sys.exit(REFUSED)


def readable(path: Path) -> str:
    """The path for people: bytes that are no UTF-8 (possible on Linux) are replaced, control characters escaped."""
    return printable(os.fsencode(path).decode("utf-8", "replace"))
