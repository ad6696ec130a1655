"""What a training program found in its data, before its first update: counts, what is left out, what looks wrong.

Every reader fills `Findings`; here they are put together for each kind of data, a few files are tried, and the whole is
told in at most ten lines and as JSON. Nothing here changes what is trained on. Without torch.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convmae_deploy.data.coco import CocoSplit, read_coco_photo
from convmae_deploy.data.findings import Finding, Findings
from convmae_deploy.data.photo_folder import PhotoFolder
from convmae_deploy.data.segmentation_folder import LabelError, SegmentationFolder, read_palette
from convmae_deploy.data.video_folder import VideoFolder
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import atomic_file
from convmae_deploy.media.exif import UPRIGHT
from convmae_deploy.media.photo_files import ANNOTATED_PHOTO_LIMITS, DATASET_PHOTO_LIMITS, read_photo
from convmae_deploy.media.video_file import open_video
from convmae_deploy.media.video_limits import DATASET_VIDEO_LIMITS
from convmae_deploy.printing import counted, printable

MAX_LINES = 10
TRIED_PHOTOS, TRIED_VIDEOS = 16, 4  # of each split, spread over it
DARK = 15  # of 255; what 12 bits in 16-bit files come to
ALMOST_BLACK = "photos that are almost black (12-bit values in 16-bit files look so: scale those to 16 bits)"
AS_STORED = (
    "photos that EXIF turns or mirrors where the size does not tell: their labels are taken as of the photo as it is "
    "stored (if they were drawn on the photo turned upright, store it so)"
)
LABEL_READERS = 4  # threads; decoding a label map waits for no lock
MOSTLY_IGNORED = 0.5  # share of pixels without a class, above which it is said

Size = tuple[int, int]  # (width, height) in pixels
# of a file by its number: its size and what looks wrong with it; raises ConvMAEError
Try = Callable[[int], tuple[Size, Sequence[str]]]


@dataclass(kw_only=True)
class SplitCheck:
    """One split: what it has, and what its reader found."""

    name: str
    facts: dict[str, Any]  # as JSON
    words: str  # the facts that matter, in one line
    findings: Findings


@dataclass(kw_only=True)
class DataCheck:
    """The whole data set."""

    data: str
    splits: list[SplitCheck] = field(default_factory=list)

    def lines(self, more: str) -> list[str]:
        """At most ten lines for a console: the splits, what looks wrong, what is left out, the most of it first.

        Args:
            more: where the rest stands, for the last line where there is one.
        """
        lines = [f"data {self.data}", *(f"  {split.name}: {split.words}" for split in self.splits)]
        lines += [f"  look at {line}" for line in self._told(lambda findings: findings.doubts)]
        lines += [f"  left out {line}" for line in self._told(lambda findings: findings.passed_over)]
        if len(lines) > MAX_LINES:
            lines = [*lines[: MAX_LINES - 1], f"  and {len(lines) - MAX_LINES + 1} more kinds, see {more}"]
        return [printable(line) for line in lines]

    def _told(self, part: Callable[[Findings], dict[str, Finding]]) -> Iterator[str]:
        found = [(split.name, *item) for split in self.splits for item in part(split.findings).items()]
        for name, kind, finding in sorted(found, key=lambda entry: -entry[2].count):
            yield f"{name}: {kind}: {finding}"

    def write(self, file: Path) -> None:
        """Writes the whole as JSON, with up to a hundred examples of each kind."""
        with atomic_file(file) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def check_photos(data: Path, train: PhotoFolder, val: PhotoFolder) -> DataCheck:
    """Of photos in class folders."""
    check = DataCheck(data=str(data))
    _note_shared(train.photos, val.photos, val.findings)
    for name, folder in (("train", train), ("val", val)):
        check.splits.append(_labelled(name, folder, folder.photos, "photos", _photo_size(folder.photos), data))
    return check


def check_unlabelled_photos(data: Path, photos: Sequence[Path], findings: Findings) -> DataCheck:
    """Of photos to pretrain on."""
    _note_folders(data, photos, findings)
    words = counted(len(photos), "photo")
    split = _tried("train", {"photos": len(photos)}, words, findings, photos, _photo_size(photos))
    return DataCheck(data=str(data), splits=[split])


def check_shards(data: str, shards: int, samples: int, findings: Findings) -> DataCheck:
    """Of photos in tar archives, which are not opened here."""
    facts = {"shards": shards, "samples": samples}
    words = f"{counted(samples, 'photo')} in {counted(shards, 'shard')}"
    return DataCheck(data=data, splits=[SplitCheck(name="train", facts=facts, words=words, findings=findings)])


def check_videos(data: Path, train: VideoFolder, val: VideoFolder) -> DataCheck:
    """Of videos with labels; `val` may be `train`."""
    check = DataCheck(data=str(data))
    splits = {"train": train}
    if val is not train:
        splits["val"] = val
        _note_shared(train.videos, val.videos, val.findings)
    for name, folder in splits.items():
        check.splits.append(_labelled(name, folder, folder.videos, "videos", _video_size(folder.videos), data))
    return check


def _labelled(
    name: str, folder: PhotoFolder | VideoFolder, files: Sequence[Path], kind: str, size: Try, data: Path
) -> SplitCheck:
    """One split of files with labels."""
    _note_two_classes(files, folder.labels, folder.findings)
    if name == "train":
        _note_alike(folder.classes, folder.findings)
    words, facts = _classes(folder.labels, folder.classes, kind, data)
    return _tried(name, facts, words, folder.findings, files, size)


def check_unlabelled_videos(data: Path, videos: Sequence[Path], findings: Findings) -> DataCheck:
    """Of videos to pretrain on."""
    _note_folders(data, videos, findings)
    words = counted(len(videos), "video")
    split = _tried("train", {"videos": len(videos)}, words, findings, videos, _video_size(videos))
    return DataCheck(data=str(data), splits=[split])


def check_coco(data: Path, train: CocoSplit, val: CocoSplit) -> DataCheck:
    """Of photos with annotated objects; `val` may be `train`."""
    check = DataCheck(data=str(data))
    for name, split in (("train", train), ("val", val)):
        if name == "val" and val is train:
            continue
        counts = Counter(item.label for index in range(len(split.photos)) for item in split.objects[index])
        by_class = {label: counts[label] for label in range(len(split.classes))}
        facts = {
            "annotations": str(split.file),
            "photos": len(split.photos),
            "objects": counts.total(),
            "crowds": split.crowds,
            "classes": _named(by_class, split.classes),
        }
        there = f"{counted(len(split.photos), 'photo')}, {counted(counts.total(), 'object')}"
        words = f"{there} in {_spread(by_class, split.classes)}"
        paths = [photo.path for photo in split.photos]
        if name == "val":
            _note_shared((photo.path for photo in train.photos), paths, split.findings)
        check.splits.append(_tried(name, facts, words, split.findings, paths, _annotated_size(split)))
    return check


def check_segmentation(data: Path, train: SegmentationFolder, val: SegmentationFolder) -> DataCheck:
    """Of photos with label maps, all of which are read.

    Raises:
        ConvMAEError: a label map is wrong, or all that is labelled for training is of one class.
    """
    check = DataCheck(data=str(data))
    _note_shared(train.photos, val.photos, val.findings)
    _note_palettes((train, val))
    for name, folder in (("train", train), ("val", val)):
        pixels = count_pixels(folder)
        by_class, ignored = dict(enumerate(pixels[:-1].tolist())), int(pixels[-1])
        if name == "train":
            _note_alike(folder.classes, folder.findings)
        if name == "train" and pixels.any():  # else no photo can be read, which is said below
            check_some_classes(folder, pixels)
        if name == "val" and pixels.any() and not pixels[:-1].any():
            raise ConvMAEError("no pixel of the validation photos has a class; check their label maps and classes.json")
        for label, count in by_class.items():
            if not count:
                folder.findings.doubt("classes without a pixel", folder.classes[label])
        if ignored > MOSTLY_IGNORED * pixels.sum():
            level = 0 if folder.reduce_zero_label else folder.ignore_index
            share = 100 * ignored / int(pixels.sum())
            folder.findings.doubt("pixels of no class are most of all", f"{share:.0f} % with the level {level}")
        facts = {
            "photos": len(folder.photos),
            "pixels": _named(by_class, folder.classes),
            "pixels_of_no_class": ignored,
        }
        filled = sum(count > 0 for count in by_class.values())
        there = f"{counted(len(folder.photos), 'photo')} with label maps"
        words = f"{there}, {filled} of {len(folder.classes)} classes have pixels"
        size = _pair_size(folder)
        check.splits.append(_tried(name, facts, words, folder.findings, folder.photos, size))
    return check


def _note_shared(learnt: Iterable[Path], measured: Sequence[Path], findings: Findings) -> None:
    """Counts files of validation that are trained on, under whatever names."""
    known = set(map(_identity, learnt))
    for file in measured:
        if _identity(file) in known:
            findings.doubt("files to validate on that are trained on too", file)


def _note_two_classes(files: Sequence[Path], labels: Sequence[int], findings: Findings) -> None:
    """Counts files that lists or links put into a second class."""
    known: dict[tuple[int, int], int] = {}
    for file, label in zip(files, labels, strict=True):
        if known.setdefault(_identity(file), label) != label:
            findings.doubt("files that are of two classes", file)


def _identity(file: Path) -> tuple[int, int]:
    """The same for all names of one file."""
    status = os.stat(file)
    return status.st_dev, status.st_ino


def _note_palettes(folders: Sequence[SegmentationFolder]) -> None:
    """Counts label maps, of those that are tried, in which an index has another colour than in an earlier one."""
    known: dict[int, tuple[tuple[int, ...], Path]] = {}
    for folder in folders:
        for place in _spread_over(len(folder.label_maps), TRIED_PHOTOS):
            file = folder.label_maps[place]
            for index, colour in read_palette(file).items():
                first, where = known.setdefault(index, (colour, file))
                if colour != first:
                    said = f"{file} has {colour} for the index {index}, where {where} has {first}"
                    folder.findings.doubt("label maps whose palettes differ, of which the indices are taken", said)
                    break


def _spread_over(count: int, most: int) -> Iterator[int]:
    """Up to so many places, spread over all."""
    taken = min(most, count)
    return (place * count // taken for place in range(taken))


def count_pixels(folder: SegmentationFolder) -> NDArray[np.int64]:
    """Pixels of each class, and at the end (K + 1,) those of none, in all label maps; raises LabelError."""

    def of_map(index: int) -> NDArray[np.int64]:
        try:
            labels = folder.read_labels(index)
        except LabelError:
            raise
        except ConvMAEError:  # of the photo, which is left out of training too
            return np.zeros(len(folder.classes) + 1, np.int64)
        levels = np.bincount(labels.ravel(), minlength=256)
        return np.append(levels[: len(folder.classes)], levels[-1])

    with ThreadPoolExecutor(LABEL_READERS) as pool:
        counts = list(pool.map(of_map, range(len(folder.photos))))
    total: NDArray[np.int64] = np.sum(counts, axis=0, dtype=np.int64)
    return total


def check_some_classes(folder: SegmentationFolder, pixels: NDArray[np.int64]) -> None:
    """Raises ConvMAEError where label maps have fewer than two classes, so that there is nothing to tell apart.

    Args:
        folder: the split.
        pixels: (K + 1,) from `count_pixels`.
    """
    there = [name for name, count in zip(folder.classes, pixels[:-1], strict=True) if count]
    if len(there) > 1:
        return
    found = f"all have the class {there[0]!r}" if there else "none has a class"
    share = 100 * int(pixels[-1]) / max(1, int(pixels.sum()))
    ignored = "0 with reduce_zero_label" if folder.reduce_zero_label else f"{folder.ignore_index}, the ignore_index,"
    raise ConvMAEError(
        f"the label maps must have two classes or more; of the pixels with a class {found}, and {share:.0f} % of all "
        f"have the level {ignored} which is of no class: write class indices (0, 1, 2) into the maps, or mend "
        "classes.json"
    )


def _classes(labels: Sequence[int], classes: Sequence[str], kind: str, data: Path) -> tuple[str, dict[str, Any]]:
    """Words and facts on files by class; raises ConvMAEError where there is one class alone."""
    if len(classes) < 2:
        raise ConvMAEError(
            f"expected {kind} of two classes or more in {data}, found {classes[0]!r} alone, so that there is nothing "
            "to tell apart: add another class, or pretrain, which needs none"
        )
    counts = Counter(labels)
    by_class = {label: counts[label] for label in range(len(classes))}
    words = f"{counted(len(labels), kind.removesuffix('s'))} in {_spread(by_class, classes)}"
    return words, {kind: len(labels), "classes": _named(by_class, classes)}


def _spread(by_class: dict[int, int], classes: Sequence[str]) -> str:
    """How many classes there are, and the numbers of the smallest and of the largest."""
    least, most = min(by_class, key=by_class.__getitem__), max(by_class, key=by_class.__getitem__)
    many = f"{len(classes)} classes" if len(classes) > 1 else "1 class"
    if by_class[least] == by_class[most]:
        return f"{many}, {by_class[most]} each"
    return f"{many}, from {by_class[least]} ({classes[least]}) to {by_class[most]} ({classes[most]}) each"


def _named(by_class: dict[int, int], classes: Sequence[str]) -> list[list[Any]]:
    """[name, count] of each class: names may come twice."""
    return [[name, by_class[label]] for label, name in enumerate(classes)]


def _tried(
    name: str, facts: dict[str, Any], words: str, findings: Findings, files: Sequence[Path], size_of: Try
) -> SplitCheck:
    """A split after a few of its files, spread over it, were decoded; those that cannot be are doubts.

    Raises:
        ConvMAEError: none of them can be.
    """
    most = TRIED_VIDEOS if "videos" in facts else TRIED_PHOTOS
    count = min(most, len(files))
    sizes: list[Size] = []
    unusable: list[str] = []
    for index in _spread_over(len(files), most):
        try:
            size, doubts = size_of(index)
        except ConvMAEError as error:
            said = str(error) if str(files[index]) in str(error) else f"{files[index]}: {error}"
            unusable.append(said)
            findings.doubt(f"files that cannot be used, of {count} that were tried", said)
            continue
        sizes.append(size)
        for doubt in doubts:
            findings.doubt(doubt, files[index])
    if not sizes and count in (len(files), TRIED_PHOTOS):  # of many videos too few are tried to refuse all
        raise ConvMAEError(f"{name}: none of the {count} files that were tried can be used, the first: {unusable[0]}")
    if sizes:
        smallest, largest = min(sizes, key=np.prod), max(sizes, key=np.prod)
        facts = facts | {"tried": count, "smallest": smallest, "largest": largest}
        span = _by(smallest) if smallest == largest else f"{_by(smallest)} to {_by(largest)}"
        words += f"; {count} tried: {span} pixels"
    return SplitCheck(name=name, facts=facts, words=words, findings=findings)


def _by(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


def _seen(photo: Image.Image) -> tuple[Size, list[str]]:
    """The size of an RGB photo, and whether nothing in it is brighter than `DARK`."""
    return photo.size, [ALMOST_BLACK] * (int(np.asarray(photo).max()) <= DARK)


def _seen_as_stored(photo: Image.Image, file: Path) -> tuple[Size, list[str]]:
    """The same of an annotated photo, whose size may not tell whether it was annotated as stored."""
    size, doubts = _seen(photo)
    upright = read_photo(file, limits=ANNOTATED_PHOTO_LIMITS)
    return size, doubts + [AS_STORED] * (upright.orientation != UPRIGHT and upright.image.size == upright.original_size)


def _photo_size(photos: Sequence[Path]) -> Try:
    return lambda index: _seen(read_photo(photos[index], limits=DATASET_PHOTO_LIMITS).image)


def _annotated_size(split: CocoSplit) -> Try:
    return lambda index: _seen_as_stored(read_coco_photo(split.photos[index]), split.photos[index].path)


def _pair_size(folder: SegmentationFolder) -> Try:
    return lambda index: _seen_as_stored(folder.read(index)[0], folder.photos[index])


def _video_size(videos: Sequence[Path]) -> Try:
    def size(index: int) -> tuple[Size, Sequence[str]]:
        with open_video(videos[index], limits=DATASET_VIDEO_LIMITS) as video:
            return (video.header.width, video.header.height), ()

    return size


HELD_OUT = frozenset(  # words in the names of folders; SegmentationClass and gtFine are those of VOC and Cityscapes
    "val valid validation test label labels annotation annotations mask masks gt truth groundtruth gtfine gtcoarse "
    "segmentation segmentationclass segmentationobject panoptic stuffthingmaps pixelmaps trimaps depth".split()
)
_OF_LABELS = re.compile(
    r"(.+)_(?:mask|seg|labels?|labelids|labeltrainids|color|instanceids|depth|parts_\d+)", re.IGNORECASE
)


def _note_alike(classes: Iterable[str], findings: Findings) -> None:
    """Counts classes whose names are those of others."""
    known: set[str] = set()
    for name in classes:
        plain = " ".join(name.casefold().split())
        if plain in known:
            findings.doubt("classes with the name of another one, but for case and blanks", name)
        known.add(plain)


def _note_folders(data: Path, files: Sequence[Path], findings: Findings) -> None:
    """Counts files to pretrain on that are named, or whose folders are, as those of validation or label maps are."""
    stems = {file.with_suffix("") for file in files}
    for file in files:
        if (found := _OF_LABELS.fullmatch(file.stem)) and file.with_name(found[1]) in stems:
            findings.doubt("files that are trained on, named as the labels of a photo beside them", file)
        parts = file.relative_to(data).parts[:-1] if file.is_relative_to(data) else ()
        if HELD_OUT & set(re.split("[^a-z]+", "/".join(parts).lower())):
            findings.doubt(
                "files that are trained on, in folders named for validation or labels", file.relative_to(data)
            )
