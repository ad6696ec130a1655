"""A file of annotations in COCO's format, as it lies in a folder and as it is written by COCO, CVAT, Roboflow, Label
Studio, FiftyOne and detectron2.

    ROOT/annotations/instances_<split>.json, photos in ROOT/images/<split>/                      (CVAT, and ours)
    ROOT/annotations/instances_<split>2017.json, photos in ROOT/<split>2017/                     (COCO; 2014 too)
    ROOT/annotations/[instances_]<split>.json, photos in ROOT/images/<split>/, ROOT/images/ or ROOT/<split>/
    ROOT/<split>/_annotations.coco.json, photos beside it                                        (Roboflow)
    ROOT/<split>/result.json, photos in ROOT/<split>/images/                                     (Label Studio)
    ROOT/<split>/labels.json, photos in ROOT/<split>/data/                                       (FiftyOne)

<split> is train or val, also called training, valid and validation, or each with a capital. What is not used is not
judged: ids of annotations, licences that are no numbers, areas that are none.

A file of annotations may come from anyone. It names photos inside the folder of photos and nothing else, and its
numbers and masks are judged when it is read, so that none of them is met in the middle of a training.
"""

import codecs
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any
from urllib.parse import parse_qs, unquote

import pydantic
from pydantic import BaseModel, ConfigDict, FailFast, Field

from convmae_deploy.data.class_folder import check_class_names, names_of_split, note_unused
from convmae_deploy.data.coco_masks import (
    MIN_POLYGON,
    Segmentation,
    bounds_of,
    check_box,
    check_polygons,
    check_run_lengths,
)
from convmae_deploy.data.findings import Findings
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import as_spelt, path_inside, read_regular, shortened
from convmae_deploy.folders import files_below
from convmae_deploy.media.photo_files import IMAGE_SUFFIXES

LAYOUTS = (  # (annotations, photos) below the root
    ("annotations/instances_{}.json", "images/{}"),
    ("annotations/instances_{}2017.json", "{}2017"),
    ("annotations/instances_{}2014.json", "{}2014"),
    ("annotations/instances_{}.json", "images"),
    ("annotations/instances_{}.json", "{}"),
    ("annotations/{}.json", "images/{}"),
    ("annotations/{}.json", "images"),
    ("annotations/{}.json", "{}"),
    ("{}/_annotations.coco.json", "{}"),
    ("{}/result.json", "{}/images"),
    ("{}/result.json", "{}"),
    ("{}/labels.json", "{}/data"),
)
MAX_ANNOTATION_BYTES = 2 * 1024**3  # the largest public files have half of it
MAX_SIDE = 65_535  # pixels of a photo: their product fits the 32 bits of run lengths
MAX_DEPTH = 16  # parts at the end of a photo's path that are looked for
MAX_QUERY = 4096  # characters after the ? of a URL, those of signed ones are fewer
MAX_ID = 2**53  # the evaluation keeps ids as float64

Id = Annotated[int, Field(ge=-MAX_ID, le=MAX_ID)]
Side = Annotated[int, Field(gt=0, le=MAX_SIDE)]


class FirstErrorOnly(FailFast):
    """A list ends with its first error, as millions would fill the memory; hashable, as a part of a union must be."""

    def __hash__(self) -> int:
        return hash(self.fail_fast)


class RunLengths(BaseModel):
    """A mask as run lengths."""

    size: tuple[int, int]  # (height, width)
    counts: str | Annotated[list[int], FirstErrorOnly()]


def _as_polygons(value: object) -> object:
    """One polygon by itself, as the VGG Image Annotator writes it, in the list that it should be in."""
    return [value] if isinstance(value, list) and value and not isinstance(value[0], list) else value


Polygons = Annotated[
    list[Annotated[list[float], FirstErrorOnly()]], FirstErrorOnly(), pydantic.BeforeValidator(_as_polygons)
]
NO_BOX = (0.0, 0.0, 0.0, 0.0)
Box = Annotated[tuple[float, float, float, float], pydantic.BeforeValidator(lambda value: value or NO_BOX)]


