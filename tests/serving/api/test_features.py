"""Models without a head behind the routes for features: of photos and of videos."""

import base64
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load
from starlette.testclient import TestClient

from convmae_deploy.extraction.origin import origin_of
from convmae_deploy.media.images import decode_image
from convmae_deploy.tasks.base import Predictor
from convmae_deploy.tasks.components import principal_components
from tests.bundle_factory import (
    features_of,
    make_bundle,
    make_feature_bundle,
    make_video_bundle,
    make_video_feature_bundle,
)
from tests.media.photo_files import encode, photo
from tests.serving.conftest import ClientFactory, open_on_cpu
from tests.serving.sample_images import jpeg
from tests.video_files import make_gif, make_video

SAFETENSORS = {"Accept": "application/x-safetensors"}
CLIP = make_video()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Predictor]:
    """A model without a head, then a classifier."""
    return open_on_cpu(make_feature_bundle(tmp_path / "maps", name="maps"), make_bundle(tmp_path / "tiny"))


def test_features_come_from_the_first_model_that_gives_some(client: TestClient, models: dict[str, Predictor]) -> None:
    image = photo(seed=1)
    for query, model in (("", "maps"), ("&model=maps", "maps"), ("&model=tiny", "tiny")):
        answer = client.post(f"/v1/features?levels=pooled,e4{query}", content=encode(image, "PNG"), headers=SAFETENSORS)
        assert answer.status_code == 200 and answer.headers["X-Model"] == model
        found, expected = load(answer.content), features_of(models[model], [image], ["pooled", "e4"])
        assert all(np.array_equal(found[level], expected[level]) for level in ("pooled", "e4"))


def test_embeddings_come_from_it_too(client: TestClient, models: dict[str, Predictor]) -> None:
    image = photo(seed=2)
    body = {"model": "maps", "input": base64.b64encode(encode(image, "PNG")).decode()}
    vector = client.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    assert np.allclose(vector, models["maps"].predict(image)["pooled"])


def test_vectors_say_where_they_are_from(client: TestClient, models: dict[str, Predictor]) -> None:
    data = encode(photo(seed=2), "PNG")
    expected = {name: origin_of(model.bundle, ("pooled", "e4")).levels for name, model in models.items()}

    def fingerprints(query: str) -> dict[str, str]:
        header = client.post(f"/v1/features?{query}", content=data, headers=SAFETENSORS).headers["Feature-Fingerprint"]
        return dict(entry.split("=") for entry in header.split(", "))

    for name in ("maps", "tiny"):
        found = fingerprints(f"levels=pooled,e4&model={name}")
        assert found == {level: expected[name][level].fingerprint for level in ("pooled", "e4")}
    assert set(fingerprints("levels=pooled,e4&components=3")) == {"pooled"}, "components of one photo compare with none"
    assert fingerprints("orientation=ignore")["pooled"] != expected["maps"]["pooled"].fingerprint
    answer = client.post("/v1/embeddings", json={"model": "maps", "input": base64.b64encode(data).decode()}).json()
    assert answer["fingerprint"] == expected["maps"]["pooled"].fingerprint


