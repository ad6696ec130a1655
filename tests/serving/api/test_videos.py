"""Classification of videos over HTTP, in this process."""

import base64
import math
import random
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.media.video_errors import VideoErrorCode
from convmae_deploy.tasks import load_bundle
from convmae_deploy.tasks.base import Predictor
from convmae_deploy.tasks.clips import ClipViews, average_views, read_clips
from convmae_deploy.tasks.video import VideoClassifier
from serving.api import videos
from serving.api.job import Job, Received
from serving.api.media import media_of
from serving.api.models import load_bundles
from serving.api.parameters import VideoParameters
from serving.api.uploads import Parsed, Upload
from serving.api.videos import STATUS_OF_VIDEO_ERROR, Videos
from serving.errors import ApiError, ClientGone
from serving.http.guard import Guard
from serving.settings import Settings
from serving.work.memory import DecodingMemory
from serving.work.pool import Ticket
from serving.work.runs import Timings
from serving.work.video_process import VideoProcesses
from tests.bundle_factory import options_of
from tests.serving.conftest import ClientFactory, open_on_cpu
from tests.serving.misbehaving_worker import video_that
from tests.serving.sample_images import jpeg
from tests.video_files import make_audio, make_gif, make_video, with_matroska_seconds
from tests.waiting import PATIENCE_SECONDS, wait_for, wait_until

ROUTE = "/v1/classify-video"
VIDEO = make_video()
SETTINGS = Settings.model_construct()  # the defaults, whatever the environment says
VIDEOS = Videos(SETTINGS, DecodingMemory(10**9))
FASTSTART = {"movflags": "faststart"}  # the index in front, so that a file cut off can be opened


@pytest.fixture(scope="module")
def models(bundle: Path, video_bundle: Path) -> dict[str, Predictor]:
    return open_on_cpu(bundle, video_bundle)


@pytest.fixture
def classifier(models: dict[str, Predictor]) -> VideoClassifier:
    found = models["motion"]
    assert isinstance(found, VideoClassifier)
    return found


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def expected(classifier: VideoClassifier, data: bytes, **options: Any) -> list[dict[str, Any]]:
    found = classifier(data, **options)
    return [{"label": item.label, "score": pytest.approx(item.score, rel=1e-5)} for item in found]


def refusal(client: TestClient, data: bytes, query: str = "") -> tuple[int, str, str]:
    answer = client.post(f"{ROUTE}{query}", content=data)
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["message"]


def without_frames() -> bytes:
    """The header of an MP4 made for streaming, which says nothing of what is to come."""
    data = make_video(options={"movflags": "frag_keyframe+empty_moov"})
    return data[: data.index(b"moof") - 4]


