"""Photos in, predictions or features out: the one object that the server and the command line share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.runtime.backends import Backend, Device, OnnxRuntimeBackend
from convmae_deploy.runtime.bundle import Bundle, load_bundle
from convmae_deploy.runtime.manifest import Manifest, Preprocessing
from convmae_deploy.runtime.postprocess import Prediction, ScoreFunction, scores, top_k
from convmae_deploy.runtime.preprocess import preprocess

_LOGITS = "logits"


class ModelOutputError(RuntimeError):
    """The graph returned what it must not: a wrong shape or values that are not finite. No input should cause it."""


class Predictor:
    """A classifier with its multi-scale features. Its methods may be called from several threads at once."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.manifest: Manifest = bundle.manifest
        self.backend = backend

    @classmethod
    def open(cls, path: Path, *, device: Device = "auto", threads: int | None = None) -> Self:
        """Loads the bundle at `path` and starts its default graph.

        Args:
            path: the bundle's folder.
            device: where to run; "auto" prefers a GPU that works.
            threads: CPU threads for one run; None leaves the number to the backend.

        Raises:
            ConvMAEError: the bundle is not in order, or the device does not start.
        """
        bundle = load_bundle(path)
        return cls(bundle, OnnxRuntimeBackend(bundle, device=device, threads=threads))

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

    def check_is_classifier(self) -> None:
        """Refuses models of other tasks.

        Raises:
            ConvMAEError: the bundle is no classifier.
        """
        if self.manifest.task != "classification":
            raise ConvMAEError(f"{self.manifest.name} is a {self.manifest.task} model; give a classification bundle")

    def preprocess(self, image: Image.Image) -> NDArray[np.float32]:
        """An RGB photo as the graph takes it, (3, H, W)."""
        assert isinstance(self.manifest.preprocessing, Preprocessing)  # the manifest of a classifier says so
        return preprocess(image, self.manifest.preprocessing)

    def run(self, batch: NDArray[np.float32], outputs: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Runs a batch of any size, in chunks that the graph takes.

        Args:
            batch: normalised images (B, 3, H, W), B at least 1, finite.
            outputs: names of the manifest's outputs.

        Returns:
            Name -> (B, ...) in the order of `outputs`.

        Raises:
            ConvMAEError: the batch or an output name is not as stated.
            ModelOutputError: the graph's answer has a wrong shape or is not finite.
        """
        self._check_names(outputs, tuple(self.manifest.outputs))
        self._check_batch(batch)
        size = self.manifest.input.max_batch
        if len(batch) <= size:
            return self._run_chunk(batch, outputs)
        results = {
            name: np.empty((len(batch), *self.manifest.outputs[name].shape), dtype=np.float32) for name in outputs
        }
        for start in range(0, len(batch), size):
            for name, values in self._run_chunk(batch[start : start + size], outputs).items():
                results[name][start : start + size] = values
        return results

    def classify(
        self, images: Sequence[Image.Image], *, top_k: int = 5, function: ScoreFunction = "softmax"
    ) -> list[list[Prediction]]:
        """The best classes of each RGB photo, best first.

        Args:
            images: photos of any size.
            top_k: how many classes a photo, at least 1; all when larger than their number.
            function: how logits become scores.

        Raises:
            ConvMAEError: the bundle is no classifier, or `top_k` is less than 1.
        """
        self.check_is_classifier()
        if top_k < 1:
            raise ConvMAEError(f"top_k must be at least 1; got {top_k}")
        return [
            predictions
            for chunk in self._chunks(images)
            for predictions in self.rank(self._run_images(chunk, (_LOGITS,))[_LOGITS], top_k=top_k, function=function)
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
        for chunk in self._chunks(images):
            for level, values in self._run_images(chunk, levels).items():
                results[level][start : start + len(chunk)] = values
            start += len(chunk)
        return results

    def _chunks(self, images: Sequence[Image.Image]) -> list[Sequence[Image.Image]]:
        size = self.manifest.input.max_batch
        return [images[start : start + size] for start in range(0, len(images), size)]

    def _run_images(self, images: Sequence[Image.Image], outputs: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        return self.run(np.stack([self.preprocess(image) for image in images]), outputs)

    def _run_chunk(self, batch: NDArray[np.float32], outputs: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        count, missing = len(batch), self.manifest.input.min_batch - len(batch)
        if missing > 0:
            batch = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
        answer = self.backend.run(np.ascontiguousarray(batch), outputs)
        results: dict[str, NDArray[np.float32]] = {}
        for name in outputs:
            expected = (len(batch), *self.manifest.outputs[name].shape)
            if answer[name].shape != expected:
                raise ModelOutputError(f"output {name!r} must have shape {expected}, got {answer[name].shape}")
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


_best = top_k  # `classify` and `rank` have parameters of that name
