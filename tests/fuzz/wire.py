"""Targets: the body of a request, and the EXIF block of a photo."""

import base64
import json

from tests.fuzz.target import Check, require
from tests.media.photo_files import orientation_exif

BOUNDARY = "b0"
WIRE_TOKENS = (
    *(b"multipart/form-data; boundary=b0\n", b"application/json\n", b"image/jpeg\n", b"; charset=", b'; boundary="'),
    *(
        b"--b0\r\n",
        b"\r\n--b0\r\n",
        b"\r\n--b0--\r\n",
        b"Content-Disposition: form-data; ",
        b'name="file"',
        b'; filename="a"',
    ),
    *(
        b"filename*=utf-8''",
        b"Content-Type: image/png\r\n",
        b"Content-Transfer-Encoding: base64\r\n",
        b"\r\n\r\n",
        b"[]",
    ),
    *(
        b'"inputs"',
        b'"parameters"',
        b'"top_k"',
        b"data:image/png;base64,",
        b"http://",
        b"file://",
        b"=",
        b"\xff\xd8\xff",
    ),
)


def request_seeds() -> dict[str, bytes]:
    """The Content-Type in the first line, then the body."""
    photo = b"\xff\xd8\xff\xd9"
    text = base64.b64encode(photo).decode()
    form = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\nContent-Type: image/jpeg'
        f'\r\n\r\nabc\r\n--{BOUNDARY}\r\nContent-Disposition: form-data; name="top_k"\r\n\r\n3\r\n--{BOUNDARY}--\r\n'
    )
    bodies = {
        "photo": ("image/jpeg", photo),
        "form": (f"multipart/form-data; boundary={BOUNDARY}", form.encode()),
        "one": ("application/json", json.dumps({"inputs": text, "parameters": {"top_k": 2}}).encode()),
        "several": ("application/json", json.dumps({"inputs": [f"data:image/jpeg;base64,{text}", text]}).encode()),
    }
    return {name: content_type.encode() + b"\n" + body for name, (content_type, body) in bodies.items()}


def request_check() -> Check:
    """Reading a request for photos, and answering it where it is refused."""
    from serving.api.media import media_of
    from serving.api.uploads import parse_files
    from serving.errors import ApiError, error_response
    from serving.settings import Settings

    most = 4
    photos = media_of(Settings(max_images=most))["photo"]

    def check(data: bytes) -> None:
        head, _, body = data.partition(b"\n")
        try:
            parsed = parse_files(body, head.decode("latin-1"), lambda parameters: photos)
        except ApiError as error:
            require(400 <= error.status < 500, f"a refusal must be a 4xx; it is {error.status}")
            content = json.loads(bytes(error_response(error, "id").body))["error"]
            require(bool(content["code"]) and bool(content["message"]), "a refusal must have a code and a message")
            return
        require(0 < len(parsed.uploads) <= most, f"{len(parsed.uploads)} photos must be within the limit")
        require(all(isinstance(upload.data, bytes) for upload in parsed.uploads), "photos must be bytes")

    return check


def exif_seeds() -> dict[str, bytes]:
    """EXIF blocks in both byte orders."""
    turned = orientation_exif(6)
    return {
        "prefixed": turned,
        "bare": turned[6:],
        "big_endian": b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0",
    }


def exif_check() -> Check:
    """Reading the orientation; this never raises."""
    from convmae_deploy.media.exif import read_orientation

    def check(data: bytes) -> None:
        require(1 <= read_orientation(data) <= 8, "an orientation must be 1 to 8")

    return check
