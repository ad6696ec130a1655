"""The Open Inference Protocol, version 2: what Triton's and KServe's clients send and read.

A model has two inputs, of which a request gives one: the graph's own, prepared as the manifest says (FP32 or UINT8), or
`encoded`, BYTES: photos or videos as files. Its outputs are the graph's, and for files also `result`: what the route of
the model's task answers, as JSON, one text a file. Tensors stand in the JSON or as bytes after it (the extension for
binary tensors); `classification` of Triton's extension names the best classes of `logits`.

https://github.com/kserve/open-inference-protocol, and Triton's extensions of it.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from convmae_deploy.backends.base import InputArray, Outputs
from convmae_deploy.tasks.base import LOGITS, ModelOutputError, Predictor, Run
from convmae_deploy.tasks.postprocess import top_k
from serving.api.inference import Done, Inference
from serving.api.job import Job, Received
from serving.api.media import Medium
from serving.api.parameters import Parameters, read_parameters
from serving.api.responses import JSON, OCTETS, to_json
from serving.api.routes import Route, route_of
from serving.api.uploads import MAX_JSON_ITEMS, Parsed, Upload, check_count, decode_reference, parse_json
from serving.errors import ApiError
from serving.work.runs import counted, run_for

ENCODED: Final = "encoded"
RESULT: Final = "result"
VERSION: Final = "1"  # of every model
EXTENSIONS: Final = ("binary_tensor_data", "classification", "model_repository", "model_repository(unload_dependents)")
DATATYPES: Final[Mapping[str, str]] = {"float32": "FP32", "int64": "INT64", "uint8": "UINT8"}
BYTES_A_NUMBER: Final = 64  # that a number of a JSON list takes in memory
CLASSIFICATION: Final = "classification"
LENGTH: Final = re.compile(r"[0-9]{1,20}")  # of the JSON, in a header
MOST_AXES: Final = 2  # of an output that comes unasked, beside that of files: not maps and masks, which are large
# Parameters that clients of the protocol send of their own; the rest are those of the route of the model's task.
OF_THE_PROTOCOL: Final = frozenset(
    {"binary_data_output", "sequence_id", "sequence_start", "sequence_end", "priority", "timeout"}
)


class _Tensor(BaseModel):
    """An input as a client describes it."""

    model_config = ConfigDict(extra="ignore")

    name: str
    datatype: str
    shape: list[Annotated[int, Field(ge=0, strict=True)]] = Field(min_length=1, max_length=8)
    parameters: dict[str, Any] = Field(default_factory=dict)
    data: list[Any] | None = None


class _Wanted(BaseModel):
    """An output that a client asks for."""

    model_config = ConfigDict(extra="ignore")

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class _Head(BaseModel):
    """The JSON of a request."""

    model_config = ConfigDict(extra="ignore")

    id: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    inputs: list[_Tensor] = Field(min_length=1, max_length=2)
    outputs: list[_Wanted] | None = Field(default=None, max_length=32)


@dataclass
class _Values:
    """What the outputs of a request hold."""

    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    texts: dict[str, list[bytes]] = field(default_factory=dict)  # BYTES, one for each file
    shapes: dict[str, list[int]] = field(default_factory=dict)  # of those


class OpenInference:
    """Answers `/v2/models/{name}/infer`.

    Args:
        inference: what all routes share.
    """

    def __init__(self, inference: Inference) -> None:
        self.inference = inference

    def do(self, route: Route, received: Received) -> Done:
        """Everything about a request, from its body to its response.

        Raises:
            ApiError: what is wrong with it.
        """
        with self.inference.models.use(lambda models: route.find(models, received.model)) as predictor:
            with received.timings.phase("decode"):
                head, wanted, given = self._read(received, predictor)
            if isinstance(given, list):
                values = self._of_files(received, predictor, given, head, wanted)
            else:
                values = self._of_numbers(received, predictor, given, head, wanted)
        with received.timings.phase("encode"):
            response = _response(head, predictor, values, wanted, self.inference.settings.max_json_features_bytes)
        return Done(response, predictor.manifest.name, self.inference.media[predictor.MEDIUM], len(given))

    def _read(self, received: Received, predictor: Predictor) -> tuple[_Head, list[_Wanted], list[Upload] | InputArray]:
        """What a request says, the outputs that it asks for, and its files or its numbers.

        The numbers of its JSON take far more memory than their text, and are let go before anything is run.
        """
        with self.inference.memory.share(received.ticket) as take:
            size = _json_bytes(received, predictor)
            if size > self.inference.memory.most:
                raise _too_many_numbers()
            take(size)
            head, rest = _read_head(received)
            tensor = _one_input(head, predictor)
            encoded = tensor.datatype == "BYTES"
            wanted = _wanted(head, predictor, encoded=encoded)
            medium = self.inference.media[predictor.MEDIUM]
            given = _files(tensor, rest, medium) if encoded else _numbers(tensor, rest, predictor)
            head.inputs.clear()
            del tensor
        return head, wanted, given

    def _of_numbers(
        self, received: Received, predictor: Predictor, batch: InputArray, head: _Head, wanted: Sequence[_Wanted]
    ) -> _Values:
        """Runs the graph on what the client has prepared; that the model cannot bear its numbers is no fault of it."""
        read_parameters(Parameters, received.query, _of_the_task(head), received.model)
        predictor = predictor.at((batch.shape[-2], batch.shape[-1]))
        health, run = self.inference.health(predictor.manifest.name), run_for(predictor, received.ticket)
        names, arrays = list(dict.fromkeys(one.name for one in wanted)), None
        with received.timings.phase("inference"), counted(predictor, health), suppress(ModelOutputError):
            arrays = run(batch, names)
        if arrays is None:
            message = "expected numbers prepared for this model, got some for which it gives no finite ones"
            raise ApiError(422, "out_of_range", f"{message}; see /v1/models/NAME", field="inputs[0].data")
        return _Values(arrays=dict(arrays))

    def _of_files(
        self,
        received: Received,
        predictor: Predictor,
        uploads: list[Upload],
        head: _Head,
        wanted: Sequence[_Wanted],
    ) -> _Values:
        """Runs the task once; what the graph gave on the way is kept where it is asked for."""
        own = route_of(predictor)
        parsed = Parsed(self.inference.media[predictor.MEDIUM], uploads, True, _of_the_task(head), in_json=True)
        job = self.inference.job(own, received, parsed, predictor, RESULT)
        names = [one.name for one in wanted if one.name != RESULT]
        kept: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
        values = _Values()
        if RESULT in {one.name for one in wanted}:
            values.texts[RESULT] = self._results(job, _keeping(run_for(predictor, received.ticket), kept))
            values.shapes[RESULT] = [len(uploads)]
        elif names:
            self._run_graph(job, names, kept)
        values.arrays = {name: np.concatenate(parts) for name, parts in kept.items()}
        return values

    def _results(self, job: Job, run: Run) -> list[bytes]:
        writer = route_of(job.predictor).writer(job)
        entries = []
        with closing(self.inference.results(job, run)) as results:
            for result in results:
                with job.received.timings.phase("encode"):
                    entries.append(writer.entry(result))
        with job.received.timings.phase("encode"):
            content = json.loads(writer.body(entries))[RESULT]
            return [to_json(each) for each in content]

    def _run_graph(self, job: Job, names: Sequence[str], kept: dict[str, list[NDArray[Any]]]) -> None:
        predictor, ticket = job.predictor, job.received.ticket
        health, run = self.inference.health(predictor.manifest.name), run_for(predictor, ticket)
        with closing(self.inference.prepare[predictor.MEDIUM](job)) as files:
            for file in files:
                ticket.check()
                with job.received.timings.phase("inference"), counted(predictor, health):
                    for name, values in run(file.rows, names).items():
                        kept[name].append(values)


def server_metadata(release: str) -> dict[str, Any]:
    """The answer of /v2."""
    return {"name": "convmae", "version": release, "extensions": list(EXTENSIONS)}


def model_metadata(predictor: Predictor) -> dict[str, Any]:
    """The answer of /v2/models/{name}."""
    manifest = predictor.manifest
    outputs = [
        {"name": name, "datatype": DATATYPES[spec.dtype], "shape": [-1, *manifest.open_shape(spec)]}
        for name, spec in manifest.outputs.items()
    ]
    return {
        "name": manifest.name,
        "versions": [VERSION],
        "platform": f"convmae_{manifest.task}",
        "inputs": [
            {
                "name": manifest.input.name,
                "datatype": DATATYPES[manifest.input.dtype],
                "shape": [-1, *manifest.open_shape(manifest.input)],
            },
            {"name": ENCODED, "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [*outputs, {"name": RESULT, "datatype": "BYTES", "shape": [-1]}],
    }


def check_version(version: str) -> None:
    """Refuses other versions of a model than the one that there is.

    Raises:
        ApiError: 404.
    """
    if version != VERSION:
        message = f"expected the version {VERSION}, which every model has here, got {version[:40]!r}; ask for that"
        raise ApiError(404, "unknown_version", message, field="version")


def _refuse(message: str, where: str | None = None, code: str = "invalid_input") -> ApiError:
    return ApiError(400, code, message, field=where)


def _too_many_numbers() -> ApiError:
    message = "expected the numbers of one batch at most in JSON, got more; send fewer, or send them as binary data"
    return ApiError(413, "body_too_large", message)


def _json_bytes(received: Received, predictor: Predictor) -> int:
    """What reading the JSON may take: numbers in lists take far more than their text, empty lists even more.

    Raises:
        ApiError: 413, it holds more numbers, or more lists of them, than the model's largest batch.
    """
    head = received.body[: _head_length(received)]
    numbers, lists = head.count(b","), head.count(b"[") + head.count(b"{")
    entry = predictor.manifest.input
    shapes = [(entry.max_batch, *entry.shape)]
    if entry.sides is not None:
        shapes.append((1, entry.shape[0], entry.sides.largest, entry.sides.largest))
    most_numbers = max(map(math.prod, shapes))
    most_lists = max(sum(math.prod(shape[:axes]) for axes in range(len(shape))) for shape in shapes)
    if numbers > most_numbers + MAX_JSON_ITEMS or lists > most_lists + MAX_JSON_ITEMS:
        raise _too_many_numbers()
    return BYTES_A_NUMBER * (numbers + lists)


def _head_length(received: Received) -> int:
    if received.head_length is None:
        return len(received.body)
    text = received.head_length.strip()
    if not LENGTH.fullmatch(text) or int(text) > len(received.body):
        raise _refuse(
            "expected in Inference-Header-Content-Length the bytes of JSON that the body begins with, got "
            f"{text[:20]!r} for a body of {len(received.body)} bytes; correct it"
        )
    return int(text)


def _read_head(received: Received) -> tuple[_Head, memoryview]:
    """The JSON of a request, and the bytes after it."""
    length = _head_length(received)
    if not length:
        raise _refuse("expected a JSON object with 'inputs', got an empty body; send one", code="empty_body")
    try:
        content = parse_json(received.body[:length])
    except (ValueError, RecursionError):
        raise _refuse("expected a JSON object with 'inputs', got other bytes; send JSON", code="invalid_json") from None
    try:
        return _Head.model_validate(content), memoryview(received.body)[length:]
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, problem["loc"]))
        reason = problem["msg"][:1].lower() + problem["msg"][1:]
        raise _refuse(f"{where or 'the request'}: {reason}; see the Open Inference Protocol", where or None) from None


def _one_input(head: _Head, predictor: Predictor) -> _Tensor:
    """The one input of a request, checked against the model's two."""
    if len(head.inputs) != 1:
        raise _refuse(f"expected one input, {predictor.manifest.input.name} or {ENCODED}, got two; send one", "inputs")
    (tensor,) = head.inputs
    prepared = DATATYPES[predictor.manifest.input.dtype]
    names = {prepared: (predictor.manifest.input.name,), "BYTES": (ENCODED, predictor.manifest.input.name)}
    if tensor.datatype not in names:
        raise _refuse(
            f"expected the datatype {prepared} for prepared numbers or BYTES for files, got {tensor.datatype[:20]!r}; "
            "convert it",
            "inputs[0].datatype",
        )
    if tensor.name not in names[tensor.datatype]:
        message = f"expected the {tensor.datatype} input {names[tensor.datatype][0]}, got {tensor.name[:40]!r}"
        raise _refuse(f"{message}; see the model's metadata", "inputs[0].name")
    return tensor


