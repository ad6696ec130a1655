"""Tries what a search left once more, without its instruments: python -m tests.fuzz.confirm TARGET FINDS ARTIFACTS

Finds that no longer break a promise are removed, the others are shortened. Inputs on which libFuzzer ended the process
become finds where they are to blame: on a busy machine it also stops what is not slow.
"""

import shutil
import sys
import time
from pathlib import Path

from tests.fuzz.finds import Find, add_find, read_finds
from tests.fuzz.outcomes import observe_apart, smallest
from tests.fuzz.target import Check, without_warnings
from tests.fuzz.targets import TARGETS

_SHORTENING_SECONDS = 180.0  # for all finds together; what is not short by then stays as it is


def confirm(check: Check, finds: Path, artifacts: Path) -> None:
    """Leaves in `finds` what breaks a promise now, and nothing in `artifacts`.

    Args:
        check: of the target.
        finds: folder of finds.
        artifacts: folder of inputs that libFuzzer kept.
    """
    inputs = [find.data for find in read_finds(finds)]
    inputs += [path.read_bytes() for path in sorted(artifacts.iterdir())]
    broken = {data: observe_apart(check, data) for data in inputs}
    shutil.rmtree(finds)
    finds.mkdir()
    for data, promise in broken.items():
        if promise is not None:
            add_find(finds, data, promise)
    for path in artifacts.iterdir():
        path.unlink()
    deadline = time.monotonic() + _SHORTENING_SECONDS
    for find in read_finds(finds):  # only now, as it takes long and may be interrupted
        _shorten(check, find, finds, deadline)


def _shorten(check: Check, find: Find, finds: Path, deadline: float) -> None:
    def breaks(candidate: bytes) -> bool:
        if time.monotonic() > deadline:
            return False
        found = observe_apart(check, candidate)
        return found is not None and found.kind == find.kind

    data = smallest(find.data, breaks)
    broken = observe_apart(check, data)
    if broken is not None:
        add_find(finds, data, broken)


def main() -> None:
    """The command."""
    name, finds, artifacts = sys.argv[1:]
    confirm(without_warnings(TARGETS[name].prepare()), Path(finds), Path(artifacts))


if __name__ == "__main__":
    main()
