"""What platforms send that have no client of their own: KServe's first protocol, Vertex AI, Amazon SageMaker."""

import base64
import json

import pytest

from tests.serving.running_server import RunningServer
from tests.serving.sample_images import jpeg

PHOTO = jpeg()
TEXT = base64.b64encode(PHOTO).decode()
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("instance", [TEXT, {"b64": TEXT}, {"image_bytes": {"b64": TEXT}}, {"data": TEXT}])
def test_instances_are_predicted(three_tasks: RunningServer, instance: object) -> None:
    body = json.dumps({"instances": [instance, instance], "parameters": {"top_k": 2}}).encode()
    answer = three_tasks.request("/v1/models/tiny:predict", body, JSON).json()
    expected = three_tasks.request("/v1/classify?top_k=2", PHOTO).json()
    assert answer == {"predictions": [expected, expected]}


def test_every_task_is_predicted(three_tasks: RunningServer) -> None:
    body = json.dumps({"instances": [{"b64": TEXT}]}).encode()
    for model, path in {"boxes": "detect", "areas": "segment"}.items():
        answer = three_tasks.request(f"/v1/models/{model}:predict", body, JSON).json()
        assert answer == {"predictions": [three_tasks.request(f"/v1/{path}", PHOTO).json()]}


def test_models_are_listed_and_described_as_kserve_does(three_tasks: RunningServer) -> None:
    assert three_tasks.request("/v1/models").json()["models"] == ["tiny", "boxes", "areas"]
    described = three_tasks.request("/v1/models/tiny").json()
    assert (described["name"], described["ready"]) == ("tiny", True)


def test_sagemaker_asks_the_first_model(three_tasks: RunningServer) -> None:
    expected = three_tasks.request("/v1/classify", PHOTO).json()
    assert three_tasks.request("/invocations", PHOTO, {"Content-Type": "image/jpeg"}).json() == expected
    body = json.dumps({"inputs": TEXT, "parameters": {"model": "boxes"}}).encode()
    assert three_tasks.request("/invocations", body, JSON).json() == three_tasks.request("/v1/detect", PHOTO).json()


@pytest.mark.parametrize("path", ["/ping", "/health", "/healthz", "/readyz", "/v2/health/ready"])
def test_health_is_told_where_platforms_ask(three_tasks: RunningServer, path: str) -> None:
    assert three_tasks.request(path).json()["ready"] is True


@pytest.mark.parametrize("path", ["/livez", "/v2/health/live"])
def test_that_the_process_answers_is_told_too(three_tasks: RunningServer, path: str) -> None:
    assert three_tasks.request(path).status == 200


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "missing_field"),
        ({"instances": []}, "empty_body"),
        ({"instances": [{"b64": TEXT, "key": 1}]}, "invalid_input"),
        ({"instances": [{"b64": "http://localhost/a.jpg"}]}, "url_not_supported"),
        ({"instances": [{"b64": 5}]}, "invalid_input"),
        ({"instances": [TEXT], "parameters": 5}, "invalid_parameter"),
        ({"instances": [TEXT], "parameters": {"top": 5}}, "unknown_parameter"),
    ],
)
def test_what_is_wrong_with_instances_is_said(three_tasks: RunningServer, body: object, code: str) -> None:
    assert three_tasks.request("/v1/models/tiny:predict", json.dumps(body).encode(), JSON).code == code


def test_a_model_that_is_not_there_is_said_before_the_body_is_read(three_tasks: RunningServer) -> None:
    for path in ("/v1/models/none:predict", "/v2/models/none/infer"):
        assert three_tasks.request(path, b"{}", JSON).status == 404
