"""The models that a server holds: opening them before it listens, choosing one for a request, describing them.

Models come and go while the server runs (`serving/api/repository.py`). A request keeps the model that it has begun
with: one that is replaced is closed when its last request has ended.
"""

import dataclasses
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, ItemsView, Iterator, Mapping, ValuesView
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from weakref import WeakSet

import numpy as np

from convmae_deploy.backends.base import Backend
from convmae_deploy.backends.choice import settle
from convmae_deploy.backends.runtimes import AUTO, RUNTIMES, RuntimeOptions, start_backend
from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.errors import ConvMAEError, ModelError, missing_extra
from convmae_deploy.tasks import load_bundle, task_of
from convmae_deploy.tasks.base import Predictor
from convmae_deploy.tasks.features import Encoder, FeaturePredictor
from serving.errors import ApiError
from serving.settings import Settings
from serving.work.batching import BatchingBackend, device_batches

logger = logging.getLogger("convmae_serving")

CHECK_SECONDS: Final = 0.01
Predictors = Mapping[str, Predictor]  # by name, in the order of CONVMAE_BUNDLE


class Models(Predictors):
    """The models by name. Whoever reads them sees all of before or all of after a change.

    Args:
        predictors: those to begin with.
    """

    def __init__(self, predictors: Predictors | None = None) -> None:
        self._current = dict(predictors or {})  # never changed, only replaced
        self._lock = threading.Lock()
        self._users: Counter[int] = Counter()  # requests of each model, by its id()
        self._retired: dict[int, Predictor] = {}  # replaced, and not yet closed
        self._leaving: WeakSet[Predictor] = WeakSet()  # replaced, and still in memory

    def __getitem__(self, name: str) -> Predictor:
        return self._current[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._current)

    def __len__(self) -> int:
        return len(self._current)

    def values(self) -> ValuesView[Predictor]:
        return self._current.values()

    def items(self) -> ItemsView[str, Predictor]:
        return self._current.items()

    def put(self, predictors: Predictors) -> None:
        """Adds models; those of the same names leave, and the new ones take their places in the order."""
        with self._lock:
            self._change(self._current | dict(predictors))

    def remove(self, name: str) -> None:
        """Takes a model out; requests that have begun with it still end with it."""
        with self._lock:
            self._change({other: model for other, model in self._current.items() if other != name})

    @contextmanager
    def use(self, find: Callable[[Predictors], Predictor]) -> Iterator[Predictor]:
        """A model for as long as a request runs, so that it is not closed meanwhile.

        Args:
            find: chooses it.
        """
        with self._lock:
            predictor = find(self._current)
            self._users[id(predictor)] += 1
        try:
            yield predictor
        finally:
            with self._lock:
                self._users[id(predictor)] -= 1
                if not self._users[id(predictor)]:
                    del self._users[id(predictor)]
                    self._close(id(predictor))

    def wait_until_freed(self, seconds: float) -> bool:
        """Waits until nothing holds those that have left, in so many seconds at most; returns whether it is so."""
        deadline = time.monotonic() + seconds
        while self._leaving and time.monotonic() < deadline:  # a request lets go of its model after `use`
            time.sleep(CHECK_SECONDS)
        return not self._leaving

    def close(self, seconds: float) -> bool:
        """See `close_predictors`; also of those that have been replaced."""
        with self._lock:
            models = self._current | {str(key): model for key, model in self._retired.items()}
        return close_predictors(models, seconds)

    def _change(self, current: dict[str, Predictor]) -> None:
        kept = {id(model) for model in current.values()}
        leaving = [model for model in self._current.values() if id(model) not in kept]
        self._current = current
        for model in leaving:
            self._retired[id(model)] = model
            self._leaving.add(model)
            if not self._users[id(model)]:
                self._close(id(model))

    def _close(self, key: int) -> None:
        model = self._retired.pop(key, None)
        if model is not None:
            close_predictors({model.manifest.name: model}, 0.0)  # nothing of it is queued any more


