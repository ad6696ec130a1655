"""Metrics of the models that are held, as the page has them."""

from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from convmae_deploy.tasks.base import Predictor
from serving.api.models import Models
from tests.serving.conftest import ClientFactory
from tests.serving.sample_images import jpeg


def labels_of(client: TestClient, name: str) -> list[dict[str, str]]:
    """The labels of each sample of one name on the page."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return [sample.labels for family in families for sample in family.samples if sample.name == name]


def test_each_model_says_what_it_is_and_is_forgotten_with_it(
    make_client: ClientFactory, predictors: dict[str, Predictor]
) -> None:
    held = Models(predictors)
    client = make_client(held)
    tiny = {"task": "classification", "file": "model.onnx", "precision": "fp32", "runtime": "onnxruntime"}
    variant = predictors["tiny"].manifest.variant
    assert labels_of(client, "convmae_model_info") == [
        {"model": name, "variant": variant} | tiny for name in ("tiny", "other")
    ]
    held.remove("tiny")
    assert [labels["model"] for labels in labels_of(client, "convmae_model_info")] == ["other"]


def test_phases_and_codes_of_requests_are_on_the_page(client: TestClient) -> None:
    assert client.post("/v1/classify", content=jpeg()).status_code == 200
    assert client.post("/v1/classify", content=b"no photo").status_code == 400
    phases = {labels["phase"] for labels in labels_of(client, "convmae_phase_seconds_count")}
    assert phases == {"queue", "decode", "inference", "encode"}
    assert labels_of(client, "convmae_errors_total") == [{"code": "not_an_image"}]


def test_openmetrics_is_answered_on_request(client: TestClient) -> None:
    answer = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")
