"""Requests of the Open Inference Protocol that no client of others sends, and how they are refused."""

import base64
import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from convmae_deploy.tasks.base import Predictor
from tests.bundle_factory import make_bundle, take_levels
from tests.serving.conftest import ClientFactory, open_on_cpu
from tests.serving.sample_images import jpeg

PATH = "/v2/models/tiny/infer"
SHAPE = [1, 3, 64, 64]
BATCH = np.zeros(SHAPE, dtype=np.float32)
TEXT = base64.b64encode(jpeg()).decode()


def numbers(**changes: Any) -> dict[str, Any]:
    return {"name": "image", "datatype": "FP32", "shape": SHAPE, "data": BATCH.ravel().tolist()} | changes


def files(**changes: Any) -> dict[str, Any]:
    return {"name": "encoded", "datatype": "BYTES", "shape": [1], "data": [TEXT]} | changes


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "inputs: field required"),
        ({"inputs": []}, "at least 1"),
        ({"inputs": [numbers(), files()]}, "expected one input"),
        ({"inputs": [numbers(datatype="FP16")]}, "FP32 for prepared numbers or BYTES for files"),
        ({"inputs": [numbers(name="input")]}, "expected the FP32 input image"),
        ({"inputs": [files(name="input")]}, "expected the BYTES input encoded"),
        ({"inputs": [numbers(shape=[3, 64, 64])]}, "expected the shape"),
        ({"inputs": [numbers(shape=[0, 3, 64, 64])]}, "expected the shape"),
        ({"inputs": [numbers(shape=[9, 3, 64, 64])]}, "at most 8 of them at once"),
        ({"inputs": [numbers(data=[1.0, 2.0])]}, "12288 numbers"),
        ({"inputs": [numbers(data=["a"] * 12288)]}, "expected numbers"),
        ({"inputs": [numbers(data=[[1.0], [1.0, 2.0]])]}, "expected numbers"),
        ({"inputs": [numbers(data=None)]}, "expected numbers"),
        ({"inputs": [numbers(data=[math.inf] * 12288)]}, "finite"),
        ({"inputs": [numbers(data=[1e39] * 12288)]}, "finite"),
        ({"inputs": [numbers(data=None, parameters={"binary_data_size": 5})]}, "binary_data_size"),
        ({"inputs": [numbers(data=None, parameters={"binary_data_size": True})]}, "binary_data_size"),
        ({"inputs": [numbers(data=[3e38] * 12288)]}, "no finite ones|gives no finite"),
        ({"inputs": [numbers()], "parameters": {"colour": 1}}, "colour"),
        ({"inputs": [numbers()], "parameters": {"model": "other"}}, "given twice"),
        ({"inputs": [files()], "parameters": {"model": "other"}}, "given twice"),
        ({"inputs": [files(shape=[-1, -1])]}, "greater than or equal to 0"),
        ({"inputs": [files(shape=[])]}, "at least 1 item"),
        ({"inputs": [files(shape=[True])]}, "valid integer"),
        ({"inputs": [files(shape=[2])]}, "as many images as the shape"),
        ({"inputs": [files(shape=[0], data=[])]}, "at least one"),
        ({"inputs": [files(data=[5])]}, "a string of base64"),
        ({"inputs": [files(data=["http://localhost/a.jpg"])]}, "never fetched"),
        ({"inputs": [files()], "outputs": [{"name": "e9"}]}, "outputs among logits"),
        ({"inputs": [numbers()], "outputs": [{"name": "result"}]}, "outputs among logits"),
        ({"inputs": [files()], "outputs": [{"name": "e1", "parameters": {"classification": 2}}]}, "classification"),
        ({"inputs": [files()], "outputs": [{"name": "logits", "parameters": {"classification": True}}]}, "got True"),
        ({"inputs": [files()], "parameters": {"colour": 1}}, "colour"),
        ([1], "inputs|valid dictionary"),
    ],
)
def test_what_is_wrong_is_said_in_the_protocols_shape(client: TestClient, body: Any, said: str) -> None:
    answer = client.post(PATH, content=json.dumps(body))
    assert 400 <= answer.status_code < 500
    content = answer.json()
    assert isinstance(content["error"], str) and set(content) == {"error", "code", "field", "request_id"}
    assert any(part in content["error"] for part in said.split("|")), content


