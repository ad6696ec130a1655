"""The description of the interface at /openapi.json, made of the table of routes and of the models of pydantic.

Parameters come from `parameters.py`, responses from `response_models.py`, what a route takes and gives from
`routes.py`.
"""

import base64
import io
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from PIL import Image
from pydantic import BaseModel, RootModel
from pydantic.json_schema import models_json_schema

from serving.api import response_models
from serving.api.models import Predictors
from serving.api.parameters import EmbeddingsParameters, Parameters
from serving.api.responses import JSON, OCTETS
from serving.api.routes import (
    ENDPOINTS,
    INFERENCE,
    INFORMATION,
    MODEL_ROUTES,
    PROTOCOLS,
    REPOSITORY,
    Endpoint,
    Route,
)
from serving.errors import ApiError, code_of_status, is_of_protocol
from serving.settings import Settings

Schema = dict[str, Any]

REFERENCE: Final = "#/components/schemas/{model}"
BINARY: Final[Schema] = {"type": "string", "format": "binary"}
TEXT: Final[Schema] = {"type": "string"}
KEYS: Final = [{"bearer": list[str]()}, {"key": list[str]()}]  # either of them
TAGS: Final = {
    INFERENCE: "Photos and videos to answers.",
    PROTOCOLS: "The same models for clients of other servers.",
    INFORMATION: "What is served, and how it does.",
    REPOSITORY: "Models that come and go; only with the admin key.",
}
DESCRIBED: Final = {"name": "A model's name, see /v1/models.", "version": "Its version, which is 1."}
# Statuses that any route may answer with, whatever it does.
ANY: Final = (400, 401, 403, 421, 429, 431, 500, 503)
OF_BODIES: Final = (404, 406, 408, 413, 415, 422, 504)


