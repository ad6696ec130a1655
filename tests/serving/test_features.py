"""Models without a head behind the routes for features."""

import base64
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load
from starlette.testclient import TestClient

from convmae_deploy.tasks import open_predictor
from convmae_deploy.tasks.base import Predictor
from tests.bundle_factory import make_bundle, make_feature_bundle
from tests.serving.conftest import ClientFactory
from tests.serving.sample_images import encode, photo

SAFETENSORS = {"Accept": "application/x-safetensors"}


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Predictor]:
    """A model without a head, then a classifier."""
    paths = make_feature_bundle(tmp_path / "maps", name="maps"), make_bundle(tmp_path / "tiny")
    return {model.manifest.name: model for model in (open_predictor(path, device="cpu") for path in paths)}


@pytest.fixture
def client(make_client: ClientFactory, models: dict[str, Predictor]) -> TestClient:
    return make_client(models)


def test_features_come_from_the_first_model_that_gives_some(client: TestClient, models: dict[str, Predictor]) -> None:
    image = photo(seed=1)
    for query, model in (("", "maps"), ("&model=maps", "maps"), ("&model=tiny", "tiny")):
        answer = client.post(f"/v1/features?levels=pooled,e4{query}", content=encode(image, "PNG"), headers=SAFETENSORS)
        assert answer.status_code == 200 and answer.headers["X-Model"] == model
        found, expected = load(answer.content), models[model].features([image], ["pooled", "e4"])  # type: ignore[attr-defined]
        assert all(np.array_equal(found[level], expected[level]) for level in ("pooled", "e4"))


def test_embeddings_come_from_it_too(client: TestClient, models: dict[str, Predictor]) -> None:
    image = photo(seed=2)
    body = {"model": "maps", "input": base64.b64encode(encode(image, "PNG")).decode()}
    vector = client.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    assert np.allclose(vector, models["maps"].predict(image)["pooled"])


def test_a_model_without_a_head_has_no_classes(client: TestClient) -> None:
    answer = client.post("/v1/classify?model=maps", content=encode(photo(seed=3), "PNG"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_model_for_task")
    described = client.get("/v1/models/maps").json()
    assert described["task"] == "features" and described["labels"] == []