def _wanted(head: _Head, predictor: Predictor, *, encoded: bool) -> list[_Wanted]:
    """The outputs of a request; where it names none, all that are small."""
    specs = predictor.manifest.outputs
    raw = [] if encoded and predictor.ONE_BY_ONE else list(specs)
    on_offer = [*raw, *([RESULT] if encoded else [])]
    if not head.outputs:
        small = [name for name in on_offer if name == RESULT or len(specs[name].shape) <= MOST_AXES] or on_offer
        return [_Wanted(name=name, parameters=_all_parameters(head)) for name in small]
    for one in head.outputs:
        if one.name not in on_offer:
            kind = "files" if encoded else "numbers"
            message = f"expected outputs among {', '.join(on_offer)} for {kind}, got {one.name[:40]!r}; correct it"
            raise _refuse(message, "outputs")
        count = one.parameters.get(CLASSIFICATION, 0)
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            message = f"expected a number of classes in 'classification', got {str(count)[:40]}"
            raise _refuse(f"{message}; correct it", "outputs")
        if count and (one.name != LOGITS or len(specs[one.name].shape) != 1):
            message = f"expected 'classification' for {LOGITS} of whole files, got it for {one.name[:40]}"
            raise _refuse(f"{message}; leave it out", "outputs")
    return [one.model_copy(update={"parameters": _all_parameters(head) | one.parameters}) for one in head.outputs]


