"""Where vectors come from, and whether those of two origins may stand in one index.

Vectors can be compared only with vectors that were made in the same way: of the same weights, from inputs prepared in
the same way, taken at the same place. A fingerprint stands for all of that. Two precisions of one model have different
fingerprints; how far their vectors are apart follows from the signal-to-noise ratios that the export proved.
"""

import hashlib
import json
import math
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from convmae_deploy.backends.engine_record import find_engine, read_record
from convmae_deploy.backends.runtimes import DEFAULT_RUNTIME, RUNTIMES, RuntimeOptions
from convmae_deploy.bundle.loading import Bundle, BundleError
from convmae_deploy.bundle.manifest import BundleFile
from convmae_deploy.bundle.numerics import OutputNumerics
from convmae_deploy.extraction.tiles import Tiles
from convmae_deploy.tasks import TASKS, task_of
from convmae_deploy.tasks.base import LOGITS, NO_OPTIONS, PredictOptions
from convmae_deploy.tasks.features import FeaturePredictor

METADATA_KEY = "convmae_deploy"  # under which each output format holds its origin, as JSON
# Decibels that the difference of two vectors lies below them, at least, for both to stand in one index. At 30 dB the
# cosine of the two is 0.9995; `python -m benchmarks.photo_search` measures what that does to the photos found.
MIN_SNR_DB = 30.0
_EXACT_DB = 200.0  # beyond what fp32 can tell apart


class LevelOrigin(BaseModel):
    """One level of features."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fingerprint: str = Field(pattern="^[0-9a-f]{16}$")
    shape: tuple[int, ...]  # of one photo or video
    # against PyTorch in fp32, proven at export in the runtime that the bundle names; None: not for this computation
    snr_db: float | None = Field(default=None, ge=-_EXACT_DB, le=_EXACT_DB)


class Origin(BaseModel):
    """What vectors were made by."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: str  # its name
    task: str
    weights: str  # SHA-256 of the checkpoint; of the graph where the bundle does not say it
    graph: str  # file
    graph_sha256: str
    precision: str  # that the numbers were computed in
    preprocessing: dict[str, Any]
    pooling: str  # of several views of a video
    levels: dict[str, LevelOrigin]
    dtype: str = "f32"  # that they are stored in
    release: str = Field(default_factory=lambda: version("convmae-deploy"))  # of this package

    @property
    def tiled(self) -> bool:
        """Whether each row is of a tile of a photo, and has its place."""
        return "tile" in self.preprocessing

    def fingerprints(self) -> str:
        """One text for all levels, for headers: `pooled=0123456789abcdef, e3=…`."""
        return ", ".join(f"{name}={level.fingerprint}" for name, level in self.levels.items())


def origin_of(
    bundle: Bundle,
    levels: tuple[str, ...],
    *,
    runtime: RuntimeOptions = DEFAULT_RUNTIME,
    options: PredictOptions = NO_OPTIONS,
    dtype: str = "f32",
    upright: bool = True,
    tiles: Tiles | None = None,
) -> Origin:
    """The origin of the vectors that a bundle gives.

    Args:
        bundle: of the model.
        levels: names of its features.
        runtime: what runs it: which file, in which precision.
        options: of each file: how often a video is looked at.
        dtype: "f32" or "f16", that the vectors are stored in. It is no part of the fingerprint: rounding to f16 lies
            some 70 dB below the numbers.
        upright: whether photos were turned as their EXIF data says, as everywhere but where a client says otherwise.
        tiles: that photos are cut into; None: they are resized and cropped as the bundle says.
    """
    name, graph, precision = _computation(bundle, runtime)
    manifest = bundle.manifest
    contents = {part: file.sha256 for part, file in {name: graph, **graph.weights}.items()}
    preprocessing = manifest.preprocessing.model_dump(mode="json", exclude={"dtype"})  # the numbers are the same
    if options.frame_sampling_rate is not None:
        preprocessing["stride"] = options.frame_sampling_rate
    if tiles is not None:  # of which no pixel is resized
        kept = {name: preprocessing[name] for name in ("mean", "std")}
        preprocessing = kept | {"tile": tiles.side, "overlap": tiles.overlap}
    if not upright:
        preprocessing["orientation"] = "as stored"
    views = (options.temporal_views or 1, options.spatial_views or 1)
    pooling = "as the graph gives it" if views == (1, 1) else f"mean of {views[0]} x {views[1]} views"
    proven = graph.numerics.outputs if graph.numerics is not None and precision == graph.precision else {}
    facts = {"graph": sorted(contents.values()), "computed_in": precision, "preprocessing": preprocessing}
    return Origin(
        bundle=manifest.name,
        task=manifest.task,
        weights=manifest.provenance.get("checkpoint_sha256", graph.digest),
        graph=name,
        graph_sha256=graph.digest,
        precision=precision,
        preprocessing=preprocessing,
        pooling=pooling,
        levels={
            level: LevelOrigin(
                fingerprint=_hash({**facts, "level": level, "pooling": pooling})[:16],
                shape=manifest.outputs[level].shape,
                snr_db=_proven_db(proven.get(level)),
            )
            for level in levels
        },
        dtype=dtype,
    )


