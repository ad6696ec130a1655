"""Photos or videos in, results out: what the server and the command line share, one class for each task."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convmae_deploy.backends.onnxruntime_backend import Device
from convmae_deploy.backends.starting import DEFAULT_RUNTIME, RuntimeOptions, start_backend
from convmae_deploy.bundle.loading import Bundle, load_bundle
from convmae_deploy.bundle.manifest import DETECTOR_OUTPUTS, Letterbox, Preprocessing, Size, SlidingWindow, Task
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.base_predictor import LOGITS, ModelOutputError, Predictor
from convmae_deploy.tasks.detections import Detection, find_detections
from convmae_deploy.tasks.letterbox import letterbox
from convmae_deploy.tasks.postprocess import Prediction, ScoreFunction, scores, top_k
from convmae_deploy.tasks.preprocess import preprocess
from convmae_deploy.tasks.sliding_window import Segmentation, segment_photo
from convmae_deploy.tasks.video_predictor import VideoClassifier

__all__ = [
    "PREDICTORS",
    "AnyPredictor",
    "Classifier",
    "Detector",
    "ModelOutputError",
    "Predictor",
    "Segmenter",
    "VideoClassifier",
    "open_predictor",
    "predictor_class",
]

logger = logging.getLogger("convmae_deploy")


class Classifier(Predictor):
    """Names of what a photo shows, and multi-scale features of it."""

    TASK = "classification"

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the features: every output but the logits."""
        return tuple(name for name in self.manifest.outputs if name != LOGITS)

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
            for _, outputs in self._run_photos(images, (LOGITS,), self.preprocess)
            for predictions in self.rank(outputs[LOGITS], top_k=top_k, function=function)
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
        return self.run(windows, (LOGITS,))[LOGITS]


AnyPredictor = Classifier | Detector | Segmenter | VideoClassifier
PREDICTORS: dict[Task, type[AnyPredictor]] = {
    "classification": Classifier,
    "detection": Detector,
    "segmentation": Segmenter,
    "video-classification": VideoClassifier,
}


def open_predictor(
    path: Path, *, device: Device = "auto", threads: int | None = None, options: RuntimeOptions = DEFAULT_RUNTIME
) -> AnyPredictor:
    """Loads the bundle at `path` and starts its default graph; what comes back depends on its task.

    Args:
        path: the bundle's folder.
        device: where to run; "auto" prefers a GPU that works.
        threads: CPU threads for one run; None leaves the number to the backend.
        options: what runs the graph.

    Raises:
        ConvMAEError: the bundle is not in order, or the runtime or the device does not start.
    """
    bundle = load_bundle(path)
    return predictor_class(bundle)(bundle, start_backend(bundle, device=device, threads=threads, options=options))


def predictor_class(bundle: Bundle) -> type[AnyPredictor]:
    """What a bundle is opened with."""
    return PREDICTORS[bundle.manifest.task]


_best = top_k  # `classify` and `rank` have parameters of that name