class Annotation(BaseModel):
    """One object, or a crowd."""

    model_config = ConfigDict(allow_inf_nan=False)

    id: Any = None  # for people alone: files are merged by hand, and tools begin at 0
    image_id: Id
    category_id: Id
    bbox: Box = NO_BOX  # x, y, width, height; where none is in the photo, `read_instances` puts that of the mask
    segmentation: Polygons | RunLengths | None = None
    iscrowd: bool | None = None
    area: Any = None
    score: Any = None  # predictions have one

    @property
    def name(self) -> str:
        """What a message calls it."""
        if isinstance(self.id, int) and abs(self.id) <= MAX_ID:
            return f"annotation {self.id}"
        return f"annotation {shortened(self.id, 40)}" if isinstance(self.id, str) else f"one of image {self.image_id}"


class CocoImage(BaseModel):
    """One photo."""

    id: Id
    file_name: str
    width: Side
    height: Side
    license: Any = None


class Category(BaseModel):
    """One class."""

    id: Id
    name: str
    supercategory: Any = None


class Instances(BaseModel):
    """The content of a file of annotations, as far as it is used; of a file full of errors the first is enough."""

    images: Annotated[list[CocoImage], FirstErrorOnly()]
    categories: Annotated[list[Category], FirstErrorOnly()]
    annotations: Annotated[list[Annotation], FirstErrorOnly()]


def has_annotations(root: Path) -> bool:
    """Whether a folder has annotations of some split in one of the layouts."""
    return (root / "annotations").is_dir() or any(
        (root / annotations.format(name)).is_file()
        for annotations, _ in LAYOUTS
        for split in ("train", "val", "test")
        for name in names_of_split(split)
    )


def find_split(root: Path, split: str) -> tuple[Path, Path]:
    """The annotations of a split and the folder of its photos.

    Raises:
        ConvMAEError: one of the two is missing.
    """
    for annotations, photos in LAYOUTS:
        for name in names_of_split(split):
            file, folder = root / annotations.format(name), root / photos.format(name)
            if file.is_file() and folder.is_dir():
                return file, folder
    annotations, photos = (part.format(split) for part in LAYOUTS[0])
    beside = [
        str(file.relative_to(root)) for part in ("annotations", "") for file in sorted((root / part).glob("*.json"))
    ]
    divide = ": divide a file of all photos into one for each split" if len(beside) == 1 else ""
    found = f"; found {', '.join(beside[:3])}{divide}" if beside else ""
    raise ConvMAEError(
        f"{root} must hold {annotations} and photos in {photos}/, or {split}/_annotations.coco.json with photos beside "
        f"it, or {split}/result.json with photos in {split}/images/; at least one of the two is missing{found}"
    )


def read_instances(file: Path, findings: Findings) -> Instances:
    """The content of a file of annotations, in which every reference leads somewhere and every mask can be drawn.

    A class that only stands for others, as Roboflow writes it, is left out.

    Args:
        file: the annotations.
        findings: takes what is left out and what looks wrong.

    Raises:
        ConvMAEError: it cannot be read, or is none.
    """
    try:
        data = read_regular(file, MAX_ANNOTATION_BYTES)
        content = Instances.model_validate_json(data.removeprefix(codecs.BOM_UTF8))
    except pydantic.ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, problem["loc"])) or "the file"
        raise ConvMAEError(
            f"{file} is not COCO's format for instances: {place}: {problem['msg']}; export the annotations as COCO "
            "from the tool that made them"
        ) from None
    except OSError as error:
        raise ConvMAEError(f"{file} cannot be read ({error.strerror}); check its path and permissions") from None
    content.images = _merged(content, file, findings)
    known = {}
    for kind in ("images", "categories"):
        numbers = Counter(entry.id for entry in getattr(content, kind))
        repeated = [number for number, count in numbers.items() if count > 1]
        if repeated:
            raise ConvMAEError(f"{file} must give each of its {kind} an id of its own; {repeated[0]} is there twice")
        known[kind] = numbers.keys()
    check_class_names([category.name for category in content.categories], file)
    images = {image.id: image for image in content.images}
    ids: set[Any] = set()
    seen: set[Any] = set()
    for annotation in content.annotations:
        if annotation.category_id not in known["categories"]:
            raise ConvMAEError(f"{file}: {annotation.name} has the unknown category {annotation.category_id}")
        if annotation.image_id not in images:
            raise ConvMAEError(f"{file}: {annotation.name} is of the unknown image {annotation.image_id}")
        try:
            _check_extent(annotation, images[annotation.image_id])
        except ConvMAEError as error:
            raise ConvMAEError(f"{file}: {annotation.name}: {error}; mend it or take it out") from None
        image = images[annotation.image_id]
        if not _is_in_photo(annotation.bbox, image):
            said, annotation.bbox = annotation.bbox, _box_of_mask(annotation, image)
            if said != NO_BOX != annotation.bbox:
                findings.doubt(
                    "boxes that are empty or outside of the photo, for which that of the mask is taken",
                    (f"{annotation.name} of {file.name} with {list(said)}"),
                )
        if annotation.score is not None:
            findings.doubt(f"annotations of {file.name} with a score, as predictions have", annotation.name)
        what = annotation.image_id, annotation.category_id, annotation.bbox
        if what in seen:
            findings.doubt(f"annotations of {file.name} with the photo, class and box of another one", annotation.name)
        seen.add(what)
        if isinstance(annotation.id, int | str):
            if annotation.id in ids:
                findings.doubt(f"annotations of {file.name} whose id is that of another one", annotation.name)
            ids.add(annotation.id)
    content.categories = _without_umbrella(content, findings)
    named = Counter(" ".join(category.name.casefold().split()) for category in content.categories)
    for name in (name for name, count in named.items() if count > 1):
        findings.doubt(f"categories of {file.name} of one name, which are classes of their own", name)
    return content


