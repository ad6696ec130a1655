"""Wire formats of the answers."""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from convmae_deploy.extraction.feature_files import encode_npz, encode_safetensors
from convmae_deploy.tasks.label_colours import class_areas
from convmae_deploy.tasks.masks import encode_mask, mask_png
from convmae_deploy.tasks.objects import Detection
from convmae_deploy.tasks.postprocess import Prediction
from convmae_deploy.tasks.sliding_window import Segmentation
from serving.errors import ApiError

SAFETENSORS: Final = "application/x-safetensors"
NPZ: Final = "application/x-npz"
OCTETS: Final = "application/octet-stream"
JSON: Final = "application/json"
PNG: Final = "image/png"
FEATURE_TYPES: Final = (SAFETENSORS, NPZ, OCTETS, JSON)  # in order of preference
SEGMENT_TYPES: Final = (JSON, PNG)
DTYPES: Final[Mapping[str, np.dtype[Any]]] = {"f32": np.dtype("<f4"), "f16": np.dtype("<f2")}
FLOAT16_MAX: Final = float(np.finfo(np.float16).max)

Features = Mapping[str, NDArray[Any]]  # level -> (B, ...)


def to_json(content: object) -> bytes:
    """Compact JSON in UTF-8; a number that JSON cannot write is an error, not `NaN`."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def classification(predictions: Sequence[Sequence[Prediction]], batched: bool) -> list[Any]:
    """Hugging Face's shape: `[{"label", "score"}]` for one image, a list of such lists for a list of images."""
    rows = [[{"label": found.label, "score": float(found.score)} for found in row] for row in predictions]
    return rows if batched else rows[0]


def detections(
    found: Sequence[Sequence[Detection]], masks: Literal["none", "rle", "png"], batched: bool, check: Callable[[], None]
) -> list[Any]:
    """Hugging Face's shape: `[{"label", "score", "box"}]` for one image, a list of such lists for a list of images.

    Args:
        found: the objects of each image.
        masks: what `mask` holds besides: COCO's run lengths, or a PNG in base64; both of the upright photo's size.
        batched: whether the request held a list.
        check: called before each mask, as many of them take a while; raises when nobody waits any more.
    """

    def entry(item: Detection) -> dict[str, Any]:
        left, top, right, bottom = (round(edge, 2) for edge in item.box)
        box = {"xmin": left, "ymin": top, "xmax": right, "ymax": bottom}
        content = {"label": item.label, "score": item.score, "box": box}
        if masks != "none":
            check()
            content["mask"] = item.mask.run_lengths() if masks == "rle" else _base64(item.mask.png())
        return content

    rows = [[entry(item) for item in row] for row in found]
    return rows if batched else rows[0]


def segments(
    found: Segmentation,
    classes: Sequence[str],
    threshold: float,
    masks: Literal["png", "rle"],
    check: Callable[[], None],
) -> list[dict[str, Any]]:
    """Hugging Face's shape: `[{"label", "score", "mask"}]`, the largest segment first.

    Args:
        found: of one image.
        classes: names of the labels.
        threshold: segments with a lower score are left out.
        masks: what `mask` holds: a PNG in base64, or COCO's run lengths; both of the upright photo's size.
        check: as in `detections`.
    """
    rows = []
    for index in class_areas(found.labels, len(classes)):
        if found.scores[index] >= threshold:
            check()
            inside = found.labels == index
            mask = encode_mask(inside) if masks == "rle" else _base64(mask_png(inside))
            rows.append({"label": classes[index], "score": float(found.scores[index]), "mask": mask})
    return rows


def choose_segment_type(accept: str, photos: int) -> str:
    """The format of a segmentation: JSON, or for a single photo its labels as a PNG.

    Raises:
        ApiError: 406, nothing that the client accepts is on offer.
    """
    chosen = _negotiate(accept, SEGMENT_TYPES if photos == 1 else (JSON,))
    if chosen is None:
        offer = f"one of {', '.join(SEGMENT_TYPES)}" if photos == 1 else f"{JSON}, as there are {photos} photos"
        raise ApiError(406, "not_acceptable", f"expected an Accept header that allows {offer}", field="Accept")
    return chosen


