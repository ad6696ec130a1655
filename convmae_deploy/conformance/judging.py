"""Holds what another program made of a kit's photos against what is right, and finds the mistake that explains it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convmae_deploy.backends.base import FloatArray, Outputs
from convmae_deploy.bundle.manifest import Manifest, Precision
from convmae_deploy.conformance.kit import KitItem, kit_outputs, sampled
from convmae_deploy.conformance.mistakes import Maker, Mistakes, as_taken, every_mistake, levels_of, scaling_of
from convmae_deploy.errors import ConvMAEError, ModelError
from convmae_deploy.tasks import task_of

Run = Callable[[FloatArray], Outputs]  # one photo (1, 3, H, W) -> outputs (1, ...)
Arrays = Mapping[str, NDArray[Any]]

# Levels out of 255 that inputs may be off. Another decoder of JPEG and another antialiased filter are within them; the
# weakest mistake on its photo, a bilinear filter in place of a bicubic one, is far outside of the mean.
MEAN_LEVELS, MOST_LEVELS = 0.25, 8.0
LEAST_DB: Mapping[Precision, float] = {  # of each output
    "fp32": 60.0,
    "fp16": 40.0,
    "bf16": 28.0,
    "int8": 15.0,
    "int8-fp16": 15.0,
}
LEAST_DB_OF_FILES = 30.0  # where a program decodes and resizes itself, at most this is asked
MOST_DB = 200.0
EXPLAINED = 0.2  # share of what is wrong that a mistake which explains it may leave
BEYOND_DOUBT = 0.01  # the share that it may leave for no other to be tried
MOST_AT_ONCE = 2  # mistakes
NEAR_LEVELS = 1.0  # that it may leave in the mean where that is less than half: another decoder, another bicubic filter
COMPARED = 30_000  # pixels of an input, or up to twice as many, that mistakes are looked for in


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What came out for one photo."""

    photo: str
    what: str  # was compared
    difference: str  # in numbers
    passed: bool
    mistakes: Mistakes | None = None  # that explain it; None: none is known to
    theirs: bool = False  # whether a graph wants inputs with these mistakes

    @property
    def verdict(self) -> str:
        """What is wrong, in words."""
        if self.passed:
            return "right"
        if self.mistakes is None:
            return "wrong"
        words = self.mistakes.words()
        return f"the graph wants an input of which this is so: {words}" if self.theirs else words


