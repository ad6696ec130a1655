"""Photos in, results out: the objects that the server and the command line share, one class for each task."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.runtime.backends import Backend, Device, OnnxRuntimeBackend
from convmae_deploy.runtime.bundle import Bundle, load_bundle
from convmae_deploy.runtime.detections import Detection, find_detections
from convmae_deploy.runtime.letterbox import letterbox
from convmae_deploy.runtime.manifest import (
    DETECTOR_OUTPUTS,
    Letterbox,
    Manifest,
    Preprocessing,
    Size,
    SlidingWindow,
    Task,
)
from convmae_deploy.runtime.postprocess import Prediction, ScoreFunction, scores, top_k
from convmae_deploy.runtime.preprocess import preprocess
from convmae_deploy.runtime.sliding_window import Segmentation, segment_photo

logger = logging.getLogger("convmae_deploy")

_LOGITS = "logits"

Arrays = dict[str, NDArray[Any]]


class ModelOutputError(RuntimeError):
    """The graph returned what it must not: a wrong shape or values that are not finite. No input should cause it."""


class Predictor:
    """What all tasks share: a graph that takes batches of any size and is believed only after checks.

    Its methods and those of its subclasses may be called from several threads at once.
    """

    TASK: ClassVar[Task]

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        """
        Args:
            bundle: what the model is.
            backend: what runs its graph.

        Raises:
            ConvMAEError: the bundle is for another task.
        """
        self.manifest: Manifest = bundle.manifest
        self.backend = backend
        self.check_task(bundle)

    @classmethod
    def check_task(cls, bundle: Bundle) -> None:
        """Refuses bundles of other tasks.

        Raises:
            ConvMAEError: the bundle is for another task.
        """
        manifest = bundle.manifest
        if manifest.task != cls.TASK:
            raise ConvMAEError(f"{manifest.name} is a {manifest.task} model; give a {cls.TASK} bundle")

    @classmethod
    def open(cls, path: Path, *, device: Device = "auto", threads: int | None = None) -> Self:
        """Loads the bundle at `path` and starts its default graph.

        Args:
            path: the bundle's folder.
            device: where to run; "auto" prefers a GPU that works.
            threads: CPU threads for one run; None leaves the number to the backend.

        Raises:
            ConvMAEError: the bundle is not in order or for another task, or the device does not start.
        """
        bundle = load_bundle(path)
        cls.check_task(bundle)
        return cls(bundle, OnnxRuntimeBackend(bundle, device=device, threads=threads))

    def run(self, batch: NDArray[np.float32], outputs: Sequence[str]) -> Arrays:
        """Runs a batch of any size, in chunks that the graph takes.

        Args:
            batch: normalised images (B, 3, H, W), B at least 1, finite.
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

    def _run_photos(
        self,
        images: Sequence[Image.Image],
        outputs: Sequence[str],
        preprocess: Callable[[Image.Image], NDArray[np.float32]],
    ) -> Iterator[tuple[Sequence[Image.Image], Arrays]]:
        """Photos in chunks that the graph takes, each with its outputs, so that only one chunk is in memory."""
        size = self.manifest.input.max_batch
        for start in range(0, len(images), size):
            chunk = images[start : start + size]
            yield chunk, self.run(np.stack([preprocess(image) for image in chunk]), outputs)

    def _run_chunk(self, batch: NDArray[np.float32], outputs: Sequence[str]) -> Arrays:
        count, missing = len(batch), self.manifest.input.min_batch - len(batch)
        if missing > 0:
            batch = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
        answer = self.backend.run(np.ascontiguousarray(batch), outputs)
        results: Arrays = {}
        for name in outputs:
            spec = self.manifest.outputs[name]
            expected = (len(batch), *spec.shape)
            if answer[name].shape != expected:
                raise ModelOutputError(f"output {name!r} must have shape {expected}, got {answer[name].shape}")
            if answer[name].dtype != spec.dtype:
                raise ModelOutputError(f"output {name!r} must be {spec.dtype}, got {answer[name].dtype}")
            results[name] = answer[name][:count]
            if not np.isfinite(results[name]).all():
                raise ModelOutputError(f"output {name!r} holds values that are not finite")
        return results

    def _check_batch(self, batch: NDArray[np.float32]) -> None:
        shape = self.manifest.input.shape
        if batch.ndim != 4 or len(batch) == 0 or batch.shape[1:] != shape or batch.dtype != np.float32:
            raise ConvMAEError(
                f"a batch must be float32 (B, {', '.join(map(str, shape))}) with B at least 1; "
                f"got {batch.dtype} {batch.shape}"
            )
        if not np.isfinite(batch).all():
            raise ConvMAEError("a batch must hold finite values only; got NaN or infinity")

    def _check_names(self, names: Sequence[str], known: tuple[str, ...]) -> None:
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            found = ", ".join(unknown) or "none"
            raise ConvMAEError(f"outputs of {self.manifest.name} are {', '.join(known)}; got {found}")


