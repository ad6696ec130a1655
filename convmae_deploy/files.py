"""Finding files, and writing files and folders so that a reader never finds half of one."""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from convmae_deploy.errors import ConvMAEError


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it becomes `path`, on an exception it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; on success it becomes `path`, on an exception it is removed.

    Args:
        path: the folder to create.
        replace: whether an existing folder at `path` may be replaced. The old one is moved aside first and removed
            last; `existing_directory` finds it should the process die between the two renames.

    Raises:
        ConvMAEError: `path` exists and `replace` is False.
    """
    if path.exists() and not replace:
        raise ConvMAEError(f"{path} exists already; remove it or choose another output folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.mkdir()
    previous = _previous(path)
    try:
        yield temporary
        if path.exists():
            shutil.rmtree(previous, ignore_errors=True)
            os.replace(path, previous)
        os.replace(temporary, path)
        shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def existing_directory(path: Path) -> Path | None:
    """The folder last completed at `path` by `atomic_directory`, also after a crash between its renames; else None."""
    for candidate in (path, _previous(path)):
        if candidate.is_dir():
            return candidate
    return None


def check_can_create(path: Path) -> None:
    """Raises ConvMAEError unless something can be made at `path`: before long work, not after it."""
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConvMAEError(f"{path} cannot be made: {parent} is not a folder that can be written to; choose another")


def find_files(paths: Sequence[Path], suffixes: frozenset[str], kind: str) -> list[Path]:
    """The files among `paths`, and for each folder those of some kind in it, at any depth, sorted; no hidden files.

    Args:
        paths: files, whatever their names, and folders.
        suffixes: of the files to take from a folder, in lower case with their dot.
        kind: what these are called, for the message.

    Raises:
        ConvMAEError: a folder holds none.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)  # whether it exists shows when it is read: a missing file is one bad file
            continue
        inside = sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in suffixes and not file.name.startswith(".") and file.is_file()
        )
        if not inside:
            raise ConvMAEError(
                f"expected {kind} ({' '.join(sorted(suffixes))}) in the folder {path}, found none; check the path"
            )
        found.extend(inside)
    return found


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _previous(path: Path) -> Path:
    return path.with_name(f".{path.name}.previous")
