"""Files in folders, with labels as `ROOT/<split>/<class>/*`; photos and videos alike. Without torch."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import read_json, shortened

Find = Callable[[Sequence[Path]], list[Path]]  # files of a kind in folders; raises ConvMAEError where there are none
MAX_CLASSES = 100_000  # a label 9999999999 in a list would make as many; the largest public sets have 22 000
MAX_NAME = 1000  # characters of a class's name
_NOT_IN_NAMES = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, and bytes that are no text
LabelledFiles = tuple[tuple[Path, ...], tuple[int, ...], tuple[str, ...]]  # files, their class indices, class names


def read_class_folders(root: Path, split: str, find: Find, kind: str) -> LabelledFiles:
    """Lists `root/split/<class>/*`; classes in sorted order of their folder names, hidden folders left out.

    A `root/classes.json` of the form {"folder name": "class name"} gives the names, unchanged; otherwise the folder's
    own name is the class's.

    Args:
        root: of the data.
        split: "train" or "val".
        find: the files.
        kind: what these are called, for the message.

    Raises:
        ConvMAEError: the split, a class folder or its files are missing, or classes.json does not name every folder.
    """
    directory = root / split
    entries = sorted(directory.iterdir()) if directory.is_dir() else []
    folders = [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    if not folders:
        raise ConvMAEError(f"{root} must hold {kind} as {split}/<class>/*; found no class folder in {directory}")
    names = read_class_names(root / "classes.json")
    unnamed = [folder.name for folder in folders if names and folder.name not in names]
    if unnamed:
        raise ConvMAEError(f"{root / 'classes.json'} must name every folder of {directory}; {unnamed[0]} is missing")
    classes = tuple(names.get(folder.name, folder.name) for folder in folders)
    check_class_names(classes, directory)
    found = [(file, label) for label, folder in enumerate(folders) for file in find([folder])]
    files, labels = zip(*found, strict=True)
    return files, labels, classes


def find_training_files(root: Path, find: Find, kind: str) -> tuple[Path, ...]:
    """Files to pretrain on without labels: all below `root/train` where that exists, else all below `root`, sorted.

    So a folder for finetuning serves as it is, and its `val` is never touched. Hidden files and folders are left out.

    Args:
        root: of the data.
        find: the files.
        kind: what these are called, for the message.

    Raises:
        ConvMAEError: there is no such folder, or no such file in it.
    """
    directory = root / "train" if (root / "train").is_dir() else root
    if not directory.is_dir():
        raise ConvMAEError(f"expected a folder of {kind}, found none at {directory}; check the path")
    files = tuple(file for file in find([directory]) if not _is_hidden(file.relative_to(directory)))
    if not files:
        raise ConvMAEError(f"expected {kind} in {directory}, found them in hidden folders only; rename those")
    return files


def read_class_names(path: Path) -> dict[str, str]:
    """What a classes.json says: the name of each folder or label; nothing where there is no such file.

    Raises:
        ConvMAEError: it has another form.
    """
    if not path.is_file():
        return {}
    names = read_json(path)
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ConvMAEError(f'{path} must be an object of the form {{"folder name": "class name"}}')
    return names


def check_class_names(names: Sequence[str], source: Path) -> None:
    """Raises ConvMAEError unless names of classes can stand in a file, on a page and in a terminal.

    Args:
        names: of all classes.
        source: the file or folder that they are from.
    """
    if len(names) > MAX_CLASSES:
        raise ConvMAEError(f"{source} must have at most {MAX_CLASSES} classes; found {len(names)}")
    for name in names:
        if not name or len(name) > MAX_NAME or _NOT_IN_NAMES.search(name):
            raise ConvMAEError(
                f"the name of a class must be text of 1 to {MAX_NAME} characters, none of them for control; {source} "
                f"has {shortened(name)}, rename it"
            )


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
