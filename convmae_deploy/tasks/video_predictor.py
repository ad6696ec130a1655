"""Videos in, classes and features out. Without torch; PyAV decodes.

Shapes: V views of one video, T frames of a clip, H W its size, D width of the features, K classes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convmae_deploy.bundle.manifest import ClipPreprocessing
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.media.video_limits import VideoLimits
from convmae_deploy.tasks.base_predictor import LOGITS, Predictor
from convmae_deploy.tasks.clips import ClipViews, average_views, merge_views, read_clips
from convmae_deploy.tasks.postprocess import Prediction, ScoreFunction, top_k

POOLED = "pooled"  # the one level that says something of several views together


class VideoClassifier(Predictor):
    """Names of what a video shows, and features of it in space and time.

    `pooled` is one vector a clip. `pooled_frames` is one for each slot of two frames, normalised in the same way, so
    that both are what the head was trained on; as each is normalised for itself, their mean is not `pooled`.
    """

    TASK = "video-classification"

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the features: every output but the logits."""
        return tuple(name for name in self.manifest.outputs if name != LOGITS)

    @property
    def sampling(self) -> ClipPreprocessing:
        """Which frames make a clip, and what becomes of them."""
        assert isinstance(self.manifest.preprocessing, ClipPreprocessing)  # the manifest of a video model says so
        return self.manifest.preprocessing

    def check_levels(self, levels: Sequence[str], views: ClipViews | None = None) -> None:
        """Refuses levels that this model does not have, or that several views do not have together.

        Raises:
            ConvMAEError: a level is none of `levels`, none is given, or one has places that differ from view to view.
        """
        self._check_names(levels, self.levels)
        if views is not None and views.total > 1 and set(levels) != {POOLED}:
            found = ", ".join(level for level in levels if level != POOLED)
            raise ConvMAEError(
                f"of {views.temporal} x {views.spatial} views only {POOLED} can be averaged; got {found}, ask for one "
                "view"
            )

    def clips(
        self, source: Path | bytes, *, views: ClipViews | None = None, limits: VideoLimits | None = None
    ) -> NDArray[np.float32]:
        """A video as the graph takes it, (V, 3, T, H, W).

        Args:
            source: a file, or the content of one.
            views: how often to look; None: once.
            limits: what may be decoded; None: the defaults.

        Raises:
            VideoError: it is no video that can be decoded; the reason is its `code`.
            ConvMAEError: the file cannot be read, or PyAV is not installed.
        """
        return read_clips(source, self.sampling, views=views, limits=limits)

    def classify(
        self,
        source: Path | bytes,
        *,
        views: ClipViews | None = None,
        top_k: int = 5,
        function: ScoreFunction = "softmax",
        limits: VideoLimits | None = None,
    ) -> list[Prediction]:
        """The best classes of a video, best first.

        Args:
            source: a file, or the content of one.
            views: how often to look; None: once.
            top_k: how many classes, at least 1; all when larger than their number.
            function: how logits become scores, which are averaged over the views.
            limits: what may be decoded; None: the defaults.

        Raises:
            VideoError: it is no video that can be decoded; the reason is its `code`.
            ConvMAEError: `top_k` is less than 1, the file cannot be read, or PyAV is not installed.
        """
        if top_k < 1:
            raise ConvMAEError(f"top_k must be at least 1; got {top_k}")
        clips = self.clips(source, views=views, limits=limits)
        return self.rank(self.run(clips, (LOGITS,))[LOGITS], top_k=top_k, function=function)

    def rank(
        self, logits: NDArray[np.float32], *, top_k: int = 5, function: ScoreFunction = "softmax"
    ) -> list[Prediction]:
        """The best classes of one video, best first, from the logits (V, K) of its views."""
        return _best(average_views(logits, function), self.manifest.classes, top_k)

    def features(
        self,
        source: Path | bytes,
        levels: Sequence[str],
        *,
        views: ClipViews | None = None,
        limits: VideoLimits | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """Features of a video.

        Args:
            source: a file, or the content of one.
            levels: names from `levels`: maps (C, T / 2, H / stride, W / stride), `pooled_frames` (T / 2, D) or `pooled`
                (D,), which alone is averaged over several views.
            views: how often to look; None: once.
            limits: what may be decoded; None: the defaults.

        Returns:
            Level -> values, without a batch axis.

        Raises:
            VideoError: it is no video that can be decoded; the reason is its `code`.
            ConvMAEError: as `check_levels`, the file cannot be read, or PyAV is not installed.
        """
        self.check_levels(levels, views)
        clips = self.clips(source, views=views, limits=limits)
        return {level: merge_views(values, len(clips))[0] for level, values in self.run(clips, levels).items()}


_best = top_k  # `classify` and `rank` have parameters of that name
