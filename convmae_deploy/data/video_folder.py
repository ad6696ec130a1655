"""Videos with labels: as `ROOT/{train,val}/<class>/*`, or in lists, `ROOT/{train,val}.csv` or `.txt`. Without torch.

A line of a list is a path and a label: "clips/a.mp4,3" or "clips/a.mp4 3", as Kinetics and Something-Something come.
With a tab or a comma in its first line a list is read as CSV (quotes allowed, so are paths with spaces), otherwise the
label is what follows the last space. Labels are class indices or class names, and a first line that names no video is
one of titles. Paths are relative to the list's own folder.

A list may come with a data set of somebody else, so it is data: it names files below its folder and nothing else, by no
absolute path and no "..", and what looks like a URL or a command is the name of a file. Videos that lie elsewhere are
reached through a link that the user puts into the folder.
"""

import csv
import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from convmae_deploy.data.class_folder import (
    MAX_CLASSES,
    ClassFolders,
    check_class_names,
    find_training_files,
    names_of_split,
    read_class_folders,
    read_class_names,
    read_class_splits,
    split_folder,
)
from convmae_deploy.data.findings import Findings
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import as_spelt, path_inside, read_text, shortened
from convmae_deploy.folders import files_below, is_hidden
from convmae_deploy.media.video_formats import VIDEO_SUFFIXES

_LIST_SUFFIXES = (".csv", ".txt")
_MAX_LIST_BYTES = 512 * 1024 * 1024  # millions of lines
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?")


@dataclass(frozen=True, kw_only=True)
class VideoFolder:
    """One split: video paths with their class indices, and what each class is called."""

    videos: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    findings: Findings = field(default_factory=Findings, compare=False)  # what was left out, what looks wrong


def read_video_splits(root: Path) -> tuple[VideoFolder, VideoFolder]:
    """The videos of `train` and `val`, class folders or lists; classes are those of `train`.

    Raises:
        ConvMAEError: a split is missing or of another form, or `val` has classes that `train` has not.
    """
    if list_of(root, "train") is None and list_of(root, "val") is None:
        train, val = read_class_splits(root, VIDEO_SUFFIXES, "videos")
        for split, found in (("train", train), ("val", val)):
            for file in _lists(root, split):
                found.findings.doubt("lists that are not read, as there are class folders", file.name)
        return _videos(train), _videos(val)
    learnt = read_video_folder(root, "train")
    measured = read_video_folder(root, "val", classes=learnt.classes)
    for folder, purpose in ((learnt, "train"), (measured, "validate")):
        there = set(folder.labels)
        for label, name in enumerate(learnt.classes):
            if label not in there:
                folder.findings.doubt(f"classes without videos to {purpose} on", name)
    _note_unlisted(root, {*learnt.videos, *measured.videos}, learnt.findings)
    return learnt, measured


def read_video_folder(root: Path, split: str, *, classes: Sequence[str] | None = None) -> VideoFolder:
    """The videos of `root/split/<class>/*` (see `read_class_folders`), else of a list `root/split.csv` or `.txt`.

    Args:
        root: of the data.
        split: "train" or "val".
        classes: the name of each index, of which the split may lack some; None: the ones that it has itself.

    Raises:
        ConvMAEError: the split is missing or of another form, or has another class.
    """
    list_file = list_of(root, split)
    if list_file is not None:
        return read_video_list(list_file, classes=classes)
    found = read_class_folders(root, split, VIDEO_SUFFIXES, "videos")
    if classes is None:
        return _videos(found)
    foreign = [name for name in found.classes if name not in classes]
    if foreign:
        raise ConvMAEError(
            f"{root / split} has the class {foreign[0]!r}, which is none of the {len(classes)} classes; take it away"
        )
    known = [list(classes).index(name) for name in found.classes]
    labels = tuple(known[label] for label in found.labels)
    return VideoFolder(videos=found.files, labels=labels, classes=tuple(classes), findings=found.findings)


