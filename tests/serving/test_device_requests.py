"""Requests to models on a fake device: in this process, and on a real server."""

import base64
import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from convmae_deploy.media.images import decode_image
from convmae_deploy.tasks import load_bundle, task_of
from convmae_deploy.tasks.base import Predictor
from convmae_deploy.tasks.classification import Classifier
from serving.api.models import batching_backends, close_predictors
from serving.work.batching import BatchingBackend
from tests.serving.conftest import ClientFactory, open_on_cpu
from tests.serving.fake_device import SIZES, FakeDevice
from tests.serving.running_server import RunningServer, post, read_response, run_server
from tests.serving.sample_images import jpeg
from tests.video_files import make_video
from tests.waiting import PATIENCE_SECONDS, wait_until

TASKS = {  # model: path of a request, its body
    "tiny": ("/v1/classify", jpeg()),
    "boxes": ("/v1/detect?masks=rle", jpeg(seed=1)),
    "areas": ("/v1/segment?masks=rle", jpeg(150, 100)),
    "motion": ("/v1/classify-video?temporal_views=3", make_video()),
}


@pytest.fixture(scope="module")
def on_cpu(bundle: Path, detection_bundle: Path, segmentation_bundle: Path, video_bundle: Path) -> dict[str, Predictor]:
    return open_on_cpu(bundle, detection_bundle, segmentation_bundle, video_bundle)


@pytest.fixture
def devices(on_cpu: dict[str, Predictor]) -> dict[str, FakeDevice]:
    """A device for each model, which computes what the model does."""
    return {name: FakeDevice(predictor.manifest, predictor.backend) for name, predictor in on_cpu.items()}


@pytest.fixture
def models(
    devices: dict[str, FakeDevice],
    bundle: Path,
    detection_bundle: Path,
    segmentation_bundle: Path,
    video_bundle: Path,
) -> Iterator[dict[str, Predictor]]:
    made: dict[str, Predictor] = {}
    for path in (bundle, detection_bundle, segmentation_bundle, video_bundle):
        opened = load_bundle(path)
        device = devices[opened.manifest.name]
        backend = BatchingBackend(device, device.batch_sizes, opened.manifest)
        backend._seconds = dict.fromkeys(device.batch_sizes, 0.001)
        device.forget()
        made[opened.manifest.name] = task_of(opened.manifest)(opened, backend)
    yield made
    for device in devices.values():
        device.free.set()
    assert close_predictors(made, PATIENCE_SECONDS)


def together(count: int, ask: Callable[[int], Any]) -> list[Any]:
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(ask, range(count)))


def while_busy(ask: Callable[[int], Any], models: dict[str, Predictor], device: FakeDevice, waiting: int) -> list[Any]:
    """Answers of eight requests; the device has done with the first once `waiting` others are in its queue."""
    backend = batching_backends(models)[device.manifest.name]
    device.free.clear()
    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(ask, 0)
        device.wait_for_batch()
        others = [threads.submit(ask, index) for index in range(1, 8)]
        wait_until(lambda: len(backend._queue) == waiting)
        device.free.set()
        return [future.result(PATIENCE_SECONDS) for future in (first, *others)]


def rounded(answer: Any) -> Any:
    """An answer's JSON, its numbers without what the size of a batch changes of them."""
    return json.loads(answer.text, parse_float=lambda number: round(float(number), 4))


def waiting(models: dict[str, Predictor], name: str) -> int:
    """Rows in the queue of a model."""
    return batching_backends(models)[name]._queued_rows


