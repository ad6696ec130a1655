"""Tries what a search left once more, without its instruments: python -m tests.fuzz.confirm TARGET FINDS ARTIFACTS

Finds that no longer break a promise are removed, the others are shortened. Inputs on which libFuzzer ended the process
become finds where they are to blame: on a busy machine it also stops what is not slow.
"""

import shutil
import sys
from pathlib import Path

from tests.fuzz.finds import Find, add_find, read_finds
from tests.fuzz.outcomes import observe_apart, smallest
from tests.fuzz.target import Check, without_warnings
from tests.fuzz.targets import TARGETS

_TRIES = 300  # to shorten an input that ends in an exception
_COSTLY_TRIES = 40  # and one that takes seconds or gigabytes, or crashes


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
    for find in read_finds(finds):  # only now, as it takes long and may be interrupted
        _shorten(check, find, finds)


def _shorten(check: Check, find: Find, finds: Path) -> None:
    def breaks(candidate: bytes) -> bool:
        found = observe_apart(check, candidate)
        return found is not None and found.kind == find.kind

    data = smallest(find.data, breaks, _TRIES if " at " in find.kind else _COSTLY_TRIES)
    broken = observe_apart(check, data)
    if broken is not None:
        add_find(finds, data, broken)


def main() -> None:
    """The command."""
    name, finds, artifacts = sys.argv[1:]
    confirm(without_warnings(TARGETS[name].prepare()), Path(finds), Path(artifacts))


if __name__ == "__main__":
    main()
