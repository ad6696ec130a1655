"""The gates: when do two arrays count as the same output of the same model?"""

import math
from dataclasses import dataclass

import numpy as np

from convmae_deploy.backends.base import FloatArray
from convmae_deploy.bundle.manifest import INT8, Precision
from convmae_deploy.bundle.numerics import OutputNumerics


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """What an output may differ by. The defaults allow anything finite."""

    absolute: float = math.inf  # an entry may differ by absolute + relative * |reference|
    relative: float = 0.0
    cosine: float = -math.inf  # least cosine similarity of an image's flattened output with the reference
    snr_db: float = -math.inf  # least ratio of the power of an image's output to that of its difference, in decibels
    top1: float = 1.0  # least share of images, or of cells of a map, with the same top class outside of the margin
    # Whether it holds for blank images too. There all tokens are alike and are rounded alike, so that errors add up
    # instead of cancelling out: weights in bfloat16 alone, all else in float32, leave 25 dB of E3 on black clips and
    # 60 dB on real ones (a nano trained on 8 classes).
    blank: bool = True

    @property
    def noise(self) -> float:
        """Largest root mean square of an image's difference, as a share of that of its output."""
        return 10 ** (-self.snr_db / 20)

    def describe(self) -> str:
        """The gate in words and numbers, for the table and the manifest."""
        parts = []
        if math.isfinite(self.absolute):
            parts.append(f"each entry |difference| <= {self.absolute:g} + {self.relative:g} |reference|")
            margin = "twice that"
        if math.isfinite(self.snr_db):
            parts.append(f"SNR of each image >= {self.snr_db:g} dB")
            margin = f"{TOP1_MARGIN * self.noise:.2g} of the logits' RMS, twice what this noise moves two of them apart"
        if not parts:
            return "reported only: the right shapes, no NaN or infinity"
        where = "wherever the" if self.top1 == 1 else f"on at least {self.top1:.1%} of the images or cells whose"
        return (
            f"{'; '.join(parts)}; cosine of each image >= {self.cosine}; no NaN or infinity; the same top class "
            f"{where} best two logits lie further apart than {margin}{'' if self.blank else BLANK}"
        )


BLANK = "; blank images are held to being finite alone, as there all tokens are rounded alike and errors add up"
EXACT_DB = 200.0  # the SNR of equal arrays, and the highest that is reported; JSON has no infinity
TOP1_MARGIN = 2 * math.sqrt(2)  # times the noise allowed: the difference of two logits has sqrt(2) of the noise of one
FINITE = Tolerance()
FP32 = Tolerance(absolute=1e-4, relative=1e-3, cosine=0.99999)
GATES: dict[Precision, Tolerance] = {
    "fp32": FP32,
    "fp16": Tolerance(snr_db=40.0, cosine=0.9995, top1=0.995, blank=False),
    "bf16": Tolerance(snr_db=28.0, cosine=0.998, top1=0.99, blank=False),
    **dict.fromkeys(INT8, FINITE),  # their gate is the metric of the task
}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How one output of one batch compares."""

    max_abs: float  # infinity when the arrays cannot be compared
    max_rel: float  # max_abs / largest absolute reference value
    cosine: float  # smallest over the images
    snr_db: float | None = None  # smallest over the images, at most EXACT_DB; None where nothing could be compared
    excess: float  # largest |difference| / allowed difference, or noise / allowed noise; at most 1 passes
    worst_image: int  # index in the batch of the image with the largest excess
    images_decided: int = (
        0  # images, or cells of a map, whose top class is outside the margin; 0 when top classes are not compared
    )
    images_agreeing: int = 0  # those of them with the same top class
    problem: str | None  # the first gate that failed, in words; None: passed


def compare(reference: FloatArray, found: FloatArray, tolerance: Tolerance, *, top1: bool = False) -> Comparison:
    """Holds `found` against `reference`, image by image in float64.

    Args:
        reference: (B, ...).
        found: the same shape.
        tolerance: the gate.
        top1: whether axis 1 holds logits of classes, whose largest must agree, for each image or each cell of a map.
    """
    if found.shape != reference.shape:
        return incomparable(f"its shape is {found.shape} instead of {reference.shape}")
    for image in range(len(reference)):
        for array, who in ((reference[image], "PyTorch"), (found[image], "the graph")):
            if not np.isfinite(array).all():
                return incomparable(f"{who} gives NaN or infinity", image)
    images = [_compare_image(reference[image], found[image], tolerance) for image in range(len(reference))]
    worst = max(range(len(images)), key=lambda image: images[image][1])
    max_abs, excess = max(entry[0] for entry in images), images[worst][1]
    cosine, snr_db = (min(entry[index] for entry in images) for index in (2, 3))
    decided, agreeing = _count_top1(reference, found, tolerance) if top1 else (0, 0)
    problem = None
    if snr_db < tolerance.snr_db:
        problem = f"the signal-to-noise ratio is {snr_db:.1f} dB, below {tolerance.snr_db:g} dB"
    elif excess > 1:
        problem = f"an entry is off by {excess:.3g} times the allowed difference (max |difference| {max_abs:.3g})"
    elif cosine < tolerance.cosine:
        problem = f"the cosine similarity is {cosine:.7f}, below {tolerance.cosine}"
        worst = min(range(len(images)), key=lambda image: images[image][2])
    elif agreeing < tolerance.top1 * decided:
        problem = f"{decided - agreeing} of {decided} have another top class"
    scale = float(np.abs(reference).max(initial=0.0))
    return Comparison(
        max_abs=max_abs,
        max_rel=max_abs / scale if scale else max_abs,
        cosine=cosine,
        snr_db=snr_db,
        excess=excess,
        worst_image=worst,
        images_decided=decided,
        images_agreeing=agreeing,
        problem=problem,
    )


def incomparable(problem: str, image: int = 0) -> Comparison:
    """The comparison of an output that is missing, misshapen or not finite."""
    return Comparison(
        max_abs=math.inf, max_rel=math.inf, cosine=0.0, excess=math.inf, worst_image=image, problem=problem
    )


def worst_of(comparisons: list[tuple[str, Comparison]]) -> OutputNumerics:
    """One output's row of the report from its comparisons on all named inputs."""
    worst_input, worst = max(comparisons, key=lambda entry: (entry[1].problem is not None, entry[1].excess))
    every = [comparison for _, comparison in comparisons]
    decided = sum(comparison.images_decided for comparison in every)
    agreeing = sum(comparison.images_agreeing for comparison in every)
    return OutputNumerics(
        max_abs=max(comparison.max_abs for comparison in every),
        max_rel=max(comparison.max_rel for comparison in every),
        cosine=min(comparison.cosine for comparison in every),
        snr_db=min((comparison.snr_db for comparison in every if comparison.snr_db is not None), default=None),
        top1_agreement=agreeing / decided if decided else None,
        excess=worst.excess,
        worst_input=worst_input,
        passed=all(comparison.problem is None for comparison in every),
    )


