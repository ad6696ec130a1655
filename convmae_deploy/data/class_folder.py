"""Files in folders, with labels as `ROOT/<split>/<class>/*`; photos and videos alike. Without torch."""

import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from convmae_deploy.data.findings import Findings, files_in
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import read_json, shortened

MAX_CLASSES = 100_000  # a label 9999999999 in a list would make as many; the largest public sets have 22 000
MAX_NAME = 1000  # characters of a class's name
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation")}  # what tools call them
_NOT_IN_NAMES = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, and bytes that are no text


@dataclass(frozen=True, kw_only=True)
class ClassFolders:
    """The files of a split with their class indices."""

    files: tuple[Path, ...]
    labels: tuple[int, ...]
    folders: tuple[str, ...]  # the name of each class's folder, see `name_of`
    classes: tuple[str, ...]  # what each class is called
    findings: Findings


def names_of_split(split: str) -> tuple[str, ...]:
    """What tools call a split: "val" is also valid or validation, each also with a capital."""
    names = SPLITS.get(split, (split,))
    return (*names, *(name.capitalize() for name in names))


def split_folder(root: Path, split: str) -> Path:
    """The folder of a split, by whichever of its names; `root/split` where there is none."""
    return next((root / name for name in names_of_split(split) if (root / name).is_dir()), root / split)


def read_class_folders(
    root: Path, split: str, suffixes: frozenset[str], kind: str, *, like: ClassFolders | None = None
) -> ClassFolders:
    """Lists `root/split/<class>/*`; classes in sorted order of their folder names, hidden folders left out.

    A folder without files is no class, and folders whose names differ in Unicode's form alone are one. A
    `root/classes.json` of the form {"folder name": "class name"} gives the names, unchanged; otherwise the folder's own
    name is the class's.

    Args:
        root: of the data.
        split: "train" or "val", or what else the folder is called.
        suffixes: of the files.
        kind: what these are called, for the message.
        like: the split whose classes these are; of its classes this one may lack some.

    Raises:
        ConvMAEError: the split or its files are missing, it has a class that `like` has not, or classes.json does not
            name every folder.
    """
    directory, findings = split_folder(root, split), Findings()
    found = {}
    for entry in sorted(directory.iterdir()) if directory.is_dir() else []:
        if not entry.is_dir():
            if entry.suffix.lower() in suffixes and entry.is_file() and not entry.name.startswith("."):
                findings.pass_over(f"{kind} in no class folder", entry.relative_to(root))
            else:
                findings.leave_out_file(entry, root, frozenset())
        elif entry.name.startswith("."):
            findings.pass_over("hidden folders beside the class folders", entry.relative_to(root))
        else:
            found[entry] = files_in(entry, suffixes, findings, root)
            if any(file.parent != entry for file in found[entry]):
                findings.doubt(
                    "class folders with folders inside, whose files are of the one class", entry.relative_to(root)
                )
    if not found:
        if not directory.is_dir() and root.is_dir():
            note_unused(root, root, findings, used=())
        place = (
            f"class folder in {directory}" if directory.is_dir() else f"folder {directory if root.is_dir() else root}"
        )
        raise ConvMAEError(f"{root} must hold {kind} as {split}/<class>/*; found no {place}{_instead(findings)}")
    for folder in (folder for folder, files in found.items() if not files):
        findings.doubt(f"class folders without {kind}", folder.relative_to(root))
    filled = [folder for folder, files in found.items() if files]
    if not filled:
        raise ConvMAEError(
            f"expected {kind} ({' '.join(sorted(suffixes))}) in the class folders of {directory}, found none"
            f"{_instead(findings)}; check the path"
        )
    if [folder.name for folder in filled if folder.name in names_of_split(split)] == [folder.name for folder in filled]:
        raise ConvMAEError(f"{directory} must hold class folders; found {filled[0]}: move what is in it one folder up")
    names = read_class_names(root / "classes.json")
    unnamed = [name_of(folder) for folder in filled if names and name_of(folder) not in names]
    if unnamed:
        raise ConvMAEError(f"{root / 'classes.json'} must name every folder of {directory}; {unnamed[0]} is missing")
    folders = tuple(sorted(set(map(name_of, filled)))) if like is None else like.folders
    foreign = [folder.name for folder in filled if name_of(folder) not in folders]
    if foreign:
        raise ConvMAEError(
            f"{directory} has {kind} of {foreign[0]!r}, of which there are none to train on; add some or take it away"
        )
    classes = tuple(names.get(name, name) for name in folders)
    check_class_names(classes, directory)
    index = {name: label for label, name in enumerate(folders)}
    return ClassFolders(
        files=tuple(file for folder in filled for file in found[folder]),
        labels=tuple(index[name_of(folder)] for folder in filled for _ in found[folder]),
        folders=folders,
        classes=classes,
        findings=findings,
    )


