"""The models that a server holds: opening them before it listens, choosing one for a request, describing them."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convmae_deploy.backends.base import Backend
from convmae_deploy.backends.runtimes import RUNTIMES, RuntimeOptions, start_backend
from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.errors import ConvMAEError, ModelError, missing_extra
from convmae_deploy.tasks import load_bundle, task_of
from convmae_deploy.tasks.base import Predictor
from convmae_deploy.tasks.features import Encoder, FeaturePredictor
from serving.errors import ApiError
from serving.settings import Settings
from serving.work.batching import BatchingBackend, device_batches

logger = logging.getLogger("convmae_serving")

Predictors = Mapping[str, Predictor]  # by name, in the order of CONVMAE_BUNDLE


def load_bundles(settings: Settings) -> list[Bundle]:
    """Reads and checks every bundle of the settings, without starting a model.

    Raises:
        ConvMAEError: a bundle is missing or broken, two have the same name, a task is not served, or PyAV is missing.
    """
    bundles: list[Bundle] = []
    paths: dict[str, Path] = {}
    for path in settings.bundle:
        bundle = load_bundle(path)
        manifest = bundle.manifest
        if task_of(manifest).MEDIUM == "video":
            _check_pyav(bundle)
        if manifest.name in paths:
            raise ConvMAEError(
                f"expected bundles with different names, {paths[manifest.name]} and {path} are both called "
                f"{manifest.name}; export one of them under another name"
            )
        paths[manifest.name] = path
        bundles.append(bundle)
    return bundles


def _check_pyav(bundle: Bundle) -> None:
    """Raises ConvMAEError where videos cannot be decoded, before anybody sends one."""
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise missing_extra(f"{bundle.path} is for videos and", "PyAV", "video") from error


def open_predictors(settings: Settings) -> dict[str, Predictor]:
    """Checks every bundle, then starts each model and runs it once, so that the first request does not pay for it.

    Raises:
        ConvMAEError: a bundle cannot be served.
    """
    predictors: dict[str, Predictor] = {}
    try:
        for bundle in load_bundles(settings):
            options = _options(settings)
            # One thread a run: the pool already runs as many requests at once as there are cores.
            threads = settings.threads if RUNTIMES[settings.runtime].shares_threads else 1
            backend = start_backend(bundle, device=settings.device, threads=threads, options=options)
            sizes = device_batches(backend, bundle.manifest, settings.max_batch)
            if sizes:
                backend = BatchingBackend(backend, sizes, bundle.manifest)
            predictor = predictors[bundle.manifest.name] = task_of(bundle.manifest)(bundle, backend, options)
            warm_up(predictor)
    except BaseException:
        close_predictors(predictors, 0.0)
        raise
    return predictors


def batching_backends(predictors: Predictors) -> dict[str, BatchingBackend]:
    """Those of the models that are on a device, by the model's name."""
    backends = ((name, predictor.backend) for name, predictor in predictors.items())
    return {name: backend for name, backend in backends if isinstance(backend, BatchingBackend)}


def close_predictors(predictors: Predictors, seconds: float) -> bool:
    """Runs what is queued for devices and ends their threads, in so many seconds at most; whether they have ended."""
    deadline = time.monotonic() + seconds
    ended = [backend.close(max(0.0, deadline - time.monotonic())) for backend in batching_backends(predictors).values()]
    return all(ended)


def _options(settings: Settings) -> RuntimeOptions:
    runtime = RUNTIMES[settings.runtime]
    return RuntimeOptions(
        runtime=settings.runtime,
        file=settings.file,
        precision=None if settings.precision == "fp32" else settings.precision,
        hint=settings.hint if "hint" in runtime.options else None,
        trust_engine_code=settings.trust_engine_code,
    )


def warm_up(predictor: Predictor) -> None:
    """Runs the model once on zeros, for all of its outputs.

    Raises:
        ConvMAEError: it does not run, or gives what it must not.
    """
    shape = (1, *predictor.manifest.input.shape)
    try:
        predictor.run(np.zeros(shape, dtype=np.float32), list(predictor.manifest.outputs))
    except ModelError as error:
        raise ConvMAEError(f"the model {predictor.manifest.name} cannot be served: {error}") from error


def find_model(predictors: Predictors, name: str | None, task: str) -> Predictor:
    """The model of that name, or the default of the task.

    Raises:
        ApiError: 404, no such model, or none for this task.
    """
    if name is None:
        for predictor in predictors.values():
            if predictor.manifest.task == task:
                return predictor
        message = f"no bundle for {task} is loaded; start the server with one in CONVMAE_BUNDLE"
        raise ApiError(404, "no_model_for_task", message)
    found = predictors.get(name)
    if found is None:
        message = f"expected one of {', '.join(predictors)}, got the model {name[:80]!r}; see /v1/models"
        raise ApiError(404, "unknown_model", message, field="model")
    if found.manifest.task != task:
        message = f"the model {name!r} is for {found.manifest.task}, not for {task}; see /v1/models"
        raise ApiError(404, "no_model_for_task", message, field="model")
    return found


def find_features(predictors: Predictors, name: str | None) -> Predictor:
    """The model of that name, or the first that gives features of photos, else the first that gives some of videos.

    Raises:
        ApiError: 404, no such model, or it gives none.
    """
    able = [predictor for predictor in predictors.values() if isinstance(predictor, FeaturePredictor)]
    if name is None and able:
        return next((predictor for predictor in able if predictor.MEDIUM == "photo"), able[0])
    found = None if name is None else predictors.get(name)
    if isinstance(found, FeaturePredictor):
        return found
    return find_model(predictors, name, Encoder.TASK)  # there is none: it says what is wrong


def list_models(predictors: Predictors) -> dict[str, Any]:
    """The answer of /v1/models."""
    return {"object": "list", "data": [_summary(predictors, predictor) for predictor in predictors.values()]}


def describe_model(predictors: Predictors, predictor: Predictor, graph: str | None = None) -> dict[str, Any]:
    """The answer of /v1/models/{name}: everything a client needs to use the model, and what was proven about it.

    Args:
        predictors: all models.
        predictor: the one to describe.
        graph: the file of its bundle that the settings chose; None, or an engine: the first graph is described.
    """
    manifest = predictor.manifest
    file_name = graph if graph in manifest.files else next(iter(manifest.files))
    file = manifest.files[file_name]
    return _summary(predictors, predictor) | {
        "labels": manifest.classes,
        "input": manifest.input.model_dump(mode="json"),
        "preprocessing": manifest.preprocessing.model_dump(mode="json"),
        "outputs": {name: output.model_dump(mode="json") for name, output in manifest.outputs.items()},
        "file": {"name": file_name} | file.model_dump(mode="json", exclude={"numerics"}),
        "numerics": None if file.numerics is None else file.numerics.model_dump(mode="json"),
        "backend": _backend(predictor.backend),
        "tools": manifest.tools,
        "provenance": manifest.provenance,
    }


def _backend(backend: Backend) -> dict[str, Any]:
    batches = {"batch_sizes": backend.sizes} if isinstance(backend, BatchingBackend) else {}
    return {"name": backend.name, "providers": backend.providers} | batches


def _summary(predictors: Predictors, predictor: Predictor) -> dict[str, Any]:
    manifest = predictor.manifest
    first = next(other for other in predictors.values() if other.manifest.task == manifest.task)
    return {
        "id": manifest.name,
        "object": "model",
        "task": manifest.task,
        "variant": manifest.variant,
        "default": first is predictor,
        "licence": manifest.licence.model_dump(mode="json"),
    }
