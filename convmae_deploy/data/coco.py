"""Photos with annotated objects in COCO's format, without torch.

    ROOT/annotations/instances_<split>.json, photos in ROOT/images/<split>/
    ROOT/annotations/instances_<split>2017.json, photos in ROOT/<split>2017/     (as COCO itself is unpacked)

Boxes and polygons are in pixels of the photo as it is stored: COCO's annotations leave the EXIF orientation out.

A file of annotations may come from anyone. It names photos inside the folder of photos and nothing else, and its
numbers and masks are judged when it is read, so that none of them is met in the middle of a training.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, FailFast, Field

from convmae_deploy.data.class_folder import check_class_names
from convmae_deploy.data.coco_masks import (
    Segmentation,
    area_of,
    check_box,
    check_polygons,
    check_run_lengths,
    mask_of,
)
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import path_inside, read_regular
from convmae_deploy.media.photo_files import read_photo

LAYOUTS = (  # (annotations, photos) below the root
    ("annotations/instances_{}.json", "images/{}"),
    ("annotations/instances_{}2017.json", "{}2017"),
)
MIN_POLYGON = 6  # numbers: three points
MAX_ANNOTATION_BYTES = 2 * 1024**3  # the largest public files have half of it
MAX_SIDE = 65_535  # pixels of a photo: their product fits the 32 bits of run lengths
MAX_MASK_BYTES = 4 * 10**9  # for one photo: training holds a mask of its size for every object
MAX_ID = 2**53  # the evaluation keeps ids as float64

Box = tuple[float, float, float, float]
Id = Annotated[int, Field(ge=-MAX_ID, le=MAX_ID)]
Side = Annotated[int, Field(gt=0, le=MAX_SIDE)]


class FirstErrorOnly(FailFast):
    """A list ends with its first error, as millions would fill the memory; hashable, as a part of a union must be."""

    def __hash__(self) -> int:
        return hash(self.fail_fast)


class _RunLengths(BaseModel):
    size: tuple[int, int]  # (height, width)
    counts: str | Annotated[list[int], FirstErrorOnly()]


class _Annotation(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)

    id: Id
    image_id: Id
    category_id: Id
    bbox: Box  # x, y, width, height
    segmentation: Annotated[list[Annotated[list[float], FirstErrorOnly()]], FirstErrorOnly()] | _RunLengths | None = (
        None
    )
    iscrowd: bool = False
    area: float | None = None


class _Image(BaseModel):
    id: Id
    file_name: str
    width: Side
    height: Side
    license: int | None = None


class _Category(BaseModel):
    id: Id
    name: str


class _Instances(BaseModel):
    """The content of a file of annotations, as far as it is used; of a file full of errors the first is enough."""

    images: Annotated[list[_Image], FirstErrorOnly()]
    categories: Annotated[list[_Category], FirstErrorOnly()]
    annotations: Annotated[list[_Annotation], FirstErrorOnly()]


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
    photos: tuple[CocoPhoto, ...]
    objects: PackedObjects  # by photo, to learn from: neither crowds nor what was dropped
    classes: tuple[str, ...]  # label -> name
    category_ids: tuple[int, ...]  # label -> id in the file; ids may have gaps
    crowds: int  # annotations of whole groups, which only the evaluation uses
    dropped: int  # annotations whose box or mask is empty, or outside the photo

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
        """The photos to train on.

        Args:
            licences: ids of the licences that a photo may have; none: all.
            limit: so many photos at most, those with the lowest ids; None: all.
            empty_photos: whether photos without objects are kept; detectron2, and so the authors, leave them out.

        Raises:
            ConvMAEError: no photo is left, or one has so many objects that their masks do not fit into the memory.
        """
        allowed = (index for index, photo in enumerate(self.photos) if not licences or photo.licence in licences)
        chosen = list(islice((index for index in allowed if self._count_objects(index) or empty_photos), limit))
        if not chosen:
            asked = f" of the licences {list(licences)}" if licences else ""
            found = sorted({photo.licence for photo in self.photos if photo.licence is not None})
            raise ConvMAEError(
                f"{self.file} must have photos with objects{asked}; the licences of its photos are {found}"
            )
        return self.subset(chosen)

    def _count_objects(self, index: int) -> int:
        photo, count = self.photos[index], len(self.objects[index])
        if count * photo.width * photo.height > MAX_MASK_BYTES:
            raise ConvMAEError(
                f"{self.file}: image {photo.id} has {count} objects, whose masks of {photo.width} x {photo.height} "
                f"pixels take more than {MAX_MASK_BYTES // 10**9} GB together; cut it up or take it out"
            )
        return count

    def ground_truth(self) -> dict[str, Any]:
        """What pycocotools evaluates against: these photos with all their annotations, crowds included."""
        content = _read_instances(self.file)
        photos = {photo.id: photo for photo in self.photos}
        annotations = []
        for annotation in content.annotations:
            photo = photos.get(annotation.image_id)
            segmentation = None if photo is None else _usable(annotation.segmentation, photo)
            if photo is None or segmentation is None:
                continue
            area = annotation.area
            if area is None:
                area = area_of(segmentation, photo.height, photo.width)
            changed = {"bbox": list(annotation.bbox), "segmentation": segmentation, "area": area}
            annotations.append(annotation.model_dump() | changed | {"iscrowd": int(annotation.iscrowd)})
        return {
            "images": [{"id": photo.id, "height": photo.height, "width": photo.width} for photo in self.photos],
            "categories": [category.model_dump() for category in content.categories],
            "annotations": annotations,
        }


def read_coco_split(root: Path, split: str) -> CocoSplit:
    """Reads the annotations of a split and finds its photos; whether these can be decoded shows later.

    Raises:
        ConvMAEError: files are missing, or annotations are broken, name photos or categories that are not there, or
            files outside of the folder of photos.
    """
    file, folder = _find_split(root, split)
    content = _read_instances(file)
    photos = tuple(_photo(image, file, folder) for image in sorted(content.images, key=lambda image: image.id))
    categories = sorted(content.categories, key=lambda category: category.id)
    labels = {category.id: label for label, category in enumerate(categories)}
    annotations = defaultdict(list)
    for annotation in content.annotations:
        if not annotation.iscrowd:
            annotations[annotation.image_id].append(annotation)
    found: Counter[str] = Counter()

    def packed() -> Iterator[bytes]:
        for photo in photos:
            objects = [_object(annotation, photo, labels) for annotation in annotations[photo.id]]
            kept = [item for item in objects if item is not None]
            found.update(kept=len(kept), dropped=len(objects) - len(kept))
            yield PackedObjects.pack(kept)

    objects = PackedObjects(packed())
    if not found["kept"]:
        raise ConvMAEError(
            f"{file} must have objects with a box and a segmentation (polygons or run lengths); found none among its "
            f"{len(content.annotations)} annotations"
        )
    return CocoSplit(
        file=file,
        photos=photos,
        objects=objects,
        classes=tuple(category.name for category in categories),
        category_ids=tuple(labels),
        crowds=sum(annotation.iscrowd for annotation in content.annotations),
        dropped=found["dropped"],
    )


def read_coco_photo(photo: CocoPhoto) -> Image.Image:
    """The photo as its annotations mean it, RGB.

    That is as it is stored, whatever its EXIF orientation; only where its width and height fit the annotations when
    it is turned upright and not otherwise, whoever annotated it saw it upright.

    Raises:
        ConvMAEError: it cannot be read or decoded, or has another size than the annotations say.
    """
    expected = photo.width, photo.height
    stored = read_photo(photo.path, apply_orientation=False).image
    if stored.size == expected:
        return stored
    upright = read_photo(photo.path).image
    if upright.size == expected:
        return upright
    raise ConvMAEError(
        f"{photo.path} must have the {photo.width} x {photo.height} pixels of its annotations; it has "
        f"{stored.width} x {stored.height}: annotate it again or take its annotations out"
    )


def _photo(image: _Image, file: Path, folder: Path) -> CocoPhoto:
    try:
        path = path_inside(folder, image.file_name)
    except ConvMAEError as error:
        raise ConvMAEError(f"{file}: image {image.id}: {error}") from None
    return CocoPhoto(id=image.id, path=path, width=image.width, height=image.height, licence=image.license)


def _find_split(root: Path, split: str) -> tuple[Path, Path]:
    for annotations, photos in LAYOUTS:
        file, folder = root / annotations.format(split), root / photos.format(split)
        if file.is_file() and folder.is_dir():
            return file, folder
    annotations, photos = (part.format(split) for part in LAYOUTS[0])
    raise ConvMAEError(f"{root} must hold {annotations} and photos in {photos}/; at least one of the two is missing")


def _read_instances(file: Path) -> _Instances:
    """The content of a file of annotations, in which every reference leads somewhere and every mask can be drawn."""
    try:
        content = _Instances.model_validate_json(read_regular(file, MAX_ANNOTATION_BYTES))
    except pydantic.ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, problem["loc"])) or "the file"
        raise ConvMAEError(f"{file} is not COCO's format for instances: {place}: {problem['msg']}") from None
    except OSError as error:
        raise ConvMAEError(f"{file} cannot be read ({error.strerror}); check its path and permissions") from None
    known = {}
    for kind in ("images", "categories", "annotations"):
        numbers = Counter(entry.id for entry in getattr(content, kind))
        repeated = [number for number, count in numbers.items() if count > 1]
        if repeated:
            raise ConvMAEError(f"{file} must give each of its {kind} an id of its own; {repeated[0]} is there twice")
        known[kind] = numbers.keys()
    check_class_names([category.name for category in content.categories], file)
    images = {image.id: image for image in content.images}
    for annotation in content.annotations:
        if annotation.category_id not in known["categories"]:
            raise ConvMAEError(f"{file}: annotation {annotation.id} has the unknown category {annotation.category_id}")
        if annotation.image_id not in images:
            raise ConvMAEError(f"{file}: annotation {annotation.id} is of the unknown image {annotation.image_id}")
        try:
            _check_extent(annotation, images[annotation.image_id])
        except ConvMAEError as error:
            raise ConvMAEError(f"{file}: annotation {annotation.id}: {error}; mend it or take it out") from None
    return content


def _check_extent(annotation: _Annotation, image: _Image) -> None:
    """Raises ConvMAEError unless the box and the mask are such that they can be computed with."""
    check_box(annotation.bbox)
    if isinstance(annotation.segmentation, list):
        check_polygons(annotation.segmentation)
    elif annotation.segmentation is not None and annotation.segmentation.size == (image.height, image.width):
        check_run_lengths(annotation.segmentation.counts, image.height, image.width)


def _object(annotation: _Annotation, photo: CocoPhoto, labels: dict[int, int]) -> CocoObject | None:
    """An annotation as something to learn from; None where it has no mask or nothing of its box is inside the photo."""
    x, y, width, height = annotation.bbox
    box = max(x, 0.0), max(y, 0.0), min(x + width, float(photo.width)), min(y + height, float(photo.height))
    segmentation = _usable(annotation.segmentation, photo)
    if segmentation is None or box[0] >= box[2] or box[1] >= box[3]:
        return None
    return CocoObject(label=labels[annotation.category_id], box=box, segmentation=segmentation)


def _usable(segmentation: list[list[float]] | _RunLengths | None, photo: CocoPhoto) -> Segmentation | None:
    """Run lengths of the photo's size, or the polygons of at least three points; None where there is neither."""
    if isinstance(segmentation, _RunLengths):
        fits = segmentation.size == (photo.height, photo.width)
        return segmentation.model_dump(mode="json") if fits else None
    polygons = segmentation or []
    return [polygon for polygon in polygons if len(polygon) >= MIN_POLYGON and len(polygon) % 2 == 0] or None
