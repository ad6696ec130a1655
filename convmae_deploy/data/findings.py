"""What a reader of data leaves out and what looks wrong to it, counted and with examples.

Nothing is left out in silence. Without torch, as measuring a bundle reads the same data.
"""

import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from convmae_deploy.files import RUN_RECORD
from convmae_deploy.folders import files_below, is_hidden
from convmae_deploy.printing import printable

MAX_EXAMPLES = 100  # of each kind
MAX_KINDS = 40  # of things found in one split: a folder may hold a file of every ending
MAX_LENGTH = 300  # characters of an example
# of cameras and telephones, in formats that are not read
UNREAD_PHOTOS = frozenset({".arw", ".avif", ".cr2", ".cr3", ".dng", ".heic", ".heif", ".jxl", ".nef", ".psd", ".raf"})
ARCHIVES = frozenset((".tar", ".tgz", ".zip", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar"))
OTHER_KINDS = "things of other kinds"


@dataclass(kw_only=True)
class Finding:
    """One kind of thing, how often it came up, and the first of them."""

    count: int = 0
    examples: list[str] = field(default_factory=list)  # at most `MAX_EXAMPLES`

    def __str__(self) -> str:
        return f"{self.count}, the first {self.examples[0]}"


@dataclass(kw_only=True)
class Findings:
    """What one reading of a data set found, by its kind in words, in the order in which the kinds came up."""

    passed_over: dict[str, Finding] = field(default_factory=dict)  # left out of training or validation
    doubts: dict[str, Finding] = field(default_factory=dict)  # what looks wrong

    def pass_over(self, kind: str, example: object) -> None:
        """Counts something that is left out."""
        _count(self.passed_over, kind, example)

    def doubt(self, kind: str, example: object) -> None:
        """Counts something that looks wrong."""
        _count(self.doubts, kind, example)

    def pass_over_also(self, others: "Findings") -> None:
        """Counts what another reader, of a part of the same data, left out."""
        for kind, other in others.passed_over.items():
            for example in other.examples:
                finding = _count(self.passed_over, kind, example)
            finding.count += other.count - len(other.examples)

    def leave_out_file(self, file: Path, root: Path, suffixes: frozenset[str]) -> None:
        """Counts a file that a reader does not take, by what it is.

        Args:
            file: below `root`.
            root: of the data; examples are relative to it.
            suffixes: of the files that are taken. What is hidden and has another one is no loss and is not counted.
        """
        name, suffix = file.relative_to(root).as_posix(), file.suffix.lower()
        hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
        if os.path.islink(file) and not os.path.exists(file):
            self.doubt("links that lead nowhere", name)
        elif suffix in ARCHIVES:
            self.pass_over("archives, which are not looked into", name)
        elif hidden:
            if suffix in suffixes:
                self.pass_over("hidden files", name)
        elif suffix in suffixes:
            self.pass_over("folders, pipes or devices with the name of a file", name)
        elif suffix in UNREAD_PHOTOS:
            self.pass_over(f"files that end in {suffix} (convert them to JPEG or PNG)", name)
        else:
            self.pass_over(f"files that end in {suffix[:12]}" if suffix else "files without an ending", name)


def _count(found: dict[str, Finding], kind: str, example: object) -> Finding:
    kind = printable(kind)
    if kind not in found and len(found) >= MAX_KINDS:
        kind = OTHER_KINDS
    finding = found.setdefault(kind, Finding())
    finding.count += 1
    if len(finding.examples) < MAX_EXAMPLES:
        finding.examples.append(printable(example)[:MAX_LENGTH])
    return finding


def files_in(folder: Path, suffixes: frozenset[str], findings: Findings, root: Path) -> list[Path]:
    """The files of some kind in a folder, at any depth, sorted; all others are counted. Links are followed.

    Args:
        folder: below `root`, or `root` itself.
        suffixes: of the files to take, in lower case with their dot.
        findings: takes what is left out: other files, links that lead nowhere, what is hidden below `folder`, and the
            pictures and curves of training runs.
        root: of the data; examples are relative to it.

    Raises:
        ConvMAEError: a folder cannot be read.
    """
    found = []

    @cache
    def is_of_run(place: Path) -> bool:
        return os.path.isfile(place / RUN_RECORD) or (place != folder and is_of_run(place.parent))

    for file in files_below(folder):
        if is_of_run(file.parent):
            findings.pass_over("files of training runs, whose folders lie among the data", file.relative_to(root))
        elif file.suffix.lower() in suffixes and not is_hidden(file, folder) and os.path.isfile(file):
            found.append(file)
        else:
            findings.leave_out_file(file, root, suffixes)
    return sorted(found)