def document(settings: Settings, predictors: Predictors) -> Schema:
    """The OpenAPI 3.1 document of this server.

    Args:
        settings: limits that are stated, whether keys are needed, where the server stands.
        predictors: the models; routes that none of them answers are marked with `x-unavailable`.
    """
    paths: Schema = {}
    for route in MODEL_ROUTES:
        paths.setdefault(route.path, {})["post"] = _inference(route, predictors)
    for endpoint in ENDPOINTS:
        operation = paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _information(endpoint)
        if endpoint.tag == REPOSITORY:
            if settings.admin_key is None:
                operation["x-unavailable"] = "The server was started without CONVMAE_ADMIN_KEY."
            else:
                operation["security"] = KEYS
    paths["/metrics"] = {"get": _metrics()}
    content: Schema = {
        "openapi": "3.1.0",
        "info": {"title": "ConvMAE server", "version": release(), "description": _about(settings)},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": _schemas()},
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
    }
    if settings.api_key is not None or settings.admin_key is not None:
        content["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
    if settings.api_key is not None:
        content["security"] = KEYS
    return content


def _about(settings: Settings) -> str:
    return (
        "Classes, objects, labels of pixels and multi-scale features with ConvMAE models, of photos and of videos.\n\n"
        f"A request may hold {settings.max_images} images, {settings.max_request_pixels / 1e6:g} megapixels and "
        f"{settings.max_body_bytes / 1e6:g} MB ({settings.max_json_body_bytes / 1e6:g} MB as JSON). One bad image "
        "fails its request, and the error's `field` says which it was. Files are recognised by their bytes; alpha is "
        "dropped; of animated files the first frame is taken and `X-Image-Frames` says how many there are.\n\n"
        f"A video may have {settings.max_video_body_bytes / 1e6:g} MB, {settings.max_video_seconds:g} seconds, "
        f"{settings.max_video_frames} frames of {settings.max_video_pixels / 1e6:.3g} megapixels, and be seen in "
        f"{settings.max_video_views} views.\n\n"
        "A parameter stands in the query, in a field of the form, or in `parameters` of JSON. Every error has the "
        "shape of `Error`, under /v2 that of `ProtocolError`."
    )


def _inference(route: Route, predictors: Predictors) -> Schema:
    query = query_of(route.parameters) if route.body == "files" else []
    operation = _operation(route, _content(route), (*ANY, *OF_BODIES)) | {
        "description": route.description,
        "parameters": _path_parameters(route.path) + query,
        "requestBody": {"required": True, "content": _body(route)},
    }
    try:
        route.find(predictors, None)
    except ApiError as error:
        operation["x-unavailable"] = error.message
    return operation


def query_of(kind: type[Parameters]) -> list[Schema]:
    """The parameters of a kind as those of a query."""
    return [
        {"name": name, "in": "query", "required": False, "description": schema.pop("description", ""), "schema": schema}
        for name, schema in fields_of(kind).items()
    ]


def fields_of(kind: type[Parameters]) -> dict[str, Schema]:
    """The JSON schema of each parameter, without the possibility of null, which means not given."""
    found: dict[str, Schema] = {}
    for name, schema in kind.model_json_schema()["properties"].items():
        schema.pop("title")
        if "anyOf" in schema:
            (inner,) = (option for option in schema.pop("anyOf") if option != {"type": "null"})
            schema |= inner
        default = schema.pop("default")
        if default is not None:
            schema["default"] = ",".join(default) if isinstance(default, list) else default
        if "const" in schema:
            schema["enum"] = [schema.pop("const")]
        found[name] = schema
    return found


def _body(route: Route) -> Schema:
    return {kind: _media(schema, example) for kind, (schema, example) in BODIES[route.body](route).items()}


def _media(schema: Schema, example: object) -> Schema:
    return {"schema": schema} if example is None else {"schema": schema, "example": example}


def _files(route: Route) -> dict[str, tuple[Schema, object]]:
    """Bytes, a form, or JSON in Hugging Face's shape."""
    video = route.medium_name == "video"
    file: Schema = BINARY if video else {"type": "array", "items": BINARY, "description": "One or several files."}
    text = _text(route.medium_name)
    inputs = text if video else {"anyOf": [text, {"type": "array", "items": text, "minItems": 1}]}
    # The defaults stand in the query; a client made by a generator would send them in both places.
    options = {name: without_default(schema) for name, schema in fields_of(route.parameters).items()}
    parameters = {"type": "object", "properties": options, "additionalProperties": False}
    as_json = {
        "type": "object",
        "required": ["inputs"],
        "properties": {"inputs": inputs, "parameters": parameters},
        "additionalProperties": False,
    }
    return {
        OCTETS: ({**BINARY, "description": "The file itself; any Content-Type will do."}, None),
        "multipart/form-data": ({"type": "object", "required": ["file"], "properties": {"file": file}}, None),
        JSON: (as_json, {"inputs": example_of(route.medium_name)}),
    }


def _embeddings(route: Route) -> dict[str, tuple[Schema, object]]:
    """OpenAI's shape."""
    text = _text("photo")
    part = {
        "type": "object",
        "required": ["type", "image_url"],
        "properties": {
            "type": {"type": "string", "enum": ["image_url"]},
            "image_url": {"type": "object", "required": ["url"], "properties": {"url": text}},
        },
    }
    options = {name: without_default(schema) for name, schema in fields_of(EmbeddingsParameters).items()}
    several = {"type": "array", "items": {"anyOf": [text, part]}, "minItems": 1}
    properties = {"input": {"anyOf": [text, part, several]}, **options}
    return {
        JSON: (
            {"type": "object", "required": ["input"], "properties": properties, "additionalProperties": False},
            {"input": example_of("photo")},
        )
    }


def _instances(route: Route) -> dict[str, tuple[Schema, object]]:
    """KServe's first protocol and Vertex AI's."""
    instance = {"type": "object", "required": ["b64"], "properties": {"b64": _text("photo")}}
    schema = {
        "type": "object",
        "required": ["instances"],
        "properties": {
            "instances": {"type": "array", "items": instance, "minItems": 1},
            "parameters": {"type": "object", "description": "Those of the route of the model's task."},
        },
        "additionalProperties": False,
    }
    return {JSON: (schema, {"instances": [{"b64": example_of("photo").partition(",")[2]}]})}


def _tensors(route: Route) -> dict[str, tuple[Schema, object]]:
    """The Open Inference Protocol."""
    tensor = {
        "type": "object",
        "required": ["name", "shape", "datatype"],
        "properties": {
            "name": TEXT,
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
            "datatype": {"type": "string", "enum": ["FP32", "UINT8", "BYTES"]},
            "parameters": {"type": "object"},
            "data": {"type": "array", "items": {}},
        },
    }
    output = {
        "type": "object",
        "required": ["name"],
        "properties": {"name": TEXT, "parameters": {"type": "object"}},
    }
    schema = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": TEXT,
            "parameters": {"type": "object"},
            "inputs": {"type": "array", "items": tensor, "minItems": 1, "maxItems": 1},
            "outputs": {"type": "array", "items": output},
        },
    }
    file = {"name": "encoded", "shape": [1], "datatype": "BYTES", "data": [example_of("photo").partition(",")[2]]}
    return {
        JSON: (schema, {"inputs": [file]}),
        OCTETS: ({**BINARY, "description": "JSON and then bytes, see Inference-Header-Content-Length."}, None),
    }