class Classifier(Predictor):
    """Names of what a photo shows, and multi-scale features of it."""

    TASK = "classification"

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the features: every output but the logits."""
        return tuple(name for name in self.manifest.outputs if name != _LOGITS)

    def check_levels(self, levels: Sequence[str]) -> None:
        """Refuses levels that this model does not have.

        Raises:
            ConvMAEError: a level is none of `levels`, or none is given.
        """
        self._check_names(levels, self.levels)

    def preprocess(self, image: Image.Image) -> NDArray[np.float32]:
        """An RGB photo as the graph takes it, (3, H, W)."""
        assert isinstance(self.manifest.preprocessing, Preprocessing)  # the manifest of a classifier says so
        return preprocess(image, self.manifest.preprocessing)

    def classify(
        self, images: Sequence[Image.Image], *, top_k: int = 5, function: ScoreFunction = "softmax"
    ) -> list[list[Prediction]]:
        """The best classes of each RGB photo, best first.

        Args:
            images: photos of any size.
            top_k: how many classes a photo, at least 1; all when larger than their number.
            function: how logits become scores.

        Raises:
            ConvMAEError: `top_k` is less than 1.
        """
        if top_k < 1:
            raise ConvMAEError(f"top_k must be at least 1; got {top_k}")
        return [
            predictions
            for _, outputs in self._run_photos(images, (_LOGITS,), self.preprocess)
            for predictions in self.rank(outputs[_LOGITS], top_k=top_k, function=function)
        ]

    def rank(
        self, logits: NDArray[np.float32], *, top_k: int = 5, function: ScoreFunction = "softmax"
    ) -> list[list[Prediction]]:
        """The best classes of each row of logits (B, K), best first."""
        return [_best(row, self.manifest.classes, top_k) for row in scores(logits, function)]

    def features(self, images: Sequence[Image.Image], levels: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Features of RGB photos.

        Args:
            images: photos of any size, at least one.
            levels: names from `levels`: maps (C, H / stride, W / stride), or the pooled vector (C,).

        Returns:
            Level -> (number of photos, ...).

        Raises:
            ConvMAEError: no photo or no level is given, or a level does not exist.
        """
        self.check_levels(levels)
        if not images:
            raise ConvMAEError("features need at least one image; got none")
        results = {
            level: np.empty((len(images), *self.manifest.outputs[level].shape), dtype=np.float32) for level in levels
        }
        start = 0
        for chunk, outputs in self._run_photos(images, levels, self.preprocess):
            for level, values in outputs.items():
                results[level][start : start + len(chunk)] = values
            start += len(chunk)
        return results


