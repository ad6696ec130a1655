"""Photos with a label map each, in ADE20K's own folders or in generic ones. Without torch: measuring needs them too.

Generic:  ROOT/images/<split>/x.jpg   ROOT/labels/<split>/x.png    ROOT/classes.json
ADE20K:   ROOT/images/training/x.jpg  ROOT/annotations/training/x.png  (validation alike)  ROOT/objectInfo150.txt

classes.json is {"classes": [names], "ignore_index": 255, "reduce_zero_label": false}; the last two may be left out. A
label map holds the index of a class in every pixel, as grey levels or as a palette's indices. With reduce_zero_label,
as in ADE20K, 0 is of no class and the classes are 1, 2, ....

A label map is a PNG within the limits of photos, whatever its name: for one in PostScript Pillow would run Ghostscript.
"""

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from convmae_deploy.data.class_folder import check_class_names, names_of_split, note_unused
from convmae_deploy.data.findings import Findings, files_in
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import as_spelt, read_json, read_regular, read_text, shortened
from convmae_deploy.media.image_containers import read_png
from convmae_deploy.media.image_formats import identify
from convmae_deploy.media.photo_files import (
    ANNOTATED_PHOTO_LIMITS,
    IMAGE_SUFFIXES,
    MAX_PHOTO_BYTES,
    read_photo,
    read_stored_size,
)
from convmae_deploy.printing import printable

IGNORE = 255  # label of pixels that are of no class, whatever the files have for it
MAX_CLASSES = 255  # 0 to 254
ADE20K_CLASSES = ("objectInfo150.txt", "objectInfo150.csv")  # lists of class names that come with ADE20K
MAP_MODES = ("L", "P", "I", "I;16", "1")  # Pillow's modes of label maps
BIT_DEPTH = 24  # place in a PNG of the number of bits of a level
GREY_STEPS = {2: 85, 4: 17}  # by which Pillow multiplies grey levels of so many bits, to fill a byte


