"""Wire formats of the responses."""

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from convmae_deploy.backends.runtimes import RuntimeOptions
from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.extraction.feature_files import encode_npz, encode_safetensors
from convmae_deploy.extraction.origin import Origin, origin_of
from convmae_deploy.tasks.base import PredictOptions, Predictor
from convmae_deploy.tasks.classification import Classifier
from convmae_deploy.tasks.components import principal_components
from convmae_deploy.tasks.detection import Detections
from convmae_deploy.tasks.features import POOLED
from convmae_deploy.tasks.label_colours import class_areas
from convmae_deploy.tasks.masks import encode_mask, label_png, mask_png, picture_png
from convmae_deploy.tasks.objects import Detection
from convmae_deploy.tasks.postprocess import Prediction
from convmae_deploy.tasks.sliding_window import Segmentation
from serving.api.job import Job
from serving.errors import ApiError

SAFETENSORS: Final = "application/x-safetensors"
NPZ: Final = "application/x-npz"
OCTETS: Final = "application/octet-stream"
JSON: Final = "application/json"
PNG: Final = "image/png"
FEATURE_TYPES: Final = (SAFETENSORS, NPZ, OCTETS, JSON)  # in order of preference
FORMATS: Final = {"safetensors": SAFETENSORS, "npz": NPZ, "octets": OCTETS, "json": JSON}  # the words of `format`
PICTURE_TYPES: Final = (JSON, PNG)
TINY: Final = 1e-12  # a vector of zeros stays one
DTYPES: Final[Mapping[str, np.dtype[Any]]] = {"f32": np.dtype("<f4"), "f16": np.dtype("<f2")}
FLOAT16_MAX: Final = float(np.finfo(np.float16).max)

Features = Mapping[str, NDArray[Any]]  # level -> (B, ...)


def to_json(content: object) -> bytes:
    """Compact JSON in UTF-8; a number that JSON cannot write is an error, not `NaN`."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode(errors="backslashreplace")  # half of a surrogate pair, which a client may send, is escaped


class Writer:
    """Makes the body of a response from results: Hugging Face's shape, a list of lists where the files came as a list.

    Args:
        job: what the request asks for; its headers are complete after `body`.

    Raises:
        ApiError: 406, nothing that the client accepts is on offer.
    """

    media_type = JSON

    def __init__(self, job: Job) -> None:
        self.job, self.parameters = job, job.parameters

    def entry(self, result: Any) -> Any:
        """What is kept of a result until all are there."""
        return result

    def body(self, entries: Sequence[Any]) -> bytes:
        """The whole body."""
        content = entries if self.job.parsed.batched else entries[0]
        return to_json(content if self.job.envelope is None else {self.job.envelope: content})

    @property
    def accept(self) -> str:
        """The Accept header as far as it has a say: what goes into an envelope is JSON."""
        return self.job.received.accept if self.job.envelope is None else JSON


class ClassWriter(Writer):
    """`[{"label", "score"}]` for each photo or video."""

    def entry(self, result: Sequence[Prediction]) -> list[dict[str, Any]]:
        if self.parameters.indices:
            return [{"label": each.label, "score": float(each.score), "index": each.index} for each in result]
        return [{"label": found.label, "score": float(found.score)} for found in result]


class PhotoClassWriter(ClassWriter):
    """The classes of photos, or of each the explanation of one, as numbers or as a picture."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        if self.parameters.explain is not None:
            self.media_type = choose_picture_type(self.accept, len(job.parsed.uploads))

    def entry(self, result: Any) -> Any:
        if self.parameters.explain is None:
            return super().entry(result)
        (explanation,) = result  # of one class
        if self.media_type == JSON:
            return explanation.fields()
        predictor = self.job.predictor
        assert isinstance(predictor, Classifier)  # the route has chosen it
        return picture_png(predictor.draw(explanation))

    def body(self, entries: Sequence[Any]) -> bytes:
        return entries[0] if self.media_type == PNG else super().body(entries)