def _of_the_task(head: _Head) -> dict[str, Any]:
    """Parameters that are for the model's task."""
    return {name: value for name, value in head.parameters.items() if name not in OF_THE_PROTOCOL}


def _all_parameters(head: _Head) -> dict[str, Any]:
    return {"binary_data": bool(head.parameters.get("binary_data_output", False))}


def _binary(tensor: _Tensor, rest: memoryview) -> memoryview | None:
    """The bytes of an input, None where its numbers stand in the JSON."""
    size = tensor.parameters.get("binary_data_size")
    if size is None:
        return None
    if isinstance(size, bool) or not isinstance(size, int) or size != len(rest):
        message = f"expected binary_data_size to be the {len(rest)} bytes after the JSON, got {str(size)[:20]}"
        raise _refuse(f"{message}; correct it", "inputs[0].parameters")
    return rest


def _files(tensor: _Tensor, rest: memoryview, medium: Medium) -> list[Upload]:
    data = _binary(tensor, rest)
    if data is None:
        values = [] if tensor.data is None else _flat(tensor.data)
        check_count(len(values), medium)
        uploads = [decode_reference(value, f"inputs[0].data[{i}]", medium) for i, value in enumerate(values)]
    else:
        uploads = _split(data, medium)
    if len(uploads) != math.prod(tensor.shape) or not uploads:
        message = f"expected as many {medium.name}s as the shape {tensor.shape} says, and at least one, got"
        raise _refuse(f"{message} {len(uploads)}; correct it", "inputs[0].shape")
    return uploads