def _merged(content: Instances, file: Path, findings: Findings) -> list[CocoImage]:
    """The images, each file once: the objects of one that is there under several ids become those of the first.

    Raises:
        ConvMAEError: its sizes differ, so that its objects cannot be taken together.
    """
    first: dict[PurePosixPath, CocoImage] = {}  # "./a.jpg" is "a.jpg"
    merged: dict[int, int] = {}
    for image in content.images:
        kept = first.setdefault(PurePosixPath(image.file_name), image)
        if kept is image or kept.id == image.id:
            continue
        if (kept.width, kept.height) != (image.width, image.height):
            raise ConvMAEError(
                f"{file} has {shortened(image.file_name)} as image {kept.id} of {kept.width} x {kept.height} pixels "
                f"and as image {image.id} of {image.width} x {image.height}; take one of the two away"
            )
        findings.doubt(f"photos of {file.name} under a second id, whose objects are put together", image.file_name)
        merged[image.id] = kept.id
    for annotation in content.annotations if merged else ():
        annotation.image_id = merged.get(annotation.image_id, annotation.image_id)
    return [image for image in content.images if image.id not in merged]


def _is_in_photo(box: Box, image: CocoImage) -> bool:
    """Whether a part of a box, x, y, width and height, lies in a photo."""
    x, y, width, height = box
    return max(x, 0.0) < min(x + width, image.width) and max(y, 0.0) < min(y + height, image.height)


def _box_of_mask(annotation: Annotation, image: CocoImage) -> tuple[float, float, float, float]:
    """x, y, width and height around a mask; `NO_BOX` where there is none."""
    mask = usable_mask(annotation.segmentation, image.height, image.width)
    if mask is None:
        return NO_BOX
    x1, y1, x2, y2 = bounds_of(mask, image.height, image.width)
    return x1, y1, x2 - x1, y2 - y1


def usable_mask(segmentation: list[list[float]] | RunLengths | None, height: int, width: int) -> Segmentation | None:
    """A mask of something in a photo of that size, which was checked: run lengths of this size, or the polygons of at
    least three points; None where there is neither, or where it lies outside."""
    mask: Segmentation
    if isinstance(segmentation, RunLengths):
        if segmentation.size != (height, width):
            return None
        mask = segmentation.model_dump(mode="json")
    else:
        polygons = segmentation or []
        mask = [polygon for polygon in polygons if len(polygon) >= MIN_POLYGON and len(polygon) % 2 == 0]
    if not mask:
        return None
    x1, y1, x2, y2 = bounds_of(mask, height, width)
    outside = x1 > x2 or y1 > y2 or (isinstance(mask, dict) and x1 == x2)
    return None if outside else mask


def _without_umbrella(content: Instances, findings: Findings) -> list[Category]:
    """The categories without one that has no objects and is what all others belong to: Roboflow writes one so."""
    used = {annotation.category_id for annotation in content.annotations}
    kept = []
    for category in content.categories:
        others = [other for other in content.categories if other.id != category.id]
        if others and category.id not in used and all(other.supercategory == category.name for other in others):
            findings.pass_over("categories without objects that only stand for the others", category.name)
        else:
            kept.append(category)
    return kept


