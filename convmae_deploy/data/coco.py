"""Photos with annotated objects in COCO's format, without torch; `coco_file` says in which folders and files.

Boxes and polygons are in pixels of the photo as it is stored: COCO's annotations leave the EXIF orientation out.
"""

import copy
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convmae_deploy.data.coco_file import (
    Annotation,
    Category,
    Instances,
    find_split,
    paths_of_photos,
    read_instances,
    usable_mask,
)
from convmae_deploy.data.coco_masks import Segmentation, area_of, bounds_of, mask_of
from convmae_deploy.data.findings import Findings
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.media.photo_files import ANNOTATED_PHOTO_LIMITS, read_photo

MAX_MASK_BYTES = 4 * 10**9  # for one photo: training holds a mask of its size for every object
LEAST_OVERLAP = 0.5  # of an object's box with that of its mask, below which the two contradict each other

LEFT_OUT = {  # what becomes of an annotation that is nothing to learn from
    "crowd": "annotations of crowds (iscrowd 1), which are neither learnt nor missed",
    "maskless": "objects without a mask that lies in the photo and fits its size",
    "outside": "objects whose box is empty or outside of the photo",
}

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class CocoPhoto:
    """One photo of a split."""

    id: int
    path: Path
    width: int  # pixels, as in the annotations
    height: int
    licence: int | None


@dataclass(frozen=True, kw_only=True)
class CocoObject:
    """One object to learn from."""

    label: int  # index into the split's classes
    box: Box  # x1, y1, x2, y2 in pixels of the photo, inside it
    segmentation: Segmentation

    def mask(self, height: int, width: int) -> NDArray[np.uint8]:
        """(height, width), the photo's size: 1 on the object."""
        return mask_of(self.segmentation, height, width)


class PackedObjects:
    """The objects of each photo, as one block of bytes that the worker processes of a data loader share.

    As Python objects the 860 000 of COCO would be copied into every worker, by the counting of references alone.
    """

    def __init__(self, blocks: Iterable[bytes]) -> None:
        """Takes what `pack` makes of the objects of each photo."""
        blocks = list(blocks)
        self._bytes = np.frombuffer(b"".join(blocks), np.uint8)
        self._ends = np.cumsum([0, *map(len, blocks)])

    @staticmethod
    def pack(objects: Iterable[CocoObject]) -> bytes:
        """The objects of one photo."""
        return json.dumps([(item.label, item.box, item.segmentation) for item in objects]).encode()

    def block(self, index: int) -> bytes:
        """What `pack` made of the objects of a photo."""
        return self._bytes[self._ends[index] : self._ends[index + 1]].tobytes()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> list[CocoObject]:
        return [
            CocoObject(label=label, box=tuple(box), segmentation=segmentation)
            for label, box, segmentation in json.loads(self.block(index))
        ]