def _split(data: memoryview, medium: Medium) -> list[Upload]:
    """BYTES: each element after its length, in four bytes."""
    uploads: list[Upload] = []
    at = 0
    while at < len(data):
        check_count(len(uploads) + 1, medium)
        size = int.from_bytes(data[at : at + 4], "little")
        if at + 4 + size > len(data):
            message = f"expected {size} bytes for element {len(uploads)}, got {len(data) - at - 4}; send all of them"
            raise _refuse(message, "inputs[0]")
        uploads.append(Upload(bytes(data[at + 4 : at + 4 + size]), f"inputs[0].data[{len(uploads)}]"))
        at += 4 + size
    return uploads


def _flat(values: list[Any]) -> list[Any]:
    """The elements of a list, which may be in lists of their own."""
    while values and all(isinstance(value, list) for value in values):
        values = [inner for value in values for inner in value]
    return values


def _numbers(tensor: _Tensor, rest: memoryview, predictor: Predictor) -> InputArray:
    """The batch that a request holds, checked as the graph needs it."""
    entry = predictor.manifest.input
    dtype = np.dtype(entry.dtype).newbyteorder("<")
    if not (tensor.shape and tensor.shape[0] >= 1 and entry.takes(tuple(tensor.shape[1:]))):
        message = f"expected the shape {entry.in_words} with B at least 1, got {tensor.shape}"
        raise _refuse(f"{message}; prepare it so", "inputs[0].shape")
    most = predictor.manifest.at((tensor.shape[-2], tensor.shape[-1])).input.max_batch
    if tensor.shape[0] > most:
        message = f"expected at most {most} of them at once, got {tensor.shape[0]}; send several requests"
        raise _refuse(message, "inputs[0].shape")
    data = _binary(tensor, rest)
    if data is None and tensor.data is None:
        raise _refuse("expected numbers in 'data', or as binary data, got neither; send them", "inputs[0].data")
    try:
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused below
            values = np.frombuffer(data, dtype) if data is not None else np.array(tensor.data, dtype=np.float32).ravel()
    except (ValueError, TypeError, OverflowError):
        raise _refuse("expected numbers in 'data', got something else; send a list", "inputs[0].data") from None
    if values.size != math.prod(tensor.shape):
        message = f"expected {math.prod(tensor.shape)} numbers for the shape {tensor.shape}, got {values.size}"
        raise _refuse(f"{message}; correct one of them", "inputs[0].data")
    if not np.isfinite(values).all():
        raise _refuse("expected finite numbers, got NaN or infinity; correct them", "inputs[0].data")
    if entry.dtype == "uint8" and ((values < 0) | (values > 255) | (values % 1 > 0)).any():
        raise _refuse(
            "expected levels, whole numbers from 0 to 255, got others; send pixels as they are", "inputs[0].data"
        )
    return np.require(values.reshape(tensor.shape), entry.dtype, ("C", "A"))


