"""From the body of a request to files and parameters: raw bytes, multipart forms, JSON.

Nothing is ever fetched: a file arrives in the request or not at all.
"""

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from serving.api.media import Medium
from serving.api.parameters import given_twice
from serving.errors import ApiError

MAX_PARTS: Final = 64
MAX_FIELD_BYTES: Final = 64 * 1024
MAX_JSON_ITEMS: Final = 1000  # commas and opening brackets; a request of 32 images needs about 70
URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
DATA_URI: Final = re.compile(r"data:(?P<type>[^;,]*)(?P<options>(?:;[^;,]*)*),", re.IGNORECASE)

MediumOf = Callable[[Mapping[str, Any]], Medium]  # from the parameters in a body to what its files are


@dataclass(frozen=True)
class Upload:
    """One file and the part of the request that it came in, for error messages."""

    data: bytes
    field: str


@dataclass
class Parsed:
    """What a request carries: files, whether they came as a list, and parameters as they were written."""

    medium: Medium
    uploads: list[Upload]
    batched: bool = False
    parameters: dict[str, Any] = field(default_factory=dict)
    in_json: bool = False  # whether the body was JSON


Parse = Callable[[bytes, str, MediumOf], Parsed]
FORM: Final = "application/x-www-form-urlencoded"
FIELD: Final = re.compile(rb"[\w.%+\-]{1,100}=")  # how such a form begins
JSON_START: Final = re.compile(rb"\s*[{\[]\s*[\"{\[]")  # how JSON with files begins
USUAL_LETTERS: Final = bytes.maketrans(b"-_", b"+/")  # of base64, for those that are safe in URLs
BLANKS: Final = b" \t\r\n\v\f"
MAX_NESTING: Final = 3  # objects around a file in base64
OCTETS: Final = ("application/octet-stream", "binary/octet-stream")  # what programs call a file of an unknown type


def parse_files(body: bytes, content_type: str, medium_of: MediumOf, *, flat: bool = False) -> Parsed:
    """Reads a body: bytes of a photo or a video, a multipart form, or JSON with base64 in `inputs`.

    The bytes decide, not the label: an image is an image whatever its Content-Type says.

    Args:
        body: of the request.
        content_type: what the client calls it.
        medium_of: what its files are.
        flat: whether JSON may hold parameters beside `inputs` too.

    Raises:
        ApiError: the body cannot be read, or holds too many files.
    """
    kind, medium = content_type.partition(";")[0].strip().lower(), medium_of({})
    if medium.recognise(body):
        return Parsed(medium, [Upload(body, "body")])
    if kind == "multipart/form-data":
        parsed = _parse_multipart(body, content_type, medium_of)
    elif kind == "application/json" or kind.endswith("+json"):
        parsed = _parse_inputs(load_json(body, medium), medium_of, flat)
    elif (refusal := _refusal_of_text(body, kind, medium)) is not None:
        raise refusal
    else:
        parsed = Parsed(medium, [Upload(body, "body")])
    check_count(len(parsed.uploads), parsed.medium)
    return parsed


parse_flat = partial(parse_files, flat=True)  # as Hugging Face's feature_extraction writes its parameters


def parse_instances(body: bytes, content_type: str, medium_of: MediumOf) -> Parsed:
    """Reads a body of KServe's first protocol and Vertex AI: `{"instances": [...], "parameters": {...}}`.

    An instance is a file in base64, as a string or as the only text in an object, at any name: `{"b64": "..."}`,
    `{"image_bytes": {"b64": "..."}}`.

    Raises:
        ApiError: the body cannot be read, or holds too many files.
    """
    content = load_json(body, medium_of({}))
    _refuse_others(content, ("instances", "parameters"))
    instances = content.get("instances")
    if not isinstance(instances, list):
        message = 'expected a list in \'instances\', each an object such as {"b64": "..."}; send one'
        raise ApiError(400, "missing_field", message, field="instances")
    parameters = _parameters_in(content)
    medium = medium_of(parameters)
    uploads, _ = _decode_references(instances, "instances", medium, _decode_instance)
    return Parsed(medium, uploads, True, parameters)