@dataclass(frozen=True, kw_only=True)
class CocoSplit:
    """One split: photos in the order of their ids, their objects, and the classes in the order of their ids."""

    file: Path  # the annotations
    photos: tuple[CocoPhoto, ...]  # those that are there
    objects: PackedObjects  # by photo, to learn from: neither crowds nor what was dropped
    classes: tuple[str, ...]  # label -> name
    category_ids: tuple[int, ...]  # label -> id in the file of the training split; ids may have gaps
    labels: Mapping[int, int]  # id in this file -> label
    crowds: int  # annotations of whole groups, which only the evaluation uses
    dropped: int  # annotations whose box or mask is empty, or outside the photo
    maskless: frozenset[int]  # ids of the photos with an object of which there is no mask that can be used
    findings: Findings = field(default_factory=Findings, compare=False)  # what was left out, what looks wrong

    def annotated(self) -> Iterator[tuple[Path, bytes]]:
        """Each photo and its objects, as `listing` takes them."""
        return ((photo.path, self.objects.block(index)) for index, photo in enumerate(self.photos))

    def subset(self, indices: Sequence[int]) -> "CocoSplit":
        """The same split with some of its photos; `crowds` and `dropped` stay those of the file."""
        return replace(
            self,
            photos=tuple(self.photos[index] for index in indices),
            objects=PackedObjects(self.objects.block(index) for index in indices),
        )

    def for_training(
        self, *, licences: Sequence[int] = (), limit: int | None = None, empty_photos: bool = False
    ) -> "CocoSplit":
        """The photos to train on; those left out are counted in `findings`.

        A photo with an object that has no mask is not trained on: the object would be learnt as background.

        Args:
            licences: ids of the licences that a photo may have; none: all.
            limit: so many photos at most, those with the lowest ids; None: all.
            empty_photos: whether photos without objects are kept; detectron2, and so the authors, leave them out.

        Raises:
            ConvMAEError: no photo is left, or one has so many objects that their masks do not fit into the memory.
        """
        chosen: list[int] = []
        findings = copy.deepcopy(self.findings)
        for index, photo in enumerate(self.photos):
            if licences and photo.licence not in licences:
                findings.pass_over("photos of other licences", photo.path.name)
            elif photo.id in self.maskless:
                findings.pass_over("photos with an object without a mask, as it would be background", photo.path.name)
            elif limit is not None and len(chosen) >= limit:
                findings.pass_over(f"photos after the first {limit}", photo.path.name)
            elif not self._count_objects(index) and not empty_photos:
                findings.pass_over("photos without objects", photo.path.name)
            else:
                chosen.append(index)
        if not chosen:
            asked = f" of the licences {list(licences)}" if licences else ""
            found = sorted({photo.licence for photo in self.photos if photo.licence is not None})
            left_out = "; ".join(f"{kind}: {finding}" for kind, finding in findings.passed_over.items())
            raise ConvMAEError(
                f"{self.file} must have photos with objects{asked}; the licences of its photos are {found}; left out "
                f"were {left_out or 'none'}"
            )
        return replace(self.subset(chosen), findings=findings)

    def _count_objects(self, index: int) -> int:
        photo, count = self.photos[index], len(self.objects[index])
        if count * photo.width * photo.height > MAX_MASK_BYTES:
            raise ConvMAEError(
                f"{self.file}: image {photo.id} has {count} objects, whose masks of {photo.width} x {photo.height} "
                f"pixels take more than {MAX_MASK_BYTES // 10**9} GB together; cut it up or take it out"
            )
        return count

    def ground_truth(self) -> dict[str, Any]:
        """What `coco_metrics` evaluates against: these photos with all their annotations, crowds included.

        The segmentation of an object without a mask is None. Ids of annotations are new ones.
        """
        photos = {photo.id: photo for photo in self.photos}
        annotations: list[dict[str, Any]] = []
        for annotation in read_instances(self.file, Findings()).annotations:
            photo = photos.get(annotation.image_id)
            segmentation = None if photo is None else usable_mask(annotation.segmentation, photo.height, photo.width)
            if photo is None or (segmentation is None and (annotation.iscrowd or _clipped(annotation, photo) is None)):
                continue
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": photo.id,
                    "category_id": self.category_ids[self.labels[annotation.category_id]],
                    "bbox": list(annotation.bbox),
                    "segmentation": segmentation,
                    "area": _area(annotation, segmentation, photo),
                    "iscrowd": int(bool(annotation.iscrowd)),
                }
            )
        named = zip(self.category_ids, self.classes, strict=True)
        return {
            "images": [{"id": photo.id, "height": photo.height, "width": photo.width} for photo in self.photos],
            "categories": [{"id": number, "name": name} for number, name in named],
            "annotations": annotations,
        }


