"""Whether data are the same as before, by the names of the files, their order and their labels."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LISTING = "listing"  # what `listing` gives, among the facts about a run's data


def listing(root: Path, *splits: Iterable[tuple[Path, Any]]) -> str:
    """SHA-256 of files and what they are labelled with, split after split, wherever `root` lies; no file is read.

    Args:
        root: the folder of the data.
        splits: file and label of each sample, in the order that samples are drawn from; a label is what `repr` tells
            from others.
    """
    prefix, total = f"{root}{os.sep}", hashlib.sha256()
    for split in splits:
        for file, label in split:
            total.update(repr((str(file).removeprefix(prefix), label)).encode())
        total.update(b"\n")
    return total.hexdigest()
