"""What all tasks share: a graph that takes batches of any size and is believed only after checks."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from convmae_deploy.backends.base import Backend, InputArray, Outputs
from convmae_deploy.backends.runtimes import DEFAULT_RUNTIME, RuntimeOptions
from convmae_deploy.bundle.graph_checks import checked_path
from convmae_deploy.bundle.loading import Bundle, BundleError
from convmae_deploy.bundle.manifest import Manifest, OutputSpec
from convmae_deploy.bundle.preprocessing import AnyPreprocessing, Size
from convmae_deploy.errors import ConvMAEError, ModelError
from convmae_deploy.media.images import DEFAULT_LIMITS, ImageLimits, decode_image
from convmae_deploy.media.photo_files import read_photo
from convmae_deploy.program import readable
from convmae_deploy.tasks.postprocess import ScoreFunction

LOGITS = "logits"
PHOTO_LIMITS = ("max_pixels", "max_side")  # options of all tasks for photos

logger = logging.getLogger("convmae_deploy")

Source = str | Path | bytes | Image.Image  # a file by its path, the content of one, or pixels
MediumName = Literal["photo", "video"]
Run = Callable[[InputArray, Sequence[str]], Outputs]  # runs a batch of any size, as `Predictor.run` does


class ModelOutputError(ModelError):
    """The graph returned what it must not: a wrong shape or values that are not finite. No input should cause it."""


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What can be asked of a prediction; each task takes some of these and refuses the others. None: its default."""

    top_k: int | None = None  # classes, at least 1 (5)
    function_to_apply: ScoreFunction | None = None  # from logits to the scores of classes (softmax)
    threshold: float | None = None  # the smallest score of an object, in [0, 1] (0.5)
    temporal_views: int | None = None  # clips spread over a video, at least 1 (1)
    spatial_views: int | None = None  # crops along the longer side of a video's frames, at least 1 (1)
    frame_sampling_rate: int | None = None  # from one frame of a clip to the next, at least 1 (as in training)
    levels: tuple[str, ...] | None = None  # features of these names, not predictions (without a head: all)
    # classes, by name or number: what each cell adds to their logits, not predictions; none: to the largest logit
    explain: tuple[str, ...] | None = None
    max_pixels: int | None = None  # of a photo file, at least 1 (50 million)
    max_side: int | None = None  # of a photo file, in pixels, at least 1 (16384)

    def given(self) -> dict[str, object]:
        """What is not None, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


NO_OPTIONS = PredictOptions()


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """One photo or video as its task runs it, and what the task remembers of it to read the outputs."""

    rows: NDArray[Any]  # (V, 3, ...) of the graph's input, V = 1 for photos; a segmenter's: (h, w, 3), see there
    size: Size  # (height, width) in pixels of the upright photo, or of a clip's frames
    photo: Image.Image | None = None  # a small copy of the upright photo, where a picture may be drawn on it


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is said about one file."""

    fields: dict[str, object]  # as JSON
    rows: Sequence[tuple[str, ...]]  # rows of a table, one text for each of the report's columns


class Report(Protocol):
    """What people see of one file after the other: a table, JSON, pictures."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the table, after the file's name."""

    def describe(self, file: Path) -> Row:
        """Reads and runs one file, and writes the files that belong to it.

        Raises:
            ConvMAEError: it cannot be read.
        """

    def finish(self) -> list[str]:
        """Writes what belongs to all files; returns sentences on what was written."""