def parse_embeddings(body: bytes, content_type: str, medium_of: MediumOf) -> Parsed:
    """Reads a body in the shape of OpenAI's embeddings, with photos or videos where that has text.

    Raises:
        ApiError: the body cannot be read, or holds too many files.
    """
    content = load_json(body, medium_of({}))
    medium = medium_of(content)
    if "input" not in content:
        message = f"expected the {medium.name} in 'input', as a data URI; send one"
        raise ApiError(400, "missing_field", message, field="input")
    uploads, _ = _decode_references(content.pop("input"), "input", medium, _decode_part)
    return Parsed(medium, uploads, True, content)


def load_json(body: bytes, medium: Medium) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ApiError: 400, the body is empty, not JSON, or not an object.
    """
    if not body:
        raise ApiError(400, "empty_body", f"expected a JSON object, got an empty body; send {_a(medium)}")
    if sum(map(body.count, (b",", b"{", b"["))) > MAX_JSON_ITEMS:  # before a small body becomes large objects
        what = f"an object with its {medium.name}s"
        message = f"expected a JSON object of at most {MAX_JSON_ITEMS} items, got more; send {what}"
        raise ApiError(400, "invalid_json", message)
    try:
        content = parse_json(body)
    except (ValueError, RecursionError):
        message = "expected a JSON object, for this route or this Content-Type, got other bytes; send JSON"
        raise ApiError(400, "invalid_json", message) from None
    if not isinstance(content, dict):
        raise ApiError(400, "invalid_json", f"expected a JSON object, got a {type(content).__name__}; send an object")
    return content


def parse_json(text: bytes) -> Any:
    """What JSON holds; of a name that is twice in an object Python would drop the first value in silence.

    Raises:
        ApiError: 422, a name is twice in an object.
        ValueError, RecursionError: it is no JSON, or too deep.
    """
    return json.loads(text, object_pairs_hook=_object_of)


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise given_twice(name)
        found[name] = value
    return found


def decode_reference(reference: object, where: str, medium: Medium) -> Upload:
    """A file written as base64 or as a data URI.

    Args:
        reference: what the client wrote.
        where: its place in the request.
        medium: what it should be.

    Raises:
        ApiError: 400, it is a URL, not a string, or not valid base64.
    """
    name = medium.name
    if not isinstance(reference, str):
        message = f"expected a string of base64 or a data URI, got a {type(reference).__name__}; send the {name} itself"
        raise ApiError(400, "invalid_input", message, field=where)
    if URL.match(reference[:256]):
        message = f"URLs are never fetched; send the {name} itself as bytes, base64 or a data URI"
        raise ApiError(400, "url_not_supported", message, field=where)
    encoded = reference
    if reference[:5].lower() == "data:":
        encoded = _data_of_uri(reference, where, medium)
    if not encoded:
        raise ApiError(400, "empty_body", f"expected {_a(medium)}, got an empty string; send base64", field=where)
    return Upload(_decode_base64(encoded, where, medium), where)


def check_count(count: int, medium: Medium) -> None:
    """Refuses a request of too many files with 413."""
    if count > medium.most:
        name = medium.name if medium.most == 1 else f"{medium.name}s"
        message = f"expected at most {medium.most} {name} in one request, got {count}; send several requests"
        raise ApiError(413, f"too_many_{medium.name}s", message)


def _refusal_of_text(body: bytes, kind: str, medium: Medium) -> ApiError | None:
    """What is wrong with JSON under another name, or with a form of text fields; None for any other bytes."""
    if JSON_START.match(body):
        given = f"got {FORM}, which curl -d sends by itself" if kind == FORM else f"got {kind[:40] or 'none'}"
        message = (
            f"expected the Content-Type application/json for JSON, {given}; add the header "
            "'Content-Type: application/json' (curl -H)"
        )
        return ApiError(415, "unsupported_media_type", message)
    if kind == FORM and FIELD.match(body):
        message = (
            f"expected {_a(medium)} file, got a form of text fields; attach the file itself, as curl -F file=@FILE does"
        )
        return ApiError(400, "file_expected", message)
    return None


def _decode_references(
    value: object, where: str, medium: Medium, decode: Callable[[object, str, Medium], Upload]
) -> tuple[list[Upload], bool]:
    """The files of a JSON field that holds one or a list, and whether it was a list."""
    if not isinstance(value, list):
        return [decode(value, where, medium)], False
    if not value:
        message = f"expected at least one {medium.name}, got an empty list; send one"
        raise ApiError(400, "empty_body", message, field=where)
    check_count(len(value), medium)
    return [decode(reference, f"{where}[{index}]", medium) for index, reference in enumerate(value)], True


def _decode_part(part: object, where: str, medium: Medium) -> Upload:
    """A file as a string, or as `{"type": "image_url", "image_url": {"url": "data:..."}}`."""
    if isinstance(part, dict):
        if part.get("type") != "image_url":
            message = "expected an object with 'type': 'image_url'; send one, or a data URI"
            raise ApiError(400, "invalid_input", message, field=where)
        part, where = part.get("image_url"), f"{where}.image_url"
        if isinstance(part, dict):
            part, where = part.get("url"), f"{where}.url"
    return decode_reference(part, where, medium)


def _decode_instance(instance: object, where: str, medium: Medium) -> Upload:
    """A file as a string, or as the one value of an object, which may be such an object again."""
    for _ in range(MAX_NESTING):
        if not isinstance(instance, dict):
            break
        if len(instance) != 1:
            message = f'expected an object with the {medium.name} alone, such as {{"b64": "..."}}; send one'
            raise ApiError(400, "invalid_input", message, field=where)
        (name, instance), *_ = instance.items()
        where = f"{where}.{name}"
    return decode_reference(instance, where, medium)


def _data_of_uri(uri: str, where: str, medium: Medium) -> str:
    match = DATA_URI.match(uri[:256])
    # Without a type, or with one of those, comes what a program does not know; its bytes decide, as everywhere.
    if match is None or (match["type"] and not match["type"].lower().startswith((*medium.types, *OCTETS))):
        start = f"data:{medium.name}/...;base64,"
        message = f"expected a data URI that starts with '{start}'; send one, or the base64 alone"
        raise ApiError(400, "invalid_data_uri", message, field=where)
    if not match["options"].lower().endswith(";base64"):
        raise ApiError(400, "invalid_data_uri", "expected a data URI in base64; add ';base64' and encode", field=where)
    return uri[match.end() :]


def _decode_base64(encoded: str, where: str, medium: Medium) -> bytes:
    """Base64 as programs write it: the usual or the URL-safe letters, padded or not, in lines or in one."""
    try:
        letters = encoded.encode("ascii").translate(USUAL_LETTERS, BLANKS).rstrip(b"=")
        return base64.b64decode(letters + b"=" * (-len(letters) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        message = f"expected base64 of {_a(medium)}, got something else ({error}); encode the whole file"
        raise ApiError(400, "invalid_base64", message, field=where) from None


def _parse_inputs(content: dict[str, Any], medium_of: MediumOf, flat: bool) -> Parsed:
    known = ("inputs", "parameters")
    if not flat:
        _refuse_others(content, known)
    if "inputs" not in content:
        message = f"expected the {medium_of({}).name} in 'inputs'; send base64 there"
        raise ApiError(400, "missing_field", message, field="inputs")
    parameters = _parameters_in(content)
    for name in content.keys() - set(known):
        if name in parameters:
            raise given_twice(name)
        parameters[name] = content[name]
    medium = medium_of(parameters)
    uploads, batched = _decode_references(content["inputs"], "inputs", medium, decode_reference)
    return Parsed(medium, uploads, batched, parameters, in_json=True)


def _refuse_others(content: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuses fields of a JSON object that would be left out in silence."""
    for name in content:
        if name not in known:
            message = f"expected only {' and '.join(map(repr, known))}, got {name!r} as well; remove it"
            raise ApiError(422, "unknown_parameter", message, field=name)