def _check_extent(annotation: Annotation, image: CocoImage) -> None:
    """Raises ConvMAEError unless the box and the mask are such that they can be computed with."""
    check_box(annotation.bbox)
    if isinstance(annotation.segmentation, list):
        check_polygons(annotation.segmentation)
    elif annotation.segmentation is not None and annotation.segmentation.size == (image.height, image.width):
        check_run_lengths(annotation.segmentation.counts, image.height, image.width)


def paths_of_photos(images: Sequence[CocoImage], file: Path, folder: Path, findings: Findings) -> list[Path | None]:
    """Where the photos of a file of annotations are; None for those that are not there, which are counted.

    A name leads to a file inside the folder and nowhere else. Tools write where a photo was when they saw it
    (`images\\1\\p.jpg`, `/home/me/data/p.jpg`, `https://bucket/my%20photo.jpg?sig=1`): where there is no such file in
    the folder, what follows the folders of the name is looked for.

    Raises:
        ConvMAEError: a name leads out of the folder, or none of the photos is there.
    """
    found: list[Path | None] = []
    by_end: set[Path | None] = set()
    for image in images:
        path = as_spelt(folder, image.file_name) if _is_plain(image.file_name) else None
        if path is not None and os.path.isfile(path):
            if path != folder / image.file_name:
                by_end.add(path)
        else:
            path = _by_its_end(image.file_name, folder)
            by_end.add(path)
        if path is None:
            try:
                path_inside(folder, image.file_name)
            except ConvMAEError as error:
                raise ConvMAEError(f"{file}: image {image.id}: {error}") from None
        found.append(path)
    named = Counter(found)
    for place, (image, path) in enumerate(zip(images, found, strict=True)):
        if path is not None and path in by_end and named[path] > 1:
            findings.doubt(f"photos of {file.name} whose names fit one file, so that none of them is taken", path.name)
            found[place] = None
        elif path is None:
            findings.pass_over(f"photos of {file.name} that are not in {folder.name}/", image.file_name)
    if not any(found):
        first = f", the first {shortened(images[0].file_name)}" if images else ""
        raise ConvMAEError(
            f"{file} names {len(images)} photos{first}; none of them is in {folder}: put them there, or mend file_name"
        )
    return found


def note_unread(root: Path, splits: Sequence[str], photos: Collection[Path], findings: Findings) -> None:
    """Counts what lies beside the annotations and the photos, and photos that no annotations name.

    Args:
        root: of the data.
        splits: those that were read.
        photos: of all of them.
        findings: takes what is left out.
    """
    read = {path for split in splits for path in find_split(root, split)}
    note_unused(root, root, findings, used={path.relative_to(root).parts[0] for path in read})
    for folder in sorted({path.parent for path in read} - read - {root}):
        note_unused(folder, root, findings, used={path.name for path in read if path.parent == folder})
    for folder in sorted(path for path in read if path.is_dir()):
        for file in files_below(folder):
            hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
            if file in photos or file in read:
                continue
            if not hidden and file.suffix.lower() in IMAGE_SUFFIXES and os.path.isfile(file):
                findings.pass_over("photos that the annotations do not name", file.relative_to(root))
            else:
                findings.leave_out_file(file, root, IMAGE_SUFFIXES)


def _is_plain(name: str) -> bool:
    """Whether a name is a path inside a folder by the rules of every system."""
    try:
        path_inside(Path(), name)
    except ConvMAEError:
        return False
    return True


def _by_its_end(name: str, folder: Path) -> Path | None:
    """The file in `folder` that the longest end of a path names, whatever separates its parts.

    Where `folder` has the folders of an end and not the file, it is missing: another of its name is another photo.
    """
    for path in _without_quoting(name):
        parts = re.split(r"[/\\]", path)[-MAX_DEPTH:]
        for start in range(len(parts)):
            end = "/".join(parts[start:])
            if not end or not _is_plain(end):
                continue
            if os.path.isfile(found := as_spelt(folder, end)):
                return found
            if "/" in end and found.parent.is_dir():
                break
    return None


def _without_quoting(name: str) -> Iterator[str]:
    """A name, then what it means as a URL: its path, or as Label Studio has it (`/data/local-files/?d=p.jpg`) the file
    that it asks for."""
    yield name
    address, _, query = name.partition("?")
    asked = parse_qs(query).get("d", [])[:1] if len(query) <= MAX_QUERY else []
    for path in (*asked, unquote(address)):
        if path != name:
            yield path
