"""The description of the interface at /openapi.json."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from serving.api.parameters import MAX_COMPONENTS, MAX_STRIDE, MAX_TOP_K
from serving.api.responses import FEATURE_TYPES, JSON, NPZ, OCTETS, PNG, SAFETENSORS
from serving.errors import code_of_status
from serving.settings import Settings

Schema = dict[str, Any]
Query = dict[str, tuple[Schema, str]]  # name -> schema, description

_STRING: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_IMAGE_TEXT: Schema = {
    "type": "string",
    "description": "The image file in base64, or as a data URI. URLs are never fetched.",
    "example": "data:image/jpeg;base64,/9j/4AAQSkZJRg...",
}
_VIDEO_TEXT: Schema = {
    "type": "string",
    "description": "The video file in base64, or as a data URI. URLs are never fetched.",
    "example": "data:video/mp4;base64,AAAAIGZ0eXBpc29t...",
}
_QUERY: Query = {
    "model": (_STRING, "Name of a loaded model; see /v1/models."),
    "orientation": (
        {"type": "string", "enum": ["apply", "ignore"], "default": "apply"},
        "Whether photos are turned upright by their EXIF orientation; `ignore` gives what timm's loader gives.",
    ),
    "strict": (
        {"type": "boolean", "default": False},
        "Refuse files of several frames or pages (422) instead of taking the first frame.",
    ),
    "top_k": (
        {"type": "integer", "minimum": 1, "maximum": MAX_TOP_K, "default": 5},
        "How many classes to name; all when there are fewer.",
    ),
    "function_to_apply": (
        {"type": "string", "enum": ["softmax", "sigmoid", "none"], "default": "softmax"},
        "From logits to scores.",
    ),
    "levels": (
        {"type": "string", "default": "pooled", "example": "e1,e2,e3,e4,pooled"},
        "Which features, separated by commas: the four levels `e1` to `e4` (strides 4, 8, 16, 32) and `pooled`.",
    ),
    "dtype": ({"type": "string", "enum": ["f32", "f16"], "default": "f32"}, "Little-endian float type of the answer."),
    "components": (
        {"type": "integer", "minimum": 1, "maximum": MAX_COMPONENTS},
        "The leading principal components over the cells of each map in place of its channels, the same map always "
        "with the same signs; `e1.shares` and so on hold their shares of the map's variance.",
    ),
}
_SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
_DETECT: Query = {
    "threshold": (_SHARE | {"default": 0.5}, "The smallest score of an object."),
    "masks": (
        {"type": "string", "enum": ["none", "rle", "png"], "default": "none"},
        "What `mask` of each object holds: nothing, COCO's compressed run lengths, or a PNG (0 and 255) in base64; "
        "both of the upright photo's size.",
    ),
}
_SEGMENT: Query = {
    "threshold": (_SHARE | {"default": 0.0}, "The smallest score of a segment, the mean probability of its pixels."),
    "masks": (
        {"type": "string", "enum": ["png", "rle"], "default": "png"},
        "What `mask` of each segment holds: a PNG (0 and 255) in base64, or COCO's compressed run lengths.",
    ),
    "subtask": ({"type": "string", "enum": ["semantic"], "default": "semantic"}, "As Hugging Face calls it."),
}
_VIEWS: Schema = {"type": "integer", "minimum": 1, "default": 1}
_CLIPS: Query = {
    "temporal_views": (_VIEWS, "Clips spread over the video, whose scores are averaged."),
    "spatial_views": (_VIEWS, "Crops along the longer side of the frames, whose scores are averaged."),
    "frame_sampling_rate": (
        {"type": "integer", "minimum": 1, "maximum": MAX_STRIDE},
        "From one frame of a clip to the next, in frames; without it, as the model was trained.",
    ),
    "num_frames": ({"type": "integer"}, "Frames of a clip, which the model decides: only its own number is accepted."),
}
_COMMON = {name: _QUERY[name] for name in ("model", "orientation", "strict")}
_CLASSIFY = {name: _QUERY[name] for name in ("top_k", "function_to_apply")} | _COMMON
_FEATURES = {name: _QUERY[name] for name in ("levels", "dtype", "components")} | _COMMON | _CLIPS
_VIDEO = _CLIPS | {name: _QUERY[name] for name in ("model", "top_k", "function_to_apply")}
_DETECT |= _COMMON
_SEGMENT |= _COMMON
_CHOICE = (
    "A model of photos takes images, a model of videos one video, with the parameters and limits of each; without "
    "`model` the first model of photos, where there is none the first of videos."
)


def document(settings: Settings) -> Schema:
    """The OpenAPI 3.1 document of this server.

    Args:
        settings: limits that are stated, and whether a key is needed.
    """
    about = (
        "Classes, objects, labels of pixels and multi-scale features with ConvMAE models, of photos and of videos.\n\n"
        f"A request may hold {settings.max_images} images, {settings.max_request_pixels / 1e6:g} megapixels and "
        f"{settings.max_body_bytes / 1e6:g} MB ({settings.max_json_body_bytes / 1e6:g} MB as JSON). One bad image "
        "fails its request, and the error's `field` says which it was. Files are recognised by their bytes; alpha is "
        "dropped; of animated files the first frame is taken and `X-Image-Frames` says how many there are.\n\n"
        f"A video may have {settings.max_video_body_bytes / 1e6:g} MB, {settings.max_video_seconds:g} seconds, "
        f"{settings.max_video_frames} frames of {settings.max_video_pixels / 1e6:.3g} megapixels, and be seen in "
        f"{settings.max_video_views} views."
    )
    content: Schema = {
        "openapi": "3.1.0",
        "info": {"title": "ConvMAE server", "version": _version(), "description": about},
        "paths": _inference_paths() | _information_paths(),
        "components": {"schemas": _schemas()},
    }
    if settings.api_key is not None:
        content["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        content["security"] = [{"bearer": []}, {"key": []}]
    return content


def _inference_paths() -> Schema:
    features = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in (SAFETENSORS, NPZ, OCTETS)}
    features["application/json"] = {"schema": _reference("Features")}
    return {
        "/v1/classify": {
            "post": _operation(
                "Classify images",
                "The answer has Hugging Face's shape: a list of labels and scores for one image, a list of such lists "
                "for a list of images or several files.",
                _CLASSIFY,
                _body("image", _CLASSIFY),
                {"application/json": {"schema": _one_or_many("Prediction")}},
                (400, 401, 403, 404, 408, 413, 415, 421, 422, 429, 500, 503),
            )
        },
        "/v1/classify-video": {
            "post": _operation(
                "Classify a video",
                "MP4, QuickTime, WebM, Matroska, AVI, GIF, MPEG, FLV, Ogg or WMV. The answer has Hugging Face's shape: "
                "a list of labels and scores. The headers `X-Video-Frames` and `X-Video-Seconds` say what the file "
                "holds. A file that ends too early is refused, also where its beginning could be decoded.",
                _VIDEO,
                _body("video", _VIDEO),
                {"application/json": {"schema": _one_or_many("Prediction")}},
                (400, 401, 403, 404, 408, 413, 415, 421, 422, 429, 500, 503),
            )
        },
        "/v1/detect": {
            "post": _operation(
                "Find objects",
                "The answer has Hugging Face's shape: a list of labels, scores and boxes for one image, a list of such "
                "lists for several. Boxes are in pixels of the upright photo. The header `X-Converged` comes only "
                "where boxes that overlap may have been left: a 0 for each such image.",
                _DETECT,
                _body("image", _DETECT),
                {"application/json": {"schema": _one_or_many("Detection")}},
                (400, 401, 403, 404, 408, 413, 415, 421, 422, 429, 500, 503),
            )
        },
        "/v1/segment": {
            "post": _operation(
                "Say what each pixel is",
                "The answer has Hugging Face's shape: a list of labels, scores and masks for one image, the largest "
                "segment first; a list of such lists for several. With `Accept: image/png` it is the labels of one "
                "image instead: a grey picture whose levels count the model's labels from 0.",
                _SEGMENT,
                _body("image", _SEGMENT),
                {
                    JSON: {"schema": _one_or_many("Segment")},
                    PNG: {"schema": {"type": "string", "format": "binary"}},
                },
                (400, 401, 403, 404, 406, 408, 413, 415, 421, 422, 429, 500, 503),
            )
        },
        "/v1/features": {
            "post": _operation(
                "Multi-scale features of images or a video",
                f"{_CHOICE} The Accept header chooses the format: one of "
                f"{', '.join(f'`{kind}`' for kind in FEATURE_TYPES)}. "
                "Every array begins with an axis of files, also for one. `application/octet-stream` is the arrays "
                "one after the other, described by the header `X-Features`. JSON only while it is small; else 406. The "
                "header `Feature-Fingerprint` says for each level which vectors it may be compared with.",
                _FEATURES,
                _body("image", _FEATURES) | {"video/*": {"schema": {"type": "string", "format": "binary"}}},
                features,
                (400, 401, 403, 404, 406, 408, 413, 415, 421, 422, 429, 500, 503),
            )
        },
        "/v1/embeddings": {
            "post": _operation(
                "Pooled feature vectors of images or a video",
                f"{_CHOICE} Request and answer have the shape of OpenAI's embeddings, with files where that has text.",
                {name: _COMMON[name] for name in ("orientation", "strict")} | _CLIPS,
                {"application/json": {"schema": _reference("EmbeddingsRequest")}},
                {"application/json": {"schema": _reference("Embeddings")}},
                (400, 401, 403, 404, 408, 413, 421, 422, 429, 500, 503),
            )
        },
    }


def _information_paths() -> Schema:
    def get(summary: str, media_type: str, schema: Schema, errors: tuple[int, ...] = ()) -> Schema:
        found = {"200": {"description": "OK", "content": {media_type: {"schema": schema}}}}
        return {"get": {"tags": ["Information"], "summary": summary, "responses": found | _errors(errors)}}

    anything: Schema = {"type": "object"}
    model = get("Everything about one model", "application/json", _reference("Model"), (401, 404, 421, 429))
    model["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": _STRING}]
    models = {"type": "object", "properties": {"data": {"type": "array", "items": _reference("Model")}}}
    return {
        "/v1/models": get("The loaded models", "application/json", models, (401, 421, 429)),
        "/v1/models/{name}": model,
        "/livez": get("Whether the process answers", "application/json", anything),
        "/readyz": get("Whether requests should be sent here", "application/json", anything, (503,)),
        "/metrics": get("Metrics in Prometheus' text format", "text/plain", _STRING, (401, 421, 429)),
    }


def _operation(
    summary: str, description: str, query: Query, body: Schema, response: Schema, errors: tuple[int, ...]
) -> Schema:
    return {
        "tags": ["Inference"],
        "summary": summary,
        "description": description,
        "parameters": [
            {"name": name, "in": "query", "schema": schema, "description": text}
            for name, (schema, text) in query.items()
        ],
        "requestBody": {"required": True, "content": body},
        "responses": {"200": {"description": "OK", "content": response}} | _errors(errors),
    }


def _body(medium: str, parameters: Query) -> Schema:
    properties = {name: schema | {"description": text} for name, (schema, text) in parameters.items()}
    file: Schema = {"type": "string", "format": "binary"}
    inputs = _VIDEO_TEXT
    if medium == "image":
        file = {"type": "array", "items": file, "description": "One or several files."}
        inputs = {"anyOf": [_IMAGE_TEXT, {"type": "array", "items": _IMAGE_TEXT}]}
    as_json = {
        "type": "object",
        "required": ["inputs"],
        "properties": {"inputs": inputs, "parameters": {"type": "object", "properties": properties}},
    }
    return {
        f"{medium}/*": {"schema": {"type": "string", "format": "binary"}},
        "multipart/form-data": {"schema": {"type": "object", "properties": {"file": file} | properties}},
        "application/json": {"schema": as_json},
    }


def _errors(statuses: tuple[int, ...]) -> Schema:
    content = {"application/json": {"schema": _reference("Error")}}
    return {
        str(status): {"description": code_of_status(status).replace("_", " "), "content": content}
        for status in statuses
    }


def _schemas() -> Schema:
    prediction = {"type": "object", "properties": {"label": _STRING, "score": _NUMBER}}
    box = dict.fromkeys(("xmin", "ymin", "xmax", "ymax"), _NUMBER)
    mask = {"anyOf": [{"type": "string", "format": "byte"}, _reference("RunLengths")]}
    part = {
        "type": "object",
        "properties": {
            "type": {"const": "image_url"},
            "image_url": {"type": "object", "properties": {"url": _IMAGE_TEXT}},
        },
    }
    error = {"code": _STRING, "message": _STRING, "field": {"type": ["string", "null"]}, "request_id": _STRING}
    vector = {"anyOf": [{"type": "array", "items": _NUMBER}, {"type": "string", "format": "byte"}]}
    embedding = {
        "type": "object",
        "properties": {"object": {"const": "embedding"}, "index": {"type": "integer"}, "embedding": vector},
    }
    return {
        "Error": {"type": "object", "properties": {"error": {"type": "object", "properties": error}}},
        "Prediction": prediction,
        "RunLengths": {
            "type": "object",
            "properties": {"size": {"type": "array", "items": {"type": "integer"}}, "counts": _STRING},
        },
        "Detection": {
            "type": "object",
            "properties": {
                "label": _STRING,
                "score": _NUMBER,
                "box": {"type": "object", "properties": box},
                "mask": mask,
            },
        },
        "Segment": {"type": "object", "properties": {"label": _STRING, "score": _NUMBER, "mask": mask}},
        "Features": {
            "type": "object",
            "properties": {
                "model": _STRING,
                "dtype": _STRING,
                "features": {"type": "object", "additionalProperties": {"type": "array"}},
            },
        },
        "EmbeddingsRequest": {
            "type": "object",
            "required": ["input"],
            "properties": {
                "input": {"anyOf": [_IMAGE_TEXT, part, {"type": "array", "items": {"anyOf": [_IMAGE_TEXT, part]}}]},
                "model": _STRING,
                "encoding_format": {"type": "string", "enum": ["float", "base64"], "default": "float"},
            },
        },
        "Embeddings": {
            "type": "object",
            "properties": {
                "object": {"const": "list"},
                "data": {"type": "array", "items": embedding},
                "model": _STRING,
                "fingerprint": _STRING,
            },
        },
        "Model": _model(),
    }


def _model() -> Schema:
    return {
        "type": "object",
        "properties": {
            "id": _STRING,
            "task": _STRING,
            "variant": _STRING,
            "default": {"type": "boolean"},
            "licence": {"type": "object"},
            "labels": {"type": "array", "items": _STRING},
            "input": {"type": "object"},
            "preprocessing": {"type": "object"},
            "outputs": {"type": "object"},
            "numerics": {"type": ["object", "null"]},
        },
    }


def _one_or_many(name: str) -> Schema:
    """A list for one image, or a list of such lists."""
    one = {"type": "array", "items": _reference(name)}
    return {"anyOf": [one, {"type": "array", "items": one}]}


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _version() -> str:
    try:
        return version("convmae-deploy")
    except PackageNotFoundError:  # a bento holds the source, not the installed package
        return "0"