def _parameters_in(content: Mapping[str, Any]) -> dict[str, Any]:
    parameters = content.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise ApiError(422, "invalid_parameter", "expected an object in 'parameters'; send one", field="parameters")
    return parameters


def _parse_multipart(body: bytes, content_type: str, medium_of: MediumOf) -> Parsed:
    files: list[tuple[str, bytes]] = []
    parameters: dict[str, Any] = {}
    parts = [(part.name.removesuffix("[]"), part) for part in _read_parts(body, content_type)]
    models = {name: _form_value(_text(part)) for name, part in parts if name == "model" and not part.is_file}
    medium = medium_of(models)
    for name, part in parts:
        if part.is_file:
            if name not in medium.fields:
                message = f"expected the {medium.name} in the field 'file', got a file in {name!r}; rename the field"
                raise ApiError(400, "unknown_field", message, field=name)
            files.append((name, bytes(part.data)))
        elif name in medium.fields:
            message = f"expected a file in the field {name!r}, got text; attach the {medium.name} file itself"
            raise ApiError(400, "file_expected", message, field=name)
        elif name in parameters:
            raise given_twice(name)
        else:
            parameters[name] = _form_value(_text(part))
    if not files:
        message = f"expected {_a(medium)} file in the field 'file'; attach one"
        raise ApiError(400, "missing_field", message, field="file")
    if len(files) == 1:
        return Parsed(medium, [Upload(files[0][1], files[0][0])], False, parameters)
    uploads = [Upload(data, f"{name}[{index}]") for index, (name, data) in enumerate(files)]
    return Parsed(medium, uploads, True, parameters)


