"""Bad and odd input, sent to a running server: one row a case, numbered as in the specification of the server."""

import base64
import io
import json
import struct
import zipfile
import zlib
from typing import Any, NamedTuple

import pytest
from PIL import Image, PngImagePlugin

from tests.media.photo_files import encode, packed_zeros, photo, png_chunk
from tests.serving import sample_images as samples
from tests.serving.running_server import RunningServer

JPEG = samples.jpeg()
GREY16 = Image.new("I;16", (40, 30), 20_000)
BOUNDARY = "----boundary"
MULTIPART = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
AS_JSON = {"Content-Type": "application/json"}


class Row(NamedTuple):
    """One request and what must come back."""

    number: int
    name: str
    body: bytes
    status: int
    code: str | None = None
    field: str | None = None
    path: str = "/v1/classify"
    headers: dict[str, str] = {}


def form(*parts: tuple[str, bytes], end: bool = True) -> bytes:
    """A multipart form; each part is the rest of its Content-Disposition and its data."""
    pieces = [
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + data + b"\r\n"
        for head, data in parts
    ]
    return b"".join(pieces) + (f"--{BOUNDARY}--\r\n".encode() if end else b"")


def as_json(**content: Any) -> bytes:
    """A JSON object."""
    return json.dumps(content).encode()


def text(data: bytes) -> str:
    """Base64 as text."""
    return base64.b64encode(data).decode()


def grey_filled_from_the_middle() -> bytes:
    middle = len(JPEG) // 2
    return JPEG[:middle] + bytes(64) + JPEG[middle + 64 :]


def png_with_bad_check_sum() -> bytes:
    data = bytearray(encode(photo(), "PNG"))
    data[data.index(b"IDAT") + 10] ^= 0xFF
    return bytes(data)


def png_with_text_bomb() -> bytes:
    bomb = png_chunk(b"zTXt", b"a\0\0" + packed_zeros(80_000_000))
    return samples.png(8, 8, zlib.compress(bytes(8 * 25)), bomb)


def jpeg_with_broken_exif() -> bytes:
    exif = b"Exif\0\0II*\0\xff\xff\xff\x7f" + bytes(20)
    return JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + JPEG[2:]


