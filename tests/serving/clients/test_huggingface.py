"""Hugging Face's own client, unchanged, against the running server."""

import base64
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import InferenceClient, VideoClassificationOutputElement
from PIL import Image

from tests.serving.running_server import RunningServer
from tests.serving.sample_images import jpeg
from tests.video_files import make_video


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


def test_objects_are_detected(three_tasks: RunningServer, photo: str) -> None:
    client = InferenceClient(model=f"{three_tasks.url}/v1/detect")
    found = client.object_detection(photo, threshold=0.1)
    assert {entry.label for entry in found} <= {"cat", "dog", "bird"} and len(found) > 1
    assert [entry.score for entry in found] == sorted((entry.score for entry in found), reverse=True)
    with Image.open(photo) as opened:
        width, height = opened.size
    for entry in found:
        assert 0 <= entry.box.xmin < entry.box.xmax <= width and 0 <= entry.box.ymin < entry.box.ymax <= height
    assert len(client.object_detection(photo, threshold=found[0].score)) == 1


def test_a_photo_is_segmented(three_tasks: RunningServer, photo: str) -> None:
    client = InferenceClient(model=f"{three_tasks.url}/v1/segment")
    found = client.image_segmentation(photo, subtask="semantic")
    assert {entry.label for entry in found} <= {"sky", "road", "tree", "car"} and found
    masks = np.stack([np.asarray(entry.mask) for entry in found])
    with Image.open(photo) as opened:
        assert masks.shape[1:] == opened.size[::-1]
    assert (masks.sum(axis=0) == 255).all(), "every pixel belongs to one segment"


def test_a_video_is_classified(video_server: RunningServer, tmp_path: Path) -> None:
    """The client has no method for videos; that for images sends any file, and the two tasks answer alike."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(make_video())
    client = InferenceClient(model=f"{video_server.url}/v1/classify-video")
    found = client.image_classification(str(path))
    assert sorted(entry.label for entry in found) == ["left", "right", "up"]
    assert sum(entry.score for entry in found) == pytest.approx(1)
    assert len(client.image_classification(str(path), top_k=2)) == 2
    answer = video_server.request("/v1/classify-video", path.read_bytes()).body
    entries = VideoClassificationOutputElement.parse_obj_as_list(answer)
    assert [(entry.label, entry.score) for entry in entries] == [(entry.label, entry.score) for entry in found]


def test_features_are_extracted(server: RunningServer) -> None:
    client = InferenceClient(model=f"{server.url}/v1/features")
    uri = f"data:image/jpeg;base64,{base64.b64encode(jpeg()).decode()}"
    found, normalized = client.feature_extraction(uri), client.feature_extraction(uri, normalize=True)
    assert found.shape == (1, 8) and found.dtype == np.float32
    np.testing.assert_allclose(normalized, found / np.linalg.norm(found), rtol=1e-5)


def test_the_parameters_of_segmentation_are_understood(three_tasks: RunningServer, photo: str) -> None:
    client = InferenceClient(model=f"{three_tasks.url}/v1/segment")
    found = client.image_segmentation(
        photo, mask_threshold=0.5, overlap_mask_area_threshold=0.8, subtask="semantic", threshold=0.0
    )
    assert [entry.label for entry in found] == [entry.label for entry in client.image_segmentation(photo)]
