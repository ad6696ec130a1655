"""The routes, in this process."""

import base64
import io
import json
import threading
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient

from convmae_deploy.media.images import decode_image
from convmae_deploy.tasks.base import Predictor
from convmae_deploy.tasks.classification import Classifier
from serving.api import openapi
from serving.api.models import Models
from serving.app import create_app
from serving.settings import Settings
from tests.bundle_factory import features_of
from tests.serving.conftest import ClientFactory
from tests.serving.sample_images import jpeg
from tests.waiting import wait_for, wait_until

PHOTO = jpeg()
LEVELS = ("e1", "e2", "e3", "e4", "pooled")


class StubBackend:
    """A backend whose answer a test decides."""

    name = "stub"
    providers = ("StubExecutionProvider",)

    def __init__(self, predictor: Classifier) -> None:
        self.real = predictor.backend
        self.failure: Exception | None = None
        self.value: float | None = None
        self.release: threading.Event | None = None
        self.runs = 0

    def run(self, image: NDArray[np.float32], outputs: Any) -> dict[str, NDArray[np.float32]]:
        self.runs += 1
        if self.release is not None:
            wait_for(self.release)
        if self.failure is not None:
            raise self.failure
        results = self.real.run(image, outputs)
        if self.value is not None:
            results = {name: np.full_like(values, self.value) for name, values in results.items()}
        return results


class _Bundle:
    def __init__(self, predictor: Classifier) -> None:
        self.manifest = predictor.manifest


@pytest.fixture
def stub(predictors: dict[str, Classifier]) -> StubBackend:
    return StubBackend(predictors["tiny"])


@pytest.fixture
def stubbed(predictors: dict[str, Classifier], stub: StubBackend) -> dict[str, Classifier]:
    return {"tiny": Classifier(_Bundle(predictors["tiny"]), stub)}  # type: ignore[arg-type]


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def features(predictor: Classifier, *photos: bytes) -> dict[str, NDArray[np.float32]]:
    return features_of(predictor, [decode_image(photo).image for photo in photos], LEVELS)


def test_the_answer_is_that_of_the_predictor(client: TestClient, predictors: dict[str, Classifier]) -> None:
    expected = predictors["tiny"]([decode_image(PHOTO).image])[0]
    answer = client.post("/v1/classify", content=PHOTO)
    assert answer.json() == [{"label": found.label, "score": found.score} for found in expected]
    assert answer.headers["x-model"] == "tiny"


def test_bytes_forms_and_json_give_the_same(client: TestClient) -> None:
    by_bytes = client.post("/v1/classify", content=PHOTO).json()
    by_form = client.post("/v1/classify", files={"file": PHOTO}).json()
    by_json = client.post("/v1/classify", json={"inputs": text(PHOTO)}).json()
    by_uri = client.post("/v1/classify", json={"inputs": f"data:image/jpeg;base64,{text(PHOTO)}"}).json()
    by_wrapped = client.post("/v1/classify", json={"inputs": base64.encodebytes(PHOTO).decode()}).json()
    assert by_bytes == by_form == by_json == by_uri == by_wrapped


def test_a_list_of_one_gives_a_list_of_lists(client: TestClient) -> None:
    single = client.post("/v1/classify", content=PHOTO).json()
    assert client.post("/v1/classify", json={"inputs": [text(PHOTO)]}).json() == [single]


def test_parameters_work_in_query_json_and_form(client: TestClient) -> None:
    wanted = {"top_k": 1, "function_to_apply": "none"}
    answers = [
        client.post("/v1/classify?top_k=1&function_to_apply=none", content=PHOTO),
        client.post("/v1/classify", json={"inputs": text(PHOTO), "parameters": wanted}),
        client.post("/v1/classify", data={"top_k": "1", "function_to_apply": "none"}, files={"file": PHOTO}),
    ]
    assert all(answer.json() == answers[0].json() for answer in answers)
    assert len(answers[0].json()) == 1