def read_coco_split(root: Path, split: str, *, like: CocoSplit | None = None) -> CocoSplit:
    """Reads the annotations of a split and finds its photos; whether these can be decoded shows later.

    Args:
        root: of the data.
        split: "train" or "val", see `coco_file`.
        like: the split whose classes these are, by their names; of its classes this one may lack some.

    Raises:
        ConvMAEError: files are missing, or annotations are broken, name photos or categories that are not there, or
            files outside of the folder of photos, or none can be learnt from.
    """
    file, folder = find_split(root, split)
    findings = Findings()
    content = read_instances(file, findings)
    photos = _photos(content, file, folder, findings)
    classes, category_ids, labels = _classes(content, file, like, findings)
    annotations = defaultdict(list)
    for annotation in content.annotations:
        annotations[annotation.image_id].append(annotation)
    found: Counter[str] = Counter()
    maskless: set[int] = set()

    def packed() -> Iterator[bytes]:
        for photo in photos:
            kept = []
            for annotation in annotations.pop(photo.id, ()):
                item = _object(annotation, photo, labels)
                if isinstance(item, CocoObject):
                    kept.append(item)
                    _note_doubts(annotation, item, photo, findings)
                    continue
                found[item] += 1
                findings.pass_over(LEFT_OUT[item], annotation.name)
                if item == "maskless":
                    maskless.add(photo.id)
            found["kept"] += len(kept)
            found.update(f"label {item.label}" for item in kept)
            yield PackedObjects.pack(kept)

    objects = PackedObjects(packed())
    if not found["kept"]:
        raise ConvMAEError(
            f"{file} must have objects with a box and a segmentation; {_why_none(found, photos, content)}"
        )
    for label, name in enumerate(classes):
        if not found[f"label {label}"]:
            findings.doubt("classes without objects", name)
    return CocoSplit(
        file=file,
        photos=photos,
        objects=objects,
        classes=classes,
        category_ids=category_ids,
        labels=labels,
        crowds=found["crowd"],
        dropped=found["outside"],
        maskless=frozenset(maskless),
        findings=findings,
    )


def _photos(content: Instances, file: Path, folder: Path, findings: Findings) -> tuple[CocoPhoto, ...]:
    """The photos of a file that are there, in the order of their ids."""
    images = sorted(content.images, key=lambda image: image.id)
    return tuple(
        CocoPhoto(
            id=image.id,
            path=path,
            width=image.width,
            height=image.height,
            licence=image.license if type(image.license) is int else None,
        )
        for image, path in zip(images, paths_of_photos(images, file, folder, findings), strict=True)
        if path is not None
    )


def _why_none(found: Mapping[str, int], photos: Sequence[CocoPhoto], content: Instances) -> str:
    """Why a file has nothing to learn from, and what to do."""
    if found["crowd"]:
        return (
            f"{found['crowd']} of its annotations have iscrowd 1, which marks groups that are not told apart, and no "
            "other can be learnt from: set iscrowd to 0 where each is one object (CVAT writes 1 for masks of its brush)"
        )
    if found["maskless"]:
        return (
            f"{found['maskless']} have a box and no mask that fits, and Mask R-CNN needs masks: annotate polygons in "
            "pixels of the photo, or run lengths of its (height, width)"
        )
    return (
        f"found none among its {len(content.annotations)} annotations ({found['outside']} lie outside of their photo), "
        f"{len(photos)} of its {len(content.images)} photos being there"
    )


def _classes(
    content: Instances, file: Path, like: CocoSplit | None, findings: Findings
) -> tuple[tuple[str, ...], tuple[int, ...], dict[int, int]]:
    """Names of the classes, their ids, and the label of each id of a file."""
    categories = sorted(content.categories, key=lambda category: category.id)
    if like is None:
        ids = tuple(category.id for category in categories)
        return tuple(category.name for category in categories), ids, {number: label for label, number in enumerate(ids)}
    pairs = list(zip(like.category_ids, like.classes, strict=True))
    labels = {category.id: _label_like(category, pairs) for category in categories}
    used = {annotation.category_id for annotation in content.annotations}
    for category in categories:
        if labels[category.id] is None and category.id in used:
            raise ConvMAEError(
                f"{file} has objects of the category {category.name!r}, which {like.file} has not; give both files the "
                "same categories"
            )
        if labels[category.id] is None:
            findings.pass_over("categories without objects that are not trained on", category.name)
    return like.classes, like.category_ids, {number: label for number, label in labels.items() if label is not None}