def with_size(data: bytes, width: int, height: int) -> bytes:
    """A JPEG whose header claims another size."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def jpeg_and_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "hello")
    return JPEG + buffer.getvalue()


def mode(name: str, kind: str = "PNG") -> bytes:
    return encode(photo().convert(name), kind)


def transparent_palette() -> bytes:
    return encode(photo().convert("P"), "PNG", transparency=0)


def commented_png() -> bytes:
    information = PngImagePlugin.PngInfo()
    information.add_text("Comment", "hello")
    return encode(photo(), "PNG", pnginfo=information)


FOREIGN = {
    "svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"></svg>',
    "pdf": b"%PDF-1.7\n1 0 obj\n",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n",
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "psd": b"8BPS\0\x01" + bytes(20),
    "ico": b"\0\0\1\0\1\0\x10\x10" + bytes(20),
    "dds": b"DDS |\0\0\0" + bytes(120),
    "fits": b"SIMPLE  =                    T" + bytes(50),
    "jp2": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(20),
}
PICKLES = ("application/x-pickle", "application/vnd.bentoml+pickle", "application/python-pickle")

ROWS = [
    Row(1, "empty body", b"", 400, "empty_body"),
    Row(1, "empty file in a form", form(('name="file"; filename="a.jpg"', b"")), 400, "empty_body", "file"),
    Row(2, "text", b"hello, this is no image", 400, "not_an_image"),
    Row(2, "random bytes", bytes((7 * i * i + 3) % 251 for i in range(5000)), 400, "not_an_image"),
    Row(2, "zero bytes", bytes(5000), 400, "not_an_image"),
    Row(3, "JPEG magic, then garbage", b"\xff\xd8\xff\xe0" + b"garbage" * 100, 400, "image_corrupt"),
    Row(3, "PNG magic, then garbage", b"\x89PNG\r\n\x1a\n" + b"garbage" * 100, 400, "image_corrupt"),
    # Garbage where the palette belongs announces one that is longer than the file.
    Row(3, "GIF magic, then garbage", b"GIF89a\x20\0\x20\0" + b"\xff" * 100, 400, "image_truncated"),
    Row(3, "WebP magic, then garbage", b"RIFF\x40\0\0\0WEBPVP8 " + b"garbage" * 10, 400, "image_corrupt"),
    Row(4, "JPEG cut in the middle", JPEG[: len(JPEG) // 2], 400, "image_truncated"),
    Row(4, "JPEG without its last two bytes", JPEG[:-2], 400, "image_truncated"),
    Row(4, "header of a JPEG only", JPEG[: JPEG.index(b"\xff\xda")], 400, "image_truncated"),
    Row(6, "PNG with a bad check sum", png_with_bad_check_sum(), 400),
    Row(6, "PNG cut in its data", encode(photo(), "PNG")[:-60], 400, "image_truncated"),
    Row(6, "PNG of no width", samples.png(0, 5), 400),
    Row(7, "PNG with a text bomb", png_with_text_bomb(), 200),  # what is no picture is skipped unread
    Row(7, "PNG with a harmless comment", commented_png(), 200),
    Row(7, "JPEG with broken EXIF", jpeg_with_broken_exif(), 200),
    Row(8, "PNG of 100 megapixels", samples.blank_png(10_000), 413, "image_too_large"),
    Row(9, "header that claims 60000 x 60000", with_size(JPEG, 60_000, 60_000), 413, "image_too_large"),
    Row(10, "header that claims 9000 x 9000", samples.png(9000, 9000, b"tiny"), 413, "image_too_large"),
    Row(11, "60000 x 1", samples.png(60_000, 1), 413, "image_too_large"),
    Row(11, "1 x 20000", samples.png(1, 20_000), 413, "image_too_large"),
    Row(11, "2 x 16000", samples.png(2, 16_000), 422, "aspect_ratio"),
    Row(12, "1 x 1", samples.jpeg(1, 1), 200),
    Row(16, "image/jpg", JPEG, 200, headers={"Content-Type": "image/jpg"}),
    Row(16, "a PNG's label on a JPEG", JPEG, 200, headers={"Content-Type": "image/png"}),
    Row(16, "JSON's label on a JPEG", JPEG, 200, headers=AS_JSON),
    Row(16, "a form's label on a JPEG", JPEG, 200, headers={"Content-Type": "multipart/form-data; boundary=x"}),
    Row(16, "no label that means anything", JPEG, 200, headers={"Content-Type": ""}),
    *(Row(17, kind, data, 415, "unsupported_format") for kind, data in FOREIGN.items()),
    Row(18, "gzip", JPEG, 415, "unsupported_content_encoding", headers={"Content-Encoding": "gzip"}),
    *(
        Row(
            19,
            f"animated {kind}, strict",
            samples.animated(kind),
            422,
            "several_frames",
            "body",
            "/v1/classify?strict=1",
        )
        for kind in ("GIF", "WEBP", "PNG", "TIFF")
    ),
    Row(19, "one frame, strict", JPEG, 200, path="/v1/classify?strict=1"),
    Row(20, "CMYK JPEG", mode("CMYK", "JPEG"), 200),
    *(Row(21, f"mode {name}", mode(name), 200) for name in ("L", "1", "P", "LA", "RGBA")),
    Row(21, "palette with transparency", transparent_palette(), 200),
    Row(22, "16-bit grey PNG", encode(GREY16, "PNG"), 200),
    Row(22, "16-bit grey TIFF", encode(GREY16, "TIFF"), 200),
    Row(22, "floating-point TIFF", encode(Image.new("F", (40, 30), 0.5), "TIFF"), 415, "unsupported_format"),
    *(Row(23, f"orientation {value}", samples.jpeg_with_orientation(value), 200) for value in (*range(1, 9), 99)),
    Row(24, "JPEG and ZIP at once", jpeg_and_zip(), 200),
    Row(24, "GIF and HTML at once", mode("P", "GIF") + b"<script>alert(1)</script>", 200),
    Row(25, "form without an end", form(('name="file"; filename="a"', JPEG), end=False), 400, "invalid_multipart"),
    Row(25, "form of garbage", b"garbage" * 50, 400, "invalid_multipart"),
    Row(25, "no boundary", form(), 400, "invalid_multipart", headers={"Content-Type": "multipart/form-data"}),
    Row(25, "5000 parts", form(*[('name="a"', b"1")] * 5000), 400, "too_many_parts"),
    Row(25, "text field of 100 KB", form(('name="top_k"', b"1" * 100_000)), 400, "field_too_large", "top_k"),
    Row(26, "form without a file", form(('name="top_k"', b"1")), 400, "missing_field", "file"),
    Row(26, "text where the file belongs", form(('name="file"', b"a.jpg")), 400, "file_expected", "file"),
    Row(26, "file in another field", form(('name="top_k"; filename="a"', JPEG)), 400, "unknown_field", "top_k"),
    Row(26, "JSON without inputs", as_json(parameters={}), 400, "missing_field", "inputs", headers=AS_JSON),
    Row(28, "33 images", as_json(inputs=[text(JPEG)] * 33), 413, "too_many_images", headers=AS_JSON),
    Row(28, "33 files", form(*[('name="file"; filename="a"', JPEG)] * 33), 413, "too_many_images"),
    Row(
        28,
        "105 megapixels in three images",
        as_json(inputs=[text(samples.png(5900, 5900, packed_zeros(5900 * (1 + 3 * 5900))))] * 3),
        413,
        "image_too_large",
        "inputs[2]",
        headers=AS_JSON,
    ),
    Row(29, "bad image in a batch", as_json(inputs=[text(JPEG), text(b"no")]), 400, "not_an_image", "inputs[1]"),
    Row(30, "invalid base64", as_json(inputs="!!! not base64 !!!"), 400, "invalid_base64", "inputs"),
    Row(30, "base64 cut short", as_json(inputs=text(JPEG)[:-3]), 400, "invalid_base64", "inputs"),
    Row(30, "data URI of text", as_json(inputs="data:text/plain;base64,aGk="), 400, "invalid_data_uri", "inputs"),
    Row(30, "data URI without base64", as_json(inputs="data:image/png,abc"), 400, "invalid_data_uri", "inputs"),
    Row(30, "number for an image", as_json(inputs=[7]), 400, "invalid_input", "inputs[0]"),
    Row(30, "no images", as_json(inputs=[]), 400, "empty_body", "inputs"),
    Row(30, "broken JSON", b'{"inputs": ', 400, "invalid_json"),
    Row(30, "JSON nested too deeply", b'{"inputs":' + b"[" * 200_000, 400, "invalid_json"),
    Row(30, "JSON of very many values", as_json(inputs=text(JPEG), parameters={"a": [{}] * 600}), 400, "invalid_json"),
    Row(31, "URL", as_json(inputs="http://169.254.169.254/latest"), 400, "url_not_supported", "inputs"),
    Row(31, "file URL", as_json(inputs=["file:///etc/passwd"]), 400, "url_not_supported", "inputs[0]"),
    *(
        Row(32, f"top_k={value}", JPEG, 422, "invalid_parameter", "top_k", f"/v1/classify?top_k={value}")
        for value in ("0", "-1", "1000000000", "abc", "", "1.5")
    ),
    Row(32, "unknown parameter", JPEG, 422, "unknown_parameter", "topk", "/v1/classify?topk=1"),
    Row(32, "parameter given twice", JPEG, 422, "invalid_parameter", "top_k", "/v1/classify?top_k=1&top_k=2"),
    Row(
        32, "unknown function", JPEG, 422, "invalid_parameter", "function_to_apply", "/v1/classify?function_to_apply=x"
    ),
    Row(32, "half a letter for a key", b'{"inputs":"aGk=","\\ud800":1}', 422, "unknown_parameter", headers=AS_JSON),
    Row(32, "key of 100 KB", as_json(inputs="aGk=", **{"a" * 100_000: 1}), 422, "unknown_parameter", "a" * 80),
    Row(32, "unknown key in JSON", as_json(inputs=text(JPEG), a=1), 422, "unknown_parameter", "a", headers=AS_JSON),
    Row(
        32, "true for top_k", as_json(inputs=text(JPEG), parameters={"top_k": True}), 422, "invalid_parameter", "top_k"
    ),
    Row(33, "unknown model", JPEG, 404, "unknown_model", "model", "/v1/classify?model=nobody"),
    Row(33, "unknown level", JPEG, 422, "unknown_level", "levels", "/v1/features?levels=e1,e9"),
    Row(33, "logits are no level", JPEG, 422, "unknown_level", "levels", "/v1/features?levels=logits"),
    Row(33, "task without a bundle", JPEG, 404, "no_model_for_task", None, "/v1/detect"),
    *(Row(38, kind, b"\x80\x04.", 415, "unsupported_media_type", headers={"Content-Type": kind}) for kind in PICKLES),
]


def headers_of(row: Row) -> dict[str, str]:
    if row.headers:
        return row.headers
    if row.body.startswith(b"--" + BOUNDARY.encode()) or "form of garbage" in row.name:
        return MULTIPART
    return AS_JSON if row.body.startswith(b"{") else {"Content-Type": "application/octet-stream"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.number}: {row.name}")
def test_the_server_answers_as_the_table_says(server: RunningServer, row: Row) -> None:
    answer = server.request(row.path, row.body, headers_of(row))

    assert answer.status == row.status, answer.body[:500]
    assert answer.headers["x-content-type-options"] == "nosniff"
    if row.status == 200:
        assert [set(entry) for entry in answer.json()] == [{"label", "score"}] * 3
        return
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "field", "request_id"}
    assert error["request_id"] == answer.headers["x-request-id"]
    assert len(error["message"]) > 20
    assert "\n" not in error["message"]
    if row.code is not None:
        assert error["code"] == row.code
    if row.field is not None:
        assert error["field"] == row.field


def test_flipped_bytes_give_400_or_200_and_never_500(server: RunningServer) -> None:
    for position in range(400, len(JPEG) - 2, max(1, len(JPEG) // 12)):  # row 5
        broken = bytearray(JPEG)
        broken[position] ^= 0x55
        assert server.request("/v1/classify", bytes(broken)).status in (200, 400)


def test_a_huge_picture_is_refused_from_its_header(server: RunningServer) -> None:
    bomb = samples.png(10_000, 10_000, b"never looked at")  # rows 8 and 9; else it would be 400: this is no data
    assert server.request("/v1/classify", bomb).status == 413


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_taken_and_their_number_reported(server: RunningServer, kind: str) -> None:
    answer = server.request("/v1/classify", samples.animated(kind))  # row 19
    first = server.request("/v1/classify", encode(photo(seed=0), "PNG"))
    assert answer.headers["x-image-frames"] == "3"
    if kind in ("PNG", "TIFF"):
        assert answer.json() == first.json()


def test_the_orientation_is_applied_and_reported_unless_it_is_to_be_ignored(server: RunningServer) -> None:
    turned = samples.jpeg_with_orientation(6)  # row 23
    applied = server.request("/v1/classify", turned)
    ignored = server.request("/v1/classify?orientation=ignore", turned)
    assert applied.headers["x-image-orientation"] == "6"
    assert "x-image-orientation" not in ignored.headers
    assert ignored.json() == server.request("/v1/classify", JPEG).json()
    assert applied.json() != ignored.json()


def test_several_files_are_a_batch_and_none_is_dropped(server: RunningServer) -> None:
    others = [samples.jpeg(seed=seed) for seed in range(3)]  # row 27
    body = form(*(('name="file"; filename="a.jpg"', data) for data in others))
    answer = server.request("/v1/classify", body, MULTIPART)
    assert answer.json() == [server.request("/v1/classify", data).json() for data in others]


def test_ten_thousand_paths_do_not_make_the_metrics_grow(server: RunningServer) -> None:
    server.request("/nothing/at/all")
    server.request("/v1/models/none")
    server.request("/metrics")
    before = len(server.request("/metrics").body.splitlines())  # row 41; 200 paths show it as well as 10,000
    for index in range(100):
        assert server.request(f"/nothing/{index}").status == 404
        assert server.request(f"/v1/models/none-{index}").status == 404
    assert len(server.request("/metrics").body.splitlines()) == before


def test_foreign_formats_are_told_what_is_accepted(server: RunningServer) -> None:
    message = server.request("/v1/classify", FOREIGN["pdf"]).json()["error"]["message"]  # row 17
    assert all(kind in message for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"))