def test_a_larger_batch_than_the_graph_takes_is_answered_whole(client: TestClient) -> None:
    photos = [jpeg(seed=seed) for seed in range(11)]  # the graph takes 8
    answer = client.post("/v1/classify", json={"inputs": [text(photo) for photo in photos]}).json()
    for found, photo in zip(answer, photos, strict=True):
        expected = client.post("/v1/classify", content=photo).json()
        assert [entry["label"] for entry in found] == [entry["label"] for entry in expected]
        assert [entry["score"] for entry in found] == pytest.approx([entry["score"] for entry in expected], rel=1e-4)


def test_the_model_is_chosen_by_name_and_the_first_is_the_default(client: TestClient) -> None:
    labels = {entry["label"] for entry in client.post("/v1/classify?model=other", content=PHOTO).json()}
    assert labels == {"x", "y"}
    assert client.post("/v1/classify", content=PHOTO).headers["x-model"] == "tiny"


@pytest.mark.parametrize("path", ["/v1/detect", "/v1/segment", "/v1/classify-video"])
def test_a_task_without_a_bundle_is_a_sentence(client: TestClient, path: str) -> None:
    answer = client.post(path, content=PHOTO)
    assert answer.status_code == 404
    assert "CONVMAE_BUNDLE" in answer.json()["error"]["message"]


def test_features_come_as_safetensors(client: TestClient, predictors: dict[str, Classifier]) -> None:
    headers = {"Accept": "application/x-safetensors"}
    answer = client.post(f"/v1/features?levels={','.join(LEVELS)}", content=PHOTO, headers=headers)
    assert answer.headers["content-type"] == "application/x-safetensors"
    expected = features(predictors["tiny"], PHOTO)
    found = safetensors.numpy.load(answer.content)
    assert set(found) == set(LEVELS)
    assert all(np.array_equal(found[level], expected[level]) for level in LEVELS)
    assert found["e1"].shape == (1, 4, 16, 16)


def test_features_come_as_npz(client: TestClient, predictors: dict[str, Classifier]) -> None:
    answer = client.post("/v1/features?levels=e4", content=PHOTO, headers={"Accept": "application/x-npz"})
    with np.load(io.BytesIO(answer.content)) as found:
        assert np.array_equal(found["e4"], features(predictors["tiny"], PHOTO)["e4"])


def test_features_come_as_plain_bytes_with_a_description(client: TestClient, predictors: dict[str, Classifier]) -> None:
    headers = {"Accept": "application/octet-stream"}
    answer = client.post("/v1/features?levels=pooled,e4&dtype=f16", content=PHOTO, headers=headers)
    description = json.loads(answer.headers["x-features"])
    assert description["dtype"] == "f16"
    expected = features(predictors["tiny"], PHOTO)
    for level, entry in zip(("pooled", "e4"), description["levels"], strict=True):
        data = answer.content[entry["offset"] : entry["offset"] + entry["bytes"]]
        found = np.frombuffer(data, "<f2").reshape(entry["shape"])
        assert entry["level"] == level
        assert np.array_equal(found, expected[level].astype(np.float16))
    assert sum(entry["bytes"] for entry in description["levels"]) == len(answer.content)


def test_small_features_come_as_json(client: TestClient, predictors: dict[str, Classifier]) -> None:
    answer = client.post("/v1/features", content=PHOTO, headers={"Accept": "application/json"}).json()
    assert np.allclose(answer["features"]["pooled"], features(predictors["tiny"], PHOTO)["pooled"])


def test_large_features_as_json_are_refused_with_a_hint(make_client: ClientFactory) -> None:
    client = make_client(max_json_features_bytes=100)
    answer = client.post("/v1/features?levels=e1", content=PHOTO, headers={"Accept": "application/json"})
    assert answer.status_code == 406  # row 34
    assert "application/x-safetensors" in answer.json()["error"]["message"]


