from pathlib import Path
from typing import Any

import pytest

from convmae_deploy.backends.runtimes import RuntimeOptions
from convmae_deploy.bundle.loading import BundleError
from convmae_deploy.extraction.origin import LevelOrigin, Origin, compare, feature_levels, joint_snr_db, origin_of
from convmae_deploy.tasks import load_bundle
from convmae_deploy.tasks.base import PredictOptions
from tests.bundle_factory import make_bundle, make_detection_bundle, make_feature_bundle, make_video_bundle


def origin(**changes: Any) -> Origin:
    level = LevelOrigin(fingerprint="0" * 16, shape=(8,), snr_db=changes.pop("snr_db", 120.0))
    facts: dict[str, Any] = {
        **{"bundle": "b", "task": "features", "weights": "w", "graph": "model.onnx", "graph_sha256": "g"},
        **{"precision": "fp32", "preprocessing": {"crop": [64, 64]}, "pooling": "as the graph gives it"},
        "levels": {"pooled": level},
    }
    return Origin(**{**facts, **changes})


def other(fingerprint: str = "1" * 16, snr_db: float | None = 55.0, **changes: Any) -> Origin:
    levels = {"pooled": LevelOrigin(fingerprint=fingerprint, shape=(8,), snr_db=snr_db)}
    return origin(**{"precision": "fp16", "graph_sha256": "h", "levels": levels, **changes})


def test_an_origin_says_what_vectors_were_made_by(tmp_path: Path) -> None:
    bundle = load_bundle(make_bundle(tmp_path / "a", provenance={"checkpoint_sha256": "abc"}))
    found = origin_of(bundle, ("pooled", "e3"), dtype="f16")
    assert (found.weights, found.graph, found.precision, found.dtype) == ("abc", "model.onnx", "fp32", "f16")
    assert found.graph_sha256 == bundle.manifest.files["model.onnx"].sha256
    assert {name: level.shape for name, level in found.levels.items()} == {"pooled": (8,), "e3": (8, 4, 4)}
    assert found.fingerprints() == ", ".join(f"{name}={level.fingerprint}" for name, level in found.levels.items())
    assert Origin.model_validate_json(found.model_dump_json()) == found
    assert origin_of(bundle, ("pooled",)).levels["pooled"] == found.levels["pooled"], (
        "whatever the numbers are stored in"
    )


def test_a_fingerprint_changes_with_weights_preprocessing_level_precision_and_pooling(tmp_path: Path) -> None:
    bundle = load_bundle(make_bundle(tmp_path / "a"))
    resized = load_bundle(make_bundle(tmp_path / "b", preprocessing={"resize": [80, 80], "crop": [64, 64]}))
    reweighted = load_bundle(make_bundle(tmp_path / "c", classes=("a", "b")))
    video = load_bundle(make_video_bundle(tmp_path / "d"))
    options = (PredictOptions(), PredictOptions(temporal_views=2), PredictOptions(frame_sampling_rate=3))
    origins = [
        origin_of(bundle, ("pooled", "e3")),
        origin_of(bundle, ("pooled", "e3"), runtime=RuntimeOptions(runtime="openvino", precision="bf16")),
        origin_of(resized, ("pooled", "e3")),
        origin_of(reweighted, ("pooled", "e3")),
        *(origin_of(video, ("pooled",), options=each) for each in options),
    ]
    fingerprints = [level.fingerprint for each in origins for level in each.levels.values()]
    assert len(set(fingerprints)) == len(fingerprints) == 11
    assert (
        fingerprints[0]
        == origin_of(load_bundle(make_bundle(tmp_path / "e", name="other")), ("pooled",)).levels["pooled"].fingerprint
    ), "a name says nothing about vectors"


def test_the_levels_of_a_bundle_are_its_features_alone(tmp_path: Path) -> None:
    for make in (make_bundle, make_feature_bundle):
        assert feature_levels(load_bundle(make(tmp_path / make.__name__))) == ("pooled", "e1", "e2", "e3", "e4")
    with pytest.raises(BundleError, match="boxes is a detection model, which gives no features; give one of: classif"):
        feature_levels(load_bundle(make_detection_bundle(tmp_path / "detector")))


@pytest.mark.parametrize(
    ("first", "second", "together", "words"),
    [
        (origin(), origin(bundle="c", weights="?"), True, "the same fingerprint 0000000000000000"),
        (origin(), other(), True, "fp32 and fp16 of the same weights, proven to lie 55.0 dB apart at least; 30 dB are"),
        (origin(), other(snr_db=34.1, precision="bf16"), True, "34.1 dB"),
        (origin(), other(snr_db=24.0, precision="int8"), False, "24.0 dB apart at least; 30 dB are needed"),
        (origin(), other(snr_db=None), False, "nothing was proven of model.onnx in fp16"),
        (origin(), other(weights="x"), False, "different weights"),
        (origin(), other(preprocessing={}, task="classification"), False, "different task, preprocessing"),
        (origin(), other(pooling="mean of 2 x 3 views"), False, "different pooling"),
    ],
)
def test_vectors_share_an_index_where_they_are_the_same_or_proven_to_be_near(
    first: Origin, second: Origin, together: bool, words: str
) -> None:
    for pair in ((first, second), (second, first)):
        (judgement,) = compare(*pair)
        assert judgement.level == "pooled" and judgement.together == together
    (judgement,) = compare(first, second)
    assert words in judgement.reason
    assert compare(first, second.model_copy(update={"levels": {}})) == []


def test_two_ratios_against_one_reference_bound_the_ratio_between_the_two() -> None:
    import numpy as np

    generator = np.random.default_rng(0)
    reference = generator.standard_normal(1000)
    noise = generator.standard_normal(1000)
    first, second = reference + 0.01 * noise, reference - 0.02 * noise  # the worst case: errors against each other

    def ratio(difference: Any) -> float:
        return float(10 * np.log10((reference**2).sum() / (difference**2).sum()))

    found = joint_snr_db(ratio(first - reference), ratio(second - reference))
    assert found == pytest.approx(ratio(first - second), abs=1e-6)
    assert joint_snr_db(50.0, 500.0) == pytest.approx(50.0, abs=1e-3)
