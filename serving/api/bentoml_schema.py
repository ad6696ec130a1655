"""What BentoML's clients ask for before their first call: `/schema.json`, with a method for each route of ours.

The methods are not BentoML's own APIs: those fetch a file by URL where a client gives one, answer 500 to a broken
photo, and have no limits (see serving/README.md). A client cannot tell the difference, as it knows this description
alone: it sends files as a form, every other argument as JSON in a field of that form, and reads JSON.
"""

from functools import cache
from typing import Any, Final

from serving.api.openapi import fields_of, without_default
from serving.api.responses import JSON
from serving.api.routes import ROUTES, InferenceRoute

SERVICE_NAME: Final = "convmae"
TENSOR: Final = {"type": "tensor", "format": "numpy-array", "dtype": "float32"}
LEVELS: Final = ("pooled", "e1", "e2", "e3", "e4")


@cache
def bentoml_schema() -> dict[str, Any]:
    """The document; `bentoml build` keeps it too, so that a bento shows its routes."""
    routes = [_method(route) for route in ROUTES if route.body == "files"]
    return {
        "name": SERVICE_NAME,
        "type": "service",
        "description": "ConvMAE models over HTTP.",
        "routes": routes,
        "paths": {route["route"]: {"mounted": False} for route in routes},
    }


def _method(route: InferenceRoute) -> dict[str, Any]:
    video = route.medium_name == "video"
    file = {"type": "file", "format": "video" if video else "image"}
    fields = {name: without_default(schema) for name, schema in fields_of(route.parameters).items() if name != "format"}
    given = {"video": file} if video else {"image": file}
    if route.task is None:
        given |= {"video": {"type": "file", "format": "video"}}
    return {
        "name": route.name,
        "route": route.path if JSON == route.media_types[0] else f"{route.path}?format=json",
        "description": f"{route.summary}. {route.description}",
        "batchable": False,
        "input": {
            "type": "object",
            "properties": given | fields,
            "required": [] if route.task is None else list(given),
        },
        "output": _output(route),
        "is_task": False,
    }


def _output(route: InferenceRoute) -> dict[str, Any]:
    if route.task is not None:
        several = {"type": "array", "items": {"type": "object"}}
        return several if route.other_response_model is None else {"anyOf": [several, {"type": "object"}]}
    arrays = {"type": "object", "properties": dict.fromkeys(LEVELS, TENSOR)}
    return {"type": "object", "properties": {"model": {"type": "string"}, "features": arrays}}
