"""Photos in folders, with labels as `ROOT/{train,val}/<class>/*`. Without torch: measuring a bundle needs them too."""

from dataclasses import dataclass, field
from pathlib import Path

from convmae_deploy.data.class_folder import ClassFolders, find_training_files, read_class_folders, read_class_splits
from convmae_deploy.data.findings import Findings
from convmae_deploy.media.photo_files import IMAGE_SUFFIXES


@dataclass(frozen=True, kw_only=True)
class PhotoFolder:
    """One split: photo paths with their class indices, and what each class is called."""

    photos: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    findings: Findings = field(default_factory=Findings, compare=False)  # what was left out, what looks wrong


def read_photo_folder(root: Path, split: str) -> PhotoFolder:
    """The photos of `root/split/<class>/*`, see `read_class_folders`.

    Raises:
        ConvMAEError: the split or its photos are missing, or classes.json does not name every folder.
    """
    return _photos(read_class_folders(root, split, IMAGE_SUFFIXES, "photos"))


def read_photo_splits(root: Path) -> tuple[PhotoFolder, PhotoFolder]:
    """The photos of `root/train` and `root/val`; classes are those of `train`, of which `val` may lack some.

    Raises:
        ConvMAEError: as `read_photo_folder`, or `val` has a class that `train` has not.
    """
    train, val = read_class_splits(root, IMAGE_SUFFIXES, "photos")
    return _photos(train), _photos(val)


def find_training_photos(root: Path, findings: Findings | None = None) -> tuple[Path, ...]:
    """Photos to pretrain on without labels, see `find_training_files`.

    Raises:
        ConvMAEError: there is no such folder, or no photo in it.
    """
    return find_training_files(root, IMAGE_SUFFIXES, "photos", Findings() if findings is None else findings)


def _photos(found: ClassFolders) -> PhotoFolder:
    return PhotoFolder(photos=found.files, labels=found.labels, classes=found.classes, findings=found.findings)