class Predictor(ABC):
    """A task at work: one bundle, and what runs its graph.

    Its methods and those of its subclasses may be called from several threads at once.
    """

    TASK: ClassVar[str]  # as manifests say it
    MEDIUM: ClassVar[MediumName]
    PREPROCESSING: ClassVar[type[AnyPreprocessing]]
    OPTIONS: ClassVar[tuple[str, ...]] = ()  # fields of PredictOptions that say something to it
    WRITES: ClassVar[bool] = False  # whether its report writes files where a folder is given
    KEY_OUTPUT: ClassVar[str] = LOGITS  # by which two models of the task are compared at a glance
    KEY_WORDS: ClassVar[str] = "Logits"  # what that is, for people
    # Whether its outputs are lists of what was found, best first: near ties may change places, so that lists compare as
    # sets, and a network whose lengths depend on the image is neither compiled nor cast as a whole.
    GIVES_LISTS: ClassVar[bool] = False
    # Whether a large photo may be decoded at half its size, as nothing in the results is in its pixels.
    HALVES: ClassVar[bool] = False
    # Whether one photo or video makes many rows (windows, views), so that a server runs each for itself, in parts.
    ONE_BY_ONE: ClassVar[bool] = False
    # where this package does for one photo or video what clients of the bare graph must do first
    PREPROCESSED_BY: ClassVar[str] = "preprocess.preprocess(photo, spec)` does it for one RGB photo."
    OUTPUT_WORDS: ClassVar[Mapping[str, str]] = {}  # what clients of the bare graph must know of an output
    CLIENT_STEPS: ClassVar[str] = "Ask only for the outputs that you need."  # what they do with the outputs

    def __init__(self, bundle: Bundle, backend: Backend, runtime: RuntimeOptions = DEFAULT_RUNTIME) -> None:
        """
        Args:
            bundle: what the model is.
            backend: what runs its graph.
            runtime: how it was opened.

        Raises:
            BundleError: the bundle is for another task.
        """
        self.check_task(bundle)
        self.bundle, self.manifest = bundle, bundle.manifest
        self.backend, self.runtime = backend, runtime
        self._has_halved = False
        self._sized: dict[Size, Self] = {}  # by (height, width), see `at`

    def at(self, size: Size) -> Self:
        """The same model on inputs of (height, width) pixels.

        Raises:
            ConvMAEError: the graph does not take that size.
        """
        if size == self.manifest.input.shape[-2:]:
            return self
        if size not in self._sized:  # two threads may both make it: they are alike
            bundle, file = self.bundle.at(size), self.runtime.file
            if file is None or file in bundle.manifest.files:  # an engine takes the sizes that it was built for
                checked_path(bundle, file)  # what it takes at this size
            self._sized[size] = type(self)(bundle, self.backend, self.runtime)
        return self._sized[size]

    @classmethod
    def check_task(cls, bundle: Bundle) -> None:
        """Refuses bundles of other tasks.

        Raises:
            BundleError: the bundle is for another task.
        """
        if bundle.manifest.task != cls.TASK:
            raise BundleError(f"{bundle.manifest.name} is a {bundle.manifest.task} model; give a {cls.TASK} bundle")

    @classmethod
    @abstractmethod
    def expected_outputs(cls, classes: int, axes: tuple[int, ...]) -> Mapping[str, OutputSpec | None]:
        """What every graph of this task gives; None where the architecture decides on the shape.

        Args:
            classes: how many.
            axes: (height, width) in pixels of the graph's input, of clips (frames, height, width).
        """

    @classmethod
    def check_manifest(cls, manifest: Manifest) -> None:
        """Refuses a manifest that does not fit the task.

        Raises:
            BundleError: its preprocessing or an output is not what the task needs.
        """
        if not isinstance(manifest.preprocessing, cls.PREPROCESSING):
            raise BundleError(f"a {cls.TASK} model needs {cls.PREPROCESSING.__name__} as its preprocessing")
        try:
            expected = cls.expected_outputs(len(manifest.classes), manifest.input.shape[1:])
        except ValidationError:  # an output of no entries
            raise BundleError(f"a {cls.TASK} model needs the names of its classes, found none") from None
        for name, wanted in expected.items():
            found = manifest.outputs.get(name)
            if found is None:
                names = ", ".join(manifest.outputs)
                raise BundleError(f"a {cls.TASK} model's outputs must include {name}; found {names}")
            if wanted is not None and (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
                raise BundleError(f"{name} must be {wanted.dtype} {wanted.shape}, found {found.dtype} {found.shape}")

    @classmethod
    @abstractmethod
    def pixels(cls, picture: Image.Image, spec: Any) -> InputArray:
        """An RGB photo as the graph takes it, or a frame of a clip.

        Args:
            picture: of any size.
            spec: of the kind in `PREPROCESSING`.

        Returns:
            (3, H, W).
        """

    def preprocess(self, picture: Image.Image) -> InputArray:
        """`pixels` with this model's numbers."""
        return self.pixels(picture, self.manifest.preprocessing)

    def prepare(self, source: Source, options: PredictOptions = NO_OPTIONS) -> Prepared:
        """Makes of a photo or a video what `interpret` runs.

        Args:
            source: a file, the content of one, or for photos an image of Pillow's.
            options: see `PredictOptions`.

        Raises:
            ConvMAEError: it cannot be read.
        """
        photo = self.open_photo(source, options)
        return Prepared(rows=self.preprocess(photo)[None], size=(photo.height, photo.width))

    def open_photo(self, source: Source, options: PredictOptions = NO_OPTIONS, *, whole: bool = False) -> Image.Image:
        """An upright RGB photo.

        A large JPEG may come at half its size where results do not depend on that (`HALVES`); the first time that
        happens a warning through the logger "convmae_deploy" says so.

        Args:
            source: a file, the content of one, or an image of Pillow's, which is taken as it is.
            options: say how large a file may be.
            whole: whether it must come in its own size.

        Raises:
            ConvMAEError: the file cannot be read, or is no photo that can be decoded (`ImageError`).
        """
        if isinstance(source, Image.Image):
            return source if source.mode == "RGB" else source.convert("RGB")
        limits = ImageLimits(
            max_pixels=options.max_pixels or DEFAULT_LIMITS.max_pixels,
            max_side=options.max_side or DEFAULT_LIMITS.max_side,
            halve=self.HALVES and not whole,
        )
        decoded = (
            decode_image(source, limits=limits)
            if isinstance(source, bytes)
            else read_photo(Path(source), limits=limits)
        )
        if decoded.halved and not self._has_halved:
            self._has_halved = True
            width, height = decoded.original_size
            logger.warning(
                "photos of more than %d pixels, or %d a side, are decoded at half their width and height, the first is "
                "one of %d x %d; raise max_pixels or max_side to decode them whole",
                limits.max_pixels,
                limits.max_side,
                width,
                height,
            )
        return decoded.image

    @abstractmethod
    def interpret(
        self, prepared: Sequence[Prepared], options: PredictOptions = NO_OPTIONS, run: Run | None = None
    ) -> list[Any]:
        """Runs what was prepared and makes results of the outputs, one for each photo or video.

        Args:
            prepared: what `prepare` gave, with the same options; together in memory.
            options: checked by `check_options`.
            run: runs the graph; None: `self.run`.

        Raises:
            ModelOutputError: the graph gives what it must not.
        """

    def predict(self, source: Source, options: PredictOptions = NO_OPTIONS) -> Any:
        """What the task finds in one photo or video.

        Args:
            source: a file, the content of one, or for photos an image of Pillow's.
            options: see `PredictOptions`.

        Raises:
            ConvMAEError: it cannot be read, or an option is out of range or not for this task.
        """
        self.check_options(options)
        return self.interpret([self.prepare(source, options)], options)[0]

    def predict_each(self, sources: Sequence[Source], options: PredictOptions = NO_OPTIONS) -> list[Any]:
        """As `predict` for each of them, run together as far as the graph takes them, so that few are in memory."""
        self.check_options(options)
        size = 1 if self.ONE_BY_ONE else self.manifest.input.max_batch
        chunks = (sources[start : start + size] for start in range(0, len(sources), size))
        return [
            result
            for chunk in chunks
            for result in self.interpret([self.prepare(source, options) for source in chunk], options)
        ]

    @abstractmethod
    def report(self, options: PredictOptions, out: Path | None) -> Report:
        """What people see of files that are run one after the other.

        Args:
            options: of each prediction.
            out: a folder for pictures and files of results; None: nothing is written. Only where `WRITES`.

        Raises:
            ConvMAEError: an option is out of range or not for this task.
        """

    def __call__(self, source: Source | Sequence[Source], **options: Any) -> Any:
        """What the task gives for a photo or video, or a list of that for a list.

        Args:
            source: a path, the content of a file, or an image of Pillow's; or a list of them.
            **options: fields of `PredictOptions`, such as `top_k=3`.

        Raises:
            ConvMAEError: see `predict`.
        """
        known = [field.name for field in fields(PredictOptions)]
        unknown = [name for name in options if name not in known]
        if unknown:
            raise ConvMAEError(f"expected options among {', '.join(known)}; got {unknown[0]}")
        chosen = PredictOptions(**options)
        if isinstance(source, str | Path | bytes | Image.Image):
            return self.predict(source, chosen)
        return self.predict_each(list(source), chosen)

    def check_options(self, options: PredictOptions, *, spell: Callable[[str], str | None] = str) -> None:
        """Refuses options that say nothing to this task, and those out of range.

        Args:
            options: what is asked for.
            spell: how the user writes the name of an option, None for what cannot be given; by default as here.

        Raises:
            ConvMAEError: there is one.
        """
        for name in options.given():
            if name not in self.OPTIONS:
                known = ", ".join(filter(None, map(spell, self.OPTIONS))) or "no options"
                raise ConvMAEError(
                    f"{spell(name)} says nothing to a {self.TASK} model, which takes {known}; leave it out"
                )
        for name in ("top_k", "frame_sampling_rate", "max_pixels", "max_side"):
            count = getattr(options, name)
            if count is not None and count < 1:
                raise ConvMAEError(f"{spell(name)} must be at least 1; got {count}")
        if options.threshold is not None and not 0 <= options.threshold <= 1:
            raise ConvMAEError(f"{spell('threshold')} must be between 0 and 1; got {options.threshold:g}")

    def run(self, batch: InputArray, outputs: Sequence[str]) -> Outputs:
        """Runs a batch of any size, in chunks that the graph takes.

        Args:
            batch: images (B, 3, H, W) or clips (B, 3, T, H, W) as the graph takes them, B at least 1, finite.
            outputs: names of the manifest's outputs.

        Returns:
            Name -> (B, ...) in the order of `outputs`.

        Raises:
            ConvMAEError: the batch or an output name is not as stated.
            ModelOutputError: the graph's answer has a wrong shape or type, or is not finite.
        """
        self._check_names(outputs, tuple(self.manifest.outputs))
        self._check_batch(batch)
        size = self.manifest.input.max_batch
        if len(batch) <= size:
            return self._run_chunk(batch, outputs)
        specs = self.manifest.outputs
        results = {
            name: np.empty((len(batch), *specs[name].shape), dtype=np.dtype(specs[name].dtype)) for name in outputs
        }
        for start in range(0, len(batch), size):
            for name, values in self._run_chunk(batch[start : start + size], outputs).items():
                results[name][start : start + size] = values
        return results

    def _run_chunk(self, batch: InputArray, outputs: Sequence[str]) -> Outputs:
        count, missing = len(batch), self.manifest.input.min_batch - len(batch)
        if missing > 0:
            batch = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
        found = self.backend.run(np.ascontiguousarray(batch), outputs)
        results: Outputs = {}
        for name in outputs:
            spec = self.manifest.outputs[name]
            expected = (len(batch), *spec.shape)
            if found[name].shape != expected:
                raise ModelOutputError(f"output {name!r} must have shape {expected}, got {found[name].shape}")
            if found[name].dtype != spec.dtype:
                raise ModelOutputError(f"output {name!r} must be {spec.dtype}, got {found[name].dtype}")
            results[name] = found[name][:count]
            if not np.isfinite(results[name]).all():
                raise ModelOutputError(f"output {name!r} holds values that are not finite")
        return results

    def _check_batch(self, batch: InputArray) -> None:
        shape, dtype = self.manifest.input.shape, self.manifest.input.dtype
        fits = batch.ndim == len(shape) + 1 and batch.shape[1:] == shape
        if not fits or len(batch) == 0 or batch.dtype != dtype:
            raise ConvMAEError(
                f"a batch must be {dtype} (B, {', '.join(map(str, shape))}) with B at least 1; "
                f"got {batch.dtype} {batch.shape}"
            )
        if not np.isfinite(batch).all():
            raise ConvMAEError("a batch must hold finite values only; got NaN or infinity")

    def _check_names(self, names: Sequence[str], known: tuple[str, ...]) -> None:
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            found = ", ".join(unknown) or "none"
            raise ConvMAEError(f"outputs of {self.manifest.name} are {', '.join(known)}; got {found}")


def all_rows(prepared: Sequence[Prepared]) -> InputArray:
    """The rows of each, one after the other, as one batch; those of a single photo or video are not copied."""
    rows = [each.rows for each in prepared]
    return rows[0] if len(rows) == 1 else np.concatenate(rows)


def file_id(file: Path) -> int | str:
    """What results call a photo, as COCO does: its name without the suffix, as a number where it is one."""
    return int(file.stem) if file.stem.isascii() and file.stem.isdigit() else file.stem


def check_distinct_ids(files: Sequence[Path]) -> None:
    """Refuses photos of which a report would write the same files, or whose ids would be the same.

    Raises:
        ConvMAEError: there are two such.
    """
    seen: dict[int | str, Path] = {}
    for file in files:
        other = seen.setdefault(file_id(file), file)
        if other is not file:
            both = f"{readable(other)} and {readable(file)}"
            raise ConvMAEError(f"with --out every photo needs a name of its own, but {both} would both be {file.stem}")