@pytest.mark.parametrize("name", TASKS)
def test_requests_that_share_batches_get_the_answers_that_they_get_alone(
    make_client: ClientFactory,
    on_cpu: dict[str, Predictor],
    models: dict[str, Predictor],
    devices: dict[str, FakeDevice],
    name: str,
) -> None:
    path, body = TASKS[name]
    expected = make_client(on_cpu).post(path, content=body)
    assert expected.status_code == 200
    client, device = make_client(models, threads=4), devices[name]
    waiting = 7 if name in ("tiny", "boxes") else 3  # windows and videos keep their cores, of which there are four
    answers = while_busy(lambda _: client.post(path, content=body), models, device, waiting)
    assert [answer.status_code for answer in answers] == [200] * 8
    for answer in answers:
        assert rounded(answer) == rounded(expected)
    assert max(len(batch) for batch in device.batches) >= 4


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/features?levels=e1,pooled&dtype=f16", "/v1/embeddings"])
def test_a_batch_holds_more_requests_than_there_are_cores(
    make_client: ClientFactory, models: dict[str, Predictor], devices: dict[str, FakeDevice], path: str
) -> None:
    client, device = make_client(models, threads=1), devices["tiny"]
    photo = base64.b64encode(jpeg()).decode()

    def ask(_: int) -> int:
        if path == "/v1/embeddings":
            return client.post(path, json={"input": photo}).status_code
        return client.post(path, content=jpeg(), headers={"Accept": "application/x-npz"}).status_code

    device.free.clear()
    with ThreadPoolExecutor(7) as threads:
        first = threads.submit(ask, 0)
        device.wait_for_batch()
        others = [threads.submit(ask, index) for index in range(1, 7)]
        wait_until(lambda: waiting(models, "tiny") == 6)
        device.free.set()
        assert [future.result(PATIENCE_SECONDS) for future in (first, *others)] == [200] * 7
    assert [len(batch) for batch in device.batches] == [1, 8]
    page = client.get("/metrics").text
    assert 'convmae_batch_rows_bucket{le="8.0",model="tiny"} 2.0\n' in page
    assert 'convmae_batch_rows_sum{model="tiny"} 7.0\n' in page
    assert 'convmae_batch_queue_seconds_count{model="tiny"} 7.0\n' in page
    assert 'convmae_batch_rows_count{model="boxes"} 0.0\n' in page


def test_the_views_of_a_video_share_a_batch(
    make_client: ClientFactory, models: dict[str, Predictor], devices: dict[str, FakeDevice]
) -> None:
    path, body = TASKS["motion"]
    assert make_client(models).post(path, content=body).status_code == 200
    assert [len(batch) for batch in devices["motion"].batches] == [4]  # three views, filled up


def test_a_photo_that_the_device_cannot_run_does_not_fail_the_others(
    make_client: ClientFactory, models: dict[str, Predictor], devices: dict[str, FakeDevice]
) -> None:
    client, device = make_client(models, threads=2), devices["tiny"]
    model = models["tiny"]
    assert isinstance(model, Classifier)
    device.poison = float(model.preprocess(decode_image(jpeg(seed=3)).image).flat[0])
    photos = [jpeg(seed=index) for index in range(8)]
    answers = while_busy(lambda index: client.post("/v1/classify", content=photos[index]), models, device, waiting=7)
    assert [answer.status_code for answer in answers] == [200] * 3 + [500] + [200] * 4
    assert client.get("/readyz").status_code == 200


def test_a_lost_device_is_not_ready_until_it_runs_again(
    make_client: ClientFactory, models: dict[str, Predictor], devices: dict[str, FakeDevice]
) -> None:
    client, device = make_client(models), devices["tiny"]
    device.lost = True
    answer = client.post("/v1/classify", content=jpeg())
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "inference_failed")
    refused = client.get("/readyz")
    assert refused.status_code == 503
    assert "the device of the model tiny runs nothing any more" in refused.json()["error"]["message"]
    assert "convmae_ready 0.0\n" in client.get("/metrics").text
    assert client.get("/v2/models/tiny/ready").status_code == 503
    device.lost = False
    wait_until(lambda: client.get("/readyz").status_code == 200)  # which has tried it
    assert client.post("/v1/classify", content=jpeg()).status_code == 200


@pytest.mark.slow
def test_what_has_timed_out_in_the_queue_never_reaches_the_device(
    make_client: ClientFactory, models: dict[str, Predictor], devices: dict[str, FakeDevice]
) -> None:
    client, device = make_client(models, request_timeout_seconds=0.2, threads=2), devices["tiny"]
    device.free.clear()
    answers = together(5, lambda _: client.post("/v1/classify", content=jpeg()).status_code)
    assert answers == [504] * 5
    wait_until(lambda: not client.app.state.api.pool.running)  # type: ignore[attr-defined]
    assert waiting(models, "tiny") == 0
    device.free.set()
    assert client.post("/v1/classify", content=jpeg()).status_code == 200
    assert len(device.batches) == 2 and len(device.batches[1]) == 1  # the first: what came before it was busy
    assert client.get("/readyz").status_code == 200


