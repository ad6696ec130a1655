"""Which format of features a client gets."""

import json

import numpy as np
import pytest

from serving.api.responses import JSON, NPZ, OCTETS, SAFETENSORS, choose_feature_type, of_dtype, to_json
from serving.errors import ApiError

SMALL, LARGE, LIMIT = 10, 1000, 100


@pytest.mark.parametrize(
    ("accept", "size", "expected"),
    [
        ("", SMALL, SAFETENSORS),
        ("*/*", SMALL, SAFETENSORS),
        (NPZ, LARGE, NPZ),
        ("application/octet-stream", LARGE, OCTETS),
        (JSON, SMALL, JSON),
        (f"{JSON}, */*", SMALL, JSON),
        (f"{JSON}, */*", LARGE, SAFETENSORS),
        (f"{JSON};q=0.5, {NPZ};q=0.9", SMALL, NPZ),
        ("application/*", LARGE, SAFETENSORS),
        (f"{SAFETENSORS};q=0, {NPZ}", SMALL, NPZ),
        ("Application/X-NPZ", SMALL, NPZ),
    ],
)
def test_the_accept_header_chooses(accept: str, size: int, expected: str) -> None:
    assert choose_feature_type(accept, size, LIMIT) == expected


@pytest.mark.parametrize("accept", ["text/html", "image/png", f"{JSON};q=0", ","])
def test_what_is_not_on_offer_is_406(accept: str) -> None:
    with pytest.raises(ApiError) as refused:
        choose_feature_type(accept, LARGE, LIMIT)
    assert refused.value.status == 406


def test_values_beyond_float16_are_refused_rather_than_made_infinite() -> None:
    with pytest.raises(ApiError) as refused:
        of_dtype({"pooled": np.full((1, 2), 1e5, np.float32)}, "f16")
    assert (refused.value.status, refused.value.code) == (422, "out_of_range")


def test_half_of_a_surrogate_pair_is_escaped() -> None:
    assert json.loads(to_json(["\ud800é"])) == ["\ud800é"]


def test_json_has_no_nan() -> None:
    with pytest.raises(ValueError, match="JSON"):
        to_json([float("nan")])
