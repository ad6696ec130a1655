"""Photos that are larger than any input of the model, tile by tile in their own resolution."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from convmae_deploy.bundle.preprocessing import Preprocessing
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.base import Prepared
from convmae_deploy.tasks.preprocess import graph_input
from convmae_deploy.tasks.sliding_window import window_starts

Place = tuple[int, int]  # (x, y) in pixels of the upright photo: the left and the top edge of a tile
COLUMNS = ("x", "y")  # what these are called beside the features
_SHARE = 8  # a tile overlaps the next by this part of its side, unless it is said


@dataclass(frozen=True)
class Tiles:
    """How photos are cut: every `side - overlap` pixels a tile begins, the last ones end with the photo.

    A photo smaller than a tile is padded right and below with what 0 is after normalising, the mean colour.
    """

    side: int  # in pixels
    overlap: int  # in pixels, of two tiles that follow one another

    @classmethod
    def of(cls, side: int, overlap: int | None) -> "Tiles":
        """Tiles as a user asks for them; None: they overlap by an eighth of their side.

        Raises:
            ConvMAEError: there are none such.
        """
        chosen = side // _SHARE if overlap is None else overlap
        if side < 1 or not 0 <= chosen < side:
            raise ConvMAEError(
                f"tiles must overlap by 0 pixels or more, and less than their side; got {chosen} of {side}"
            )
        return cls(side, chosen)

    def places(self, width: int, height: int) -> list[Place]:
        """Where the tiles of a photo of so many pixels are, row by row."""
        lefts, tops = (window_starts(side, self.side, self.side - self.overlap) for side in (width, height))
        return [(left, top) for top in tops for left in lefts]

    def cut(self, photo: Image.Image, spec: Preprocessing) -> Iterator[tuple[Place, Prepared]]:
        """The tiles of an upright RGB photo, one after the other."""
        for left, top in self.places(photo.width, photo.height):
            right, bottom = min(left + self.side, photo.width), min(top + self.side, photo.height)
            levels = np.asarray(photo.crop((left, top, right, bottom)))
            rows = np.zeros((1, 3, self.side, self.side), spec.dtype)
            if spec.dtype == "uint8":
                rows += np.array(spec.nearest_levels, np.uint8)[:, None, None]
            rows[0, :, : bottom - top, : right - left] = graph_input(levels, spec)
            yield (left, top), Prepared(rows=rows, size=(photo.height, photo.width))