def test_requests_are_refused_when_the_device_has_enough_to_do(
    make_client: ClientFactory, models: dict[str, Predictor], devices: dict[str, FakeDevice]
) -> None:
    client, device = make_client(models, max_queue_seconds=1.0), devices["tiny"]
    batching_backends(models)["tiny"]._seconds = dict.fromkeys(device.batch_sizes, 2.0)
    device.free.clear()
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(client.post, "/v1/classify", content=jpeg())
        device.wait_for_batch()
        refused = client.post("/v1/classify", content=jpeg())
        device.free.set()
        assert first.result(PATIENCE_SECONDS).status_code == 200
    assert (refused.status_code, refused.json()["error"]["code"], refused.headers["retry-after"]) == (
        503,
        "overloaded",
        "2",
    )


def test_a_model_on_a_device_says_its_batches(
    client: TestClient, make_client: ClientFactory, on_cpu: dict[str, Predictor]
) -> None:
    on_device = client.get("/v1/models/tiny").json()["backend"]
    assert on_device == {"name": "fake", "providers": ["FakeDevice"], "batch_sizes": [1, 2, 4, 8]}
    without = make_client(on_cpu)
    assert "batch_sizes" not in without.get("/v1/models/tiny").json()["backend"]
    assert "convmae_batch_rows_count" not in without.get("/metrics").text


SERVER = """
import sys
import serving.__main__, serving.api.models
from tests.serving.fake_device import FakeDevice

class Device(FakeDevice):
    def run(self, image, outputs):
        print("batch of", len(image), flush=True)
        if len(self.batches) == 13:  # the first after those of the start: once the other end of the pipe is open
            open({pipe!r}).close()
        return super().run(image, outputs)

start = serving.api.models.start_backend
serving.api.models.start_backend = lambda bundle, **options: Device(bundle.manifest, start(bundle, **options))
sys.exit(serving.__main__.main())
"""


def serve(bundle: Path, folder: Path, **settings: str) -> AbstractContextManager[RunningServer]:
    """A server whose device does not end its first batch before somebody writes to the pipe `free` in the folder."""
    os.mkfifo(folder / "free")
    own = {"CONVMAE_BUNDLE": str(bundle), "CONVMAE_THREADS": "2"}
    program = SERVER.replace("{pipe!r}", repr(str(folder / "free")))
    return run_server(folder, own | settings, command=("-c", program))


@pytest.mark.slow
def test_a_server_warms_every_batch_up_before_it_answers_and_answers_what_it_took_before_it_ends(
    bundle: Path, tmp_path: Path
) -> None:
    with serve(bundle, tmp_path) as server:
        said = server.log.read_text().splitlines()
        begun = next(index for index, line in enumerate(said) if line.startswith("ConvMAE server on"))
        assert said[:begun] == [f"batch of {size}" for size in SIZES for _ in range(3)] + ["batch of 1"]
        assert "runs in fake (FakeDevice) in batches of up to 8" in said[begun + 1]
        with ExitStack() as stack:
            connections = [stack.enter_context(server.connect()) for _ in range(12)]
            for connection in connections:
                connection.sendall(post("/v1/classify", jpeg()))
            wait_until(lambda: server.pending_jobs() == len(connections))
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: server.request("/readyz").status == 503)
            with (tmp_path / "free").open("w"):
                assert [read_response(connection).status for connection in connections] == [200] * len(connections)
        assert server.process.wait(timeout=PATIENCE_SECONDS) == 0
    said = [line for line in server.log.read_text().splitlines()[begun:] if line.startswith("batch of")]
    assert sum(int(line.split()[-1]) for line in said) >= len(connections)  # in which batches, measured times decide


@pytest.mark.slow
def test_a_device_that_hangs_does_not_keep_the_server_from_ending(bundle: Path, tmp_path: Path) -> None:
    with serve(bundle, tmp_path, CONVMAE_SHUTDOWN_SECONDS="1") as server, server.connect() as waiting:
        waiting.sendall(post("/v1/classify", jpeg()))
        wait_until(lambda: server.log.read_text().count("batch of") > 13)
        assert server.stop() == 0
