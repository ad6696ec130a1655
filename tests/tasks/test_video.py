"""Videos in, classes and features out."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.media.video_file import VideoError, VideoLimits
from convmae_deploy.tasks import load_bundle
from convmae_deploy.tasks.base import PredictOptions
from convmae_deploy.tasks.clips import ClipViews, average_views, read_clips
from convmae_deploy.tasks.postprocess import Prediction, scores
from convmae_deploy.tasks.video import VideoClassifier
from tests.bundle_factory import make_video_bundle, open_as, options_of
from tests.media.photo_files import encode, photo
from tests.tasks.test_base import RecordingBackend
from tests.video_files import make_video

VECTORS = ("pooled", "pooled_frames")
MAPS = ("e1", "e2", "e3", "e4")
VIEWS = ClipViews(temporal=5, spatial=3)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> VideoClassifier:
    return open_as(VideoClassifier, bundle, device="cpu", threads=1)


@pytest.fixture(scope="module")
def video() -> bytes:
    return make_video(frames=12, size=(48, 96))


def clips_of(predictor: VideoClassifier, video: bytes, views: ClipViews | None = None) -> NDArray[np.float32]:
    return predictor.prepare(video, PredictOptions(**options_of(views))).rows


def assert_ranked(found: list[Prediction], values: list[float]) -> None:
    """The predictions are these scores of the tiny model's classes, best first."""
    expected = sorted(zip(values, ("left", "right", "up"), strict=True), reverse=True)
    assert [prediction.label for prediction in found] == [label for _, label in expected]
    assert [prediction.score for prediction in found] == pytest.approx([value for value, _ in expected], rel=1e-5)


def test_clips_are_those_of_the_manifest_s_sampling(predictor: VideoClassifier, video: bytes) -> None:
    clips = clips_of(predictor, video, VIEWS)
    assert clips.shape == (15, 3, 4, 64, 64)
    assert np.array_equal(clips, read_clips(video, predictor.sampling, views=VIEWS))
    assert np.array_equal(clips_of(predictor, video), read_clips(video, predictor.sampling))


def test_a_video_s_classes_are_those_of_its_one_clip(predictor: VideoClassifier, video: bytes, tmp_path: Path) -> None:
    logits = predictor.run(clips_of(predictor, video), ("logits",))["logits"]
    expected = scores(logits, "softmax")[0].tolist()
    found = predictor(video)
    assert_ranked(found, expected)
    assert predictor(video, top_k=1) == found[:1]
    assert_ranked(predictor(video, function_to_apply="none"), logits[0].tolist())
    path = tmp_path / "clip.mp4"
    path.write_bytes(video)
    assert predictor(path) == found


def test_probabilities_of_views_are_averaged_not_their_logits(predictor: VideoClassifier, video: bytes) -> None:
    logits = predictor.run(clips_of(predictor, video, VIEWS), ("logits",))["logits"]
    assert len(logits) == 15 and np.ptp(logits, axis=0).max() > 0.1
    expected = scores(logits, "softmax").mean(axis=0).tolist()
    assert_ranked(predictor(video, **options_of(VIEWS)), expected)
    assert expected != pytest.approx(scores(logits.mean(axis=0, keepdims=True), "softmax")[0].tolist(), rel=1e-5)
    assert np.allclose(average_views(logits, "none"), logits.mean(axis=0), atol=1e-6)


def test_views_run_in_batches_that_the_graph_takes(bundle: Path, video: bytes) -> None:
    backend = RecordingBackend()
    VideoClassifier(load_bundle(bundle), backend)(video, levels=("pooled",), **options_of(VIEWS))
    assert backend.sizes == [4, 4, 4, 3]


def test_features_have_slots_of_two_frames(predictor: VideoClassifier, video: bytes) -> None:
    assert predictor.levels == (*VECTORS, *MAPS)
    features = predictor(video, levels=predictor.levels)
    shapes = {level: values.shape for level, values in features.items()}
    assert shapes == {
        "pooled": (8,),
        "pooled_frames": (2, 8),
        "e1": (4, 2, 16, 16),
        "e2": (6, 2, 8, 8),
        "e3": (8, 2, 4, 4),
        "e4": (8, 2, 2, 2),
    }
    run = predictor.run(clips_of(predictor, video), predictor.levels)
    for level, values in features.items():
        assert np.array_equal(values, run[level][0])


def test_features_of_views_are_their_mean(predictor: VideoClassifier, video: bytes) -> None:
    pooled = predictor.run(clips_of(predictor, video, VIEWS), ("pooled",))["pooled"]
    assert np.ptp(pooled, axis=0).max() > 0.01
    found = predictor(video, levels=("pooled",), **options_of(VIEWS))["pooled"]
    np.testing.assert_allclose(found, pooled.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_features_with_places_are_those_of_one_view(predictor: VideoClassifier, video: bytes) -> None:
    for level in ("pooled_frames", "e3"):
        with pytest.raises(ConvMAEError, match=f"5 x 3 views only pooled can be averaged; got {level}, ask for one"):
            predictor(
                video,
                levels=(
                    "pooled",
                    level,
                ),
                **options_of(VIEWS),
            )
        predictor(
            video,
            levels=(
                "pooled",
                level,
            ),
            **options_of(ClipViews()),
        )
    with pytest.raises(ConvMAEError, match="got logits"):
        predictor(video, levels=("logits",))


def test_what_is_no_video_or_beyond_the_limits_is_refused(predictor: VideoClassifier, video: bytes) -> None:
    with pytest.raises(VideoError) as refused:
        predictor(encode(photo(), "PNG"))
    assert refused.value.code == "still_image"
    with pytest.raises(VideoError) as refused:
        read_clips(video, predictor.sampling, limits=VideoLimits(max_frames=11))
    assert refused.value.code == "video_too_long"
    with pytest.raises(ConvMAEError, match="top_k must be at least 1; got 0"):
        predictor(video, top_k=0)


def test_a_batch_of_images_is_refused(predictor: VideoClassifier) -> None:
    with pytest.raises(ConvMAEError, match=r"must be float32 \(B, 3, 4, 64, 64\).* got float32 \(1, 3, 64, 64\)"):
        predictor.run(np.zeros((1, 3, 64, 64), np.float32), ("logits",))