class HeldBackend:
    """A backend that does not answer while `free` is not set."""

    name, providers = "held", ("HeldExecutionProvider",)

    def __init__(self, real: VideoClassifier) -> None:
        self.real, self.runs = real.backend, 0
        self.free = threading.Event()
        self.free.set()
        self.entered = threading.Semaphore(0)  # released by each run that begins

    def run(self, image: NDArray[np.float32], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        self.runs += 1
        self.entered.release()
        wait_for(self.free)
        return self.real.run(image, outputs)


def wait_until_idle(client: TestClient) -> None:
    pool = client.app.state.api.pool  # type: ignore[attr-defined]
    wait_until(lambda: not pool.running)


@pytest.mark.parametrize(
    "data",
    [
        VIDEO,
        make_video("webm"),
        make_video("avi"),
        make_video("matroska"),
        make_video("mov", rotation=90),
        make_gif(),
        make_video("matroska", frames=10, milliseconds=[0, 10, 20, 30, 40, 1000, 1500, 1510, 1900, 2000]),
        make_video("matroska", codec="ffv1", pixels="gray16le", size=(47, 63)),
        make_video("webm", codec="libvpx-vp9", pixels="yuva420p"),
        make_video(frames=1),
    ],
    ids=["mp4", "webm", "avi", "mkv", "turned mov", "gif", "variable rate", "16-bit grey", "alpha", "one frame"],
)
def test_the_answer_is_that_of_the_predictor(client: TestClient, classifier: VideoClassifier, data: bytes) -> None:
    answer = client.post(ROUTE, content=data)
    assert answer.json() == expected(classifier, data)
    assert sum(entry["score"] for entry in answer.json()) == pytest.approx(1)
    assert answer.headers["x-model"] == "motion"
    phases = [phase.split(";")[0] for phase in answer.headers["server-timing"].split(", ")]
    assert phases == ["queue", "decode", "inference", "encode"]


def test_headers_say_what_the_file_holds(client: TestClient) -> None:
    headers = client.post(ROUTE, content=VIDEO).headers
    assert (headers["x-video-frames"], headers["x-video-seconds"]) == ("20", "0.800")


@pytest.mark.slow
def test_bytes_forms_and_json_give_the_same(client: TestClient) -> None:
    by_bytes = client.post(ROUTE, content=VIDEO).json()
    assert [entry["label"] for entry in by_bytes]
    for name in ("file", "video", "inputs"):
        assert client.post(ROUTE, files={name: VIDEO}).json() == by_bytes
    for inputs in (text(VIDEO), f"data:video/mp4;base64,{text(VIDEO)}"):
        assert client.post(ROUTE, json={"inputs": inputs}).json() == by_bytes
    assert client.post(ROUTE, json={"inputs": [text(VIDEO)]}).json() == [by_bytes]
    assert client.post(ROUTE, json={"inputs": f"data:image/gif;base64,{text(make_gif())}"}).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("label", ["video/mp4", "image/jpeg", "text/plain", "application/json", "multipart/form-data"])
def test_the_bytes_decide_and_not_the_label(client: TestClient, label: str) -> None:
    for data in (VIDEO, make_video("webm"), make_video("avi"), make_gif()):
        assert client.post(ROUTE, content=data, headers={"Content-Type": label}).status_code == 200


@pytest.mark.slow
def test_views_are_averaged_as_the_predictor_does(client: TestClient, classifier: VideoClassifier) -> None:
    data = make_video(size=(48, 128), frames=40)
    once = client.post(ROUTE, content=data).json()
    for temporal, spatial in ((5, 1), (1, 3), (2, 3), (5, 3)):
        answer = client.post(f"{ROUTE}?temporal_views={temporal}&spatial_views={spatial}", content=data)
        assert answer.json() == expected(classifier, data, **options_of(ClipViews(temporal=temporal, spatial=spatial)))
        assert answer.json() != once


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none"])
def test_parameters_work_in_query_json_and_form(client: TestClient, classifier: VideoClassifier, function: str) -> None:
    wanted = {"top_k": 2, "function_to_apply": function, "temporal_views": 3, "num_frames": 4}
    query = "&".join(f"{name}={value}" for name, value in wanted.items())
    views = ClipViews(temporal=3)
    answers = [
        client.post(f"{ROUTE}?{query}", content=VIDEO),
        client.post(ROUTE, json={"inputs": text(VIDEO), "parameters": wanted}),
        client.post(ROUTE, data={name: str(value) for name, value in wanted.items()}, files={"file": VIDEO}),
    ]
    for answer in answers:
        assert answer.json() == expected(classifier, VIDEO, **options_of(views), top_k=2, function_to_apply=function)


def test_the_sampling_rate_is_the_distance_of_frames(client: TestClient, classifier: VideoClassifier) -> None:
    spec = classifier.sampling.model_copy(update={"stride": 5})
    answer = client.post(f"{ROUTE}?frame_sampling_rate=5", content=VIDEO).json()
    logits = classifier.run(read_clips(VIDEO, spec), ("logits",))["logits"]
    assert [entry["score"] for entry in answer] == pytest.approx(sorted(average_views(logits).tolist(), reverse=True))
    assert answer != client.post(ROUTE, content=VIDEO).json()


@pytest.mark.parametrize(
    ("query", "code", "field"),
    [
        ("temporal_views=0", "invalid_parameter", "temporal_views"),
        ("spatial_views=-1", "invalid_parameter", "spatial_views"),
        ("temporal_views=1000000000", "invalid_parameter", "temporal_views"),
        ("temporal_views=6&spatial_views=3", "too_many_views", "temporal_views"),
        ("spatial_views=three", "invalid_parameter", "spatial_views"),
        ("top_k=0", "invalid_parameter", "top_k"),
        ("num_frames=16", "invalid_parameter", "num_frames"),
        ("frame_sampling_rate=0", "invalid_parameter", "frame_sampling_rate"),
        ("frame_sampling_rate=1001", "invalid_parameter", "frame_sampling_rate"),
        ("orientation=apply", "unknown_parameter", "orientation"),
        ("strict=1", "unknown_parameter", "strict"),
    ],
)
def test_wrong_parameters_are_422(client: TestClient, query: str, code: str, field: str) -> None:
    answer = client.post(f"{ROUTE}?{query}", content=VIDEO)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["field"]) == (422, code, field)