@pytest.mark.parametrize("length", [b"x", b"-1", b"1" * 30, b"99999", b"\xb2", b"0" * 5000])
def test_a_wrong_length_of_the_json_is_said(client: TestClient, length: bytes) -> None:
    headers = {b"Inference-Header-Content-Length": length}
    answer = client.post(PATH, content=b"{}", headers=headers)
    assert answer.status_code == 400 and "Inference-Header-Content-Length" in answer.json()["error"]


@pytest.mark.parametrize("data", [struct.pack("<I", 10) + b"short", b"\1", struct.pack("<I", 2**32 - 1)])
def test_elements_that_end_early_are_refused(client: TestClient, data: bytes) -> None:
    head = json.dumps({"inputs": [files(data=None, parameters={"binary_data_size": len(data)})]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = client.post(PATH, content=head + data, headers=headers)
    assert answer.status_code == 400 and "bytes for element 0" in answer.json()["error"]


def test_more_files_than_a_request_may_have_are_refused_before_they_are_copied(make_client: ClientFactory) -> None:
    data = struct.pack("<I", 0) * 1000
    head = json.dumps({"inputs": [files(data=None, shape=[1000], parameters={"binary_data_size": 4000})]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = make_client().post(PATH, content=head + data, headers=headers)
    assert answer.status_code == 413


def test_numbers_that_would_take_too_much_memory_are_refused_unread(make_client: ClientFactory) -> None:
    client = make_client(max_decoding_bytes=1_000_000)
    answer = client.post(PATH, content=json.dumps({"inputs": [numbers(data=[0] * 90_000)]}))
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("item", [b"0", b"[]", b"{}", b"[[[0]]]"])
def test_more_json_than_the_largest_batch_is_refused_unread(client: TestClient, item: bytes) -> None:
    body = json.dumps({"inputs": [numbers(data=[])]}).encode().replace(b"[]", b"[%s]" % b",".join([item] * 100_000))
    answer = client.post(PATH, content=body)
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


def test_the_largest_batch_fits_into_json(client: TestClient) -> None:
    largest = np.zeros((8, *SHAPE[1:]), dtype=np.float32)
    answer = client.post(PATH, json={"inputs": [numbers(shape=list(largest.shape), data=largest.tolist())]})
    assert answer.json()["outputs"][0]["shape"] == [8, 3]


def test_numbers_that_the_model_cannot_bear_are_no_fault_of_the_model(client: TestClient) -> None:
    for _ in range(4):
        answer = client.post(PATH, json={"inputs": [numbers(data=[3e38] * 12288)]})
        assert (answer.status_code, answer.json()["code"]) == (422, "out_of_range")
    assert client.get("/readyz").status_code == 200


def test_the_best_classes_are_of_whole_files_alone(
    make_client: ClientFactory, segmentation_bundle: Path, detection_bundle: Path
) -> None:
    client = make_client(open_on_cpu(segmentation_bundle, detection_bundle))
    wanted = [{"name": "logits", "parameters": {"classification": 2}}]
    answer = client.post("/v2/models/areas/infer", json={"inputs": [numbers()], "outputs": wanted})
    assert answer.status_code == 400 and "whole files" in answer.json()["error"]


def test_masks_of_objects_come_only_where_they_are_asked_for(
    make_client: ClientFactory, detection_bundle: Path
) -> None:
    client = make_client(open_on_cpu(detection_bundle), max_json_features_bytes=10_000)
    answer = client.post("/v2/models/boxes/infer", json={"inputs": [files()]})
    names = {output["name"] for output in answer.json()["outputs"]}
    assert {"boxes", "scores", "result"} <= names and "masks" not in names


def test_a_request_is_known_by_any_name(client: TestClient) -> None:
    body = b'{"id": "\\ud800\\u00e9", ' + json.dumps({"inputs": [files()]}).encode()[1:]
    answer = client.post(PATH, content=body)
    assert answer.status_code == 200 and answer.content.startswith(b'{"model_name"')
    assert answer.json()["id"] == "\ud800\u00e9"


def test_large_outputs_are_not_written_as_json(make_client: ClientFactory) -> None:
    client = make_client(max_json_features_bytes=1000)
    wanted = {"inputs": [numbers()], "outputs": [{"name": "e1"}]}
    assert client.post(PATH, json=wanted).status_code == 406
    wanted["outputs"][0]["parameters"] = {"binary_data": True}
    answer = client.post(PATH, json=wanted)
    assert answer.headers["content-type"] == "application/octet-stream"
    head = json.loads(answer.content[: int(answer.headers["inference-header-content-length"])])
    assert head["outputs"][0]["parameters"] == {"binary_data_size": 4 * math.prod(head["outputs"][0]["shape"])}


def test_nested_lists_and_the_parameters_of_the_task_are_understood(
    client: TestClient, predictors: dict[str, Predictor]
) -> None:
    flat, nested = ({"inputs": [numbers(data=data)]} for data in (BATCH.ravel().tolist(), BATCH.tolist()))
    found = client.post(PATH, json=flat).json()["outputs"]
    assert client.post(PATH, json=nested).json()["outputs"] == found
    answer = client.post(PATH, json={"inputs": [files()], "parameters": {"top_k": 1}, "outputs": [{"name": "result"}]})
    assert len(json.loads(answer.json()["outputs"][0]["data"][0])) == 1
    expected = predictors["tiny"].run(BATCH, ["pooled"])["pooled"]
    np.testing.assert_allclose(found[1]["data"], expected.ravel(), rtol=1e-5)


def test_another_version_than_the_one_is_not_there(client: TestClient) -> None:
    assert client.post("/v2/models/tiny/versions/1/infer", json={"inputs": [files()]}).status_code == 200
    assert client.post("/v2/models/tiny/versions/2/infer", json={"inputs": [files()]}).status_code == 404
    assert client.get("/v2/models/tiny/versions/2/ready").status_code == 404


def test_a_model_that_takes_levels_is_sent_levels(make_client: ClientFactory, tmp_path: Path) -> None:
    client = make_client(open_on_cpu(take_levels(make_bundle(tmp_path / "tiny"))))
    (own, _) = client.get("/v2/models/tiny").json()["inputs"]
    assert (own["name"], own["datatype"], own["shape"]) == ("image", "UINT8", [-1, 3, 64, 64])
    levels = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)

    def asked(**changes: Any) -> Any:
        tensor = {"name": "image", "datatype": "UINT8", "shape": SHAPE, "data": levels.ravel().tolist()} | changes
        return client.post(PATH, content=json.dumps({"inputs": [tensor], "outputs": [{"name": "logits"}]})).json()

    size = {"binary_data_size": levels.size}
    tensor = {"name": "image", "datatype": "UINT8", "shape": SHAPE, "parameters": size}
    text = json.dumps({"inputs": [tensor], "outputs": [{"name": "logits"}]}).encode()
    binary = client.post(
        PATH, content=text + levels.tobytes(), headers={"Inference-Header-Content-Length": str(len(text))}
    )
    assert binary.json()["outputs"] == asked()["outputs"]
    assert "datatype UINT8 for prepared numbers" in asked(datatype="FP32")["error"]
    for wrong in (256, -1, 0.5):
        assert "whole numbers from 0 to 255" in asked(data=[wrong] * levels.size)["error"]
