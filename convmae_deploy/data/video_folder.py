"""Videos with labels: as `ROOT/{train,val}/<class>/*`, or in lists, `ROOT/{train,val}.csv` or `.txt`. Without torch.

A line of a list is a path and a label: "clips/a.mp4,3" or "clips/a.mp4 3", as Kinetics and Something-Something come.
With a comma in its first line a list is read as CSV (quotes allowed, so are paths with spaces), otherwise the label is
what follows the last space. Labels are class indices or class names. Paths are relative to the list's own folder.

A list may come with a data set of somebody else, so it is data: it names files below its folder and nothing else, by no
absolute path and no "..", and what looks like a URL or a command is the name of a file. Videos that lie elsewhere are
reached through a link that the user puts into the folder.
"""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convmae_deploy.data.class_folder import (
    MAX_CLASSES,
    check_class_names,
    find_training_files,
    read_class_folders,
    read_class_names,
)
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import path_inside, read_text, shortened
from convmae_deploy.media.video_formats import VIDEO_SUFFIXES, find_videos

_LIST_SUFFIXES = (".csv", ".txt")
_MAX_LIST_BYTES = 512 * 1024 * 1024  # millions of lines


@dataclass(frozen=True, kw_only=True)
class VideoFolder:
    """One split: video paths with their class indices, and what each class is called."""

    videos: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]


def read_video_splits(root: Path) -> tuple[VideoFolder, VideoFolder]:
    """The videos of `train` and `val`, class folders or lists.

    Raises:
        ConvMAEError: a split is missing or of another form, or has classes that the other has not.
    """
    train = read_video_folder(root, "train")
    val = read_video_folder(root, "val", classes=None if (root / "val").is_dir() else train.classes)
    if train.classes != val.classes:
        differing = sorted(set(train.classes) ^ set(val.classes))
        raise ConvMAEError(f"train and val of {root} must have the same classes; only one of them has {differing}")
    return train, val


def read_video_folder(root: Path, split: str, *, classes: Sequence[str] | None = None) -> VideoFolder:
    """The videos of `root/split/<class>/*` (see `read_class_folders`), else of a list `root/split.csv` or `.txt`.

    Args:
        root: of the data.
        split: "train" or "val".
        classes: the name of each index, of which the split may lack some; None: the ones that it has itself.

    Raises:
        ConvMAEError: the split is missing or of another form, or has another class.
    """
    list_file = _list_of(root, split)
    if list_file is not None:
        return read_video_list(list_file, classes=classes)
    videos, labels, names = read_class_folders(root, split, find_videos, "videos")
    if classes is None:
        return VideoFolder(videos=videos, labels=labels, classes=names)
    foreign = [name for name in names if name not in classes]
    if foreign:
        raise ConvMAEError(
            f"{root / split} has the class {foreign[0]!r}, which is none of the {len(classes)} classes; take it away"
        )
    known = [list(classes).index(name) for name in names]
    return VideoFolder(videos=videos, labels=tuple(known[label] for label in labels), classes=tuple(classes))


def read_video_list(file: Path, *, classes: Sequence[str] | None = None) -> VideoFolder:
    """The videos that a list names.

    Args:
        file: the list, whose paths are relative to its folder.
        classes: the name of each index; None: the labels in sorted order, or where all of them are whole numbers these
            numbers, from 0 to the largest. A `classes.json` {"label": "class name"} beside the list names them.

    Raises:
        ConvMAEError: it cannot be read, a line has another form or leads out of the folder, a label is none of the
            classes, or its first video is not there (further missing ones are skipped and counted as they come).
    """
    entries = _entries(file)
    names = read_class_names(file.parent / "classes.json")
    labels = [label for _, label in entries]
    if not all(labels):
        path = entries[labels.index("")][0]
        raise ConvMAEError(f"every line of {file} must be a path and a label; that of {path.name} has no label")
    if all(label.isdecimal() for label in labels):
        beyond = [label for label in labels if len(label) > len(str(MAX_CLASSES)) or int(label) >= MAX_CLASSES]
        if beyond:
            raise ConvMAEError(
                f"the labels of {file} must be below {MAX_CLASSES}; found {shortened(beyond[0])}, mend it"
            )
        indices = [int(label) for label in labels]
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
    return VideoFolder(videos=tuple(path for path, _ in entries), labels=tuple(indices), classes=tuple(classes))


def find_training_videos(root: Path) -> tuple[Path, ...]:
    """Videos to pretrain on: those of a list, with labels or without; else as `find_training_files` finds them.

    Args:
        root: a list, a folder with a list `train.csv` or `train.txt`, or a folder of videos.

    Raises:
        ConvMAEError: there is no such folder or list, or no video in it.
    """
    list_file = root if root.is_file() else _list_of(root, "train")
    if list_file is not None:
        return tuple(path for path, _ in _entries(list_file))
    return find_training_files(root, find_videos, "videos")


def _list_of(root: Path, split: str) -> Path | None:
    if (root / split).is_dir():
        return None
    return next((root / f"{split}{suffix}" for suffix in _LIST_SUFFIXES if (root / f"{split}{suffix}").is_file()), None)


def _entries(file: Path) -> list[tuple[Path, str]]:
    """Paths with their labels, "" where a line has only a path."""
    numbered = enumerate(read_text(file, _MAX_LIST_BYTES).splitlines(), start=1)
    lines = {number: line.strip() for number, line in numbered if line.strip()}
    if not lines:
        raise ConvMAEError(f"expected lines of a path and a label in {file}, found none; check the file")
    rows = _rows(list(lines.values()), file)
    entries = []
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
        entries.append((path, row[1] if len(row) == 2 else ""))
    if not os.path.isfile(entries[0][0]):
        named = shortened(rows[0][0])
        raise ConvMAEError(f"{file} names {named}, which is not in {file.parent}; check the paths of the list")
    return entries


def _rows(lines: list[str], file: Path) -> list[list[str]]:
    """The columns of each line, by the commas of the first one or by the last space."""
    if "," in lines[0]:
        try:
            return [[cell.strip() for cell in next(csv.reader([line], skipinitialspace=True))] for line in lines]
        except csv.Error as error:
            raise ConvMAEError(f"the list {file} cannot be read ({error}); give lines as in 'a.mp4,3'") from None
    rows = [line.rsplit(maxsplit=1) for line in lines]
    if all(Path(row[-1]).suffix.lower() in VIDEO_SUFFIXES for row in rows):
        return [[line] for line in lines]  # no labels, though perhaps spaces in the paths
    return rows
