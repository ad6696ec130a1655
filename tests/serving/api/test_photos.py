"""Photos beyond the limits: halved where nothing in the answer is in their pixels, and never because of others."""

import base64
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.testclient import TestClient

from convmae_deploy.tasks.base import Prepared
from convmae_deploy.tasks.classification import Classifier
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


@pytest.mark.parametrize(("photos", "held"), [(1, [True]), (2, [False, False])])
def test_a_copy_to_draw_on_is_held_only_where_a_picture_can_be_asked_for(
    make_client: ClientFactory, monkeypatch: pytest.MonkeyPatch, photos: int, held: list[bool]
) -> None:
    found: list[bool] = []
    interpret = Classifier.interpret

    def note(self: Classifier, prepared: Sequence[Prepared], *others: Any) -> list[Any]:
        found.extend(each.photo is not None for each in prepared)
        return interpret(self, prepared, *others)

    monkeypatch.setattr(Classifier, "interpret", note)
    files = [("file", WITHIN)] * photos
    assert make_client().post("/v1/classify?explain=map", files=files).status_code == 200
    assert found == held
