"""The description of the interface agrees with the interface."""

import json
import re
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from serving.api.openapi import document
from serving.api.parameters import (
    ClassifyParameters,
    DetectParameters,
    FeaturesParameters,
    Parameters,
    SegmentParameters,
    VideoParameters,
)
from serving.app import create_app
from serving.settings import Settings

PAGES = {"/", "/docs", "/openapi.json", "/page/{asset}"}
PARAMETERS: dict[str, type[Parameters]] = {
    "/v1/classify": ClassifyParameters,
    "/v1/classify-video": VideoParameters,
    "/v1/detect": DetectParameters,
    "/v1/segment": SegmentParameters,
    "/v1/features": FeaturesParameters,
}


def test_every_route_is_described_and_nothing_else() -> None:
    application = create_app(Settings(bundle=(Path("none"),), threads=1), {})
    routes = {route.path for route in application.routes}  # type: ignore[attr-defined]
    assert routes - PAGES == set(document(Settings(), {})["paths"])


def test_the_query_parameters_are_those_that_are_accepted() -> None:
    paths = document(Settings(), {})["paths"]
    for path, kind in PARAMETERS.items():
        described = {parameter["name"]: parameter["schema"] for parameter in paths[path]["post"]["parameters"]}
        assert set(described) == set(kind.model_fields)
        for name, schema in described.items():
            default = kind.model_fields[name].default
            if default is not None:
                assert schema["default"] == (",".join(default) if isinstance(default, tuple) else default)


def test_every_reference_leads_somewhere() -> None:
    content = document(Settings(), {})
    for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(content)):
        assert name in content["components"]["schemas"]


def test_a_key_is_described_only_where_one_is_needed() -> None:
    def schemes(settings: Settings) -> Any:
        return document(settings, {})["components"].get("securitySchemes")

    assert schemes(Settings(api_key=None)) is None
    assert set(schemes(Settings(api_key=SecretStr("k" * 16)))) == {"bearer", "key"}


def test_the_repository_needs_the_admin_key_alone() -> None:
    content = document(Settings(admin_key=SecretStr("k" * 16)), {})
    assert content["paths"]["/v2/repository/index"]["post"]["security"] == [{"bearer": []}, {"key": []}]
    assert set(content["components"]["securitySchemes"]) == {"bearer", "key"}
    assert "security" not in content and "security" not in content["paths"]["/v1/classify"]["post"]
