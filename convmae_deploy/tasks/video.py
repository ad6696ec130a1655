"""Video classification and features of videos: what a clip shows, in space and time. PyAV decodes.

Shapes: V views of one video, T frames of a clip, H W its size, D width of the features, K classes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convmae_deploy.bundle.loading import BundleError
from convmae_deploy.bundle.manifest import ClipPreprocessing, Manifest, OutputSpec
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.media.video_file import import_av
from convmae_deploy.media.video_limits import VideoLimits
from convmae_deploy.tasks.base import LOGITS, NO_OPTIONS, PredictOptions, Report, Source
from convmae_deploy.tasks.classification import DEFAULT_TOP_K, Classifier, ClassReport
from convmae_deploy.tasks.clips import ClipViews, average_views, merge_views, read_clips
from convmae_deploy.tasks.features import POOLED, FeaturePredictor, Features, refuse_report
from convmae_deploy.tasks.postprocess import Prediction, ScoreFunction, top_k

VIDEO_FEATURE_OUTPUTS = (POOLED, "pooled_frames", "e1", "e2", "e3", "e4")
VIDEO_OUTPUTS = (LOGITS, *VIDEO_FEATURE_OUTPUTS)


class VideoFeatures(FeaturePredictor):
    """Features of videos in space and time.

    `pooled` is one vector a clip. `pooled_frames` is one for each slot of two frames, normalised in the same way; as
    each is normalised for itself, their mean is not `pooled`.
    """

    MEDIUM = "video"
    PREPROCESSING = ClipPreprocessing
    OPTIONS: ClassVar[tuple[str, ...]] = ("temporal_views", "spatial_views")

    @classmethod
    def check_manifest(cls, manifest: Manifest) -> None:
        """See `Predictor.check_manifest`; also that slots and cells follow from the strides."""
        super().check_manifest(manifest)
        for name in VIDEO_FEATURE_OUTPUTS[1:]:
            _check_slots(name, manifest.outputs[name], manifest.input.shape[1:])

    @property
    def sampling(self) -> ClipPreprocessing:
        """Which frames make a clip, and what becomes of them."""
        assert isinstance(self.manifest.preprocessing, ClipPreprocessing)  # `check_manifest` says so
        return self.manifest.preprocessing

    def check_levels(self, levels: Sequence[str], views: ClipViews | None = None) -> None:
        """See `FeaturePredictor.check_levels`; of several views only `pooled` can be averaged, as places differ."""
        self._check_names(levels, self.levels)
        if views is not None and views.total > 1 and set(levels) != {POOLED}:
            found = ", ".join(level for level in levels if level != POOLED)
            raise ConvMAEError(
                f"of {views.temporal} x {views.spatial} views only {POOLED} can be averaged; got {found}, ask for one "
                "view"
            )

    def inputs(self, source: Source, views: ClipViews | None = None) -> NDArray[np.float32]:
        """A video as the graph takes it, (V, 3, T, H, W)."""
        return self.clips(source, views=views)

    def clips(
        self, source: Source, *, views: ClipViews | None = None, limits: VideoLimits | None = None
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
        if isinstance(source, Image.Image):
            raise ConvMAEError("expected a video file or its content; got an image, give its path")
        file = Path(source) if isinstance(source, str) else source
        return read_clips(file, self.sampling, views=views, limits=limits)

    def features(
        self,
        source: Source,
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


class VideoClassifier(VideoFeatures):
    """Names of what a video shows, and features of it; `pooled` is what its head was trained on."""

    TASK = "video-classification"
    OPTIONS = ("top_k", "temporal_views", "spatial_views")
    OUTPUT_WORDS = Classifier.OUTPUT_WORDS
    CLIENT_STEPS = Classifier.CLIENT_STEPS

    @classmethod
    def expected_outputs(cls, classes: int, axes: tuple[int, ...]) -> Mapping[str, OutputSpec | None]:
        """See `Predictor.expected_outputs`."""
        return dict.fromkeys(VIDEO_OUTPUTS) | {LOGITS: OutputSpec(shape=(classes,))}

    def predict(self, source: Source, options: PredictOptions = NO_OPTIONS) -> list[Prediction]:
        """The best classes of a video, best first."""
        self.check_options(options)
        return self.classify(source, views=views_of(options), top_k=options.top_k or DEFAULT_TOP_K)

    def report(self, options: PredictOptions, out: Path | None) -> Report:
        """The best classes in a table.

        Raises:
            ConvMAEError: see `Predictor.report`; also, PyAV is not installed.
        """
        self.check_options(options)
        views_of(options)
        import_av()
        return ClassReport(lambda file: self.predict(file, options))

    def classify(
        self,
        source: Source,
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


class VideoFeatureExtractor(VideoFeatures):
    """A model of videos without a head."""

    TASK = "video-features"
    KEY_OUTPUT = POOLED
    KEY_WORDS = "Pooled vectors"

    @classmethod
    def expected_outputs(cls, classes: int, axes: tuple[int, ...]) -> Mapping[str, OutputSpec | None]:
        """See `Predictor.expected_outputs`."""
        return dict.fromkeys(VIDEO_FEATURE_OUTPUTS)

    def predict(self, source: Source, options: PredictOptions = NO_OPTIONS) -> Features:
        """Features of a video, level -> values without a batch axis: all of one view, `pooled` of several."""
        self.check_options(options)
        views = views_of(options)
        return self.features(source, self.levels if views.total == 1 else (POOLED,), views=views)

    def report(self, options: PredictOptions, out: Path | None) -> Report:
        """Refuses: features are for programs; `convmae features` writes them."""
        refuse_report(self.manifest.name)


def views_of(options: PredictOptions) -> ClipViews:
    """How often a video is looked at.

    Raises:
        ConvMAEError: a number is less than 1.
    """
    temporal, spatial = (1 if count is None else count for count in (options.temporal_views, options.spatial_views))
    return ClipViews(temporal=temporal, spatial=spatial)


def _check_slots(name: str, spec: OutputSpec, clip: tuple[int, ...]) -> None:
    """Raises BundleError unless an output has the slots and cells of a clip of (frames, height, width)."""
    frames, height, width = clip
    if spec.time_stride is None:
        raise BundleError(f"{name} must have a time_stride, found none")
    axes = [(frames, spec.time_stride)]
    if spec.stride is not None:
        axes += [(height, spec.stride), (width, spec.stride)]
    expected = tuple(side // stride for side, stride in axes)
    found = spec.shape[:-1] if spec.stride is None else spec.shape[1:]
    if found != expected or len(spec.shape) != len(expected) + 1:
        raise BundleError(f"{name} must have slots and cells {expected}, found the shape {spec.shape}")


_best = top_k  # `classify` and `rank` have parameters of that name
