"""Triton's own client, unchanged, against the running server: the Open Inference Protocol."""

import base64
import json
from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from convmae_deploy.tasks.base import Predictor
from tests.serving.running_server import RunningServer
from tests.serving.sample_images import jpeg

PHOTO = jpeg()
BATCH = np.random.default_rng(0).standard_normal((2, 3, 64, 64), dtype=np.float32)


@pytest.fixture
def client(three_tasks: RunningServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(three_tasks.url.removeprefix("http://")) as found:
        yield found


def numbers(binary: bool) -> triton.InferInput:
    found = triton.InferInput("image", list(BATCH.shape), "FP32")
    found.set_data_from_numpy(BATCH, binary_data=binary)
    return found


def files(*photos: bytes) -> triton.InferInput:
    found = triton.InferInput("encoded", [len(photos)], "BYTES")
    found.set_data_from_numpy(np.array(photos, dtype=np.object_), binary_data=True)
    return found


def test_the_server_and_its_models_describe_themselves(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("tiny") and client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("none") and not client.is_model_ready("tiny", "2")
    assert client.get_server_metadata()["name"] == "convmae"
    metadata = client.get_model_metadata("tiny")
    assert [entry["name"] for entry in metadata["inputs"]] == ["image", "encoded"]
    assert metadata["inputs"][0]["shape"] == [-1, 3, 64, 64]
    assert {"name": "logits", "datatype": "FP32", "shape": [-1, 3]} in metadata["outputs"]


@pytest.mark.parametrize("binary", [True, False])
def test_tensors_give_the_graphs_numbers(
    client: triton.InferenceServerClient, predictors: dict[str, Predictor], binary: bool
) -> None:
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("logits", "e2")]
    found = client.infer("tiny", [numbers(binary)], outputs=wanted, request_id="seven")
    expected = predictors["tiny"].run(BATCH, ["logits", "e2"])
    for name, values in expected.items():
        np.testing.assert_allclose(found.as_numpy(name), values, rtol=1e-4, atol=1e-5)
    assert found.get_response()["id"] == "seven"


def test_without_outputs_come_all_but_the_maps(client: triton.InferenceServerClient) -> None:
    outputs = {output["name"] for output in client.infer("tiny", [numbers(True)]).get_response()["outputs"]}
    assert outputs == {"logits", "pooled"}
    outputs = {output["name"] for output in client.infer("tiny", [files(PHOTO)]).get_response()["outputs"]}
    assert outputs == {"logits", "pooled", "result"}


def test_files_give_what_the_route_of_the_task_gives(
    client: triton.InferenceServerClient, three_tasks: RunningServer
) -> None:
    for model, path in {"tiny": "classify", "boxes": "detect", "areas": "segment"}.items():
        wanted = [triton.InferRequestedOutput("result")]
        found = client.infer(model, [files(PHOTO, jpeg(seed=1))], outputs=wanted).as_numpy("result")
        assert json.loads(found[0]) == three_tasks.request(f"/v1/{path}?model={model}", PHOTO).json()
        assert len(found) == 2


def test_the_graphs_numbers_come_with_files_too(client: triton.InferenceServerClient) -> None:
    result = client.infer("tiny", [files(PHOTO)])
    alone = client.infer("tiny", [files(PHOTO)], outputs=[triton.InferRequestedOutput("logits")])
    np.testing.assert_array_equal(result.as_numpy("logits"), alone.as_numpy("logits"))
    scores = np.exp(result.as_numpy("logits")[0]) / np.exp(result.as_numpy("logits")[0]).sum()
    assert json.loads(result.as_numpy("result")[0])[0]["score"] == pytest.approx(scores.max(), rel=1e-4)


def test_the_best_classes_come_as_triton_writes_them(client: triton.InferenceServerClient) -> None:
    wanted = [triton.InferRequestedOutput("logits", class_count=2)]
    found = client.infer("tiny", [files(PHOTO)], outputs=wanted).as_numpy("logits")
    (score, index, label), _ = (entry.decode().split(":") for entry in found[0])
    assert label == "abc"[int(index)] and float(score) > 0


def test_errors_are_the_protocols(client: triton.InferenceServerClient, three_tasks: RunningServer) -> None:
    wrong = triton.InferInput("image", [1, 3, 2, 2], "FP32")
    wrong.set_data_from_numpy(np.zeros((1, 3, 2, 2), np.float32))
    with pytest.raises(InferenceServerException, match=r"expected the shape \(B, 3, 64, 64\)"):
        client.infer("tiny", [wrong])
    with pytest.raises(InferenceServerException, match="expected an image file"):
        client.infer("tiny", [files(b"text")])
    with pytest.raises(InferenceServerException, match="expected one of"):
        client.infer("none", [files(PHOTO)])
    answer = three_tasks.request("/v2/nowhere").json()
    assert isinstance(answer["error"], str) and answer["code"] == "not_found"


def test_files_as_base64_in_json_need_no_client(three_tasks: RunningServer) -> None:
    tensor = {"name": "encoded", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(PHOTO).decode()]}
    answer = three_tasks.request("/v2/models/tiny/infer", json.dumps({"inputs": [tensor]}).encode()).json()
    assert [output["name"] for output in answer["outputs"]] == ["logits", "pooled", "result"]
