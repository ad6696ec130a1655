"""A photo through a segmenter window by window: where windows lie, and how their logits become one map of labels.

The logits of a window have a quarter of its resolution. They are upsampled bilinearly, averaged where windows overlap,
and resized bilinearly to the photo's own size, both as torch's `interpolate(mode="bilinear", align_corners=False)`
does. All of this is linear and separable: what window i adds to the final map is Y_i @ logits @ X_i.T with constant
matrices. So the final map is made a few rows at a time, and neither it nor the averaged one is ever held as a whole.

Shapes: K classes, H W the resized photo, h w a window, u v the final map.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convmae_deploy.backends.base import FloatArray, InputArray
from convmae_deploy.bundle.manifest import SEGMENTER_STRIDE
from convmae_deploy.bundle.preprocessing import Size, SlidingWindow
from convmae_deploy.tasks.preprocess import FILTERS, graph_input

Labels = NDArray[np.uint8] | NDArray[np.uint16]
RunWindows = Callable[[FloatArray], FloatArray]  # (B, 3, h, w) -> (B, K, h / 4, w / 4)
ReadPixels = Callable[[slice, slice], InputArray]  # rows and columns of the resized photo -> (3, r, c)
Place = tuple[slice, slice]

MAX_BYTES = 32_000_000  # how much of the final map's logits is held at once
# Rows and columns of the final map that are computed at once: products so small that the BLAS library does not divide
# them among threads, which would make the work of several requests at once many times slower
BLOCK = 64


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """What each pixel of a photo shows."""

    labels: Labels  # (H, W), index into the classes; uint8 for at most 256 classes
    scores: FloatArray  # (K,), the mean probability of a class where it is the label; 0 for classes that are nowhere


def resized_size(photo: Size, spec: SlidingWindow) -> Size:
    """(height, width) in pixels at which a photo of (height, width) is looked at.

    Each side times the same ratio, rounded as in `letterbox.fitted_size`; the shorter side is `short_side` exactly, or
    less where the longer one would pass `long_side`.
    """
    ratio = 1.0 if spec.short_side is None else spec.short_side / min(photo)
    if spec.long_side is not None:
        ratio = min(ratio, spec.long_side / max(photo))
    return max(1, round(photo[0] * ratio)), max(1, round(photo[1] * ratio))


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows begin along a side: every `stride` pixels, the last shifted back so that it ends with the photo."""
    count = -(-max(side - window, 0) // stride) + 1
    return [min(index * stride, max(side - window, 0)) for index in range(count)]


def resize(image: Image.Image, spec: SlidingWindow) -> Image.Image:
    """An RGB photo in the size at which it is looked at."""
    height, width = resized_size((image.height, image.width), spec)
    return image.resize((width, height), FILTERS[spec.interpolation])


def resize_and_normalise(image: Image.Image, spec: SlidingWindow) -> InputArray:
    """An RGB photo as the windows are cut from it, (3, H, W); see `graph_input`."""
    return graph_input(np.asarray(resize(image, spec)), spec)


def segment_photo(image: Image.Image, spec: SlidingWindow, run: RunWindows) -> Segmentation:
    """Labels of an RGB photo in its own size, by the largest averaged logit; of equal ones the first class.

    Args:
        image: upright.
        spec: windows and stride.
        run: from windows to logits; is given the windows of one row or column at once.
    """
    return segment_resized(np.asarray(resize(image, spec)), (image.height, image.width), spec, run)


def segment_resized(levels: NDArray[np.uint8], size: Size, spec: SlidingWindow, run: RunWindows) -> Segmentation:
    """As `segment_photo`, of a photo that was resized already.

    Args:
        levels: (H, W, 3) RGB, see `resize`.
        size: (height, width) in pixels of the labels: the photo's own.
        spec: windows and stride.
        run: as there.
    """

    # Only what a window shows becomes float, a quarter of the memory of a whole photo's.
    def read(rows: slice, columns: slice) -> InputArray:
        return graph_input(levels[rows, columns], spec)

    return _label(averaged_logits(read, (levels.shape[0], levels.shape[1]), size, spec, run), size)


def segment_normalised(image_chw: FloatArray, size: Size, spec: SlidingWindow, run: RunWindows) -> Segmentation:
    """Labels of a photo that was resized and normalised already.

    Args:
        image_chw: (3, H, W) from `resize_and_normalise`.
        size: (height, width) in pixels of the labels: the photo's own.
        spec: windows and stride.
        run: from windows to logits; is given the windows of one row or column at once.
    """
    _, height, width = image_chw.shape

    def read(rows: slice, columns: slice) -> FloatArray:
        return image_chw[:, rows, columns]

    return _label(averaged_logits(read, (height, width), size, spec, run), size)


def _label(parts: Iterable[tuple[Place, FloatArray]], size: Size) -> Segmentation:
    """The largest of each pixel's logits."""
    labels: Labels = np.empty(size, dtype=np.uint8)
    totals = counts = np.zeros(0)
    for place, logits in parts:
        classes = len(logits)
        if not len(totals):
            totals, counts = np.zeros(classes), np.zeros(classes)
            labels = labels if classes <= 256 else np.empty(size, dtype=np.uint16)
        best = logits.argmax(axis=0)
        labels[place] = best
        largest = np.take_along_axis(logits, best[None], axis=0)
        probabilities = 1 / np.exp(logits - largest).sum(axis=0)  # softmax of the largest
        totals += np.bincount(best.ravel(), weights=probabilities.ravel(), minlength=classes)
        counts += np.bincount(best.ravel(), minlength=classes)
    return Segmentation(labels=labels, scores=(totals / np.maximum(counts, 1)).astype(np.float32))


def averaged_logits(
    read: ReadPixels, photo: Size, size: Size, spec: SlidingWindow, run: RunWindows
) -> Iterator[tuple[Place, FloatArray]]:
    """The final map of logits in parts, each with its place in the map: a slice of u and one of v.

    The parts are bands across the shorter side of the photo, so that the windows that lie across one band are few
    however long the photo is; a window is run when the first band needs it and forgotten after the last.

    Args:
        read: pixels of the resized photo.
        photo: (H, W) of it.
        size: (u, v) of the final map.
        spec: windows and stride.
        run: from windows to logits.
    """
    if photo[0] >= photo[1]:
        for rows, logits in _bands(read, photo, size, spec, run):
            yield (rows, slice(None)), logits
        return

    def read_turned(rows: slice, columns: slice) -> InputArray:
        return read(columns, rows).swapaxes(1, 2)

    def run_turned(windows: InputArray) -> FloatArray:
        return run(np.ascontiguousarray(windows.swapaxes(2, 3))).swapaxes(2, 3)

    turned = spec.model_copy(update={"window": spec.window[::-1], "stride": spec.stride[::-1]})
    for columns, logits in _bands(read_turned, photo[::-1], size[::-1], turned, run_turned):
        yield (slice(None), columns), logits.swapaxes(1, 2)


def _bands(
    read: ReadPixels, photo: Size, size: Size, spec: SlidingWindow, run: RunWindows
) -> Iterator[tuple[slice, FloatArray]]:
    """The final map from top to bottom, a band of rows at a time: `BLOCK`, or fewer as `MAX_BYTES` demands."""
    tops, lefts = (window_starts(*side) for side in zip(photo, spec.window, spec.stride, strict=True))
    vertical = _share_matrices(photo[0], tops, spec.window[0], size[0])
    horizontal = _share_matrices(photo[1], lefts, spec.window[1], size[1])
    rows_of_windows: dict[int, FloatArray] = {}  # index of the row -> (windows, K, h / 4, w / 4)
    start, step = 0, 1
    while start < size[0]:
        stop = min(start + step, size[0])
        needed = [index for index, share in enumerate(vertical) if share.start < stop and share.stop > start]
        rows_of_windows = {index: rows_of_windows[index] for index in needed if index in rows_of_windows}
        for index in needed:
            if index not in rows_of_windows:
                rows_of_windows[index] = run(_cut(read, tops[index], lefts, spec))
        classes = rows_of_windows[needed[0]].shape[1]
        yield slice(start, stop), _combine(rows_of_windows, vertical, horizontal, slice(start, stop))
        start = stop
        step = min(BLOCK, max(1, MAX_BYTES // (classes * size[1] * np.dtype(np.float32).itemsize)))


def _cut(read: ReadPixels, top: int, lefts: Sequence[int], spec: SlidingWindow) -> InputArray:
    """The windows of one row (len(lefts), 3, h, w); what lies outside the photo is 0 once it is normalised."""
    height, width = spec.window
    read_row = (read(slice(top, top + height), slice(left, left + width)) for left in lefts)
    return np.stack([padded(window_chw, spec) for window_chw in read_row])


def padded(image_chw: InputArray, spec: SlidingWindow) -> InputArray:
    """A photo, or a part of one, made as large as a window, right and below: with zeros, or levels near them."""
    window = np.zeros((3, *spec.window), dtype=spec.dtype)
    if spec.dtype == "uint8":
        window += np.array(spec.nearest_levels, dtype=np.uint8)[:, None, None]
    window[:, : image_chw.shape[1], : image_chw.shape[2]] = image_chw
    return window


def _combine(
    rows_of_windows: dict[int, FloatArray], vertical: "list[_Share]", horizontal: "list[_Share]", rows: slice
) -> FloatArray:
    """Rows of the final map (K, rows, v): the sum of what each window adds to them."""
    classes = next(iter(rows_of_windows.values())).shape[1]
    total = np.zeros((classes, rows.stop - rows.start, max(share.stop for share in horizontal)), dtype=np.float32)
    for index, logits in rows_of_windows.items():
        first, last = max(rows.start, vertical[index].start), min(rows.stop, vertical[index].stop)
        cells, down = vertical[index].part(first, last)
        for window, share in zip(logits, horizontal, strict=True):
            lines = down @ window[:, cells]  # (K, last - first, w / 4)
            for start in range(share.start, share.stop, BLOCK):
                stop = min(start + BLOCK, share.stop)
                cells_across, across = share.part(start, stop)
                total[:, first - rows.start : last - rows.start, start:stop] += lines[..., cells_across] @ across.T
    return total


@dataclass(frozen=True)
class _Share:
    """What a window adds to the final map along one axis: `matrix` @ cells for the pixels from `start` to `stop`."""

    start: int
    stop: int
    matrix: FloatArray  # (stop - start, cells of the window); a row has a few neighbouring entries that are not 0
    first_cells: NDArray[np.int64]  # (stop - start,), of the entries that are not 0; they only grow
    last_cells: NDArray[np.int64]

    def part(self, start: int, stop: int) -> tuple[slice, FloatArray]:
        """For the pixels from `start` to `stop` alone: the cells that they need, and the matrix of those."""
        rows = slice(start - self.start, stop - self.start)
        cells = slice(int(self.first_cells[rows][0]), int(self.last_cells[rows][-1]) + 1)
        return cells, self.matrix[rows, cells]


def _share_matrices(side: int, starts: Sequence[int], window: int, final: int) -> list[_Share]:
    """One share a window, for one axis.

    Args:
        side: pixels of the resized photo.
        starts: where the windows begin.
        window: pixels of a window.
        final: pixels of the final map.
    """
    cells = window // SEGMENTER_STRIDE
    cell_lower, cell_upper, cell_weight = _bilinear_sources(cells, window)
    upsampling = np.zeros((window, cells))
    upsampling[np.arange(window), cell_lower] += 1 - cell_weight
    upsampling[np.arange(window), cell_upper] += cell_weight
    covering = np.zeros(side)
    for start in starts:
        covering[start : start + window] += 1
    lower, upper, weight = _bilinear_sources(side, final)
    shares = []
    for start in starts:
        stop = min(start + window, side)
        averaged = upsampling[: stop - start] / covering[start:stop, None]
        first, last = int(np.searchsorted(upper, start)), int(np.searchsorted(lower, stop))
        matrix = np.zeros((last - first, cells))
        for source, factor in ((lower, 1 - weight), (upper, weight)):
            nearest = source[first:last] - start
            inside = (nearest >= 0) & (nearest < stop - start)
            matrix[inside] += factor[first:last][inside, None] * averaged[nearest[inside]]
        above, below = (np.clip(source[first:last], start, stop - 1) - start for source in (lower, upper))
        shares.append(_Share(first, last, matrix.astype(np.float32), cell_lower[above], cell_upper[below]))
    return shares


def _bilinear_sources(old: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """For each of the new pixels the two old ones that it lies between, and the weight of the second."""
    centres = np.maximum((np.arange(new) + 0.5) * (old / new) - 0.5, 0)
    lower = np.minimum(centres.astype(np.int64), old - 1)
    return lower, np.minimum(lower + 1, old - 1), centres - lower