def test_features_of_a_batch_have_one_row_an_image(client: TestClient, predictors: dict[str, Classifier]) -> None:
    photos = [jpeg(seed=seed) for seed in range(3)]
    answer = client.post("/v1/features", files=[("file", photo) for photo in photos])
    found = safetensors.numpy.load(answer.content)["pooled"]
    assert np.allclose(found, features(predictors["tiny"], *photos)["pooled"], atol=1e-6)


def test_embeddings_have_openais_shape(client: TestClient, predictors: dict[str, Classifier]) -> None:
    uri = f"data:image/jpeg;base64,{text(PHOTO)}"
    expected = features(predictors["tiny"], PHOTO)["pooled"][0]
    for reference in (uri, {"type": "image_url", "image_url": {"url": uri}}, {"type": "image_url", "image_url": uri}):
        answer = client.post("/v1/embeddings", json={"input": reference, "model": "tiny"}).json()
        assert (answer["object"], answer["model"]) == ("list", "tiny")
        assert answer["data"][0]["index"] == 0
        assert np.allclose(answer["data"][0]["embedding"], expected)


def test_embeddings_as_base64_are_little_endian_floats(client: TestClient, predictors: dict[str, Classifier]) -> None:
    content = {"input": [text(PHOTO), text(jpeg(seed=1))], "encoding_format": "base64"}
    data = client.post("/v1/embeddings", json=content).json()["data"]
    found = np.stack([np.frombuffer(base64.b64decode(entry["embedding"]), "<f4") for entry in data])
    assert np.allclose(found, features(predictors["tiny"], PHOTO, jpeg(seed=1))["pooled"], atol=1e-6)


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        ({}, 400, "missing_field"),
        ({"input": []}, 400, "empty_body"),
        ({"input": {"type": "text", "text": "a"}}, 400, "invalid_input"),
        ({"input": "https://example.org/a.jpg"}, 400, "url_not_supported"),
        ({"input": text(PHOTO), "model": "none"}, 404, "unknown_model"),
        ({"input": text(PHOTO), "encoding_format": "hex"}, 422, "invalid_parameter"),
        ({"input": text(PHOTO), "dimensions": 3}, 422, "unknown_parameter"),
    ],
)
def test_bad_embedding_requests_are_refused(
    client: TestClient, content: dict[str, Any], status: int, code: str
) -> None:
    answer = client.post("/v1/embeddings", json=content)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_the_models_are_listed_and_described(client: TestClient) -> None:
    models = client.get("/v1/models").json()["data"]
    assert [(model["id"], model["default"]) for model in models] == [("tiny", True), ("other", False)]
    model = client.get("/v1/models/tiny").json()
    assert model["labels"] == ["a", "b", "c"]
    assert [model["outputs"][f"e{level}"]["stride"] for level in (1, 2, 3, 4)] == [4, 8, 16, 32]
    assert model["preprocessing"]["crop"] == [64, 64]
    assert model["numerics"]["passed"] is True
    assert model["licence"]["name"] == "test weights"
    assert model["backend"] == {"name": "onnxruntime", "providers": ["CPUExecutionProvider"]}
    assert client.get("/v1/models/none").json()["error"]["code"] == "unknown_model"


def test_every_answer_names_its_phases_and_carries_a_request_id(client: TestClient) -> None:
    answer = client.post("/v1/classify", content=PHOTO, headers={"X-Request-ID": "my-id.1"})
    phases = [entry.split(";")[0] for entry in answer.headers["server-timing"].split(", ")]
    assert phases == ["queue", "decode", "inference", "encode"]
    assert answer.headers["x-request-id"] == "my-id.1"


def test_a_request_id_that_could_split_a_header_is_replaced(client: TestClient) -> None:
    answer = client.get("/livez", headers={"X-Request-ID": "a b<script>"})
    assert answer.headers["x-request-id"] != "a b<script>"


