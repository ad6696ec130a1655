"""Copies of a few photos or videos of a data set, in folders of their own, for runs that need not learn."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from convmae_deploy.data.coco import read_coco_split
from convmae_deploy.data.photo_folder import read_photo_folder
from convmae_deploy.data.segmentation_folder import read_segmentation_folder
from convmae_deploy.data.video_folder import read_video_splits
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import atomic_directory

CLASSES = 4  # of photos and videos with labels


def copy_photos(data: Path, out: Path, counts: dict[str, int]) -> None:
    """Photos of the first classes of `data/{train,val}/<class>/*`, as many of each class.

    Args:
        data: the folder of all.
        out: made.
        counts: photos of each split.

    Raises:
        ConvMAEError: there are fewer.
    """
    with atomic_directory(out) as temporary:
        for split, count in counts.items():
            folder = read_photo_folder(data, split)
            _copy_classes(folder.photos, folder.labels, temporary / split, count)


def copy_videos(data: Path, out: Path, counts: dict[str, int]) -> None:
    """As `copy_photos`."""
    with atomic_directory(out) as temporary:
        for (split, count), folder in zip(counts.items(), read_video_splits(data), strict=True):
            _copy_classes(folder.videos, folder.labels, temporary / split, count)


def _copy_classes(files: Sequence[Path], labels: Sequence[int], out: Path, count: int) -> None:
    """Copies to out/<class>/*; a class is named by its number."""
    for label in range(CLASSES):
        own = [file for file, other in zip(files, labels, strict=True) if other == label]
        _copy(own, out / str(label), count // CLASSES)


def copy_coco(data: Path, out: Path, counts: dict[str, int]) -> None:
    """The first photos with objects of each split, with all categories; arguments as for `copy_photos`."""
    with atomic_directory(out) as temporary:
        (temporary / "annotations").mkdir()
        for split, count in counts.items():
            chosen = read_coco_split(data, split).for_training(limit=count)
            _copy([photo.path for photo in chosen.photos], temporary / "images" / split, count)
            names = {photo.id: photo.path.name for photo in chosen.photos}
            content = json.loads(chosen.file.read_text(encoding="utf-8"))
            images = [image | {"file_name": names[image["id"]]} for image in content["images"] if image["id"] in names]
            annotations = [item for item in content["annotations"] if item["image_id"] in names]
            content = {"images": images, "annotations": annotations, "categories": content["categories"]}
            file = temporary / "annotations" / f"instances_{split}.json"
            file.write_text(json.dumps(content), encoding="utf-8")


def copy_segmentation(data: Path, out: Path, counts: dict[str, int]) -> None:
    """The first photos and label maps of each split; arguments as for `copy_photos`."""
    with atomic_directory(out) as temporary:
        for split, count in counts.items():
            folder = read_segmentation_folder(data, split)
            _copy(folder.photos, temporary / "images" / split, count)
            _copy(folder.label_maps, temporary / "labels" / split, count)
        meaning = {
            "classes": folder.classes,
            "ignore_index": folder.ignore_index,
            "reduce_zero_label": folder.reduce_zero_label,
        }
        (temporary / "classes.json").write_text(json.dumps(meaning), encoding="utf-8")


def _copy(files: Sequence[Path], out: Path, count: int) -> None:
    """The first `count` files; raises ConvMAEError where there are fewer."""
    if len(files) < count:
        where = f" in {files[0].parent}" if files else ""
        raise ConvMAEError(f"needs {count} files of a class or split; found {len(files)}{where}")
    out.mkdir(parents=True)
    for file in files[:count]:
        shutil.copyfile(file, out / file.name)