class Detector(Predictor):
    """Objects in a photo: their class, their box, their mask."""

    TASK = "detection"
    OUTPUTS = tuple(DETECTOR_OUTPUTS)

    def preprocess(self, image: Image.Image) -> NDArray[np.float32]:
        """An RGB photo as the graph takes it, (3, H, W)."""
        return letterbox(image, self._letterbox)

    def detect(self, images: Sequence[Image.Image], *, threshold: float = 0.5) -> list[list[Detection]]:
        """The objects in each RGB photo, best first.

        Where overlapping boxes may have been left, as suppression needed more rounds than the graph has, a warning
        through the logger "convmae_deploy" says so; the other objects are as good as ever.

        Args:
            images: photos of any size.
            threshold: the smallest score, in [0, 1].

        Raises:
            ConvMAEError: the threshold is not between 0 and 1.
        """
        if not 0 <= threshold <= 1:
            raise ConvMAEError(f"threshold must be between 0 and 1; got {threshold}")
        return [
            objects
            for chunk, outputs in self._run_photos(images, self.OUTPUTS, self.preprocess)
            for objects in self.find(outputs, [(image.height, image.width) for image in chunk], threshold=threshold)
        ]

    def find(
        self, outputs: Mapping[str, NDArray[Any]], sizes: Sequence[Size], *, threshold: float
    ) -> list[list[Detection]]:
        """The objects in each photo of a batch, best first.

        Args:
            outputs: all of the graph's, (B, ...).
            sizes: (height, width) in pixels of each upright photo.
            threshold: the smallest score.

        Raises:
            ModelOutputError: a label or the number of objects is out of range.
        """
        rows, classes = outputs["scores"].shape[1], self.manifest.classes
        for name, limit in (("num", rows + 1), ("labels", len(classes))):
            if outputs[name].min() < 0 or outputs[name].max() >= limit:
                raise ModelOutputError(f"output {name!r} must be between 0 and {limit - 1}")
        if not outputs["converged"].all():
            logger.warning(
                "%s may have left boxes that overlap: suppression did not come to its end", self.manifest.name
            )
        return [
            find_detections(
                {name: values[index] for name, values in outputs.items()},
                size,
                self._letterbox,
                classes,
                threshold=threshold,
            )
            for index, size in enumerate(sizes)
        ]

    @property
    def _letterbox(self) -> Letterbox:
        assert isinstance(self.manifest.preprocessing, Letterbox)  # the manifest of a detector says so
        return self.manifest.preprocessing


class Segmenter(Predictor):
    """What each pixel of a photo shows."""

    TASK = "segmentation"

    @property
    def windows(self) -> SlidingWindow:
        """How a photo is looked at."""
        assert isinstance(self.manifest.preprocessing, SlidingWindow)  # the manifest of a segmenter says so
        return self.manifest.preprocessing

    def segment(self, images: Sequence[Image.Image]) -> list[Segmentation]:
        """The labels of each RGB photo, in its own size."""
        return [segment_photo(image, self.windows, self.run_windows) for image in images]

    def run_windows(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (B, K, h / 4, w / 4) of windows (B, 3, h, w)."""
        return self.run(windows, (_LOGITS,))[_LOGITS]


PREDICTORS: dict[Task, type[Classifier] | type[Detector] | type[Segmenter]] = {
    "classification": Classifier,
    "detection": Detector,
    "segmentation": Segmenter,
}


def open_predictor(
    path: Path, *, device: Device = "auto", threads: int | None = None
) -> Classifier | Detector | Segmenter:
    """Loads the bundle at `path` and starts its default graph; what comes back depends on its task.

    Args:
        path: the bundle's folder.
        device: where to run; "auto" prefers a GPU that works.
        threads: CPU threads for one run; None leaves the number to the backend.

    Raises:
        ConvMAEError: the bundle is not in order or of a task that nothing here is for, or the device does not start.
    """
    bundle = load_bundle(path)
    kind = predictor_class(bundle)
    return kind(bundle, OnnxRuntimeBackend(bundle, device=device, threads=threads))


def predictor_class(bundle: Bundle) -> type[Classifier] | type[Detector] | type[Segmenter]:
    """What a bundle is opened with.

    Raises:
        ConvMAEError: nothing here is for its task.
    """
    kind = PREDICTORS.get(bundle.manifest.task)
    if kind is None:
        found = f"{bundle.path} is for {bundle.manifest.task}"
        raise ConvMAEError(f"expected a bundle for {', '.join(PREDICTORS)}, {found}; give another one")
    return kind


_best = top_k  # `classify` and `rank` have parameters of that name
