"""Photos in folders, with labels as `ROOT/{train,val}/<class>/*`. Without torch: measuring a bundle needs them too."""

from dataclasses import dataclass
from pathlib import Path

from convmae_deploy.data.class_folder import find_training_files, read_class_folders
from convmae_deploy.media.photo_files import find_photos


@dataclass(frozen=True, kw_only=True)
class PhotoFolder:
    """One split: photo paths with their class indices, and what each class is called."""

    photos: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]


def read_photo_folder(root: Path, split: str) -> PhotoFolder:
    """The photos of `root/split/<class>/*`, see `read_class_folders`.

    Raises:
        ConvMAEError: the split, a class folder or its photos are missing, or classes.json does not name every folder.
    """
    photos, labels, classes = read_class_folders(root, split, find_photos, "photos")
    return PhotoFolder(photos=photos, labels=labels, classes=classes)


def find_training_photos(root: Path) -> tuple[Path, ...]:
    """Photos to pretrain on without labels, see `find_training_files`.

    Raises:
        ConvMAEError: there is no such folder, or no photo in it.
    """
    return find_training_files(root, find_photos, "photos")
