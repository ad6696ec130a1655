"""Detection and segmentation over HTTP, in this process, beside a classifier."""

import base64
import io
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from starlette.testclient import TestClient

from convmae_deploy.media.images import decode_image
from convmae_deploy.tasks import load_bundle
from convmae_deploy.tasks.base import Predictor
from convmae_deploy.tasks.detection import Detector
from convmae_deploy.tasks.segmentation import Segmenter
from tests.bundle_factory import make_detection_bundle, make_segmentation_bundle, make_video_bundle, take_levels
from tests.serving.conftest import ClientFactory, open_on_cpu
from tests.serving.sample_images import jpeg
from tests.video_files import make_video
from tests.waiting import wait_for, wait_until


def picture(width: int = 192, height: int = 64, level: int = 210, orientation: int | None = None) -> bytes:
    exif, buffer = Image.Exif(), io.BytesIO()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.new("RGB", (width, height), (level, level - 10, level - 20)).save(buffer, format="PNG", exif=exif)
    return buffer.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def png(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as opened:
        return np.asarray(opened)


@pytest.fixture(scope="module")
def models(bundle: Path, detection_bundle: Path, segmentation_bundle: Path) -> dict[str, Predictor]:
    return open_on_cpu(bundle, detection_bundle, segmentation_bundle)


@pytest.fixture
def detector(models: dict[str, Predictor]) -> Detector:
    found = models["boxes"]
    assert isinstance(found, Detector)
    return found


@pytest.fixture
def segmenter(models: dict[str, Predictor]) -> Segmenter:
    found = models["areas"]
    assert isinstance(found, Segmenter)
    return found


@pytest.mark.slow
def test_graphs_that_take_levels_answer_alike_in_every_task(make_client: ClientFactory, tmp_path: Path) -> None:
    makers = {"detect": make_detection_bundle, "segment": make_segmentation_bundle, "classify-video": make_video_bundle}
    floats = make_client(open_on_cpu(*(make(tmp_path / name) for name, make in makers.items())))
    levels = make_client(open_on_cpu(*(take_levels(make(tmp_path / f"of {name}")) for name, make in makers.items())))
    for name in makers:
        content = make_video() if name == "classify-video" else picture()
        answers = [client.post(f"/v1/{name}", content=content).json() for client in (floats, levels)]
        assert answers[0] == answers[1] and "error" not in answers[0]


def test_models_of_all_tasks_stand_side_by_side(client: TestClient) -> None:
    listed = client.get("/v1/models").json()["data"]
    assert [(model["id"], model["task"], model["default"]) for model in listed] == [
        ("tiny", "classification", True),
        ("boxes", "detection", True),
        ("areas", "segmentation", True),
    ]
    assert client.get("/readyz").json()["models"] == ["tiny", "boxes", "areas"]
    assert client.get("/v1/models/areas").json()["preprocessing"]["stride"] == [43, 43]
    for path, name in (("classify", "tiny"), ("detect", "boxes"), ("segment", "areas"), ("features", "tiny")):
        assert client.post(f"/v1/{path}", content=picture()).headers["x-model"] == name
    for path, name in (("classify", "boxes"), ("detect", "areas"), ("segment", "tiny"), ("features", "areas")):
        answer = client.post(f"/v1/{path}?model={name}", content=picture())
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_model_for_task")
    assert client.post("/v1/embeddings", json={"input": text(picture()), "model": "boxes"}).status_code == 404


def test_the_objects_are_those_of_the_detector(client: TestClient, detector: Detector) -> None:
    data = picture()
    expected = detector([decode_image(data).image])[0]
    answer = client.post("/v1/detect", content=data)
    assert len(expected) == 2
    for entry, item in zip(answer.json(), expected, strict=True):
        assert set(entry) == {"label", "score", "box"}
        assert (entry["label"], entry["score"]) == (item.label, pytest.approx(item.score))
        assert list(entry["box"]) == ["xmin", "ymin", "xmax", "ymax"]
        assert list(entry["box"].values()) == pytest.approx(item.box, abs=0.005)
    assert "x-converged" not in answer.headers
    phases = [phase.split(";")[0] for phase in answer.headers["server-timing"].split(", ")]
    assert phases == ["queue", "decode", "inference", "encode"]


def test_boxes_are_in_pixels_of_the_upright_photo(client: TestClient) -> None:
    answer = client.post("/v1/detect?threshold=0", content=picture(64, 192, orientation=6))
    assert answer.headers["x-image-orientation"] == "6"
    assert [entry["box"] for entry in answer.json()] == [
        entry["box"] for entry in client.post("/v1/detect?threshold=0", content=picture(192, 64)).json()
    ]


def test_masks_come_on_request_as_run_lengths_or_png(client: TestClient, detector: Detector) -> None:
    data = picture()
    expected = [item.mask.pixels() for item in detector([decode_image(data).image])[0]]
    run_lengths = client.post("/v1/detect?masks=rle", content=data).json()
    pictures = client.post("/v1/detect", json={"inputs": text(data), "parameters": {"masks": "png"}}).json()
    for mask, first, second in zip(expected, run_lengths, pictures, strict=True):
        assert mask.any() and mask.shape == (64, 192)
        assert np.array_equal(coco_mask.decode(first["mask"]), mask)
        assert np.array_equal(png(base64.b64decode(second["mask"])), mask * 255)


def test_a_list_gives_a_list_of_lists_and_nothing_found_an_empty_one(client: TestClient) -> None:
    bright, dark = picture(), picture(level=30)
    alone = client.post("/v1/detect", content=bright).json()
    answer = client.post("/v1/detect", json={"inputs": [text(bright), text(dark)] * 3})  # the graph takes 4
    assert [len(objects) for objects in answer.json()] == [2, 0] * 3
    assert [entry["box"] for entry in answer.json()[4]] == [entry["box"] for entry in alone]
    assert client.post("/v1/detect", content=dark).json() == []
    form = client.post("/v1/detect", files=[("files", bright), ("files", dark)], data={"threshold": "0.99"})
    assert form.json() == [[], []]


def test_a_suppression_that_did_not_end_is_told_in_a_header(make_client: ClientFactory, tmp_path: Path) -> None:
    bundle = load_bundle(make_detection_bundle(tmp_path, converged=False))
    answer = make_client(open_on_cpu(bundle.path)).post("/v1/detect", json={"inputs": [text(picture())] * 2})
    assert answer.status_code == 200 and answer.headers["x-converged"] == "0, 0"


def test_the_segments_are_those_of_the_segmenter(client: TestClient, segmenter: Segmenter) -> None:
    data = jpeg()
    expected = segmenter([decode_image(data).image])[0]
    answer = client.post("/v1/segment", content=data).json()
    areas = []
    for entry in answer:
        assert set(entry) == {"label", "score", "mask"}
        index = segmenter.manifest.classes.index(entry["label"])
        assert np.array_equal(png(base64.b64decode(entry["mask"])), (expected.labels == index) * 255)
        assert entry["score"] == pytest.approx(float(expected.scores[index]))
        areas.append((expected.labels == index).sum())
    assert sum(areas) == expected.labels.size and areas == sorted(areas, reverse=True) and len(areas) > 1
    by_run_lengths = client.post("/v1/segment?masks=rle", content=data).json()
    for entry, other in zip(by_run_lengths, answer, strict=True):
        assert np.array_equal(coco_mask.decode(entry["mask"]) * 255, png(base64.b64decode(other["mask"])))
    least = min(entry["score"] for entry in answer)
    assert len(client.post(f"/v1/segment?threshold={least + 1e-6}", content=data).json()) == len(answer) - 1
    assert client.post("/v1/segment", json={"inputs": [text(data)] * 2}).json() == [answer, answer]


def test_the_label_map_is_a_picture_for_who_accepts_it(client: TestClient, segmenter: Segmenter) -> None:
    data = jpeg()
    expected = segmenter([decode_image(data).image])[0].labels
    for accept in ("image/png", "image/*", "application/json;q=0.5, image/png"):
        answer = client.post("/v1/segment", content=data, headers={"Accept": accept})
        assert answer.headers["content-type"] == "image/png"
        assert np.array_equal(png(answer.content), expected)
    assert client.post("/v1/segment", content=data, headers={"Accept": "*/*"}).json()
    for accept, inputs in (("image/jpeg", text(data)), ("image/png", [text(data)] * 2)):
        refused = client.post("/v1/segment", json={"inputs": inputs}, headers={"Accept": accept})
        assert (refused.status_code, refused.json()["error"]["code"]) == (406, "not_acceptable")


@pytest.mark.parametrize("path", ["detect", "segment"])
@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("threshold=1.5", "invalid_parameter"),
        ("threshold=-0.1", "invalid_parameter"),
        ("threshold=nan", "invalid_parameter"),
        ("threshold=high", "invalid_parameter"),
        ("masks=polygon", "invalid_parameter"),
        ("top_k=5", "unknown_parameter"),
        ("subtask=panoptic", None),
    ],
)
def test_wrong_parameters_are_422(client: TestClient, path: str, query: str, code: str | None) -> None:
    answer = client.post(f"/v1/{path}?{query}", content=picture())
    error = answer.json()["error"]
    assert answer.status_code == 422
    assert error["code"] == code or (code is None and error["field"] == "subtask")


