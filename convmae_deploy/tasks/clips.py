"""From a video to a model's clips: which frames, which part of them, and one answer from several views. Without torch.

A moment is a share of the video's length in [0, 1). The length is divided into N equal slots, one for each of the
video's N frames, and a clip is made of the frames that are on screen in the middle of chosen slots. So "every fourth
frame" means four frames apart at the video's own average rate: exactly every fourth one where frames are shown evenly,
and the right times where they are not.

Shapes: V views, P of them in time and S in space (V = P * S, the spatial ones next to each other), T frames of a clip,
H W its size, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convmae_deploy.backends.base import InputArray
from convmae_deploy.bundle.preprocessing import ClipPreprocessing
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.media.video_file import VideoFile, open_video
from convmae_deploy.media.video_limits import VideoLimits
from convmae_deploy.tasks.postprocess import ScoreFunction, scores
from convmae_deploy.tasks.preprocess import cropped_views, graph_input


@dataclass(frozen=True, kw_only=True)
class ClipViews:
    """How often a video is looked at: VideoMAE tests with 5 x 3 on Kinetics, 2 x 3 on Something-Something."""

    temporal: int = 1  # clips spread over the video
    spatial: int = 1  # crops along the longer side of the frames

    def __post_init__(self) -> None:
        if min(self.temporal, self.spatial) < 1:
            raise ConvMAEError(f"views must be at least 1 x 1; got {self.temporal} x {self.spatial}")

    @property
    def total(self) -> int:
        """V."""
        return self.temporal * self.spatial


def random_moments(spec: ClipPreprocessing, count: int, numbers: Sequence[float]) -> NDArray[np.float64]:
    """Moments of a clip for training: a random start (dense), or a random frame of each part (segments).

    Args:
        spec: the sampling.
        count: frames of the video.
        numbers: T random ones in [0, 1); dense sampling uses the first.

    Returns:
        (T,).
    """
    if spec.stride is None:
        return _segments(spec.frames, np.asarray(numbers, dtype=np.float64))
    starts = _spare(spec, count) + 1
    return _dense(spec, count, int(numbers[0] * starts))


def view_moments(spec: ClipPreprocessing, count: int, views: int) -> NDArray[np.float64]:
    """Moments of the clips for evaluation, spread evenly.

    Dense clips go from the first possible one to the last, one view is in the middle. Of each part of segment sampling
    view v of P takes the place (v + 0.5) / P, so one view takes the middle (VideoMAE takes 0 and 1/2 for P = 2).

    Args:
        spec: the sampling.
        count: frames of the video.
        views: P.

    Returns:
        (P, T).
    """
    if spec.stride is None:
        return np.stack([_segments(spec.frames, np.full(spec.frames, (view + 0.5) / views)) for view in range(views)])
    spare = _spare(spec, count)
    starts = [spare // 2] if views == 1 else [view * spare // (views - 1) for view in range(views)]
    return np.stack([_dense(spec, count, start) for start in starts])


def read_clips(
    source: Path | bytes,
    spec: ClipPreprocessing,
    *,
    views: ClipViews | None = None,
    limits: VideoLimits | None = None,
) -> InputArray:
    """Opens a video and makes the model's input of it; see `video_clips` and `open_video`.

    Args:
        source: a file, or the content of one.
        spec: the numbers of the model.
        views: None: one.
        limits: what may be decoded; None: the defaults.

    Returns:
        (V, 3, T, H, W).

    Raises:
        VideoError: with the reason in `code`.
        ConvMAEError: the file cannot be read, or PyAV is not installed.
    """
    with open_video(source, limits=limits or VideoLimits()) as video:
        return video_clips(video, spec, views or ClipViews())


def video_clips(video: VideoFile, spec: ClipPreprocessing, views: ClipViews) -> InputArray:
    """The model's input: sampled, resized, cut, see `graph_input`; what training evaluates is what is served.

    A frame is resized as soon as it is decoded, so that large frames are in memory one at a time.

    Args:
        video: open.
        spec: the numbers of the model.
        views: how often to look.

    Returns:
        (V, 3, T, H, W).

    Raises:
        VideoError: it cannot be decoded.
    """
    wanted = video.on_screen(view_moments(spec, len(video), views.temporal))  # (P, T)
    clips = np.empty((views.temporal, views.spatial, 3, spec.frames, *spec.crop), dtype=spec.dtype)
    for number, frame in zip(np.unique(wanted), video.frames(wanted.ravel()), strict=True):
        places = np.nonzero(wanted == number)
        for space, pixels in enumerate(cropped_views(Image.fromarray(frame), spec, views.spatial)):
            clips[places[0], space, :, places[1]] = graph_input(pixels, spec)
    return clips.reshape(views.total, *clips.shape[2:])


def average_views(logits: NDArray[np.float32], function: ScoreFunction = "softmax") -> NDArray[np.float32]:
    """One answer from several views: the mean of their probabilities (softmax), as VideoMAE has it, not of the logits.

    Args:
        logits: (V, K) of one video.
        function: how logits become scores, before they are averaged.

    Returns:
        (K,) scores.
    """
    return np.asarray(scores(logits, function).mean(axis=0, dtype=np.float64), dtype=np.float32)


def merge_views(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Features (...) of a photo or video from those of its views (V, ...): their mean, or those of the only one."""
    if len(features) == 1:
        return np.asarray(features[0])
    return np.asarray(features.mean(axis=0, dtype=np.float64), dtype=np.float32)


def _spare(spec: ClipPreprocessing, count: int) -> int:
    """Slots that a dense clip leaves over; 0 where the video is too short for one."""
    assert spec.stride is not None
    return max(0, count - (spec.frames - 1) * spec.stride - 1)


def _dense(spec: ClipPreprocessing, count: int, start: int) -> NDArray[np.float64]:
    """Beyond the end the last frame is taken again, as VideoMAE does: a loop would show a jump that never happened."""
    assert spec.stride is not None
    slots = np.minimum(start + spec.stride * np.arange(spec.frames), count - 1)
    return np.asarray((slots + 0.5) / count)


def _segments(frames: int, offsets: NDArray[np.float64]) -> NDArray[np.float64]:
    return (np.arange(frames) + offsets[:frames]) / frames