@pytest.mark.parametrize(
    ("data", "status", "code", "words"),
    [
        (b"", 400, "empty_body", "no bytes at all"),
        (b"hello" * 50, 400, "not_a_video", "found text"),
        (bytes(range(256)), 400, "not_a_video", "no known video format"),
        (b"#EXTM3U\n#EXTINF:10,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n", 400, "not_a_video", "found text"),
        (VIDEO[:2000], 400, "video_truncated", "send the whole file"),
        (make_video(options=FASTSTART, frames=60)[:-2000], 400, "video_truncated", "promises 60 frames"),
        (make_video("webm")[: len(make_video("webm")) // 2], 400, "video_truncated", "send the whole file"),
        (b"\x1aE\xdf\xa3" + bytes(400), 400, "video_corrupt", "send an intact file"),
        (without_frames(), 400, "no_frames", "no frames"),
        (make_audio(), 415, "no_video_stream", "audio only"),
        (make_video(codec_options={"x264-params": "colormatrix=YCgCo"}), 415, "unsupported_format", "H.264"),
        (make_audio(cover=True), 415, "no_video_stream", "cover picture, audio only"),
        (jpeg(), 415, "still_image", "send this picture to /v1/classify"),
        (make_gif(1), 415, "still_image", "send this picture to /v1/classify"),
        (with_matroska_seconds(make_video("matroska"), 36_000), 413, "video_too_long", "36000.0 seconds"),
        (make_video("matroska", size=(4320, 7680), frames=1), 413, "video_too_large", "7680 x 4320"),
        (make_video(size=(16, 640)), 422, "aspect_ratio", "crop them"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_a_bad_video_is_a_sentence(client: TestClient, data: bytes, status: int, code: str, words: str) -> None:
    found = refusal(client, data)
    assert found[:2] == (status, code) and words in found[2]
    assert client.get("/readyz").status_code == 200


def test_every_reason_to_refuse_a_video_is_an_error_of_the_client() -> None:
    assert set(STATUS_OF_VIDEO_ERROR) == set(get_args(VideoErrorCode))
    assert all(400 <= status < 500 for status in STATUS_OF_VIDEO_ERROR.values())


@pytest.mark.parametrize(
    ("settings", "status", "code"),
    [
        ({"max_video_seconds": 0.5}, 413, "video_too_long"),
        ({"max_video_frames": 19}, 413, "video_too_long"),
        ({"max_video_pixels": 3000}, 413, "video_too_large"),
        ({"max_video_aspect": 1.2}, 422, "aspect_ratio"),
        ({"video_decoding_seconds": 1e-9}, 422, "decoding_too_slow"),
        ({"max_video_body_bytes": 1000}, 413, "body_too_large"),
        ({"max_video_decoding_bytes": 1_000_000}, 413, "decoding_too_large"),
        ({"max_decoding_bytes": 1_000_000}, 413, "decoding_too_large"),
    ],
)
def test_limits_are_settings(
    make_client: ClientFactory, models: dict[str, Predictor], settings: dict[str, Any], status: int, code: str
) -> None:
    assert refusal(make_client(**settings), VIDEO)[:2] == (status, code)


def test_videos_have_body_limits_of_their_own(make_client: ClientFactory, models: dict[str, Predictor]) -> None:
    client = make_client(max_body_bytes=1000, max_video_body_bytes=1_000_000)
    assert client.post(ROUTE, content=VIDEO).status_code == 200
    assert client.post("/v1/classify", content=jpeg(400, 400)).json()["error"]["code"] == "body_too_large"


def test_references_are_checked_as_those_of_images_are(client: TestClient) -> None:
    for inputs, status, code in (
        ("http://127.0.0.1:1/a.mp4", 400, "url_not_supported"),
        ("no base64!", 400, "invalid_base64"),
        (f"data:image/png;base64,{text(VIDEO)}", 400, "invalid_data_uri"),
        (7, 400, "invalid_input"),
        ([], 400, "empty_body"),
        ([text(VIDEO)] * 2, 413, "too_many_videos"),
    ):
        answer = client.post(ROUTE, json={"inputs": inputs})
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert "image itself" not in answer.json()["error"]["message"]
    two = client.post(ROUTE, files=[("file", VIDEO), ("file", VIDEO)])
    assert (two.status_code, two.json()["error"]["code"]) == (413, "too_many_videos")
    other = client.post(ROUTE, files={"image": VIDEO})
    assert (other.status_code, other.json()["error"]["code"]) == (400, "unknown_field")


@pytest.mark.slow
def test_flipped_bytes_are_answered_or_refused(client: TestClient) -> None:
    generator, statuses = random.Random(0), set()
    for data in (VIDEO, make_video("webm"), make_video("avi"), make_gif()):
        for _ in range(12):
            flipped = bytearray(data)
            for _ in range(8):
                flipped[generator.randrange(32, len(data))] = generator.randrange(256)
            statuses.add(client.post(ROUTE, content=bytes(flipped)).status_code)
    assert {200, 400} <= statuses <= {200, 400, 413, 415, 422}


@pytest.mark.slow
def test_a_decoder_that_breaks_is_the_fault_of_the_file_and_one_that_does_not_start_is_ours(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, misbehaving: VideoProcesses
) -> None:
    monkeypatch.setattr(videos, "video_processes", lambda: misbehaving)
    assert refusal(client, video_that("aborts"))[:2] == (400, "video_corrupt")
    assert refusal(client, video_that("takes all memory"))[:2] == (413, "decoding_too_large")
    assert refusal(client, video_that("raises"))[:2] == (500, "internal_error")
    assert client.app.state.api.inference.memory.taken == 0  # type: ignore[attr-defined]


@pytest.mark.slow
def test_decoding_ends_when_the_request_does(
    make_client: ClientFactory,
    models: dict[str, Predictor],
    monkeypatch: pytest.MonkeyPatch,
    misbehaving: VideoProcesses,
) -> None:
    monkeypatch.setattr(videos, "video_processes", lambda: misbehaving)
    client = make_client(video_request_timeout_seconds=0.3)
    assert refusal(client, video_that("never ends"))[:2] == (504, "timeout")
    wait_until_idle(client)
    assert client.app.state.api.inference.memory.taken == 0  # type: ignore[attr-defined]


def job_of(classifier: VideoClassifier, ticket: Ticket, deadline: float) -> Job:
    parameters = VideoParameters()
    return Job(
        received=Received(body=VIDEO, ticket=ticket, timings=Timings(), deadline=deadline),
        predictor=classifier,
        parameters=parameters,
        options=parameters.options(classifier),
        parsed=Parsed(media_of(SETTINGS)["video"], [Upload(VIDEO, "body")]),
        stills=None,
        max_json_bytes=0,
    )


def test_a_video_whose_client_has_gone_is_not_decoded(
    classifier: VideoClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(videos, "video_processes", None)
    ticket = Ticket()
    ticket.abandon()
    with pytest.raises(ClientGone):
        next(VIDEOS.prepare(job_of(classifier, ticket, math.inf)))


def test_reading_packets_ends_soon_after_the_request_too(
    classifier: VideoClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(videos, "GRACE_SECONDS", 1e-9)
    with pytest.raises(ApiError) as refused:
        next(VIDEOS.prepare(job_of(classifier, Ticket(), 0.0)))
    assert refused.value.code == "decoding_too_slow"


@pytest.mark.slow
def test_between_two_views_the_work_ends_when_its_time_is_over(
    make_client: ClientFactory, classifier: VideoClassifier, video_bundle: Path
) -> None:
    backend = HeldBackend(classifier)
    backend.free.clear()
    model = VideoClassifier(load_bundle(video_bundle), backend)
    client = make_client({"motion": model}, video_request_timeout_seconds=0.3)
    found = refusal(client, VIDEO, "?temporal_views=15")
    backend.free.set()
    assert found[:2] == (504, "timeout")
    wait_until_idle(client)
    assert backend.runs <= 1


def test_many_uploads_at_once_are_answered_or_told_to_come_again(
    make_client: ClientFactory, classifier: VideoClassifier, video_bundle: Path
) -> None:
    backend = HeldBackend(classifier)
    model = VideoClassifier(load_bundle(video_bundle), backend)
    client = make_client({"motion": model}, threads=2, max_queue_seconds=1e-9)
    assert client.post(ROUTE, content=VIDEO).status_code == 200  # from now on it is known how long they take
    assert backend.entered.acquire(blocking=False)
    backend.free.clear()

    def ask(_: int) -> Any:
        return client.post(ROUTE, content=VIDEO)

    with ThreadPoolExecutor(16) as threads:
        taken = [threads.submit(ask, index) for index in range(2)]
        for _ in taken:
            assert backend.entered.acquire(timeout=PATIENCE_SECONDS)
        refused = list(threads.map(ask, range(14)))
        backend.free.set()
        assert [future.result(PATIENCE_SECONDS).status_code for future in taken] == [200, 200]
    assert [answer.status_code for answer in refused] == [503] * 14
    assert all("retry-after" in answer.headers for answer in refused)
    assert client.post(ROUTE, content=VIDEO).status_code == 200


def test_bodies_of_videos_count_towards_what_may_be_held(
    make_client: ClientFactory, models: dict[str, Predictor]
) -> None:
    client = make_client(max_buffered_bytes=1000)
    assert refusal(client, VIDEO)[:2] == (503, "overloaded")
    assert client.app.state.api.guard.buffered_bytes == 0  # type: ignore[attr-defined]


def test_videos_are_counted_as_such(client: TestClient) -> None:
    client.post(ROUTE, content=VIDEO)
    client.post(ROUTE, content=b"hello")
    page = client.get("/metrics").text
    assert "convmae_videos_total 1.0\n" in page and "convmae_images_total 0.0\n" in page
    for status in (200, 400):
        assert f'convmae_requests_total{{method="POST",route="{ROUTE}",status="{status}"}} 1.0\n' in page


def test_the_model_is_chosen_as_for_other_tasks(client: TestClient) -> None:
    listed = client.get("/v1/models").json()["data"]
    assert [(model["id"], model["task"], model["default"]) for model in listed] == [
        ("tiny", "classification", True),
        ("motion", "video-classification", True),
    ]
    assert refusal(client, VIDEO, "?model=tiny")[:2] == (404, "no_model_for_task")
    assert refusal(client, VIDEO, "?model=none")[:2] == (404, "unknown_model")
    assert client.post(f"{ROUTE}?model=motion", content=VIDEO).status_code == 200
    photo = client.post("/v1/classify?model=motion", content=jpeg())
    assert (photo.status_code, photo.json()["error"]["code"]) == (404, "no_model_for_task")


def test_without_a_video_model_no_body_is_read(
    make_client: ClientFactory, models: dict[str, Predictor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Guard, "read_body", None)
    client = make_client({"tiny": models["tiny"]})
    assert refusal(client, VIDEO)[:2] == (404, "no_model_for_task")


def test_a_model_that_answers_nonsense_is_500_and_not_ready_after_three(
    make_client: ClientFactory, classifier: VideoClassifier, video_bundle: Path
) -> None:
    class BrokenBackend(HeldBackend):
        def run(self, image: NDArray[np.float32], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
            return {name: np.full_like(values, np.nan) for name, values in super().run(image, outputs).items()}

    model = VideoClassifier(load_bundle(video_bundle), BrokenBackend(classifier))
    client = make_client({"motion": model})
    for _ in range(3):
        assert client.get("/readyz").status_code == 200
        assert refusal(client, VIDEO)[:2] == (500, "inference_failed")
    assert client.get("/readyz").status_code == 503


def test_without_pyav_the_server_says_so_before_it_starts(
    video_bundle: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConvMAEError, match=r"is for videos and needs PyAV; run pip install '\.\[video\]'"):
        load_bundles(Settings(bundle=(bundle, video_bundle)))
    assert len(load_bundles(Settings(bundle=(bundle,)))) == 1