def load_bundles(settings: Settings) -> list[Bundle]:
    """Reads and checks every bundle of the settings, without starting a model.

    Raises:
        ConvMAEError: a bundle is missing or broken, two have the same name, a task is not served, or PyAV is missing.
    """
    bundles: dict[str, Bundle] = {}
    for name, path in settings.bundle_names():
        bundle = load_named(path, name)
        name = bundle.manifest.name
        if name in bundles:
            raise ConvMAEError(
                f"expected bundles with different names, {bundles[name].path} and {path} are both called {name}; "
                f"give one of them another name, with CONVMAE_BUNDLE=other={path}:…"
            )
        bundles[name] = bundle
    return list(bundles.values())


def load_named(path: Path, name: str | None) -> Bundle:
    """Reads and checks one bundle.

    Args:
        path: its folder.
        name: what it is called here; None: as its manifest says.

    Raises:
        ConvMAEError: it is missing or broken, its task is not served, or PyAV is missing.
    """
    bundle = load_bundle(path)
    if task_of(bundle.manifest).MEDIUM == "video":
        _check_pyav(bundle)
    if name is not None:
        bundle = dataclasses.replace(bundle, manifest=bundle.manifest.model_copy(update={"name": name}))
    return bundle


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
            predictors[bundle.manifest.name] = start_predictor(bundle, settings)
    except BaseException:
        close_predictors(predictors, 0.0)
        raise
    return predictors


def start_predictor(bundle: Bundle, settings: Settings) -> Predictor:
    """Starts the model of a bundle and runs it once.

    Raises:
        ConvMAEError: it does not start, or does not run.
    """
    options, device = settle(bundle, _options(settings), settings.device)
    # One thread a run: the pool already runs as many requests at once as there are cores.
    threads = settings.threads if RUNTIMES[options.settled].shares_threads else 1
    backend = start_backend(bundle, device=device, threads=threads, options=options)
    sizes = device_batches(backend, bundle.manifest, settings.max_batch)
    if sizes:
        backend = BatchingBackend(backend, sizes, bundle.manifest)
    predictor = task_of(bundle.manifest)(bundle, backend, options)
    try:
        warm_up(predictor)
    except BaseException:
        close_predictors({bundle.manifest.name: predictor}, 0.0)
        raise
    return predictor


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
    has_hint = settings.runtime != AUTO and "hint" in RUNTIMES[settings.runtime].options
    return RuntimeOptions(
        runtime=settings.runtime,
        file=settings.file,
        precision=None if settings.precision == "fp32" else settings.precision,
        hint=settings.hint if has_hint else None,
        trust_engine_code=settings.trust_engine_code,
    )


def warm_up(predictor: Predictor) -> None:
    """Runs the model once on zeros, for all of its outputs.

    Raises:
        ConvMAEError: it does not run, or gives what it must not.
    """
    spec = predictor.manifest.input
    try:
        predictor.run(np.zeros((1, *spec.shape), dtype=spec.dtype), list(predictor.manifest.outputs))
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


def find_any(predictors: Predictors, name: str | None) -> Predictor:
    """The model of that name, or the first.

    Raises:
        ApiError: 404, no such model, or none at all.
    """
    found = next(iter(predictors.values()), None) if name is None else predictors.get(name)
    if found is None:
        known = f"one of {', '.join(predictors)}" if predictors else "a loaded model, of which there is none"
        message = f"expected {known}, got the model {(name or 'none')[:80]!r}; see /v1/models"
        raise ApiError(404, "unknown_model", message, field="model")
    return found


def list_models(predictors: Predictors) -> dict[str, Any]:
    """The answer of /v1/models."""
    data = [_summary(predictors, predictor) for predictor in predictors.values()]
    return {"object": "list", "data": data, "models": list(predictors)}  # the last as KServe's first protocol has it


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
    first = next((other for other in predictors.values() if other.manifest.task == manifest.task), None)
    return {
        "id": manifest.name,
        "name": manifest.name,  # with `ready`, as KServe's first protocol has it
        "ready": True,
        "object": "model",
        "task": manifest.task,
        "variant": manifest.variant,
        "default": first is predictor,
        "licence": manifest.licence.model_dump(mode="json"),
    }