def _proven_db(numerics: OutputNumerics | None) -> float | None:
    if numerics is None or numerics.snr_db is None or not numerics.passed:
        return None
    return min(numerics.snr_db, _EXACT_DB) if numerics.snr_db >= -_EXACT_DB else None


def feature_levels(bundle: Bundle) -> tuple[str, ...]:
    """Names of the features of a bundle.

    Raises:
        BundleError: it has none.
    """
    manifest = bundle.manifest
    if not issubclass(task_of(manifest), FeaturePredictor):
        able = ", ".join(name for name, task in TASKS.items() if issubclass(task, FeaturePredictor))
        raise BundleError(f"{manifest.name} is a {manifest.task} model, which gives no features; give one of: {able}")
    return tuple(name for name in manifest.outputs if name != LOGITS)


def _computation(bundle: Bundle, runtime: RuntimeOptions) -> tuple[str, BundleFile, str]:
    """The graph that is run, and the precision that it is computed in."""
    if RUNTIMES[runtime.settled].takes_engines:
        record = read_record(find_engine(bundle, runtime.file))
        return record.graph, bundle.manifest.files[record.graph], f"{record.precision} engine"
    name = runtime.file or bundle.default_file
    _, graph = bundle.graph(name)
    return name, graph, runtime.precision or graph.precision


def _hash(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class Judgement(BaseModel):
    """Whether the vectors of one level of two origins may stand in one index."""

    level: str
    together: bool
    reason: str


def compare(first: Origin, second: Origin) -> list[Judgement]:
    """Judges each level that both have; none where there is no such level."""
    return [_judge(level, first, second) for level in first.levels if level in second.levels]


def _judge(level: str, first: Origin, second: Origin) -> Judgement:
    one, other = first.levels[level], second.levels[level]
    if one.fingerprint == other.fingerprint:
        return Judgement(level=level, together=True, reason=f"the same fingerprint {one.fingerprint}")
    differences = [
        word
        for word, value, different in (
            ("weights", first.weights, second.weights),
            ("task", first.task, second.task),
            ("preprocessing", first.preprocessing, second.preprocessing),
            ("pooling", first.pooling, second.pooling),
            ("shape", one.shape, other.shape),
        )
        if value != different
    ]
    if differences:
        return Judgement(level=level, together=False, reason=f"different {', '.join(differences)}")
    pair = f"{first.precision} and {second.precision}"
    if one.snr_db is None or other.snr_db is None:
        unknown = " and ".join(
            f"{origin.graph} in {origin.precision}"
            for origin, place in ((first, one), (second, other))
            if place.snr_db is None
        )
        return Judgement(
            level=level, together=False, reason=f"{pair} of the same weights, but nothing was proven of {unknown}"
        )
    ratio = joint_snr_db(one.snr_db, other.snr_db)
    words = f"{pair} of the same weights, proven to lie {ratio:.1f} dB apart at least; {MIN_SNR_DB:g} dB are needed"
    return Judgement(level=level, together=ratio >= MIN_SNR_DB, reason=words)


def joint_snr_db(first: float, second: float) -> float:
    """The least signal-to-noise ratio in decibels between two vectors, from those of each against a third.

    Their errors may point the same way, so amplitudes are added, not energies.
    """
    amplitude = sum(10 ** (-ratio / 20) for ratio in (first, second))
    return -20 * math.log10(amplitude)
