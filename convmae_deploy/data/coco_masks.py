"""Masks of COCO's annotations: polygons and run lengths, judged before pycocotools sees them.

pycocotools believes what it is given: it reads behind the end of run lengths that are cut off, fills what they leave
open with what was in the memory before, and draws an outline however long it is.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as run_lengths

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import shortened

MAX_COORDINATE = 1_000_000.0  # pixels, either way; outlines may leave their photo a little
MAX_OUTLINE = 1_000_000.0  # pixels along the outlines of an object; drawing it takes about 100 bytes each
MIN_POLYGON = 6  # numbers: three points
MAX_TEXT = 4 * 1024 * 1024  # characters of run lengths; adding them up takes about 100 bytes each

_FIRST_CODE, _CODES = 48, 64  # run lengths as text: each character stands for six bits
_MORE, _NEGATIVE, _BITS = 0x20, 0x10, 5  # another character follows; the number is negative; bits of a number
_MAX_CHARACTERS = 7  # for a number: more than any run of pixels needs

Polygons = list[list[float]]  # [x, y, x, y, ...], pixels
Segmentation = Polygons | dict[str, Any]  # or run lengths {"size": (height, width), "counts"}


def check_box(box: Sequence[float]) -> None:
    """Raises ConvMAEError where a number of a box is beyond `MAX_COORDINATE`."""
    if max(map(abs, box)) > MAX_COORDINATE:
        raise ConvMAEError(
            f"a box must lie within {MAX_COORDINATE:.0f} pixels of its photo's corner; found {list(box)}"
        )


def check_polygons(polygons: Polygons) -> None:
    """Raises ConvMAEError where a coordinate is beyond `MAX_COORDINATE` or the outlines are beyond `MAX_OUTLINE`."""
    longest = 0.0
    for polygon in filter(None, polygons):
        lowest, highest = min(polygon), max(polygon)
        if max(-lowest, highest) > MAX_COORDINATE:
            raise ConvMAEError(
                f"polygons must lie within {MAX_COORDINATE:.0f} pixels of their photo's corner; found "
                f"{lowest if -lowest > highest else highest:g}"
            )
        longest += len(polygon) * (highest - lowest + 1)
    if longest > MAX_OUTLINE:  # which few are: the exact length takes longer
        length = sum(map(_outline, polygons))
        if length > MAX_OUTLINE:
            raise ConvMAEError(f"the outlines of an object may be {MAX_OUTLINE:.0f} pixels long; found {length:.0f}")


def _outline(polygon: list[float]) -> float:
    """How many pixels pycocotools walks along a polygon."""
    points = np.array(polygon[: len(polygon) // 2 * 2]).reshape(-1, 2)
    steps = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1, initial=0.0)
    return float((steps + 1).sum())


def check_run_lengths(counts: str | Sequence[int], height: int, width: int) -> None:
    """Raises ConvMAEError unless run lengths cover a photo of this size exactly."""
    if isinstance(counts, str):
        if len(counts) > min(MAX_TEXT, _MAX_CHARACTERS * (height * width + 1)):
            raise ConvMAEError(f"the text of run lengths is too long for {width} x {height} pixels: {len(counts)}")
        runs = _decoded(counts)
        lowest, total = int(runs.min(initial=0)), int(runs.sum())
    else:
        lowest, total = min(counts, default=0), sum(counts)
    if lowest < 0:
        raise ConvMAEError(f"run lengths must not be negative; found {shortened(str(lowest))}")
    if total != height * width:
        raise ConvMAEError(
            f"run lengths must cover the {width} x {height} = {width * height} pixels of their photo; "
            f"they cover {total if total < 1 << 63 else 'far more'}"
        )


def _decoded(text: str) -> NDArray[np.int64]:
    """The runs that the text of run lengths stands for; by hand, as pycocotools gives masks and areas but no runs.

    Every number is in base 32, the lowest digit first, and from the fourth number on it is added to the one two before.
    """
    codes = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - _FIRST_CODE
    if not len(codes):
        return codes
    if codes.min() < 0 or codes.max() >= _CODES:
        raise ConvMAEError(f"the text of run lengths is in the characters from 0 to o; found {shortened(text, 40)}")
    ends = np.flatnonzero(codes & _MORE == 0)
    if not len(ends) or ends[-1] != len(codes) - 1:
        raise ConvMAEError(f"the text of run lengths ends within a number: {shortened(text, 40)}")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MAX_CHARACTERS:
        raise ConvMAEError(f"a number in the text of run lengths is too large: {shortened(text, 40)}")
    shifts = _BITS * (np.arange(len(codes)) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((codes & (_MORE - 1)) << shifts, starts)
    numbers -= np.where(codes[ends] & _NEGATIVE, np.int64(1) << (_BITS * lengths), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def to_run_lengths(segmentation: Segmentation, height: int, width: int) -> Any:
    """What pycocotools computes with, of one object that was checked, in a photo of that size."""
    if isinstance(segmentation, list):
        return run_lengths.merge(run_lengths.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return run_lengths.frPyObjects(segmentation, height, width)
    return segmentation


def mask_of(segmentation: Segmentation, height: int, width: int) -> NDArray[np.uint8]:
    """(height, width), the photo's size: 1 on an object that was checked."""
    mask: NDArray[np.uint8] = run_lengths.decode(to_run_lengths(segmentation, height, width))
    return mask


def area_of(segmentation: Segmentation, height: int, width: int) -> float:
    """Pixels of an object that was checked, in a photo of that size."""
    return float(run_lengths.area(to_run_lengths(segmentation, height, width)))


def bounds_of(segmentation: Segmentation, height: int, width: int) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 in pixels around an object that was checked, inside a photo of that size."""
    if isinstance(segmentation, list):
        xs = [value for polygon in segmentation for value in polygon[::2]]
        ys = [value for polygon in segmentation for value in polygon[1::2]]
        return max(min(xs), 0.0), max(min(ys), 0.0), min(max(xs), float(width)), min(max(ys), float(height))
    x, y, box_width, box_height = run_lengths.toBbox(to_run_lengths(segmentation, height, width)).tolist()
    return x, y, x + box_width, y + box_height