class _Part:
    """One part of a multipart form while it is read."""

    def __init__(self) -> None:
        self.headers: dict[str, bytes] = {}
        self.data = bytearray()
        self.name = ""
        self.is_file = False

    def finish_headers(self) -> None:
        disposition = self.headers.get("content-disposition", b"")
        _, options = parse_options_header(disposition)
        if b"name" not in options:
            message = "expected a name in every part's Content-Disposition; send a form as browsers and curl do"
            raise ApiError(400, "invalid_multipart", message)
        self.name = options[b"name"].decode("utf-8", "replace")
        content_type = self.headers.get("content-type", b"text/plain").lower()
        named = b"filename" in options or b"filename*=" in disposition.lower()  # the second by old clients alone
        self.is_file = named or not content_type.startswith((b"text/plain", b"application/json"))

    def add(self, data: bytes) -> None:
        self.data += data
        if not self.is_file and len(self.data) > MAX_FIELD_BYTES:
            message = f"expected at most {MAX_FIELD_BYTES} bytes in a text field; shorten {self.name!r}"
            raise ApiError(400, "field_too_large", message, field=self.name)


class _PartReader:
    """Collects parts from the parser's callbacks."""

    def __init__(self) -> None:
        self.parts: list[_Part] = []
        self.complete = False
        self._header_name = b""
        self._header_value = b""

    def on_part_begin(self) -> None:
        if len(self.parts) == MAX_PARTS:
            message = f"expected at most {MAX_PARTS} parts in a form, got more; send several requests"
            raise ApiError(400, "too_many_parts", message)
        self.parts.append(_Part())

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def on_header_end(self) -> None:
        self.parts[-1].headers[self._header_name.decode("latin-1").lower()] = self._header_value
        self._header_name = self._header_value = b""

    def on_headers_finished(self) -> None:
        self.parts[-1].finish_headers()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].add(data[start:end])

    def on_end(self) -> None:
        self.complete = True


def _read_parts(body: bytes, content_type: str) -> list[_Part]:
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        message = "expected a boundary in Content-Type multipart/form-data; let the HTTP client set this header"
        raise ApiError(400, "invalid_multipart", message)
    reader = _PartReader()
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": reader.on_part_begin,
                "on_header_field": reader.on_header_field,
                "on_header_value": reader.on_header_value,
                "on_header_end": reader.on_header_end,
                "on_headers_finished": reader.on_headers_finished,
                "on_part_data": reader.on_part_data,
                "on_end": reader.on_end,
            },
        )
        parser.write(_without_preamble(body, boundary))
        parser.finalize()
    except FormParserError as error:
        raise ApiError(400, "invalid_multipart", f"expected a multipart form ({error}); send a whole one") from None
    if not reader.complete:
        raise ApiError(400, "invalid_multipart", "the multipart form ends before its last boundary; send all of it")
    return reader.parts


def _without_preamble(body: bytes, boundary: bytes) -> bytes:
    """A form from its first boundary on; what may stand before that is for people (RFC 2046, 5.1.1)."""
    if body.startswith(b"--" + boundary):
        return body
    start = body.find(b"\r\n--" + boundary)
    return body[start + 2 :] if start >= 0 else body


def _a(medium: Medium) -> str:
    return f"an {medium.name}" if medium.name[0] in "aeiou" else f"a {medium.name}"


def _text(part: _Part) -> str:
    try:
        return part.data.decode()
    except UnicodeDecodeError:
        message = f"expected UTF-8 text in the field {part.name!r}; send text"
        raise ApiError(400, "invalid_multipart", message, field=part.name) from None


def _form_value(text: str) -> Any:
    """The value of a field; BentoML's client writes its text in JSON's quotes, lists too, and null for none."""
    if text == "null" or (text[:1], text[-1:]) in (('"', '"'), ("[", "]")):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            pass
    return text
