"""What the predictors of all tasks share: a graph that takes batches of any size and is believed only after checks."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convmae_deploy.backends.onnxruntime_backend import Backend, Device
from convmae_deploy.backends.starting import DEFAULT_RUNTIME, RuntimeOptions, start_backend
from convmae_deploy.bundle.loading import Bundle, load_bundle
from convmae_deploy.bundle.manifest import Manifest, Task
from convmae_deploy.errors import ConvMAEError, ModelError

LOGITS = "logits"

Arrays = dict[str, NDArray[Any]]


class ModelOutputError(ModelError):
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
    def open(
        cls,
        path: Path,
        *,
        device: Device = "auto",
        threads: int | None = None,
        options: RuntimeOptions = DEFAULT_RUNTIME,
    ) -> Self:
        """Loads the bundle at `path` and starts its default graph.

        Args:
            path: the bundle's folder.
            device: where to run; "auto" prefers a GPU that works.
            threads: CPU threads for one run; None leaves the number to the backend.
            options: what runs the graph.

        Raises:
            ConvMAEError: the bundle is not in order or for another task, or the runtime or the device does not
                start.
        """
        bundle = load_bundle(path)
        cls.check_task(bundle)
        return cls(bundle, start_backend(bundle, device=device, threads=threads, options=options))

    def run(self, batch: NDArray[np.float32], outputs: Sequence[str]) -> Arrays:
        """Runs a batch of any size, in chunks that the graph takes.

        Args:
            batch: normalised images (B, 3, H, W) or clips (B, 3, T, H, W), B at least 1, finite.
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
        fits = batch.ndim == len(shape) + 1 and batch.shape[1:] == shape
        if not fits or len(batch) == 0 or batch.dtype != np.float32:
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