def judge_inputs(manifest: Manifest, kit: Sequence[KitItem], found: Arrays) -> list[Finding]:
    """Judges what was to be given to the graph.

    Args:
        manifest: of the bundle.
        kit: of the bundle.
        found: photo -> (3, H, W) or (1, 3, H, W), as it was to be given to the graph.

    Raises:
        ConvMAEError: an array has another shape.
    """
    spec, shape = manifest.preprocessing, manifest.input.shape
    arrays = {name: _one(f"the input of {name}", values, shape) for name, values in found.items()}
    chosen = {item.photo.name: item for item in kit if item.photo.name in arrays}
    makers = {name: _maker(manifest, item) for name, item in chosen.items()}
    differences = {
        name: np.abs(levels_of(arrays[name], spec) - levels_of(item.input, spec)) for name, item in chosen.items()
    }
    passed = {name: bool(off.mean() <= MEAN_LEVELS and off.max() <= MOST_LEVELS) for name, off in differences.items()}

    def error(name: str, mistakes: Mistakes) -> float:
        """Mean difference in levels from what the mistakes give."""
        step = max(1, arrays[name].shape[1] * arrays[name].shape[2] // COMPARED)
        off = np.abs(makers[name].input(mistakes) - arrays[name]).reshape(3, -1)[:, ::step].mean(axis=1)
        return float((off * scaling_of(spec)[1].ravel()).mean() * 255)

    wrong = [name for name, held in passed.items() if not held]
    explained = explain(wrong, error, every_mistake(spec, MOST_AT_ONCE), near=NEAR_LEVELS)
    return [
        Finding(
            photo=chosen[name].photo.file,
            what="input",
            difference=f"mean {off.mean():.3g}, largest {off.max():.3g} of 255 levels",
            passed=passed[name],
            mistakes=explained.get(name),
        )
        for name, off in differences.items()
    ]


def judge_outputs(
    manifest: Manifest,
    kit: Sequence[KitItem],
    found: Mapping[str, Arrays],
    *,
    what: str,
    least_db: float,
    run: Run | None,
    theirs: bool = False,
) -> list[Finding]:
    """Judges what a graph gave, or a program for a file.

    Args:
        manifest: of the bundle.
        kit: of the bundle.
        found: photo -> name -> an output, with or without a batch axis, or what `sampled` takes of it.
        what: was compared, for people.
        least_db: the least signal-to-noise ratio of an output, in decibels.
        run: a graph that is given mistaken inputs to find the mistake; None: nothing is looked for.
        theirs: whether it is the graph that is judged: a mistake with which it gives what is right is what it expects.
            Otherwise it is the bundle's, and what it gives is looked for in `found`.

    Raises:
        ConvMAEError: an output has another shape, or there is none.
    """
    chosen = {item.photo.name: item for item in kit if item.photo.name in found}
    arrays = {name: outputs_of(manifest, item, found[name]) for name, item in chosen.items()}
    ratios = {name: worst_ratio(item.outputs, arrays[name]) for name, item in chosen.items()}
    makers = {name: _maker(manifest, item) for name, item in chosen.items()}

    def error(name: str, mistakes: Mistakes) -> float:
        assert run is not None
        try:
            made = outputs_of(
                manifest,
                chosen[name],
                one_photo(run(as_taken(makers[name].input(mistakes)[None], manifest.preprocessing))),
            )
        except ModelError:  # it does not run, or numbers overflow
            return float("inf")
        target = chosen[name].outputs if theirs else arrays[name]
        return float(10 ** (-worst_ratio(target, made)[0] / 20))

    wrong = [name for name, (ratio, _) in ratios.items() if ratio < least_db]
    explained = {} if run is None else explain(wrong, error, every_mistake(manifest.preprocessing, 1))
    return [
        Finding(
            photo=chosen[name].photo.file,
            what=what,
            difference=f"{ratio:.1f} dB ({output}); {least_db:g} are needed",
            passed=name not in wrong,
            mistakes=explained.get(name),
            theirs=theirs,
        )
        for name, (ratio, output) in ratios.items()
    ]


def explain(
    photos: Sequence[str],
    error: Callable[[str, Mistakes], float],
    candidates: Iterable[Mistakes],
    near: float = 0.0,
) -> dict[str, Mistakes]:
    """Photo -> the mistakes that explain it; those that nothing explains are left out.

    Few mistakes are preferred to many, and of as many those that explain more photos, then those that do it better.

    Args:
        photos: what is to be explained.
        error: how far a photo is from what some mistakes make of it; 0: it is that.
        candidates: few mistakes first.
        near: an error that may be left where it is less than half of what there was.
    """
    if not photos:
        return {}
    whole = {name: error(name, Mistakes()) for name in photos}
    allowed = {name: max(EXPLAINED * own, min(own / 2, near)) for name, own in whole.items()}
    explained: dict[str, Mistakes] = {}
    by_count: dict[int, list[Mistakes]] = {}
    for one in candidates:
        by_count.setdefault(one.number, []).append(one)
    for tried in by_count.values():
        left = [name for name in photos if name not in explained]
        errors: dict[Mistakes, dict[str, float]] = {}
        for one in tried if left else ():
            errors[one] = {name: error(name, one) for name in left}
            if all(own <= BEYOND_DOUBT * whole[name] for name, own in errors[one].items()):
                break
        while left:
            fitting = {one: [own[name] for name in left if own[name] <= allowed[name]] for one, own in errors.items()}
            best = max(errors, key=lambda one: (len(fitting[one]), -sum(fitting[one])))
            if not fitting[best]:
                break
            explained |= {name: best for name in left if errors[best][name] <= allowed[name]}
            left = [name for name in left if name not in explained]
    return explained


def outputs_of(manifest: Manifest, item: KitItem, found: Arrays) -> dict[str, NDArray[Any]]:
    """Of one photo's outputs those that a kit holds, as it holds them.

    Raises:
        ConvMAEError: an output has another shape, or there is none.
    """
    taken = {}
    for name in kit_outputs(manifest):
        if name in found:
            shape, where = manifest.outputs[name].shape, f"{name} of {item.photo.name}"
            whole = found[name].shape != item.outputs[name].shape
            taken[name] = sampled(_one(where, found[name], shape)) if whole else found[name]
    if not taken:
        names = ", ".join(kit_outputs(manifest))
        raise ConvMAEError(f"expected outputs of {item.photo.name} among {names}; found {', '.join(found) or 'none'}")
    return taken


def one_photo(outputs: Outputs) -> Outputs:
    """Of a batch of one."""
    return {name: values[0] for name, values in outputs.items()}


def worst_ratio(right: Arrays, found: Arrays) -> tuple[float, str]:
    """The smallest signal-to-noise ratio in decibels of the outputs that are there, and of which one it is."""
    return min((_ratio(right[name], values), name) for name, values in found.items() if name in right)


def _ratio(right: NDArray[Any], found: NDArray[Any]) -> float:
    signal, own = right.astype(np.float64), found.astype(np.float64)
    if not np.isfinite(own).all():
        return -MOST_DB
    noise, power = float(np.square(signal - own).sum()), float(np.square(signal).sum())
    if noise == 0:
        return MOST_DB
    return max(-MOST_DB, min(MOST_DB, 10 * float(np.log10(max(power, 1e-30) / noise))))


def _maker(manifest: Manifest, item: KitItem) -> Maker:
    return Maker(task_of(manifest), manifest.preprocessing, item.photo.content)


def _one(what: str, found: NDArray[Any], shape: tuple[int, ...]) -> FloatArray:
    """One photo's array without the batch axis.

    Raises:
        ConvMAEError: it has another shape.
    """
    if found.shape not in (shape, (1, *shape)) or found.dtype.kind not in "fiu":
        last = (*shape[1:], shape[0])
        hint = ", its channels come last" if found.shape in (last, (1, *last)) else ""
        raise ConvMAEError(f"{what} must be numbers of shape {shape}; got {found.dtype} {found.shape}{hint}")
    return found.reshape(shape).astype(np.float32, copy=False) if found.dtype.kind == "f" else found.reshape(shape)
