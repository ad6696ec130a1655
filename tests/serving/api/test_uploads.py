"""What bodies hold: every way in which programs write a file, and nothing left out in silence."""

import base64
import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.serving.sample_images import jpeg

PHOTO = jpeg()
TEXT = base64.b64encode(PHOTO).decode()
CLASSIFY, FEATURES, PREDICT = "/v1/classify", "/v1/features", "/v1/models/tiny:predict"
FILE = b'Content-Disposition: form-data; name="file"; filename="a.jpg"'


def form(*parts: tuple[bytes, bytes]) -> bytes:
    return b"".join(b"--xx\r\n" + head + b"\r\n\r\n" + data + b"\r\n" for head, data in parts) + b"--xx--\r\n"


def post_form(client: TestClient, *parts: tuple[bytes, bytes]) -> Any:
    return client.post(CLASSIFY, content=form(*parts), headers={"Content-Type": "multipart/form-data; boundary=xx"})


@pytest.mark.parametrize(
    "start", ["image/jpeg", "image/jpeg;name=a.jpg", "application/octet-stream", "binary/octet-stream", ""]
)
def test_data_uris_are_read_also_where_their_type_is_not_known(client: TestClient, start: str) -> None:
    answer = client.post(CLASSIFY, json={"inputs": f"data:{start};base64,{TEXT}"})
    assert answer.json() == client.post(CLASSIFY, content=PHOTO).json()


@pytest.mark.parametrize(
    "written",
    [
        TEXT.rstrip("="),
        TEXT + "==",
        base64.urlsafe_b64encode(PHOTO).decode(),
        base64.encodebytes(PHOTO).decode(),
        "\r\n".join(TEXT),
    ],
)
def test_base64_is_read_as_programs_write_it(client: TestClient, written: str) -> None:
    assert client.post(CLASSIFY, json={"inputs": written}).json() == client.post(CLASSIFY, content=PHOTO).json()


@pytest.mark.parametrize("written", ["*" * 100, "ä" * 100, "A", TEXT[:50] + "=" + TEXT[50:]])
def test_what_is_no_base64_is_refused(client: TestClient, written: str) -> None:
    assert client.post(CLASSIFY, json={"inputs": written}).json()["error"]["code"] == "invalid_base64"


@pytest.mark.parametrize("kind", ["", "text/plain;charset=UTF-8", "application/x-www-form-urlencoded", "image/jpeg"])
def test_json_under_another_name_is_told_the_right_one(client: TestClient, kind: str) -> None:
    answer = client.post(CLASSIFY, content=json.dumps({"inputs": TEXT}), headers={"Content-Type": kind})
    assert answer.status_code == 415
    assert "Content-Type application/json" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (CLASSIFY, f'{{"inputs": "{TEXT}", "inputs": "{TEXT}"}}', "inputs"),
        (CLASSIFY, f'{{"inputs": "{TEXT}", "parameters": {{"top_k": 1, "top_k": 2}}}}', "top_k"),
        (FEATURES, f'{{"inputs": "{TEXT}", "normalize": true, "parameters": {{"normalize": false}}}}', "normalize"),
        (PREDICT, f'{{"instances": ["{TEXT}"], "instances": ["{TEXT}"]}}', "instances"),
        (PREDICT, f'{{"instances": ["{TEXT}"], "signature": 1}}', "signature"),
        (PREDICT, f'{{"instances": ["{TEXT}"], "parameters": {{"model": "other"}}}}', "model"),
        (PREDICT + "?model=other", f'{{"instances": ["{TEXT}"]}}', "model"),
        (CLASSIFY, f'{{"inputs": "{TEXT}", "parameters": false}}', "parameters"),
        (CLASSIFY, f'{{"inputs": "{TEXT}", "parameters": {{"\\ud800": 1}}}}', ""),
    ],
)
def test_what_would_be_left_out_in_silence_is_refused(client: TestClient, path: str, body: str, field: str) -> None:
    answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)


def test_a_part_in_json_is_a_parameter(client: TestClient) -> None:
    parameter = b'Content-Disposition: form-data; name="top_k"\r\nContent-Type: application/json'
    assert len(post_form(client, (FILE, PHOTO), (parameter, b"2")).json()) == 2


def test_a_file_whose_name_is_not_ascii_is_a_file(client: TestClient) -> None:
    old = b"Content-Disposition: form-data; name=\"file\"; filename*=utf-8''%C3%A4.jpg"
    assert post_form(client, (old, PHOTO)).status_code == 200


def test_what_stands_around_a_form_is_passed_over(client: TestClient) -> None:
    body = b"This is a message in several parts.\r\n\r\n" + form((FILE, PHOTO)) + b"The end.\r\n"
    answer = client.post(CLASSIFY, content=body, headers={"Content-Type": "multipart/form-data; boundary=xx"})
    assert answer.status_code == 200