@dataclass(frozen=True, kw_only=True)
class SegmentationFolder:
    """One split: photos, their label maps, and what the labels mean."""

    photos: tuple[Path, ...]
    label_maps: tuple[Path, ...]
    classes: tuple[str, ...]
    ignore_index: int = IGNORE  # level in the files of pixels that are of no class
    reduce_zero_label: bool = False  # level 0 is of no class and class 0 has level 1
    findings: Findings = field(default_factory=Findings, compare=False)  # what was left out, what looks wrong

    def files(self) -> Iterator[tuple[Path, None]]:
        """Each photo and then its label map, as `listing` takes them."""
        return ((file, None) for pair in zip(self.photos, self.label_maps, strict=True) for file in pair)

    def read(self, index: int) -> tuple[Image.Image, NDArray[np.uint8]]:
        """A photo (RGB, as its label map has it) and its labels (H, W), `IGNORE` where there is no class.

        That is as it is stored, whatever its EXIF orientation; only where the map fits the photo when that is turned
        upright and not otherwise, whoever drew the map saw it upright.

        Raises:
            ConvMAEError: one of the two cannot be read, their sizes differ, or a level is of no class.
        """
        photo = read_photo(self.photos[index], apply_orientation=False, limits=ANNOTATED_PHOTO_LIMITS).image
        labels = self._labels(index, photo.size)
        if labels.shape != (photo.height, photo.width):
            photo = read_photo(self.photos[index], limits=ANNOTATED_PHOTO_LIMITS).image
        return photo, labels

    def read_labels(self, index: int) -> NDArray[np.uint8]:
        """The labels (H, W) of a photo, of which the header alone is read; raises as `read`."""
        return self._labels(index, read_stored_size(self.photos[index], limits=ANNOTATED_PHOTO_LIMITS))

    def _labels(self, index: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        path = self.label_maps[index]
        levels = read_levels(path, size, partial(_is_turned, self.photos[index]))
        labels = levels - 1 if self.reduce_zero_label else levels
        ignored = (levels == self.ignore_index) | (labels < 0)
        wrong = (labels >= len(self.classes)) & ~ignored
        if wrong.any():
            first = 1 if self.reduce_zero_label else 0
            raise LabelError(
                f"{path} must hold the levels {first} to {len(self.classes) - 1 + first} of the {len(self.classes)} "
                f"classes and {0 if self.reduce_zero_label else self.ignore_index} for none; found {levels[wrong][0]}"
            )
        found = labels.astype(np.uint8)
        found[ignored] = IGNORE
        return found


class LabelError(ConvMAEError):
    """A label map that does not fit its photo or the classes: the data set is wrong, where a bad photo is just one."""


def _is_turned(photo: Path) -> bool:
    """Whether the EXIF orientation of a photo exchanges its width and height; False where it cannot be read."""
    try:
        found = read_photo(photo, limits=ANNOTATED_PHOTO_LIMITS)
    except ConvMAEError:
        return False
    return found.image.size != found.original_size


def read_levels(
    path: Path, size: tuple[int, int] | None = None, is_turned: Callable[[], bool] = lambda: False
) -> NDArray[np.int32]:
    """The grey levels or palette indices (H, W) of a label map.

    Args:
        path: of the map.
        size: (width, height) of its photo as it is stored, without which nothing is decoded; None: not known.
        is_turned: whether the photo is seen with its width and height exchanged; asked where that would fit.

    Raises:
        LabelError: it cannot be read, is no PNG, has not the size of its photo, or is a coloured picture.
    """
    try:
        data = read_regular(path, MAX_PHOTO_BYTES)
        if data and identify(data) != "PNG":
            raise LabelError(f"the label map {path} must be a PNG; found {identify(data)}: convert it")
        container = read_png(data, lambda width, height: _check_size(path, (width, height), size, is_turned))
        with PngImageFile(io.BytesIO(container.data)) as picture:
            if picture.mode not in MAP_MODES:
                raise LabelError(
                    f"{path} must hold one class index a pixel, as grey levels or palette indices; found a picture of "
                    f"mode {picture.mode}: convert its colours to indices"
                )
            levels = np.asarray(picture).astype(np.int32)
            return levels // GREY_STEPS.get(data[BIT_DEPTH], 1) if picture.mode == "L" else levels
    except LabelError:
        raise
    except (ConvMAEError, OSError, ValueError, SyntaxError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise LabelError(f"the label map {path} cannot be read ({printable(reason)}); check or replace it") from None


def read_palette(path: Path) -> dict[int, tuple[int, ...]]:
    """The RGB colour of each index that occurs in a label map with a palette; nothing of another map, or a bad one."""
    try:
        data = read_regular(path, MAX_PHOTO_BYTES)
        container = read_png(data, lambda width, height: _check_size(path, (width, height), None, lambda: False))
        with PngImageFile(io.BytesIO(container.data)) as picture:
            if picture.mode != "P":
                return {}
            colours = picture.getpalette("RGB") or []
            return {
                index: tuple(colours[3 * index : 3 * index + 3]) for index in np.unique(np.asarray(picture)).tolist()
            }
    except (ConvMAEError, OSError, ValueError, SyntaxError):
        return {}  # said where the map is read


def _check_size(
    path: Path, found: tuple[int, int], size: tuple[int, int] | None, is_turned: Callable[[], bool]
) -> None:
    width, height = found
    if size is not None and found != size and not (found == size[::-1] and is_turned()):
        raise LabelError(
            f"{path} must have the size of its photo, {size[0]} x {size[1]} pixels; found {width} x {height}"
        )
    limits = ANNOTATED_PHOTO_LIMITS
    if not (0 < max(width, height) <= limits.max_side and 0 < width * height <= limits.max_pixels):
        raise LabelError(
            f"the label map {path} may have {limits.max_pixels} pixels and {limits.max_side} a side; found "
            f"{width} x {height}"
        )


def read_segmentation_folder(root: Path, split: str) -> SegmentationFolder:
    """Lists one split, in whichever of the two layouts the folder has.

    Args:
        root: the data set.
        split: "train" or "val" (in ADE20K's layout training and validation), or another folder below images/; "" means
            that photos and label maps lie in images/ and labels/ themselves.

    Raises:
        ConvMAEError: the split or the names of the classes are missing, or a photo has no label map.
    """
    photos_root, labels_root = root / "images", labels_folder(root)
    names = names_of_split(split) if split else ("",)
    there = [name for name in names if (photos_root / name).is_dir() and (labels_root / name).is_dir()]
    if not there:
        named = [name for name in names if (photos_root / name).is_dir()]
        missing = labels_root / named[0] if named else photos_root / split
        raise ConvMAEError(
            f"{root} must hold images/<split> and labels/<split> (or ADE20K's annotations/<split>); found no {missing}"
        )
    images, labels = photos_root / there[0], labels_root / there[0]
    classes, ignore_index, reduce_zero_label = read_classes(root)
    findings = Findings()
    photos = files_in(images, IMAGE_SUFFIXES, findings, root)
    if not photos:
        raise ConvMAEError(
            f"expected photos ({' '.join(sorted(IMAGE_SUFFIXES))}) in the folder {images}, found none; check the path"
        )
    label_maps = tuple(as_spelt(labels, str(photo.relative_to(images).with_suffix(".png"))) for photo in photos)
    unlabelled = [(photo, path) for photo, path in zip(photos, label_maps, strict=True) if not path.is_file()]
    if unlabelled:
        photo, path = unlabelled[0]
        raise ConvMAEError(
            f"every photo must have a label map; {photo} has none at {path}"
            + (f", and {len(unlabelled) - 1} more have none" if len(unlabelled) > 1 else "")
        )
    _note_pairs(photos, label_maps, labels, findings, root)
    return SegmentationFolder(
        photos=tuple(photos),
        label_maps=label_maps,
        classes=classes,
        ignore_index=ignore_index,
        reduce_zero_label=reduce_zero_label,
        findings=findings,
    )


def read_segmentation_splits(root: Path) -> tuple[SegmentationFolder, SegmentationFolder]:
    """What there is to train on and to validate on; what lies beside them is counted.

    Raises:
        ConvMAEError: as `read_segmentation_folder`.
    """
    train, val = (read_segmentation_folder(root, split) for split in ("train", "val"))
    images, labels = root / "images", labels_folder(root)
    note_unused(root, root, train.findings, used=("images", labels.name, "classes.json", *ADE20K_CLASSES))
    for folder in (images, labels):
        files = (file for split in (train, val) for file in (*split.photos, *split.label_maps))
        read = {file.relative_to(folder).parts[0] for file in files if file.is_relative_to(folder)}
        note_unused(folder, root, train.findings, used=read)
    return train, val


def labels_folder(root: Path) -> Path:
    """Where the label maps of all splits are, in whichever of the two layouts."""
    return root / ("annotations" if (root / "annotations").is_dir() else "labels")


def _note_pairs(
    photos: Sequence[Path], label_maps: Sequence[Path], labels: Path, findings: Findings, root: Path
) -> None:
    """Counts label maps that belong to no photo, and those that belong to several."""
    used = set(label_maps)
    for path in files_in(labels, frozenset((".png",)), findings, root):
        if path not in used:
            findings.pass_over("label maps without a photo", path.relative_to(root))
    if len(used) < len(label_maps):
        seen: set[Path] = set()
        for photo, path in zip(photos, label_maps, strict=True):
            if path in seen:
                findings.doubt("photos that share their label map with another one", photo.relative_to(root))
            seen.add(path)


def read_classes(root: Path) -> tuple[tuple[str, ...], int, bool]:
    """Class names, the level of no class and whether level 0 is of no class; from classes.json or ADE20K's own list.

    Raises:
        ConvMAEError: neither is there, or it is damaged.
    """
    if (root / "classes.json").is_file():
        return read_classes_json(root / "classes.json")
    lists = [root / name for name in ADE20K_CLASSES if (root / name).is_file()]
    if not lists:
        raise ConvMAEError(
            f"{root} must say what its labels mean: put there classes.json "
            '({"classes": [names], "ignore_index": 255}), or ADE20K\'s objectInfo150.txt'
        )
    return read_ade20k_classes(lists[0]), IGNORE, True


def read_classes_json(path: Path) -> tuple[tuple[str, ...], int, bool]:
    """What `read_classes` gives, from a classes.json."""
    content = read_json(path)
    names = content.get("classes") if isinstance(content, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ConvMAEError(f'{path} must be an object with a list of names, {{"classes": ["sky", "road"]}}')
    ignore_index, reduce = content.get("ignore_index", IGNORE), content.get("reduce_zero_label", False)
    if type(ignore_index) is not int or abs(ignore_index) >= 2**31 or type(reduce) is not bool:
        raise ConvMAEError(
            f"ignore_index of {path} must be a number of 32 bits and reduce_zero_label true or false; "
            f"found {shortened(str(ignore_index))} and {shortened(str(reduce))}"
        )
    if len(names) > MAX_CLASSES:
        raise ConvMAEError(f"{path} must name at most {MAX_CLASSES} classes; found {len(names)}")
    check_class_names(names, path)
    return tuple(names), ignore_index, reduce


def read_ade20k_classes(path: Path) -> tuple[str, ...]:
    """The first name of every class in ADE20K's list (columns Idx, ..., Name; tabs in .txt, commas in .csv)."""
    text = read_text(path)
    try:
        rows = list(csv.DictReader(io.StringIO(text), delimiter="\t" if "\t" in text else ","))
    except csv.Error as error:
        raise ConvMAEError(f"{path} is no table ({error}); take the file that comes with ADE20K") from None
    names = [row.get("Name") for row in rows]
    if not names or not all(names):
        raise ConvMAEError(f"{path} must have a column Name; take the file that comes with ADE20K")
    if len(names) > MAX_CLASSES:
        raise ConvMAEError(f"{path} must name at most {MAX_CLASSES} classes; found {len(names)}")
    classes = tuple(re.split("[;,]", name or "")[0].strip() for name in names)
    check_class_names(classes, path)
    return classes