def test_unknown_paths_and_methods_have_the_usual_error(client: TestClient) -> None:
    unknown = client.get("/nothing")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
    wrong = client.get("/v1/classify")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


def test_a_failing_model_is_500_for_that_request_only(
    make_client: ClientFactory,
    stub: StubBackend,
    stubbed: dict[str, Classifier],
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = make_client(stubbed)  # row 39
    stub.failure = RuntimeError("CUDA out of memory")
    answer = client.post("/v1/classify", content=PHOTO)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "inference_failed")
    assert "CUDA" not in answer.text
    assert answer.json()["error"]["request_id"] in caplog.text and "CUDA out of memory" in caplog.text
    stub.failure = None
    assert client.post("/v1/classify", content=PHOTO).status_code == 200
    assert "convmae_inference_failures_total 1.0" in client.get("/metrics").text


def test_values_that_are_not_finite_are_500(
    make_client: ClientFactory, stub: StubBackend, stubbed: dict[str, Classifier]
) -> None:
    client = make_client(stubbed)
    stub.value = float("nan")
    for path in ("/v1/classify", "/v1/features"):
        assert client.post(path, content=PHOTO).json()["error"]["code"] == "inference_failed"


def test_after_three_failures_the_server_is_not_ready_until_a_success(
    make_client: ClientFactory, stub: StubBackend, stubbed: dict[str, Classifier]
) -> None:
    client = make_client(stubbed)
    stub.failure = RuntimeError("broken")
    for _ in range(2):
        client.post("/v1/classify", content=PHOTO)
    assert client.get("/readyz").status_code == 200
    client.post("/v1/classify", content=PHOTO)
    assert client.get("/readyz").status_code == 503
    assert client.get("/livez").status_code == 200
    stub.failure = None
    assert client.post("/v1/classify", content=PHOTO).status_code == 200
    assert client.get("/readyz").status_code == 200


def test_a_server_without_traffic_finds_out_by_itself_that_its_model_runs_again(
    make_client: ClientFactory, stub: StubBackend, stubbed: dict[str, Classifier]
) -> None:
    client = make_client(stubbed)
    stub.failure = RuntimeError("broken")
    for _ in range(3):
        client.post("/v1/classify", content=PHOTO)
    stub.failure = None
    assert client.get("/readyz").status_code == 503
    wait_until(lambda: client.get("/readyz").status_code == 200)


def test_a_full_queue_is_refused_at_once_with_retry_after(
    make_client: ClientFactory, stub: StubBackend, stubbed: dict[str, Classifier]
) -> None:
    client = make_client(stubbed, threads=1, max_queue_seconds=1e-9)  # row 37
    client.post("/v1/classify", content=PHOTO)  # so that the duration of a job is known
    stub.release = threading.Event()
    other = threading.Thread(target=client.post, args=("/v1/classify",), kwargs={"content": PHOTO})
    other.start()
    pool = client.app.state.api.pool  # type: ignore[attr-defined]
    wait_until(lambda: pool.pending)
    answer = client.post("/v1/classify", content=PHOTO)  # which is here while the only thread is still busy
    stub.release.set()
    other.join()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
    assert int(answer.headers["retry-after"]) >= 1


def test_a_request_that_takes_too_long_is_504(
    make_client: ClientFactory, stub: StubBackend, stubbed: dict[str, Classifier]
) -> None:
    client = make_client(stubbed, request_timeout_seconds=0.1)
    stub.release = threading.Event()
    answer = client.post("/v1/classify", content=PHOTO)
    stub.release.set()
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")


def test_more_bodies_than_may_be_held_are_503(make_client: ClientFactory) -> None:
    client = make_client(max_buffered_bytes=100)
    for _ in range(2):
        answer = client.post("/v1/classify", content=PHOTO)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
    assert client.app.state.api.guard.buffered_bytes == 0  # type: ignore[attr-defined]


