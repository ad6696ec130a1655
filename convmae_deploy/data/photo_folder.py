"""Photos in folders, with labels as `ROOT/{train,val}/<class>/*`. Without torch: measuring a bundle needs them too."""

import json
from dataclasses import dataclass
from pathlib import Path

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.runtime.extraction import find_photos


@dataclass(frozen=True, kw_only=True)
class PhotoFolder:
    """One split: photo paths with their class indices, and what each class is called."""

    photos: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]


def read_photo_folder(root: Path, split: str) -> PhotoFolder:
    """Lists `root/split/<class>/*`; classes in sorted order of their folder names, hidden folders left out.

    A `root/classes.json` of the form {"folder name": "class name"} gives the names, unchanged; otherwise the folder's
    own name is the class's.

    Raises:
        ConvMAEError: the split, a class folder or its photos are missing, or classes.json does not name every folder.
    """
    directory = root / split
    entries = sorted(directory.iterdir()) if directory.is_dir() else []
    folders = [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    if not folders:
        raise ConvMAEError(f"{root} must hold photos as {split}/<class>/*; found no class folder in {directory}")
    names = _class_names(root / "classes.json")
    unnamed = [folder.name for folder in folders if names and folder.name not in names]
    if unnamed:
        raise ConvMAEError(f"{root / 'classes.json'} must name every folder of {directory}; {unnamed[0]} is missing")
    found = [(photo, label) for label, folder in enumerate(folders) for photo in find_photos([folder])]
    return PhotoFolder(
        photos=tuple(photo for photo, _ in found),
        labels=tuple(label for _, label in found),
        classes=tuple(names.get(folder.name, folder.name) for folder in folders),
    )


def find_training_photos(root: Path) -> tuple[Path, ...]:
    """Photos to pretrain on without labels: all below `root/train` where that exists, else all below `root`, sorted.

    So a folder for finetuning serves as it is, and its `val` is never touched. Hidden files and folders are left out.

    Raises:
        ConvMAEError: there is no such folder, or no photo in it.
    """
    directory = root / "train" if (root / "train").is_dir() else root
    if not directory.is_dir():
        raise ConvMAEError(f"expected a folder of photos, found none at {directory}; check the path")
    photos = tuple(photo for photo in find_photos([directory]) if not _is_hidden(photo.relative_to(directory)))
    if not photos:
        raise ConvMAEError(f"expected photos in {directory}, found them in hidden folders only; rename those")
    return photos


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _class_names(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConvMAEError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ConvMAEError(f'{path} must be an object of the form {{"folder name": "class name"}}')
    return names
