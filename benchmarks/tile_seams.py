"""How far are features of tiles from those of the whole photo, and how far into a tile does its edge show?

    python -m benchmarks.tile_seams bundles/any-size photos/ [--tile 512 --overlap 64]

Of each photo the middle is taken in its own resolution, as large as the bundle's largest input, so that it fits into
one run. The maps of its tiles, cut as `convmae features --tile` does, are held cell by cell against those of the whole:
the root of the mean square of the difference over that of the whole's map, by the distance of a cell's centre from the
nearest edge where its tile was cut. The last line is the cosine of the mean of the tiles' pooled vectors with the
whole's. A convolution sees a few cells and an edge shows no further; attention sees all of its input, and positions
are those in the input, so that what comes after the second stage differs everywhere.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from numpy.typing import NDArray

from convmae_deploy.backends.base import InputArray
from convmae_deploy.bundle.manifest import SIDE_STEP
from convmae_deploy.bundle.preprocessing import Preprocessing
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.extraction.tiles import Place, Tiles
from convmae_deploy.media.photo_files import find_photos, read_photo
from convmae_deploy.program import run_program
from convmae_deploy.tasks import open_predictor
from convmae_deploy.tasks.base import Predictor
from convmae_deploy.tasks.features import POOLED
from convmae_deploy.tasks.preprocess import graph_input

DISTANCES = (0, 16, 32, 64, 128)  # pixels from which on a column of the table counts


@dataclass(frozen=True, kw_only=True)
class SeamConfig:
    """Measures what an edge of a tile does to features."""

    bundle: Annotated[Path, tyro.conf.Positional]  # exported with --dynamic-size
    photos: Annotated[Path, tyro.conf.Positional]  # folder of large photos, or one
    tile: int = 512
    overlap: int = 64
    limit: int = 20  # photos


class Sums:
    """Squares of differences and of what is right, by level and distance."""

    def __init__(self, levels: Sequence[str]) -> None:
        self.levels = tuple(levels)
        self.errors = np.zeros((len(levels), len(DISTANCES)))
        self.signals = np.zeros((len(levels), len(DISTANCES)))

    def add(self, level: int, whole: NDArray[np.float32], tile: NDArray[np.float32], far: NDArray[np.float64]) -> None:
        """Maps (C, h, w) of the same cells, and the distance of each from the nearest cut, (h, w)."""
        place = np.searchsorted(DISTANCES, far, side="right") - 1
        for sums, values in ((self.errors, tile - whole), (self.signals, whole)):
            squares = (values.astype(np.float64) ** 2).sum(axis=0)
            sums[level] += np.bincount(place.ravel(), squares.ravel(), minlength=len(DISTANCES))

    def row(self, level: int) -> list[str]:
        """Relative errors by distance; a dash where no cell lies."""
        pairs = zip(self.errors[level], self.signals[level], strict=True)
        return [f"{np.sqrt(error / signal):.1e}" if signal else "-" for error, signal in pairs]


def distance_from_cuts(place: Place, side: int, photo: tuple[int, int], stride: int) -> NDArray[np.float64]:
    """(h, w): pixels from the centre of each cell of a tile to its nearest edge that is none of the photo's."""
    axes = []
    for start, length in ((place[1], photo[0]), (place[0], photo[1])):
        centres = (np.arange(side // stride) + 0.5) * stride
        before = centres if start > 0 else np.full_like(centres, np.inf)
        after = side - centres if start + side < length else np.full_like(centres, np.inf)
        axes.append(np.minimum(before, after))
    return np.minimum(axes[0][:, None], axes[1][None, :])


def measure(predictor: Predictor, photo: InputArray, tiles: Tiles, sums: Sums) -> float:
    """Adds a photo (1, 3, H, W) and gives the cosine of the pooled vectors."""
    names, (height, width) = (*sums.levels, POOLED), photo.shape[2:]
    whole = predictor.at((height, width)).run(photo, names)
    cut, pooled = predictor.at((tiles.side, tiles.side)), []
    for left, top in tiles.places(width, height):
        pixels = photo[:, :, top : top + tiles.side, left : left + tiles.side]
        found = cut.run(np.ascontiguousarray(pixels), names)
        pooled.append(found[POOLED][0])
        for index, level in enumerate(sums.levels):
            stride = predictor.manifest.outputs[level].stride
            assert stride is not None
            rows, columns = (slice(start // stride, (start + tiles.side) // stride) for start in (top, left))
            far = distance_from_cuts((left, top), tiles.side, (height, width), stride)
            sums.add(index, whole[level][0][:, rows, columns], found[level][0], far)
    mean, right = np.mean(pooled, axis=0), whole[POOLED][0]
    return float(mean @ right / (np.linalg.norm(mean) * np.linalg.norm(right)))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    prog = "python -m benchmarks.tile_seams"
    config = tyro.cli(SeamConfig, args=arguments, prog=prog, description=SeamConfig.__doc__)
    predictor, tiles = open_predictor(config.bundle), Tiles.of(config.tile, config.overlap)
    spec, sides = predictor.manifest.preprocessing, predictor.manifest.input.sides
    if sides is None or not isinstance(spec, Preprocessing) or sides.largest <= tiles.side:
        raise ConvMAEError("expected a bundle for inputs larger than a tile; export one with --dynamic-size")
    if tiles.side % SIDE_STEP or tiles.overlap % SIDE_STEP:
        raise ConvMAEError(f"tiles and overlaps must be multiples of {SIDE_STEP} here, so that cells meet")
    sums = Sums([name for name, output in predictor.manifest.outputs.items() if output.stride is not None])
    cosines = []
    for path in find_photos([config.photos])[: config.limit]:
        image = read_photo(path).image
        width, height = (SIDE_STEP * (min(side, sides.largest) // SIDE_STEP) for side in image.size)
        if min(width, height) < tiles.side or max(width, height) == tiles.side:
            print(f"{path} is passed over: it is no larger than a tile", file=sys.stderr)
            continue
        left, top = (image.width - width) // 2, (image.height - height) // 2
        levels = np.asarray(image.crop((left, top, left + width, top + height)))
        cosines.append(measure(predictor, graph_input(levels, spec)[None], tiles, sums))
    if not cosines:
        raise ConvMAEError(f"no photo of {config.photos} is larger than a tile of {tiles.side} pixels")
    print(f"| level | {' | '.join(f'from {distance} px' for distance in DISTANCES)} |")
    print(f"|---|{'---|' * len(DISTANCES)}")
    for index, level in enumerate(sums.levels):
        print(f"| {level} | {' | '.join(sums.row(index))} |")
    print(f"pooled, mean of the tiles: cosine {min(cosines):.4f} at least, {np.mean(cosines):.4f} on average")
    print(f"{len(cosines)} photos, tiles of {tiles.side} every {tiles.side - tiles.overlap} pixels")


if __name__ == "__main__":
    run_program(main)