def embeddings(vectors: NDArray[Any], model: str, encoding: Literal["float", "base64"]) -> dict[str, Any]:
    """OpenAI's shape.

    Args:
        vectors: (B, C) float32.
        model: the model's name.
        encoding: `base64` writes each vector as little-endian float32 in base64.
    """
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": vector.tolist()
            if encoding == "float"
            else base64.b64encode(vector.astype("<f4").tobytes()).decode(),
        }
        for index, vector in enumerate(vectors)
    ]
    # OpenAI's clients expect the token counts; there are no tokens here.
    return {"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": 0, "total_tokens": 0}}


def choose_feature_type(accept: str, json_bytes: int, max_json_bytes: int) -> str:
    """The format of a features answer.

    Args:
        accept: the Accept header; empty counts as `*/*`.
        json_bytes: bytes of the features as float32.
        max_json_bytes: above this, JSON is not on offer: it is some 500 times slower than safetensors.

    Raises:
        ApiError: 406, nothing that the client accepts is on offer.
    """
    chosen = _negotiate(accept, [kind for kind in FEATURE_TYPES if kind != JSON or json_bytes <= max_json_bytes])
    if chosen is not None:
        return chosen
    message = f"expected an Accept header that allows one of {', '.join(FEATURE_TYPES)}"
    if JSON in accept:
        message = (
            f"{json_bytes} bytes of features are too many for JSON (at most {max_json_bytes}); "
            f"ask for {SAFETENSORS}, or for fewer levels"
        )
    raise ApiError(406, "not_acceptable", message, field="Accept")


def encode_features(features: Features, kind: str, dtype: str, model: str) -> tuple[bytes, dict[str, str]]:
    """The body of a features answer and the headers that belong to it.

    Args:
        features: level -> float32 (B, ...), also for a single image.
        kind: one of FEATURE_TYPES.
        dtype: `f32` or `f16`, little-endian.
        model: the model's name.

    Raises:
        ApiError: 422, a value does not fit into float16.
    """
    if dtype == "f16" and any(np.abs(array).max() > FLOAT16_MAX for array in features.values()):
        raise ApiError(422, "out_of_range", "a feature does not fit into float16; ask for dtype=f32", field="dtype")
    arrays = {level: np.ascontiguousarray(array, dtype=DTYPES[dtype]) for level, array in features.items()}
    if kind == SAFETENSORS:
        return encode_safetensors(arrays), {}
    if kind == NPZ:
        return encode_npz(arrays), {}
    if kind == OCTETS:
        return _encode_octets(arrays, dtype)
    lists = {level: array.tolist() for level, array in arrays.items()}
    return to_json({"model": model, "dtype": dtype, "features": lists}), {}


def _encode_octets(arrays: Features, dtype: str) -> tuple[bytes, dict[str, str]]:
    """The arrays one after the other, in C order; the header X-Features says where each begins and its shape."""
    offset, entries = 0, []
    for level, array in arrays.items():
        entries.append({"level": level, "shape": list(array.shape), "offset": offset, "bytes": array.nbytes})
        offset += array.nbytes
    header = json.dumps({"dtype": dtype, "levels": entries}, separators=(",", ":"))
    return b"".join(array.tobytes() for array in arrays.values()), {"X-Features": header}


def _negotiate(accept: str, offered: Sequence[str]) -> str | None:
    """What the client wants most of what is offered; of equal ones the first offered."""
    for wanted in _by_preference(accept or "*/*"):
        for kind in offered:
            if wanted in (kind, "*/*", kind.partition("/")[0] + "/*"):
                return kind
    return None


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _by_preference(accept: str) -> list[str]:
    """Media types of an Accept header, the most wanted first; those with q=0 left out."""
    wanted: list[tuple[float, str]] = []
    for entry in accept.split(","):
        kind, *parameters = (part.strip().lower() for part in entry.split(";"))
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                try:
                    quality = float(value)
                except ValueError:
                    quality = 0.0
        if kind and quality > 0:
            wanted.append((quality, kind))
    return [kind for _, kind in sorted(wanted, key=lambda pair: -pair[0])]
