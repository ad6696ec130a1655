"""Hugging Face's own client, unchanged, against the running server."""

from pathlib import Path

import pytest
from huggingface_hub import InferenceClient

from tests.serving.running_server import RunningServer
from tests.serving.sample_images import jpeg


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg())
    return str(path)


@pytest.fixture
def client(server: RunningServer) -> InferenceClient:
    return InferenceClient(model=f"{server.url}/v1/classify")


def test_a_photo_is_classified(client: InferenceClient, photo: str) -> None:
    found = client.image_classification(photo)
    assert sorted(entry.label for entry in found) == ["a", "b", "c"]
    assert sum(entry.score for entry in found) == pytest.approx(1)
    assert [entry.score for entry in found] == sorted((entry.score for entry in found), reverse=True)


def test_top_k_is_respected(client: InferenceClient, photo: str) -> None:
    assert len(client.image_classification(photo, top_k=2)) == 2


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none"])
def test_the_function_is_applied(client: InferenceClient, photo: str, function: str) -> None:
    found = client.image_classification(photo, function_to_apply=function)  # type: ignore[arg-type]
    assert (sum([entry.score for entry in found]) == pytest.approx(1)) == (function == "softmax")
