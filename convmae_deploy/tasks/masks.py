"""Masks of objects: from the cells that a detector predicts to the pixels of the photo, COCO's run lengths and PNG.

Shapes: M cells a side of a predicted mask, H W the photo, r c the part of it that holds the box.
"""

import io
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convmae_deploy.bundle.preprocessing import Size

MASK_THRESHOLD = 0.5  # probability from which a pixel belongs to the object
_CHARACTER_BITS = 5  # bits of a number in a character of COCO's compressed run lengths
_CONTINUES = 0x20  # a character with this bit is followed by another of the same number
_FIRST_CHARACTER = 48
_PNG_LEVEL = 1  # zlib's; masks and labels compress well at any


class RunLengths(TypedDict):
    """A mask as COCO's files hold it: lengths of runs of 0 and 1 in turn, down the columns, 0 first, compressed."""

    size: list[int]  # [height, width]
    counts: str


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectMask:
    """Which pixels of a photo belong to an object; computed when asked for, once from probabilities to pixels."""

    probabilities: NDArray[np.float32]  # (M, M) within the box
    box: tuple[float, float, float, float]  # XYXY in pixels of the photo; may reach beyond its edges
    size: Size  # (height, width) of the photo

    def cut(self) -> tuple[slice, slice, NDArray[np.bool_]]:
        """The part of the photo in which the box lies: its rows, its columns, its pixels (r, c)."""
        rows, down = _sampling(self.box[1], self.box[3], self.size[0], len(self.probabilities))
        columns, across = _sampling(self.box[0], self.box[2], self.size[1], len(self.probabilities))
        return rows, columns, down @ self.probabilities @ across.T >= MASK_THRESHOLD

    def pixels(self) -> NDArray[np.bool_]:
        """(H, W), True where the object is."""
        rows, columns, inside = self.cut()
        mask = np.zeros(self.size, dtype=np.bool_)
        mask[rows, columns] = inside
        return mask

    def run_lengths(self) -> RunLengths:
        """As COCO's files hold it."""
        rows, columns, inside = self.cut()
        return encode_mask(inside, top=rows.start, left=columns.start, size=self.size)

    def png(self) -> bytes:
        """A grey picture of the photo's size: 255 where the object is, 0 elsewhere."""
        return mask_png(self.pixels())


def label_png(labels: NDArray[np.integer[Any]]) -> bytes:
    """A map of labels (H, W) as a grey PNG whose levels are the labels: 8 bits for uint8, 16 for uint16."""
    return picture_png(Image.fromarray(labels))


def mask_png(mask: NDArray[np.bool_]) -> bytes:
    """A mask (H, W) as a grey PNG of 0 and 255."""
    return picture_png(Image.fromarray(mask.astype(np.uint8) * 255))


def picture_png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=_PNG_LEVEL)
    return buffer.getvalue()


def _sampling(start: float, stop: float, side: int, cells: int) -> tuple[slice, NDArray[np.float32]]:
    """For one axis, the pixels whose centres lie in the box, and what each takes from which cell (r, M).

    Between the centres of two cells the sample is interpolated; beyond the outermost centres the probability falls to
    0, which it has half a cell outside the box. This is detectron2's and torch's grid_sample(align_corners=False).
    """
    first, last = max(0, int(np.ceil(start - 0.5))), min(side - 1, int(np.floor(stop - 0.5)))
    if not start < stop or last < first:
        return slice(0, 0), np.zeros((0, cells), dtype=np.float32)
    places = (np.arange(first, last + 1) + 0.5 - start) / (stop - start) * cells - 0.5
    distances = np.abs(places[:, None] - np.arange(cells))
    return slice(first, last + 1), np.maximum(1 - distances, 0).astype(np.float32)


def encode_mask(mask: NDArray[np.bool_], *, top: int = 0, left: int = 0, size: Size | None = None) -> RunLengths:
    """COCO's compressed run lengths of a mask, character for character as pycocotools writes them.

    Args:
        mask: (r, c), a part of the photo; outside it the mask is 0.
        top: first row of the part.
        left: first column of the part.
        size: (height, width) of the photo; None: the part is all of it.
    """
    height, width = mask.shape if size is None else size
    padded = np.pad(mask.T.astype(np.int8), ((0, 0), (1, 1)))
    column, change = np.nonzero(np.diff(padded, axis=1))  # where runs of 1 start and end, in turn, by column
    edges = (column + left) * height + change + top
    # A run that ends at the bottom goes on at the top of the next column.
    goes_on = np.flatnonzero(edges[1:-1:2] == edges[2::2])
    edges = np.delete(edges, np.concatenate([2 * goes_on + 1, 2 * goes_on + 2]))
    counts = np.diff(edges, prepend=0, append=height * width)
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    return {"size": [height, width], "counts": _compress(counts)}


def _compress(counts: NDArray[np.int64]) -> str:
    """From the fourth on, numbers are differences to the last but one; 5 bits a character, the lowest first."""
    numbers = counts.astype(np.int64)
    numbers[3:] -= counts[1:-2]
    characters, used = [], []
    rest, goes_on = numbers, np.ones(len(numbers), dtype=np.bool_)
    while goes_on.any():
        bits = rest & (_CONTINUES - 1)
        rest = rest >> _CHARACTER_BITS
        used.append(goes_on)
        negative = bits & (1 << _CHARACTER_BITS - 1) != 0  # the highest bit of the last character is the sign
        goes_on = goes_on & (rest != np.where(negative, -1, 0))
        characters.append(bits + np.where(goes_on, _CONTINUES, 0) + _FIRST_CHARACTER)
    chosen = np.stack(characters, axis=1)[np.stack(used, axis=1)]
    return chosen.astype(np.uint8).tobytes().decode("ascii")
