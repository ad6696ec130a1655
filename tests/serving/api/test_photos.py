"""Photos beyond the limits: halved where nothing in the answer is in their pixels, and never because of others."""

import base64

from starlette.testclient import TestClient

from tests.media.photo_files import encode, photo
from tests.serving.conftest import ClientFactory

LIMIT = 96 * 64
LARGE = encode(photo(192, 128), "JPEG")
WITHIN = encode(photo(96, 64), "JPEG")


def classify(client: TestClient, *photos: bytes) -> tuple[int, str | None]:
    """Status, and what the header says of the photos' scale."""
    inputs = [base64.b64encode(data).decode() for data in photos]
    answer = client.post("/v1/classify", json={"inputs": inputs})
    return answer.status_code, answer.headers.get("x-image-scale")


def test_a_large_jpeg_is_classified_at_half_its_size_and_the_header_says_so(make_client: ClientFactory) -> None:
    client = make_client(max_image_pixels=LIMIT)
    assert classify(client, WITHIN) == (200, None)
    assert classify(client, WITHIN, LARGE) == (200, "1, 0.5")
    assert classify(client, encode(photo(200, 128), "JPEG"))[0] == 413
    assert classify(make_client(max_image_pixels=192 * 128), LARGE) == (200, None)


def test_a_photo_is_not_halved_because_of_those_before_it(make_client: ClientFactory) -> None:
    client = make_client(max_image_pixels=192 * 128, max_request_pixels=192 * 128 + LIMIT)
    assert classify(client, LARGE, WITHIN) == (200, None)
    assert classify(client, LARGE, LARGE) == (413, None)


def test_a_photo_that_takes_more_memory_than_there_is_is_halved(make_client: ClientFactory) -> None:
    large = encode(photo(1600, 1200), "JPEG")
    assert classify(make_client(max_decoding_bytes=10_000_000), large) == (200, "0.5")
    assert classify(make_client(max_decoding_bytes=5_000_000), large)[0] == 413
