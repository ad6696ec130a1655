"""How a command of this project ends: one sentence and an exit status for what its user can mend."""

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from convmae_deploy.errors import ConvMAEError

SOME_INPUTS_BAD = 1
REFUSED = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
NO_READER = 141  # 128 + SIGPIPE


def run_program(main: Callable[[], int | None]) -> NoReturn:
    """Runs `main` and exits with its status (None: 0).

    A `ConvMAEError` is printed as `error: <sentence>` with status 2, Ctrl-C ends quietly with 130, and a reader of the
    output that has gone away (`| head`) with 141, as other programs do. Anything else is a bug and keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name need not fit the terminal's encoding
    try:
        status = main() or 0
        sys.stdout.flush()  # a closed pipe shows here, not in the interpreter's last moments
    except ConvMAEError as error:
        print(f"error: {error}", file=sys.stderr)
        status = REFUSED
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more while it exits; that must not fail a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = NO_READER
    sys.exit(status)


def readable(path: Path) -> str:
    """The path for people: bytes that are no UTF-8 (possible on Linux) are replaced."""
    return os.fsencode(path).decode("utf-8", "replace")
