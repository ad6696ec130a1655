"""Finding files in folders, and counting what is passed over there."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.printing import printable


def find_files(paths: Sequence[Path], suffixes: frozenset[str], kind: str) -> list[Path]:
    """The files among `paths`, and for each folder those of some kind in it, at any depth, sorted; no hidden files.

    Links are followed, also those to folders, as class folders often are links. What else lies in a folder, pipes and
    devices too, is counted on standard error.

    Args:
        paths: files, whatever their names, and folders.
        suffixes: of the files to take from a folder, in lower case with their dot.
        kind: what these are called, for the message.

    Raises:
        ConvMAEError: a folder holds none, or cannot be read.
    """
    found: list[Path] = []
    passed_over = PassedOver()
    for path in paths:
        if not path.is_dir():
            found.append(path)  # whether it exists shows when it is read: a missing file is one bad file
            continue
        before = len(found)
        for file in sorted(files_below(path)):
            if is_hidden(file, path):
                passed_over.add(str(file), "hidden")
            elif file.suffix.lower() not in suffixes:
                passed_over.add(str(file))
            elif os.path.isfile(file):
                found.append(file)
            else:
                passed_over.add(str(file), "link to nothing, pipe or device")
        if len(found) == before:
            there = f"; passed over {passed_over}" if passed_over else "; check the path"
            wanted = " ".join(sorted(suffixes))
            raise ConvMAEError(f"expected {kind} ({wanted}) in the folder {printable(path)}, found none{there}")
    if passed_over:
        print(f"passed over: {passed_over}", file=sys.stderr)
    return found


def holds_files(folder: Path, suffixes: frozenset[str]) -> bool:
    """Whether there is a file of some kind below a folder, at any depth."""
    return any(file.suffix.lower() in suffixes and not is_hidden(file, folder) for file in files_below(folder))


def is_hidden(file: Path, folder: Path) -> bool:
    """Whether a file is hidden below a folder, itself or by a folder that it lies in."""
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def files_below(folder: Path) -> Iterator[Path]:
    """What is no folder, at any depth; each folder is entered once, however many links lead to it.

    In the order of names, the files of a folder before its subfolders, with the names of one folder in memory. Links
    are followed last, so that a folder that lies below `folder` itself is found by its own name. One that leads back to
    a folder around `folder` is not followed: what it would add is something else's.

    Raises:
        ConvMAEError: a folder cannot be read.
    """
    own = Path(os.path.realpath(folder))
    entered: set[tuple[int, int]] = set()
    waiting = [str(folder)]
    while waiting:
        links: list[str] = []
        for start in waiting:
            for directory, folders, names in os.walk(start, onerror=_refuse_folder):
                status = os.stat(directory)
                if (status.st_dev, status.st_ino) in entered:
                    folders.clear()
                    continue
                entered.add((status.st_dev, status.st_ino))
                folders.sort()
                links += [path for name in folders if os.path.islink(path := os.path.join(directory, name))]
                yield from (Path(directory, name) for name in sorted(names))
        waiting = sorted(link for link in links if not own.is_relative_to(os.path.realpath(link)))


def _refuse_folder(error: OSError) -> None:
    raise ConvMAEError(f"{error.filename} cannot be read ({error.strerror}); check its permissions, or move it away")


class PassedOver:
    """Files in folders and archives that are no photos or videos: how many of each kind, and the first one."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[int, str]] = {}

    def add(self, name: str, kind: str = "") -> None:
        """Counts one.

        Args:
            name: of the file.
            kind: what it is called; left out: by its name.
        """
        path = PurePosixPath(name)
        kind = kind or ("hidden" if path.name.startswith(".") else path.suffix.lower() or "no suffix")
        if kind not in self._kinds and len(self._kinds) >= 20:
            kind = "other"
        count, first = self._kinds.get(kind, (0, name))
        self._kinds[kind] = count + 1, first

    def merge(self, others: Sequence["PassedOver"]) -> None:
        """Adds what others counted."""
        for other in others:
            for kind, (count, first) in other._kinds.items():
                known, name = self._kinds.get(kind, (0, first))
                self._kinds[kind] = known + count, name

    def __str__(self) -> str:
        return ", ".join(f"{count} {kind} (first: {printable(first)})" for kind, (count, first) in self._kinds.items())

    def __bool__(self) -> bool:
        return bool(self._kinds)