def read_video_list(file: Path, *, classes: Sequence[str] | None = None) -> VideoFolder:
    """The videos that a list names.

    Args:
        file: the list, whose paths are relative to its folder.
        classes: the name of each index; None: the labels in sorted order, or where all of them are whole numbers these
            numbers, from 0 to the largest. A `classes.json` {"label": "class name"} beside the list names them.

    Raises:
        ConvMAEError: it cannot be read, a line has another form or leads out of the folder, a label is none of the
            classes, or none of its videos is there (some that are not are left out and counted).
    """
    findings = Findings()
    entries = _entries(file, findings)
    names = read_class_names(file.parent / "classes.json")
    labels = [label for _, label in entries]
    if not all(labels):
        path = entries[labels.index("")][0]
        raise ConvMAEError(f"every line of {file} must be a path and a label; that of {path.name} has no label")
    if _are_numbers(labels, file, findings):
        indices = [int(label) for label in labels]
        numbered = [names.get(str(index), str(index)) for index in range(len(classes or ()))]
        if classes is not None and list(classes) != numbered:
            raise ConvMAEError(
                f"the labels of {file} are numbers, and the classes are names, the first {shortened(classes[0])}; "
                f'write names, or what the numbers mean into {file.parent / "classes.json"} ({{"0": "name"}})'
            )
        classes = classes or [names.get(str(index), str(index)) for index in range(max(indices) + 1)]
        foreign = [label for label, index in zip(labels, indices, strict=True) if index >= len(classes)]
    else:
        classes = classes or [names.get(label, label) for label in sorted(set(labels))]
        known = {name: index for index, name in enumerate(classes)}
        foreign = [label for label in labels if names.get(label, label) not in known]
        indices = [known.get(names.get(label, label), -1) for label in labels]
    if foreign:
        raise ConvMAEError(
            f"{file} has the label {shortened(foreign[0])}, which is none of the {len(classes)} classes; mend it"
        )
    check_class_names(classes, file)
    there = _present(entries, file, findings)
    return VideoFolder(
        videos=tuple(entries[number][0] for number in there),
        labels=tuple(indices[number] for number in there),
        classes=tuple(classes),
        findings=findings,
    )


def find_training_videos(root: Path, findings: Findings | None = None) -> tuple[Path, ...]:
    """Videos to pretrain on: those of a list, with labels or without; else as `find_training_files` finds them.

    Args:
        root: a list, a folder with a list `train.csv` or `train.txt`, or a folder of videos.
        findings: takes what is left out.

    Raises:
        ConvMAEError: there is no such folder or list, or no video in it.
    """
    findings = Findings() if findings is None else findings
    list_file = root if root.is_file() else list_of(root, "train")
    if list_file is None:
        return find_training_files(root, VIDEO_SUFFIXES, "videos", findings)
    entries = _entries(list_file, findings)
    return tuple(entries[number][0] for number in _present(entries, list_file, findings))


def _videos(found: ClassFolders) -> VideoFolder:
    return VideoFolder(videos=found.files, labels=found.labels, classes=found.classes, findings=found.findings)


def list_of(root: Path, split: str) -> Path | None:
    """The list `root/split.csv` or `.txt`; None where there is none, or where the split has class folders."""
    folder = split_folder(root, split)
    if folder.is_dir() and any(entry.is_dir() for entry in folder.iterdir()):
        return None
    return next(iter(_lists(root, split)), None)


def _lists(root: Path, split: str) -> list[Path]:
    """The files that may be the list of a split, the first of which is."""
    names = (root / f"{name}{suffix}" for name in names_of_split(split) for suffix in _LIST_SUFFIXES)
    return [file for file in names if file.is_file()]


def _note_unlisted(root: Path, listed: Collection[Path], findings: Findings) -> None:
    """Counts what lies beside the lists and the videos that they name."""
    read = {list_of(root, split) for split in ("train", "val")} | {root / "classes.json"}
    for file in files_below(root):
        if file in listed or file in read:
            continue
        if file.suffix.lower() in VIDEO_SUFFIXES and not is_hidden(file, root) and os.path.isfile(file):
            findings.pass_over("videos that the lists do not name", file.relative_to(root))
        else:
            findings.leave_out_file(file, root, VIDEO_SUFFIXES)