BODIES: Final[dict[str, Callable[[Route], dict[str, tuple[Schema, object]]]]] = {
    "files": _files,
    "embeddings": _embeddings,
    "instances": _instances,
    "tensors": _tensors,
}


def _content(route: Route) -> Schema:
    """What a route answers, by media type."""
    found: Schema = {}
    for kind in route.media_types:
        if kind != JSON:
            found[kind] = {"schema": BINARY}
        elif route.response_model is None:
            found[kind] = {"schema": {}}
        else:
            one = _reference(route.response_model)
            shapes = _one_or_many(one) if route.lists else [one]
            if route.other_response_model is not None:
                other = _reference(route.other_response_model)
                shapes += [other, {"type": "array", "items": other}] if route.lists else [other]
            found[kind] = {"schema": shapes[0] if len(shapes) == 1 else {"anyOf": shapes}}
    return found


def _information(endpoint: Endpoint) -> Schema:
    schema = {"type": "object"} if endpoint.response_model is None else _reference(endpoint.response_model)
    if endpoint.lists:
        schema = {"type": "array", "items": schema}
    of_body = OF_BODIES if endpoint.method == "POST" else ()
    return _operation(endpoint, {JSON: {"schema": schema}}, tuple({*ANY, *endpoint.statuses, *of_body})) | {
        "parameters": _path_parameters(endpoint.path)
    }


def _metrics() -> Schema:
    content = {kind: {"schema": TEXT} for kind in ("text/plain", "application/openmetrics-text")}
    return {
        "tags": [INFORMATION],
        "operationId": "metrics",
        "summary": "Metrics for Prometheus, as OpenMetrics where the Accept header asks for it",
        "responses": {"200": {"description": "OK", "content": content}} | _errors("/metrics", ANY),
    }


def _operation(route: Route | Endpoint, content: Schema, statuses: tuple[int, ...]) -> Schema:
    return {
        "tags": [route.tag],
        "operationId": route.name,
        "summary": route.summary,
        "responses": {"200": {"description": "OK", "content": content}} | _errors(route.path, statuses),
    }


def _path_parameters(path: str) -> list[Schema]:
    return [
        {"name": name, "in": "path", "required": True, "schema": TEXT, "description": DESCRIBED[name]}
        for name in re.findall(r"{(\w+)}", path)
    ]


def _errors(path: str, statuses: Iterable[int]) -> Schema:
    kind = response_models.ProtocolError if is_of_protocol(path) else response_models.Error
    content = {JSON: {"schema": _reference(kind)}}
    return {
        str(status): {"description": code_of_status(status).replace("_", " "), "content": content}
        for status in sorted(statuses)
    }


def _schemas() -> Schema:
    """Every model in `response_models.py`, by name."""
    kinds = [kind for kind in vars(response_models).values() if isinstance(kind, type) and issubclass(kind, BaseModel)]
    kinds = [kind for kind in kinds if kind not in (BaseModel, RootModel)]
    _, content = models_json_schema([(kind, "serialization") for kind in kinds], ref_template=REFERENCE)
    schemas: Schema = content["$defs"]
    for name in ("ResponseModel", "OpenResponseModel"):
        del schemas[name]
    return schemas


def _reference(kind: type[BaseModel]) -> Schema:
    return {"$ref": REFERENCE.format(model=kind.__name__)}


def _one_or_many(one: Schema) -> list[Schema]:
    """A list for one file, or a list of such lists."""
    single = {"type": "array", "items": one}
    return [single, {"type": "array", "items": single}]


def without_default(schema: Schema) -> Schema:
    """A schema that leaves the default to the server."""
    return {name: value for name, value in schema.items() if name != "default"}


def _text(medium: str) -> Schema:
    return {"type": "string", "description": f"The {medium}'s file in base64, or as a data URI; no URL is fetched."}


@lru_cache
def example_of(medium: str) -> str:
    """A small file as a data URI, which the server accepts."""
    frames = [Image.new("RGB", (32, 32), (level, 128, 255 - level)) for level in (0, 85, 170, 255)]
    file = io.BytesIO()
    if medium == "video":
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=100)
        kind = "image/gif"
    else:
        frames[0].save(file, "PNG")
        kind = "image/png"
    return f"data:{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def release() -> str:
    """The version of this package."""
    try:
        return version("convmae-deploy")
    except PackageNotFoundError:  # a bento holds the source, not the installed package
        return "0"
