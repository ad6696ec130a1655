"""A client that openapi-python-client makes of the interface's description, against the running server."""

import importlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.serving.running_server import RunningServer
from tests.serving.sample_images import jpeg

pytestmark = pytest.mark.slow
PHOTO = jpeg()


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory, server: RunningServer) -> str:
    """The name of the package that was made; that nothing of the description had to be left out is checked here."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "openapi.json").write_bytes(server.request("/openapi.json").body)
    (folder / "config.yaml").write_text("post_hooks: []\n")  # they want ruff in the path, to make it pretty
    generator = str(Path(sys.executable).with_name("openapi-python-client"))
    command = [generator, "generate", "--path", "openapi.json", "--config", "config.yaml", "--meta", "none"]
    finished = subprocess.run(
        [*command, "--output-path", "made_client", "--fail-on-warning"], cwd=folder, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    sys.path.insert(0, str(folder))
    return "made_client"


def made(module: str, path: str) -> Any:
    return importlib.import_module(f"{module}.{path}")


def test_a_file_is_classified_in_each_of_three_ways(module: str, server: RunningServer) -> None:
    client = made(module, "client").Client(base_url=server.url)
    classify, models = made(module, "api.inference.classify"), made(module, "models")
    file = made(module, "types").File
    inputs = json.loads(server.request("/openapi.json").body)
    example = inputs["paths"]["/v1/classify"]["post"]["requestBody"]["content"]["application/json"]["example"]
    as_form = models.ClassifyFilesBody(file=[file(io.BytesIO(PHOTO), "a.jpg", "image/jpeg")])
    parameters = models.ClassifyJsonBodyParameters(top_k=2)
    as_json = models.ClassifyJsonBody(inputs=example["inputs"], parameters=parameters)
    with client:
        by_form = classify.sync(client=client, body=as_form, top_k=2)
        by_bytes = classify.sync(client=client, body=file(io.BytesIO(PHOTO)), top_k=2)
        by_json = classify.sync(client=client, body=as_json)
    expected = server.request("/v1/classify?top_k=2", PHOTO).json()
    assert [(entry.label, entry.score) for entry in by_form] == [(e["label"], e["score"]) for e in expected]
    assert by_bytes == by_form
    assert len(by_json) == 2


def test_an_error_is_an_object(module: str, server: RunningServer) -> None:
    client = made(module, "client").Client(base_url=server.url)
    classify, file = made(module, "api.inference.classify"), made(module, "types").File
    with client:
        error = classify.sync(client=client, body=file(io.BytesIO(b"text")))
    assert error.error.code == "not_an_image"


def test_models_are_described(module: str, server: RunningServer) -> None:
    client = made(module, "client").Client(base_url=server.url)
    with client:
        listed = made(module, "api.information.list_models").sync(client=client)
        model = made(module, "api.information.describe_model").sync("tiny", client=client)
    assert [entry.id for entry in listed.data] == ["tiny"]
    assert model.labels == ["a", "b", "c"] and model.numerics is not None