def _are_numbers(labels: Sequence[str], file: Path, findings: Findings) -> bool:
    """Whether labels are class indices and not names; numbers among names are counted.

    Raises:
        ConvMAEError: all are numbers, and some cannot be indices.
    """
    numbers = [label for label in labels if _NUMBER.fullmatch(label)]
    if len(numbers) < len(labels):
        for label in numbers:
            findings.doubt(f"labels of {file.name} that are numbers among names", label)
        return False
    wrong = next((label for label in labels if not label.isdecimal()), None)
    if wrong is not None:
        raise ConvMAEError(
            f"the labels of {file} must be class indices (0, 1, 2), or else names; found {shortened(wrong)} among "
            f"{len(labels)} numbers: mend its lines, or take them out where the class is not known"
        )
    beyond = [label for label in labels if len(label) > len(str(MAX_CLASSES)) or int(label) >= MAX_CLASSES]
    if beyond:
        raise ConvMAEError(f"the labels of {file} must be below {MAX_CLASSES}; found {shortened(beyond[0])}, mend it")
    return True


def _present(entries: Sequence[tuple[Path, str]], file: Path, findings: Findings) -> list[int]:
    """The numbers of the entries whose videos are there; the others are counted.

    Raises:
        ConvMAEError: there is none.
    """
    there = [number for number, (path, _) in enumerate(entries) if os.path.isfile(path)]
    if not there:
        named = shortened(entries[0][0].relative_to(file.parent).as_posix())
        raise ConvMAEError(
            f"{file} names {named}, which is not in {file.parent}, and so it is with all of its {len(entries)} videos; "
            "check the paths of the list"
        )
    for number in sorted(set(range(len(entries))) - set(there)):
        findings.pass_over(f"videos of {file.name} that are not there", entries[number][0].relative_to(file.parent))
    entered = Counter(entries[number] for number in there)
    for (path, _), count in entered.items():
        if count > 1:
            findings.doubt(f"videos of {file.name} that are there more than once", path.relative_to(file.parent))
    return there


def _entries(file: Path, findings: Findings) -> list[tuple[Path, str]]:
    """Paths with their labels, "" where a line has only a path; a line of titles at the top is left out."""
    numbered = enumerate(read_text(file, _MAX_LIST_BYTES).splitlines(), start=1)
    lines = {number: line.strip() for number, line in numbered if line.strip()}
    if not lines:
        raise ConvMAEError(f"expected lines of a path and a label in {file}, found none; check the file")
    rows = _rows(list(lines.values()), file)
    entries: list[tuple[Path, str]] = []
    for number, row in zip(lines, rows, strict=True):
        if len(row) > 2 or not row[0]:
            raise ConvMAEError(
                f"every line of {file} must be a path and a label, as in 'a.mp4,3' or 'a.mp4 3'; line {number} has "
                f"{len(row)} columns"
            )
        try:
            path = path_inside(file.parent, row[0])
        except ConvMAEError as error:
            raise ConvMAEError(f"{file}, line {number}: {error}; link what lies elsewhere into the folder") from None
        if not os.path.isfile(path):  # as Windows writes it, or macOS
            path = as_spelt(file.parent, row[0].replace("\\", "/"))
        is_title = row is rows[0] and path.suffix.lower() not in VIDEO_SUFFIXES and not os.path.isfile(path)
        if is_title and len(rows) > 1:
            findings.pass_over(f"lines of {file.name} that are titles", ",".join(row))
            continue
        entries.append((path, row[1] if len(row) == 2 else ""))
    return entries


def _rows(lines: list[str], file: Path) -> list[list[str]]:
    """The columns of each line, by the tabs or commas of the first one or by the last space."""
    delimiter = next((character for character in "\t," if character in lines[0]), None)
    if delimiter is not None:
        try:
            readers = (csv.reader([line], delimiter=delimiter, skipinitialspace=True) for line in lines)
            return [[cell.strip() for cell in next(reader)] for reader in readers]
        except csv.Error as error:
            raise ConvMAEError(f"the list {file} cannot be read ({error}); give lines as in 'a.mp4,3'") from None
    rows = [line.rsplit(maxsplit=1) for line in lines]
    if all(Path(row[-1]).suffix.lower() in VIDEO_SUFFIXES for row in rows):
        return [[line] for line in lines]  # no labels, though perhaps spaces in the paths
    return rows