def test_a_model_without_a_head_has_no_classes(client: TestClient) -> None:
    answer = client.post("/v1/classify?model=maps", content=encode(photo(seed=3), "PNG"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_model_for_task")
    described = client.get("/v1/models/maps").json()
    assert described["task"] == "features" and described["labels"] == []


def test_principal_components_take_the_place_of_channels_and_say_what_they_explain(
    client: TestClient, models: dict[str, Predictor]
) -> None:
    data = jpeg()
    expected = models["maps"].predict(decode_image(data).image)
    query = "/v1/features?levels=e1,e4,pooled&components=3"
    found = load(client.post(query, content=data, headers=SAFETENSORS).content)
    assert {name: values.shape for name, values in found.items()} == {
        "e1": (1, 3, 16, 16),
        "e1.shares": (1, 3),
        "e4": (1, 3, 2, 2),
        "e4.shares": (1, 3),
        "pooled": (1, 8),
    }
    for level in ("e1", "e4"):
        scores, shares = principal_components(expected[level], 3)
        np.testing.assert_array_equal(found[level][0], scores)
        np.testing.assert_array_equal(found[f"{level}.shares"][0], shares)
    for wrong in ("0", "17", "three"):
        answer = client.post(f"/v1/features?components={wrong}", content=data)
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, "components")


@pytest.fixture
def video_models(tmp_path: Path) -> dict[str, Predictor]:
    """A model of videos without a head, and a classifier of videos."""
    return open_on_cpu(
        make_video_feature_bundle(tmp_path / "clips", name="clips"), make_video_bundle(tmp_path / "motion")
    )


def test_features_of_a_clip_are_those_of_the_predictor(
    make_client: ClientFactory, video_models: dict[str, Predictor]
) -> None:
    client = make_client(video_models)
    for query, name in (("", "clips"), ("&model=motion", "motion")):
        answer = client.post(f"/v1/features?levels=pooled,pooled_frames,e1{query}", content=CLIP, headers=SAFETENSORS)
        assert (answer.headers["x-model"], answer.headers["x-video-frames"]) == (name, "20")
        found, expected = load(answer.content), video_models["clips"].predict(CLIP)
        assert found["e1"].shape == (1, 4, 2, 16, 16)
        assert all(np.array_equal(values[0], expected[level]) for level, values in found.items())
    query = "/v1/features?temporal_views=3&spatial_views=2"
    found = load(client.post(query, content=CLIP, headers=SAFETENSORS).content)
    expected = video_models["clips"](CLIP, temporal_views=3, spatial_views=2)
    np.testing.assert_allclose(found["pooled"][0], expected["pooled"], rtol=1e-5)
    assert "convmae_videos_total 3.0\n" in client.get("/metrics").text


def test_embeddings_of_a_clip_come_in_the_same_shape(
    make_client: ClientFactory, video_models: dict[str, Predictor]
) -> None:
    body = {"model": "clips", "input": f"data:video/mp4;base64,{text(CLIP)}"}
    answer = make_client(video_models).post("/v1/embeddings", json=body).json()
    assert np.allclose(answer["data"][0]["embedding"], video_models["clips"].predict(CLIP)["pooled"])


@pytest.mark.slow
def test_the_model_says_whether_a_photo_or_a_clip_is_expected_wherever_it_is_named(
    make_client: ClientFactory, models: dict[str, Predictor], video_models: dict[str, Predictor]
) -> None:
    client = make_client(video_models | models)
    path, image = "/v1/features", jpeg()
    assert client.post(path, content=image).headers["x-model"] == "maps", "photos are the default"
    named = {"model": "clips"}
    answers = [
        client.post(f"{path}?model=clips", content=CLIP),
        client.post(f"{path}?model=clips", content=make_gif()),
        client.post(path, data=named, files={"video": CLIP}),
        client.post(path, json={"inputs": text(CLIP), "parameters": named}),
        client.post("/v1/embeddings", json=named | {"input": text(CLIP)}),
    ]
    assert [(answer.status_code, answer.headers.get("x-model")) for answer in answers] == [(200, "clips")] * 5
    refused = [
        (client.post(f"{path}?model=clips", content=image), 415, "still_image"),
        (client.post(path, content=CLIP), 415, "unsupported_format"),
        (client.post(f"{path}?model=clips&strict=1", content=CLIP), 422, "unknown_parameter"),
        (client.post(f"{path}?temporal_views=2", content=image), 422, "unknown_parameter"),
        (client.post(f"{path}?model=clips&levels=e1&temporal_views=2", content=CLIP), 422, "invalid_parameter"),
        (client.post(f"{path}?model=clips&temporal_views=90", content=CLIP), 422, "too_many_views"),
        (client.post(f"{path}?model=clips&num_frames=5", content=CLIP), 422, "invalid_parameter"),
        (client.post(f"{path}?model=clips&levels=e9", content=CLIP), 422, "unknown_level"),
        (client.post(path, json={"inputs": [text(CLIP)] * 2, "parameters": named}), 413, "too_many_videos"),
        (client.post(path, json={"inputs": text(image), "parameters": {"model": 7}}), 422, "invalid_parameter"),
    ]
    for answer, status, code in refused:
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_bodies_of_clips_have_the_limits_of_videos(
    make_client: ClientFactory, models: dict[str, Predictor], video_models: dict[str, Predictor]
) -> None:
    client = make_client(models | video_models, max_body_bytes=1000)
    assert client.post("/v1/features?model=clips", content=CLIP).status_code == 200
    assert client.post("/v1/features", content=jpeg(400, 400)).json()["error"]["code"] == "body_too_large"


def test_arrays_alone_are_of_the_type_that_was_asked_for(client: TestClient) -> None:
    full, half = (client.post(f"/v1/features?dtype={dtype}", json={"inputs": text(jpeg())}) for dtype in ("f32", "f16"))
    assert half.json() == np.float16(full.json()).tolist() != full.json()


def test_an_answer_in_an_envelope_has_no_other_format(client: TestClient) -> None:
    body = {"instances": [text(jpeg())], "parameters": {"format": "npz"}}
    answer = client.post("/v1/models/maps:predict", json=body)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "format")


def test_a_photo_is_cropped_to_the_shape_that_is_asked_for(tmp_path: Path, make_client: ClientFactory) -> None:
    models = open_on_cpu(make_feature_bundle(tmp_path / "wide", name="wide", largest=128))
    client, image = make_client(models), photo(width=200, height=100)
    answer = client.post("/v1/features?levels=pooled,e2&size=64x128", content=encode(image, "PNG"), headers=SAFETENSORS)
    expected = features_of(models["wide"].at((64, 128)), [image], ["pooled", "e2"])
    found = load(answer.content)
    assert found["e2"].shape == (1, 6, 8, 16) and all(np.array_equal(found[name], expected[name]) for name in expected)
    origin = origin_of(models["wide"].bundle.at((64, 128)), ("pooled", "e2"))
    assert answer.headers["Feature-Fingerprint"] == origin.fingerprints()
    refused = client.post("/v1/features?size=64x160", content=encode(image, "PNG"))
    assert refused.status_code == 422 and "multiples of 32 from 32 to 128; got 64 x 160" in refused.text
    assert client.post("/v1/features?size=big", content=encode(image, "PNG")).status_code == 422
    metadata = client.get("/v2/models/wide").json()
    assert metadata["inputs"][0]["shape"] == [-1, 3, -1, -1] and metadata["outputs"][0]["shape"] == [-1, 8]
    rows = np.random.default_rng(0).standard_normal((2, 3, 96, 32), dtype=np.float32)
    tensor = {"name": "image", "datatype": "FP32", "shape": rows.shape, "data": rows.ravel().tolist()}
    answer = client.post("/v2/models/wide/infer", json={"inputs": [tensor], "outputs": [{"name": "e1"}]}).json()
    assert answer["outputs"][0]["shape"] == [2, 4, 24, 8]