def _label_like(category: Category, pairs: Sequence[tuple[int, str]]) -> int | None:
    """The label of a category in another file: by its id and name, else by its name where that is there once."""
    if (category.id, category.name) in pairs:
        return pairs.index((category.id, category.name))
    named = [label for label, (_, name) in enumerate(pairs) if name == category.name]
    return named[0] if len(named) == 1 else None


def read_coco_photo(photo: CocoPhoto) -> Image.Image:
    """The photo as its annotations mean it, RGB.

    That is as it is stored, whatever its EXIF orientation; only where its width and height fit the annotations when
    it is turned upright and not otherwise, whoever annotated it saw it upright.

    Raises:
        ConvMAEError: it cannot be read or decoded, or has another size than the annotations say.
    """
    expected = photo.width, photo.height
    stored = read_photo(photo.path, apply_orientation=False, limits=ANNOTATED_PHOTO_LIMITS).image
    if stored.size == expected:
        return stored
    upright = read_photo(photo.path, limits=ANNOTATED_PHOTO_LIMITS).image
    if upright.size == expected:
        return upright
    raise ConvMAEError(
        f"{photo.path} must have the {photo.width} x {photo.height} pixels of its annotations; it has "
        f"{stored.width} x {stored.height}: annotate it again or take its annotations out"
    )


def _object(annotation: Annotation, photo: CocoPhoto, labels: Mapping[int, int]) -> CocoObject | str:
    """An annotation as something to learn from, or else a key of `LEFT_OUT`."""
    if annotation.iscrowd:
        return "crowd"
    box, segmentation = _clipped(annotation, photo), usable_mask(annotation.segmentation, photo.height, photo.width)
    if box is None:
        return "outside"
    if segmentation is None:
        return "maskless"
    return CocoObject(label=labels[annotation.category_id], box=box, segmentation=segmentation)


def _clipped(annotation: Annotation, photo: CocoPhoto) -> Box | None:
    """x1, y1, x2, y2 of what of the box is inside the photo; None where nothing is."""
    x, y, width, height = annotation.bbox
    box = max(x, 0.0), max(y, 0.0), min(x + width, float(photo.width)), min(y + height, float(photo.height))
    return None if box[0] >= box[2] or box[1] >= box[3] else box


def _area(annotation: Annotation, segmentation: Segmentation | None, photo: CocoPhoto) -> float:
    """Pixels of an object: what the file says, else those of its mask or of its box."""
    said = annotation.area
    if isinstance(said, int | float) and not isinstance(said, bool) and math.isfinite(said):
        return float(said)
    if segmentation is None:
        return annotation.bbox[2] * annotation.bbox[3]
    return area_of(segmentation, photo.height, photo.width)


def _note_doubts(annotation: Annotation, item: CocoObject, photo: CocoPhoto, findings: Findings) -> None:
    """Counts an object whose box is not that of its mask (corners, shares of the photo, that of another one), and one
    whose box and mask are shares of the photo."""
    if max(annotation.bbox[2:]) < 1:
        findings.doubt("objects smaller than a pixel (their numbers must be pixels, not shares)", annotation.name)
    x1, y1, x2, y2 = bounds_of(item.segmentation, photo.height, photo.width)
    width = min(x2, item.box[2]) - max(x1, item.box[0])
    height = min(y2, item.box[3]) - max(y1, item.box[1])
    common = max(width, 0.0) * max(height, 0.0)
    areas = (x2 - x1) * (y2 - y1) + (item.box[2] - item.box[0]) * (item.box[3] - item.box[1])
    if common < LEAST_OVERLAP * (areas - common):
        mask = [round(x1), round(y1), round(x2 - x1), round(y2 - y1)]
        findings.doubt(
            "boxes that contradict their masks",
            f"{annotation.name} has the box {[round(value, 1) for value in annotation.bbox]}, its mask {mask}",
        )
