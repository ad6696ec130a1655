"""The photos or videos that `convmae predict` is given: files, and those in folders."""

import sys
from collections.abc import Sequence
from pathlib import Path

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.extraction.command import MEDIA_SUFFIXES
from convmae_deploy.extraction.pieces import PassedOver
from convmae_deploy.files import files_below
from convmae_deploy.program import readable
from convmae_deploy.tasks.base import MediumName


def files_of(paths: Sequence[Path], medium: MediumName) -> list[Path]:
    """The files among `paths`, whatever their names, and for each folder those of the medium in it, at any depth.

    What else lies in a folder is counted on standard error, by its kind.

    Raises:
        ConvMAEError: a folder holds none, or cannot be read.
    """
    found: list[Path] = []
    passed_over = PassedOver()
    for path in paths:
        if not path.is_dir():
            found.append(path)  # whether it exists shows when it is read
            continue
        before = len(found)
        for file in sorted(files_below(path)):
            if file.name.startswith(".") or file.suffix.lower() not in MEDIA_SUFFIXES[medium]:
                passed_over.add(str(file))
            else:
                found.append(file)
        if len(found) == before:
            there = f"; passed over {passed_over}" if passed_over else ""
            wanted = " ".join(sorted(MEDIA_SUFFIXES[medium]))
            raise ConvMAEError(f"expected {medium}s ({wanted}) in the folder {readable(path)}, found none{there}")
    if passed_over:
        print(f"passed over: {passed_over}", file=sys.stderr)
    return found
