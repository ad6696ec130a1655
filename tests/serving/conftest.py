"""One server for all tests that only ask it questions, and applications in this process for the others."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from convmae_deploy.tasks.base import Predictor
from serving.api.models import open_predictors
from serving.app import create_app
from serving.settings import Settings
from serving.work.video_process import VideoProcesses
from tests.bundle_factory import make_bundle, make_detection_bundle, make_segmentation_bundle, make_video_bundle
from tests.serving.running_server import RunningServer, caller_settings, run_server

ClientFactory = Callable[..., TestClient]


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny classifier with the classes a, b and c; 64 x 64 pixels."""
    return make_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="session")
def second_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another classifier, called `other`, with the classes x and y."""
    return make_bundle(tmp_path_factory.mktemp("bundle") / "other", name="other", classes=("x", "y"))


@pytest.fixture(scope="session")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with the tiny classifier and default limits, but for the time that a body may take."""
    settings = {"CONVMAE_BUNDLE": str(bundle), "CONVMAE_BODY_TIMEOUT_SECONDS": "2"}
    with run_server(tmp_path_factory.mktemp("server"), settings) as running:
        yield running


@pytest.fixture(scope="session")
def detection_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny detector, called `boxes`."""
    return make_detection_bundle(tmp_path_factory.mktemp("bundle") / "boxes")


@pytest.fixture(scope="session")
def segmentation_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny segmenter, called `areas`."""
    return make_segmentation_bundle(tmp_path_factory.mktemp("bundle") / "areas")


@pytest.fixture(scope="session")
def video_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny video classifier, called `motion`, with the classes left, right and up."""
    return make_video_bundle(tmp_path_factory.mktemp("bundle") / "motion")


@pytest.fixture(scope="session")
def three_tasks(
    bundle: Path, detection_bundle: Path, segmentation_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """A server with a model for each task, the classifier first."""
    paths = ":".join(map(str, (bundle, detection_bundle, segmentation_bundle)))
    with run_server(tmp_path_factory.mktemp("server"), {"CONVMAE_BUNDLE": paths}) as running:
        yield running


@pytest.fixture(scope="session")
def video_server(bundle: Path, video_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with the tiny video classifier and, after it, the tiny classifier."""
    paths = f"{video_bundle}:{bundle}"
    with run_server(tmp_path_factory.mktemp("server"), {"CONVMAE_BUNDLE": paths}) as running:
        yield running


def open_on_cpu(*bundles: Path) -> dict[str, Predictor]:
    """The models of bundles, by name, as a server with default settings opens them."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        forget_settings(monkeypatch)
        return open_predictors(Settings(bundle=bundles, device="cpu"))


@pytest.fixture(scope="session")
def predictors(bundle: Path, second_bundle: Path) -> dict[str, Predictor]:
    """Both classifiers, `tiny` first."""
    return open_on_cpu(bundle, second_bundle)


@pytest.fixture
def models(predictors: dict[str, Predictor]) -> dict[str, Predictor]:
    """What applications in this process serve; modules of tests have models of their own."""
    return predictors


def forget_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the settings of whoever runs the tests out of the environment."""
    for name in caller_settings():
        monkeypatch.delenv(name)


@pytest.fixture
def make_client(models: dict[str, Predictor], monkeypatch: pytest.MonkeyPatch) -> Iterator[ClientFactory]:
    """Makes clients of an application in this process: settings as keywords only, other models as `others`."""
    with ExitStack() as stack:

        def make(others: dict[str, Predictor] | None = None, **settings: Any) -> TestClient:
            forget_settings(monkeypatch)
            application = create_app(
                Settings(device="cpu", **({"threads": 2} | settings)), models if others is None else others
            )
            stack.callback(application.state.api.pool.shutdown)
            return stack.enter_context(TestClient(application, raise_server_exceptions=False))

        yield make


@pytest.fixture
def client(make_client: ClientFactory) -> TestClient:
    """A client of an application with default settings."""
    return make_client()


@pytest.fixture(scope="module")
def misbehaving() -> Iterator[VideoProcesses]:
    """Processes that do not decode."""
    processes = VideoProcesses("tests.serving.misbehaving_worker")
    yield processes
    processes.close()