def test_an_unexpected_exception_is_500_in_the_usual_shape(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("serving.app.list_models", lambda predictors: 1 / 0)
    answer = client.get("/v1/models")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "ZeroDivisionError" not in answer.text
    assert answer.json()["error"]["request_id"] in caplog.text


def test_a_client_has_no_settings_but_those_of_its_test(
    make_client: ClientFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVMAE_API_KEY", "of whoever runs the tests")
    assert make_client().get("/v1/models").status_code == 200


def test_before_its_models_are_there_the_server_is_not_ready(predictors: dict[str, Classifier]) -> None:
    models = Models()
    application = create_app(Settings(device="cpu", threads=1), models)
    with TestClient(application) as client:
        assert client.get("/readyz").status_code == 503
        models.put(predictors)
        assert client.get("/readyz").status_code == 200
    application.state.api.pool.shutdown()


def test_json_never_holds_a_number_that_json_does_not_have(client: TestClient) -> None:
    for path in ("/v1/models", "/v1/models/tiny", "/openapi.json", "/readyz", "/livez"):
        json.loads(client.get(path).text, parse_constant=lambda name: pytest.fail(name))


def test_what_each_cell_adds_is_said_in_numbers_that_sum_to_the_logit(client: TestClient) -> None:
    found = client.post("/v1/classify?explain=map", content=PHOTO).json()
    logits = client.post("/v1/classify?function_to_apply=none", content=PHOTO).json()
    assert found["label"] == logits[0]["label"] and found["logit"] == pytest.approx(logits[0]["score"], rel=1e-6)
    assert np.sum(found["contributions"]) + found["bias"] == pytest.approx(found["logit"], rel=1e-6)
    assert np.shape(found["contributions"]) == (4, 4) and abs(found["difference"]) < 1e-4
    assert "not a cause" in found["meaning"]


def test_another_class_is_explained_by_its_name_or_its_index(client: TestClient) -> None:
    by_name = client.post("/v1/classify?explain=map&explain_label=c", content=PHOTO).json()
    by_index = client.post("/v1/classify?explain=map&explain_label=2", content=PHOTO).json()
    assert by_name == by_index and (by_name["label"], by_name["index"]) == ("c", 2)
    several = client.post("/v1/classify?explain=map&explain_label=c", files=[("file", PHOTO), ("file", PHOTO)]).json()
    assert len(several) == 2 and several[0]["label"] == "c"


def test_an_explanation_comes_as_a_picture_of_one_photo(client: TestClient) -> None:
    headers = {"Accept": "image/png"}
    answer = client.post("/v1/classify?explain=map", content=PHOTO, headers=headers)
    assert answer.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert picture.mode == "RGB"
    files = [("file", PHOTO), ("file", PHOTO)]
    assert client.post("/v1/classify?explain=map", files=files, headers=headers).status_code == 406


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("explain=map&explain_label=z", "explain_label"),
        ("explain_label=a", "explain_label"),
        ("explain=cause", "explain"),
    ],
)
def test_what_cannot_be_explained_is_said(client: TestClient, query: str, field: str) -> None:
    answer = client.post(f"/v1/classify?{query}", content=PHOTO)
    assert answer.status_code == 422 and answer.json()["error"]["field"] == field


def test_the_description_is_made_once_for_the_models_that_are_held(
    make_client: ClientFactory, predictors: dict[str, Predictor], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    document = openapi.document

    def count(settings: Settings, models: Models) -> dict[str, Any]:
        made.append(len(models))
        return document(settings, models)

    monkeypatch.setattr(openapi, "document", count)
    held = Models(predictors)
    client = make_client(held)
    first, again = (client.get("/openapi.json").json() for _ in range(2))
    assert first == again and made == [2]
    held.remove("tiny")
    held.remove("other")
    assert "x-unavailable" in client.get("/openapi.json").json()["paths"]["/v1/classify"]["post"]
    assert "x-unavailable" not in first["paths"]["/v1/classify"]["post"] and made == [2, 0]
