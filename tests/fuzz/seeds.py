"""Writes the files that a search begins with: python -m tests.fuzz.seeds TARGET FOLDER

In a process of its own, as making them may import large libraries: the kernel's figure for the most memory of a process
begins with that of the process that started it.
"""

import sys
from pathlib import Path

from tests.fuzz.targets import TARGETS


def main() -> None:
    """The command."""
    name, folder = sys.argv[1:]
    for file, data in TARGETS[name].seeds().items():
        (Path(folder) / file).write_bytes(data)


if __name__ == "__main__":
    main()