def name_of(folder: Path) -> str:
    """What a class folder is called, whichever form its system gave to letters with accents."""
    return unicodedata.normalize("NFC", folder.name)


def read_class_splits(root: Path, suffixes: frozenset[str], kind: str) -> tuple[ClassFolders, ClassFolders]:
    """The files to train on and those to validate on, of which some classes may have none.

    Raises:
        ConvMAEError: as `read_class_folders`.
    """
    train = read_class_folders(root, "train", suffixes, kind)
    val = read_class_folders(root, "val", suffixes, kind, like=train)
    with_val = set(val.labels)
    for label, name in enumerate(train.classes):
        if label not in with_val:
            val.findings.doubt(f"classes without {kind} to validate on", name)
    read = [split_folder(root, split).name for split in ("train", "val")]
    note_unused(root, root, train.findings, used=(*read, "classes.json"))
    return train, val


def note_unused(folder: Path, root: Path, findings: Findings, used: Collection[str]) -> None:
    """Counts what lies in a folder beside the folders and files that a reader takes; hidden things are not counted.

    Args:
        folder: `root`, or one below it.
        root: of the data; examples are relative to it.
        findings: takes what is left out.
        used: names of what is taken.
    """
    for entry in sorted(folder.iterdir()):
        if entry.name in used or entry.name.startswith("."):
            continue
        if entry.is_dir():
            findings.pass_over("folders beside those that are read", entry.relative_to(root))
        else:
            findings.leave_out_file(entry, root, frozenset())


def find_training_files(root: Path, suffixes: frozenset[str], kind: str, findings: Findings) -> tuple[Path, ...]:
    """Files to pretrain on without labels: all below `root/train` where that exists, else all below `root`, sorted.

    So a folder for finetuning serves as it is, and its `val` is never touched. Hidden files and folders are left out.

    Args:
        root: of the data.
        suffixes: of the files.
        kind: what these are called, for the message.
        findings: takes what is left out.

    Raises:
        ConvMAEError: there is no such folder, or no such file in it.
    """
    directory = split_folder(root, "train")
    directory = directory if directory.is_dir() else root
    if not directory.is_dir():
        raise ConvMAEError(f"expected a folder of {kind}, found none at {directory}; check the path")
    files = files_in(directory, suffixes, findings, root)
    if not files and "hidden files" in findings.passed_over:
        raise ConvMAEError(f"expected {kind} in {directory}, found them in hidden folders only; rename those")
    if not files:
        raise ConvMAEError(
            f"expected {kind} ({' '.join(sorted(suffixes))}) in the folder {directory}, found none"
            f"{_instead(findings)}; check the path"
        )
    if directory != root:
        note_unused(root, root, findings, used=(directory.name, "classes.json"))
    return tuple(files)


def _instead(findings: Findings) -> str:
    """What there is in place of what was expected."""
    kinds = [
        f"{kind}: {finding}" for found in (findings.doubts, findings.passed_over) for kind, finding in found.items()
    ]
    return f" ({'; '.join(kinds[:3])})" if kinds else ""


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
    return {unicodedata.normalize("NFC", key): name for key, name in names.items()}


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
