"""Which frames and which parts of them make a model's input."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from convmae_deploy.bundle.preprocessing import ClipPreprocessing, standard_clips
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.media.video_file import VideoError, VideoLimits, open_video
from convmae_deploy.tasks.clips import (
    ClipViews,
    average_views,
    merge_views,
    random_moments,
    read_clips,
    view_moments,
)
from convmae_deploy.tasks.preprocess import preprocess
from tests.video_files import make_video, number_of
from tests.video_packs import ASL20, needs_asl20

DENSE = standard_clips((32, 32), frames=4, stride=3)  # a clip spans ten frames
SEGMENTS = standard_clips((32, 32), frames=4, stride=None)


def slots(moments: NDArray[np.float64], count: int) -> Any:
    """The frames of an evenly shown video."""
    return np.floor(moments * count).astype(int).tolist()


def test_a_dense_clip_starts_anywhere_it_fits() -> None:
    starts = [slots(random_moments(DENSE, 12, [number] * 4), 12) for number in (0.0, 0.34, 0.99)]
    assert starts == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


def test_a_video_too_short_for_a_dense_clip_repeats_its_last_frame() -> None:
    assert slots(random_moments(DENSE, 5, [0.9] * 4), 5) == [0, 3, 4, 4]
    assert slots(view_moments(DENSE, 5, 2), 5) == [[0, 3, 4, 4]] * 2
    assert slots(random_moments(DENSE, 1, [0.5] * 4), 1) == [0, 0, 0, 0]


def test_dense_views_go_from_the_first_clip_to_the_last_and_one_is_in_the_middle() -> None:
    assert slots(view_moments(DENSE, 30, 3), 30) == [[0, 3, 6, 9], [10, 13, 16, 19], [20, 23, 26, 29]]
    assert slots(view_moments(DENSE, 30, 1), 30) == [[10, 13, 16, 19]]


def test_segments_are_equal_parts_with_a_frame_of_each() -> None:
    assert slots(random_moments(SEGMENTS, 40, [0.0, 0.5, 0.99, 0.25]), 40) == [0, 15, 29, 32]
    assert slots(view_moments(SEGMENTS, 40, 1), 40) == [[5, 15, 25, 35]]
    assert slots(view_moments(SEGMENTS, 40, 2), 40) == [[2, 12, 22, 32], [7, 17, 27, 37]]
    assert slots(view_moments(SEGMENTS, 2, 1), 2) == [[0, 0, 1, 1]]


def test_a_stride_is_one_of_time_where_frames_are_shown_unevenly() -> None:
    # Forty frames in the first second, then one every second: 44 frames in 4.99 s, a slot of 0.113 s.
    shown = [25 * number for number in range(40)] + [1000 * second for second in range(1, 5)]
    spec = standard_clips((32, 32), frames=4, stride=10)
    with open_video(make_video("matroska", frames=44, milliseconds=shown)) as video:
        wanted = video.on_screen(random_moments(spec, len(video), [0.5] * 4))
        times = video.times[wanted]
        asked = random_moments(spec, len(video), [0.5] * 4) * video.seconds
    assert np.diff(asked) == pytest.approx(10 * video.seconds / 44)
    following = np.append(np.array(shown[1:]) / 1000, video.seconds)[wanted]
    assert np.all(times <= asked) and np.all(asked < following)


def test_clips_are_the_frames_asked_for_through_the_photos_preprocessing() -> None:
    data = make_video("webm", frames=30, size=(60, 100))
    spec = ClipPreprocessing(resize=(36, 36), crop=(32, 32), frames=4, stride=3)
    clips = read_clips(data, spec)
    assert clips.shape == (1, 3, 4, 32, 32) and clips.dtype == np.float32
    with open_video(data) as video:
        frames = list(video.frames([10, 13, 16, 19]))
    expected = np.stack([preprocess(Image.fromarray(frame), spec) for frame in frames], axis=1)
    assert np.array_equal(clips[0], expected)


def test_views_are_clips_times_crops_with_the_crops_next_to_each_other() -> None:
    data = make_video("matroska", frames=30, size=(60, 100))
    spec = standard_clips((32, 32), frames=4, stride=3)
    clips = read_clips(data, spec, views=ClipViews(temporal=2, spatial=3))
    assert clips.shape == (6, 3, 4, 32, 32)
    levels = (clips * np.array(spec.std)[:, None, None, None] + np.array(spec.mean)[:, None, None, None]) * 255
    frames = levels.transpose(0, 2, 3, 4, 1)  # (V, T, H, W, 3)
    for view in range(6):
        start = 0 if view < 3 else 20
        # Away from the red corner the level alone says which frame it is.
        assert [number_of(frame, 30) for frame in frames[view]] == [start, start + 3, start + 6, start + 9]
    red = (frames[:, 0, 1, :, 0] - frames[:, 0, 1, :, 1] > 100).sum(axis=1)  # of the left half of 53 columns
    assert red.tolist() == pytest.approx([26, 16, 5] * 2, abs=1)


def test_repeated_frames_of_a_short_video_are_all_filled_in() -> None:
    clips = read_clips(make_video(frames=2), standard_clips((32, 32), frames=8, stride=4))
    assert np.array_equal(clips[0][:, 1:], np.repeat(clips[0][:, 1:2], 7, axis=1))
    assert not np.array_equal(clips[0][:, 0], clips[0][:, 1])


def test_the_answer_is_the_mean_of_the_views_probabilities() -> None:
    logits = np.array([[2.0, 0.0, -1.0], [-3.0, 1.0, 0.5]], dtype=np.float32)
    exact = np.exp(logits.astype(np.float64))
    exact /= exact.sum(axis=1, keepdims=True)
    assert average_views(logits) == pytest.approx(exact.mean(axis=0), abs=1e-7)
    assert float(average_views(logits).sum()) == pytest.approx(1.0, abs=1e-6)


def test_bad_views_and_bad_videos_are_sentences() -> None:
    with pytest.raises(ConvMAEError, match="at least 1 x 1; got 0 x 3"):
        ClipViews(temporal=0, spatial=3)
    with pytest.raises(VideoError, match="at most 10 are accepted"):
        read_clips(make_video(), DENSE, limits=VideoLimits(max_frames=10))


@needs_asl20
def test_real_clips_become_five_by_three_views() -> None:
    spec = standard_clips((64, 64))
    for file in sorted(ASL20.rglob("*.mp4"))[:3]:
        clips = read_clips(file, spec, views=ClipViews(temporal=5, spatial=3))
        assert clips.shape == (15, 3, 16, 64, 64) and np.isfinite(clips).all()
        assert float(np.abs(clips[0] - clips[-1]).mean()) > 0.01


def test_features_of_views_are_their_mean() -> None:
    features = np.arange(12, dtype=np.float32).reshape(3, 4)
    merged = merge_views(features)
    assert merged.dtype == np.float32 and np.array_equal(merged, features.mean(axis=0))
    assert np.array_equal(merge_views(features[:1]), features[0])