class ObjectWriter(Writer):
    """`[{"label", "score", "box"}]` for each photo; on request with `mask`, of the upright photo's size.

    The header X-Converged comes only where suppression did not end for a photo, and says for which it did.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._converged: list[bool] = []

    def entry(self, result: Detections) -> list[dict[str, Any]]:
        self._converged.append(result.converged)
        return [self._object(found) for found in result]

    def body(self, entries: Sequence[Any]) -> bytes:
        if not all(self._converged):
            self.job.headers["X-Converged"] = ", ".join(str(int(flag)) for flag in self._converged)
        return super().body(entries)

    def _object(self, found: Detection) -> dict[str, Any]:
        left, top, right, bottom = (round(edge, 2) for edge in found.box)
        box = {"xmin": left, "ymin": top, "xmax": right, "ymax": bottom}
        content = {"label": found.label, "score": found.score, "box": box}
        if self.parameters.masks != "none":
            self.job.received.ticket.check()
            mask = found.mask
            content["mask"] = mask.run_lengths() if self.parameters.masks == "rle" else _base64(mask.png())
        return content


class SegmentWriter(Writer):
    """`[{"label", "score", "mask"}]` for each photo, the largest segment first; or the labels of one as a PNG."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.media_type = choose_picture_type(self.accept, len(job.parsed.uploads))

    def entry(self, result: Segmentation) -> bytes | list[dict[str, Any]]:
        if self.media_type == PNG:
            return label_png(result.labels)
        classes, rows = self.job.predictor.manifest.classes, []
        for index in class_areas(result.labels, len(classes)):
            if result.scores[index] >= self.parameters.threshold:
                self.job.received.ticket.check()
                inside = result.labels == index
                mask = encode_mask(inside) if self.parameters.masks == "rle" else _base64(mask_png(inside))
                rows.append({"label": classes[index], "score": float(result.scores[index]), "mask": mask})
        return rows

    def body(self, entries: Sequence[Any]) -> bytes:
        return entries[0] if self.media_type == PNG else super().body(entries)


class FeatureWriter(Writer):
    """Arrays of features in the format that the client accepts, (files, ...) also for one.

    Where components are asked for, a map has these in place of its channels, (files, components, ...), and beside it
    comes `NAME.shares`, (files, components): their shares of the map's variance.

    In an envelope, and for JSON with `inputs` that asks for one level and for no format, which is how Hugging Face's
    `feature_extraction` asks, the answer is the arrays alone.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        size = 4 * len(job.parsed.uploads) * sum(math.prod(self._shape(level)) for level in self.parameters.levels)
        if job.envelope is not None and self.parameters.format not in (None, "json"):
            message = f"format: this route answers in JSON, got {self.parameters.format!r}; leave it out"
            raise ApiError(422, "invalid_parameter", message, field="format")
        self._alone = job.envelope is not None or self._asks_as_hugging_face(size)
        accept = JSON if self._alone else FORMATS.get(self.parameters.format, self.accept)
        self.media_type = choose_feature_type(accept, size, job.max_json_bytes)

    def _asks_as_hugging_face(self, size: int) -> bool:
        silent = self.accept in ("", "*/*") and self.parameters.format is None
        small = len(self.parameters.levels) == 1 and self.parameters.components is None
        return silent and small and self.job.parsed.in_json and size <= self.job.max_json_bytes

    def entry(self, result: Features) -> Features:
        entry: dict[str, NDArray[Any]] = {}
        for name, values in result.items():
            entry[name] = values
            if self._is_normalized(name):
                entry[name] = values / max(float(np.linalg.norm(values)), TINY)
            if self._is_reduced(name):
                self.job.received.ticket.check()
                entry[name], entry[f"{name}.shares"] = principal_components(values, self.parameters.components)
        return entry

    def body(self, entries: Sequence[Features]) -> bytes:
        # Components are of each photo for itself, so their numbers compare with no others; normalized ones only with
        # such.
        changed = (self._is_reduced, self._is_normalized)
        levels = tuple(level for level in self.parameters.levels if not any(check(level) for check in changed))
        if levels:
            self.job.headers["Feature-Fingerprint"] = origin_of_job(self.job, levels).fingerprints()
        found = {name: np.stack([entry[name] for entry in entries]) for name in entries[0]}
        arrays = of_dtype(found, self.parameters.dtype)
        if self._alone:
            return self._arrays_alone(arrays)
        name = self.job.predictor.manifest.name
        content, headers = encode_features(arrays, self.media_type, self.parameters.dtype, name)
        self.job.headers |= headers
        return content

    def _arrays_alone(self, arrays: Features) -> bytes:
        files = [{name: values[index].tolist() for name, values in arrays.items()} for index in range(self._files())]
        content = [next(iter(file.values())) if len(file) == 1 else file for file in files]
        return to_json(content if self.job.envelope is None else {self.job.envelope: content})

    def _files(self) -> int:
        return len(self.job.parsed.uploads)

    def _is_normalized(self, name: str) -> bool:
        return bool(self.parameters.normalize) and self.job.predictor.manifest.outputs[name].stride is None

    def _is_reduced(self, name: str) -> bool:
        return self.parameters.components is not None and self.job.predictor.manifest.outputs[name].stride is not None

    def _shape(self, name: str) -> tuple[int, ...]:
        shape = self.job.predictor.manifest.outputs[name].shape
        return (self.parameters.components, *shape[1:]) if self._is_reduced(name) else shape


class EmbeddingWriter(Writer):
    """OpenAI's shape."""

    def entry(self, result: Features) -> Any:
        (vector,) = result.values()
        if self.parameters.encoding_format == "float":
            return vector.tolist()
        return _base64(vector.astype("<f4").tobytes())

    def body(self, entries: Sequence[Any]) -> bytes:
        data = [{"object": "embedding", "index": index, "embedding": entry} for index, entry in enumerate(entries)]
        # OpenAI's clients expect the token counts; there are no tokens here.
        usage = {"prompt_tokens": 0, "total_tokens": 0}
        (level,) = origin_of_job(self.job, (POOLED,)).levels.values()
        name = self.job.predictor.manifest.name
        content = {"object": "list", "data": data, "model": name, "fingerprint": level.fingerprint, "usage": usage}
        return to_json(content)