def _compare_image(reference: FloatArray, found: FloatArray, tolerance: Tolerance) -> tuple[float, float, float, float]:
    """(largest absolute difference, excess, cosine, SNR in dB) of one image's output."""
    expected, actual = reference.astype(np.float64).ravel(), found.astype(np.float64).ravel()
    difference = np.abs(expected - actual)
    allowed = tolerance.absolute + tolerance.relative * np.abs(expected)
    norms = float(np.linalg.norm(expected)), float(np.linalg.norm(actual))
    if min(norms) > 0:
        cosine = min(1.0, float(expected @ actual) / (norms[0] * norms[1]))  # rounding may pass 1
    else:
        cosine = 1.0 if norms[0] == norms[1] else 0.0
    snr_db = signal_to_noise(norms[0], float(np.linalg.norm(difference)))
    excess = max(float((difference / allowed).max(initial=0.0)), 10 ** ((tolerance.snr_db - snr_db) / 20))
    return float(difference.max(initial=0.0)), excess, cosine, snr_db


def signal_to_noise(signal: float, noise: float) -> float:
    """The ratio of two root mean squares in decibels, within +-EXACT_DB."""
    if noise == 0:
        return EXACT_DB
    return max(-EXACT_DB, min(EXACT_DB, 20 * math.log10(signal / noise))) if signal else -EXACT_DB


def _count_top1(reference: FloatArray, found: FloatArray, tolerance: Tolerance) -> tuple[int, int]:
    """(images or cells whose best two reference logits lie further apart than both may move, those that agree)."""
    if reference.shape[1] < 2:
        return 0, 0
    best_two = np.partition(reference, -2, axis=1)[:, -2:].astype(np.float64)  # (B, 2, ...), ascending
    if math.isfinite(tolerance.absolute):
        margin = 2 * tolerance.absolute + tolerance.relative * np.abs(best_two).sum(axis=1)
    else:
        axes = tuple(range(1, reference.ndim))
        rms = np.sqrt(np.square(reference, dtype=np.float64).mean(axis=axes, keepdims=True))[:, 0]  # (B, 1, ...)
        margin = TOP1_MARGIN * tolerance.noise * rms
    decided = best_two[:, 1] - best_two[:, 0] > margin
    agreeing = decided & (reference.argmax(axis=1) == found.argmax(axis=1))
    return int(decided.sum()), int(agreeing.sum())
