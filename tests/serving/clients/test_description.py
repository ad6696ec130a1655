"""The interface against its own description, by checkers that we did not write."""

import json
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error

from serving.api.openapi import document
from serving.settings import Settings
from tests.serving.running_server import RunningServer

CHECKS = ("status_code_conformance", "content_type_conformance", "response_schema_conformance")
CASES = 12  # of each operation


@pytest.mark.slow
def test_the_description_is_openapi() -> None:
    schemathesis.openapi.from_dict(document(Settings(), {})).validate()


def test_every_operation_has_a_name_of_its_own() -> None:
    paths = document(Settings(), {})["paths"].values()
    names = [operation["operationId"] for operations in paths for operation in operations.values()]
    assert len(names) == len(set(names))


def operations() -> list[tuple[str, str, schemathesis.GenerationMode]]:
    """Every operation: its method, its path, and whether to send what the description allows or what it does not."""
    modes = {False: [schemathesis.GenerationMode.POSITIVE], True: list(schemathesis.GenerationMode)}
    paths = document(Settings(), {})["paths"].items()
    found = [(method, path, "requestBody" in operations[method]) for path, operations in paths for method in operations]
    return [(method.upper(), path, mode) for method, path, has_body in found for mode in modes[has_body]]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path", "mode"), operations())
def test_no_request_gets_a_status_or_a_shape_that_is_not_described(
    three_tasks: RunningServer, method: str, path: str, mode: schemathesis.GenerationMode
) -> None:
    schema = schemathesis.openapi.from_dict(json.loads(three_tasks.request("/openapi.json").body))
    operation = schema[path][method]
    checks = [not_a_server_error, *(schemathesis.checks.CHECKS.get_one(name) for name in CHECKS)]

    @settings(
        max_examples=CASES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Any) -> None:
        if "name" in (case.path_parameters or {}):
            case.path_parameters["name"] = "tiny"
        case.call_and_validate(base_url=three_tasks.url, checks=checks)

    given(case=operation.as_strategy(generation_mode=mode))(ask)()


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/detect", "/v1/segment", "/v1/features", "/v1/embeddings"])
def test_the_examples_are_accepted(three_tasks: RunningServer, path: str) -> None:
    check_examples(three_tasks, path)


@pytest.mark.parametrize("path", ["/v1/models/{name}:predict", "/v2/models/{name}/infer", "/invocations"])
def test_the_examples_of_other_protocols_are_accepted(three_tasks: RunningServer, path: str) -> None:
    check_examples(three_tasks, path, name="tiny")


def test_the_example_of_a_video_is_accepted(video_server: RunningServer) -> None:
    check_examples(video_server, "/v1/classify-video")


def check_examples(server: RunningServer, path: str, **names: str) -> None:
    content = server.request("/openapi.json").json()["paths"][path]["post"]["requestBody"]["content"]
    headers = {"Content-Type": "application/json"}
    body = json.dumps(content["application/json"]["example"]).encode()
    answer = server.request(path.format(**names), body, headers)
    assert answer.status == 200, answer.body