@pytest.mark.parametrize("path", ["detect", "segment"])
@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "empty_body"),
        (b"hello", 400, "not_an_image"),
        (jpeg()[:400], 400, "image_truncated"),
        (b"%PDF-1.7 " + bytes(100), 415, "unsupported_format"),
    ],
)
def test_bad_images_have_the_errors_of_every_route(
    client: TestClient, path: str, body: bytes, status: int, code: str
) -> None:
    answer = client.post(f"/v1/{path}", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize("path", ["detect", "segment"])
def test_one_bad_image_of_several_is_named(client: TestClient, path: str) -> None:
    answer = client.post(f"/v1/{path}", json={"inputs": [text(picture()), text(b"hello")]})
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, "inputs[1]")


class BrokenBackend:
    """A backend that answers with what it must not."""

    name, providers = "broken", ("BrokenExecutionProvider",)

    def __init__(self, predictor: Predictor, name: str) -> None:
        self.real, self.broken = predictor.backend, name

    def run(self, image: NDArray[np.float32], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        answer = self.real.run(image, outputs)
        value = np.nan if answer[self.broken].dtype == np.float32 else 10_000
        return answer | {self.broken: np.full_like(answer[self.broken], value)}


@pytest.mark.parametrize(
    ("path", "name", "output"),
    [("detect", "boxes", "scores"), ("detect", "boxes", "num"), ("segment", "areas", "logits")],
)
def test_a_model_that_answers_nonsense_is_500_and_not_ready_after_three(
    make_client: ClientFactory,
    models: dict[str, Predictor],
    detection_bundle: Path,
    segmentation_bundle: Path,
    path: str,
    name: str,
    output: str,
) -> None:
    bundle = load_bundle({"boxes": detection_bundle, "areas": segmentation_bundle}[name])
    broken = type(models[name])(bundle, BrokenBackend(models[name], output))
    client = make_client({name: broken})
    for _ in range(3):
        assert client.get("/readyz").status_code == 200
        answer = client.post(f"/v1/{path}", content=picture())
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "inference_failed")
    assert client.get("/readyz").status_code == 503


@pytest.mark.slow
def test_a_photo_of_many_windows_is_given_up_when_its_time_is_over(
    make_client: ClientFactory, models: dict[str, Predictor], segmentation_bundle: Path
) -> None:
    class SlowBackend:
        name, providers = "slow", ("SlowExecutionProvider",)

        def __init__(self) -> None:
            self.runs, self.timed_out = 0, threading.Event()

        def run(self, image: NDArray[np.float32], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
            self.runs += 1
            if self.runs == 3:
                wait_for(self.timed_out)
            return models["areas"].backend.run(image, outputs)

    backend = SlowBackend()
    client = make_client({"areas": Segmenter(load_bundle(segmentation_bundle), backend)}, request_timeout_seconds=0.3)
    answer = client.post("/v1/segment", content=picture(1000, 1000))  # 23 x 23 windows, 4 a run
    backend.timed_out.set()
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
    pool = client.app.state.api.pool  # type: ignore[attr-defined]
    wait_until(lambda: not pool.running)
    assert backend.runs <= 3