def _keeping(run: Run, kept: dict[str, list[NDArray[Any]]]) -> Run:
    """A run that also keeps these outputs."""

    def keep(batch: InputArray, outputs: Sequence[str]) -> Outputs:
        found = run(batch, list(dict.fromkeys([*outputs, *kept])))
        for name, parts in kept.items():
            parts.append(found[name])
        return {name: found[name] for name in outputs}

    return keep


def _response(
    head: _Head, predictor: Predictor, values: _Values, wanted: Sequence[_Wanted], max_json_bytes: int
) -> Response:
    """The answer as JSON, and after it what is asked for in binary."""
    outputs: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for one in wanted:
        texts, count = values.texts.get(one.name), one.parameters.get(CLASSIFICATION, 0)
        if texts is not None:
            shape, datatype = values.shapes[one.name], "BYTES"
        elif count:
            texts = _best(values.arrays[one.name], predictor.manifest.classes, count)
            shape, datatype = [len(values.arrays[one.name]), len(texts) // len(values.arrays[one.name])], "BYTES"
        else:
            array = values.arrays[one.name]
            shape, datatype = list(array.shape), DATATYPES[str(array.dtype)]
        output: dict[str, Any] = {"name": one.name, "datatype": datatype, "shape": shape}
        if one.parameters.get("binary_data"):
            parts.append(array.tobytes() if texts is None else b"".join(map(_prefixed, texts)))
            output["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            if texts is None and array.nbytes > max_json_bytes:
                message = f"{array.nbytes} bytes of {one.name} are too many for JSON (at most {max_json_bytes})"
                raise ApiError(406, "not_acceptable", f"{message}; ask for it with binary_data", field="outputs")
            output["data"] = array.ravel().tolist() if texts is None else [text.decode() for text in texts]
        outputs.append(output)
    content = {"model_name": predictor.manifest.name, "model_version": VERSION, "outputs": outputs}
    if head.id is not None:
        content["id"] = head.id
    first = to_json(content)
    if not parts:
        return Response(first, media_type=JSON)
    headers = {"Inference-Header-Content-Length": str(len(first))}
    return Response(b"".join([first, *parts]), media_type=OCTETS, headers=headers)


def _prefixed(text: bytes) -> bytes:
    return len(text).to_bytes(4, "little") + text


def _best(logits: NDArray[np.float32], classes: Sequence[str], count: int) -> list[bytes]:
    """The best classes of each row as Triton writes them: `score:index:label`."""
    found = (best for row in logits for best in top_k(row, classes, count))
    return [f"{best.score:f}:{best.index}:{best.label}".encode() for best in found]
