"""What a model does with media: one file for each task, and one table of them. Without torch.

A task says what it is once: how media become the input of its graph, what its graph gives, what results are made of
that, which options it takes, and what people at a terminal see. Programs read `TASKS` and name no task themselves.
"""

from pathlib import Path

from convmae_deploy.backends.base import Device
from convmae_deploy.backends.choice import settle
from convmae_deploy.backends.runtimes import DEFAULT_RUNTIME, RuntimeOptions, start_backend
from convmae_deploy.bundle.loading import Bundle, BundleError, read_bundle
from convmae_deploy.bundle.manifest import MANIFEST_NAME, Manifest
from convmae_deploy.bundle.signing import check_signature, required_key
from convmae_deploy.tasks.base import Predictor
from convmae_deploy.tasks.classification import Classifier
from convmae_deploy.tasks.detection import Detector
from convmae_deploy.tasks.features import Encoder
from convmae_deploy.tasks.segmentation import Segmenter
from convmae_deploy.tasks.video import VideoClassifier, VideoEncoder

__all__ = ["TASKS", "check_manifest", "load_bundle", "open_predictor", "task_of"]

# Name of a task, as manifests say it -> what runs it.
TASKS: dict[str, type[Predictor]] = {
    task.TASK: task for task in (Classifier, Detector, Segmenter, VideoClassifier, Encoder, VideoEncoder)
}


def task_of(manifest: Manifest) -> type[Predictor]:
    """The task of a manifest.

    Raises:
        BundleError: this release does not know it.
    """
    task = TASKS.get(manifest.task)
    if task is None:
        raise BundleError(
            f"{manifest.name} is for the task {manifest.task!r}, this release knows {', '.join(TASKS)}; "
            "install a newer convmae_deploy"
        )
    return task


def check_manifest(manifest: Manifest) -> None:
    """Refuses a manifest that does not fit its task.

    Raises:
        BundleError: the task is unknown, or its preprocessing or an output is not what the task needs.
    """
    task_of(manifest).check_manifest(manifest)


def load_bundle(path: Path, *, unsigned: bool = False) -> Bundle:
    """Reads a bundle and checks its files, see `read_bundle`, and that its manifest fits its task.

    Before any of its files is read, its signature is checked where `CONVMAE_REQUIRE_SIGNATURE` names a key.

    Args:
        path: its folder.
        unsigned: whether it need not be signed all the same, by whoever is about to sign it or has just made it.

    Raises:
        BundleError: with what was expected, what was found and what to do.
    """
    key = None if unsigned else required_key()
    if key is not None and path.is_dir():
        check_signature(path, key)
    bundle = read_bundle(path)
    task = task_of(bundle.manifest)
    try:
        task.check_manifest(bundle.manifest)
    except BundleError as error:
        raise BundleError(
            f"{path / MANIFEST_NAME} is not a valid manifest: {error}; export the bundle again"
        ) from error
    return bundle


def open_predictor(
    path: Path, *, device: Device = "auto", threads: int | None = None, options: RuntimeOptions = DEFAULT_RUNTIME
) -> Predictor:
    """Loads the bundle at `path` and starts its graph; what comes back depends on its task.

    Args:
        path: the bundle's folder.
        device: where to run; "auto" prefers a GPU that works.
        threads: CPU threads for one run; None leaves the number to the backend.
        options: what runs the graph.

    Raises:
        ConvMAEError: the bundle is not in order, or the runtime or the device does not start.
    """
    bundle = load_bundle(path)
    options, device = settle(bundle, options, device)
    backend = start_backend(bundle, device=device, threads=threads, options=options)
    return task_of(bundle.manifest)(bundle, backend, options)
