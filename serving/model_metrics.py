"""Metrics with the name of a model, read from the models that are held when the page is asked for."""

from collections.abc import Iterator

from prometheus_client.core import InfoMetricFamily, Metric

from convmae_deploy.backends.runtimes import RUNTIMES
from convmae_deploy.tasks.base import Predictor
from serving.api.models import Predictors, batching_backends
from serving.metrics import histogram_family


def model_families(predictors: Predictors) -> Iterator[Metric]:
    """What is known about each model, and the batches that it ran on a device.

    Args:
        predictors: the models held now.
    """
    models = dict(predictors)
    info = InfoMetricFamily("convmae_model", "The models that are held.", labels=["model"])
    for name, predictor in models.items():
        info.add_metric([name], model_labels(predictor))
    yield info
    backends = batching_backends(models)
    yield histogram_family(
        "convmae_batch_rows",
        "Photos, windows or clips in a run of a model on a device.",
        "model",
        [(name, backend.rows_run) for name, backend in backends.items()],
    )
    yield histogram_family(
        "convmae_batch_queue_seconds",
        "Time that a request's rows waited for the device.",
        "model",
        [(name, backend.queue_seconds) for name, backend in backends.items()],
    )


def model_labels(predictor: Predictor) -> dict[str, str]:
    """Labels of a model: task, variant, file, precision and runtime.

    An engine's file is empty unless it was named, and its precision is in the runtime's name, as the manifest
    lists graphs alone.
    """
    manifest = predictor.manifest
    engines = RUNTIMES[predictor.runtime.settled].takes_engines
    file = predictor.runtime.file or ("" if engines else next(iter(manifest.files)))
    graph = manifest.files.get(file)
    return {
        "task": manifest.task,
        "variant": manifest.variant,
        "file": file,
        "precision": "" if graph is None else graph.precision,
        "runtime": predictor.backend.name,
    }