def origin_of_job(job: Job, levels: tuple[str, ...]) -> Origin:
    """Where the vectors of a response are from."""
    origin = _ORIGINS.get(job.predictor)
    if origin is None:
        origin = _ORIGINS[job.predictor] = _origin_function(job.predictor.bundle, job.predictor.runtime)
    return origin(levels, replace(job.options, levels=None), job.parameters.orientation == "apply")


OriginFunction = Callable[[tuple[str, ...], PredictOptions, bool], Origin]


def _origin_function(bundle: Bundle, runtime: RuntimeOptions) -> OriginFunction:
    """What remembers the origins of one model's vectors, and does not hold the model."""

    @lru_cache(maxsize=256)
    def origin(levels: tuple[str, ...], options: PredictOptions, upright: bool) -> Origin:
        return origin_of(bundle, levels, runtime=runtime, options=options, upright=upright)

    return origin


_ORIGINS: WeakKeyDictionary[Predictor, OriginFunction] = WeakKeyDictionary()  # for as long as there is the model


def choose_picture_type(accept: str, photos: int) -> str:
    """The format of what a picture can show: JSON, or for a single photo a PNG.

    Raises:
        ApiError: 406, nothing that the client accepts is on offer.
    """
    chosen = _negotiate(accept, PICTURE_TYPES if photos == 1 else (JSON,))
    if chosen is None:
        offer = f"one of {', '.join(PICTURE_TYPES)}" if photos == 1 else f"{JSON}, as there are {photos} photos"
        raise ApiError(406, "not_acceptable", f"expected an Accept header that allows {offer}", field="Accept")
    return chosen


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


def of_dtype(features: Features, dtype: str) -> Features:
    """Features as `f32` or `f16`, little-endian.

    Raises:
        ApiError: 422, a value does not fit into float16.
    """
    if dtype == "f16" and any(np.abs(array).max() > FLOAT16_MAX for array in features.values()):
        raise ApiError(422, "out_of_range", "a feature does not fit into float16; ask for dtype=f32", field="dtype")
    return {level: np.ascontiguousarray(array, dtype=DTYPES[dtype]) for level, array in features.items()}


def encode_features(arrays: Features, kind: str, dtype: str, model: str) -> tuple[bytes, dict[str, str]]:
    """The body of a features answer and the headers that belong to it.

    Args:
        arrays: level -> (B, ...), also for a single image, as `of_dtype` gives them.
        kind: one of FEATURE_TYPES.
        dtype: what they are, `f32` or `f16`.
        model: the model's name.
    """
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
