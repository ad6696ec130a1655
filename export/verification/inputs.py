"""What the graph is tried on: random numbers, photos or clips, and constants, in batches of several sizes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from convmae_deploy.backends.base import FloatArray, InputArray
from convmae_deploy.bundle.manifest import SIDE_STEP, InputSpec
from convmae_deploy.bundle.preprocessing import AnyPreprocessing, Size
from convmae_deploy.tasks.base import Predictor
from convmae_deploy.tasks.preprocess import nearest_levels
from export.verification.samples import SEED, Samples

DETECTED_PHOTOS = 8  # photos that a detector is tried on, at most


@dataclass(frozen=True)
class Batch:
    """One input of the graph with the name that reports use."""

    name: str
    images: InputArray  # (B, 3, H, W) or (B, 3, T, H, W), as the graph takes them
    blank: bool = False  # all pixels of an image are alike


def verification_batches(
    task: type[Predictor], spec: AnyPreprocessing, photos: Samples, limits: InputSpec
) -> list[Batch]:
    """Random numbers, photos and constants at batch 1, 2 and the largest, and random numbers at sizes in between.

    Of a graph for inputs of several heights and widths, random numbers and photos at five more of these.

    Args:
        task: of the model.
        spec: its preprocessing; sets the size of the images and the range of normalised values.
        photos: or clips; repeated where a batch needs more.
        limits: what the graph takes.
    """
    generator = np.random.default_rng(SEED)
    least, largest = limits.min_batch, limits.max_batch
    sizes = sorted({max(least, 1), max(least, min(2, largest)), largest})
    between = sorted({3, (3 + largest) // 2} & set(range(max(3, least), largest)))
    pixels = photos.inputs(task, spec, 0, largest)
    constants = constant_images(spec)
    batches = []
    for size in sizes:
        batches.append(_random_batch(generator, spec, size))
        chosen = [pixels[index % len(pixels)] for index in range(size)]
        batches.append(Batch(f"{photos.name} batch {size}", np.stack(chosen)))
        batches += _constant_batches(constants, size)
    batches += [_random_batch(generator, spec, size) for size in between]
    if task.GIVES_LISTS:  # a few photos have too few objects to count
        batches += [batch for batch in _further_photos(task, spec, photos, largest) if len(batch.images) >= least]
    for sides in other_sizes(limits):
        sized, title = spec.with_input_size(sides), f"of {sides[0]} x {sides[1]}"
        batches.append(_random_batch(generator, sized, least, title))
        pixels = photos.inputs(task, sized, 0, least)
        batches.append(Batch(f"{photos.name} {title} batch {least}", np.stack([*pixels, *pixels[:1] * least][:least])))
    return batches


def other_sizes(limits: InputSpec) -> list[Size]:
    """Five sizes (height, width) that are not the usual one: the corners of the range, and two inside of it."""
    if limits.sides is None:
        return []
    least, most = limits.sides.smallest, limits.sides.largest
    usual = limits.shape[-2:]
    below, above = (
        SIDE_STEP * ((side + edge) // 2 // SIDE_STEP) for side, edge in zip(usual, (least, most), strict=True)
    )
    wanted = [(least, least), (least, most), (most, most), (below, above), (above, below)]
    return [size for size in dict.fromkeys(wanted) if size != usual]


def smallest_batches(batches: Sequence[Batch]) -> list[Batch]:
    """Those of the fewest images: single ones, unless the graph's batches have one size."""
    least = min(len(batch.images) for batch in batches)
    return [batch for batch in batches if len(batch.images) == least]


def constant_images(spec: AnyPreprocessing) -> dict[str, InputArray]:
    """Images or clips of one value each: 0, 1, black and white, which are the extremes of the normalised range.

    Graphs that take levels are given those that come nearest.
    """
    axes = spec.input_axes
    mean, std = (np.array(values, np.float32).reshape(3, *(1 for _ in axes)) for values in (spec.mean, spec.std))
    levels = {"zeros": np.zeros_like(mean), "ones": np.ones_like(mean), "black": -mean / std, "white": (1 - mean) / std}
    return {name: as_taken(np.broadcast_to(level, (3, *axes)).copy(), spec) for name, level in levels.items()}


def _random_batch(generator: np.random.Generator, spec: AnyPreprocessing, size: int, title: str = "") -> Batch:
    noise = generator.standard_normal((size, 3, *spec.input_axes), dtype=np.float32)
    return Batch(" ".join(filter(None, ("random", title, f"batch {size}"))), as_taken(noise, spec))


def as_taken(values: FloatArray, spec: AnyPreprocessing) -> InputArray:
    """Normalised values as the graph takes them: as they are, or the nearest levels."""
    return nearest_levels(values, spec) if spec.dtype == "uint8" else values


def _further_photos(task: type[Predictor], spec: AnyPreprocessing, photos: Samples, largest: int) -> Iterator[Batch]:
    """The photos after the first `largest`, up to DETECTED_PHOTOS, in batches of `largest` or what is left."""
    end = min(DETECTED_PHOTOS, len(photos.images))
    for start in range(largest, end, largest):
        chosen = photos.inputs(task, spec, start, min(start + largest, end))
        name = f"{photos.name} {start + 1} to {start + len(chosen)}"
        yield Batch(name, np.stack(chosen))


def _constant_batches(constants: dict[str, InputArray], size: int) -> Iterator[Batch]:
    """All constants in batches of `size`, the last filled up by starting again."""
    names, images = list(constants), list(constants.values())
    for start in range(0, len(names), size):
        chosen = [(start + offset) % len(names) for offset in range(size)]
        label = names[start] if size == 1 else "constants"
        if size == 2:
            label = "+".join(names[index] for index in chosen)
        yield Batch(f"{label} batch {size}", np.stack([images[index] for index in chosen]), blank=True)
