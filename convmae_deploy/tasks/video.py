"""Video classification and features of videos: what a clip shows, in space and time. PyAV decodes.

Shapes: V views of one video, T frames of a clip, H W its size, D width of the features, K classes.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

from PIL import Image

from convmae_deploy.bundle.loading import BundleError
from convmae_deploy.bundle.manifest import Manifest, OutputSpec
from convmae_deploy.bundle.preprocessing import ClipPreprocessing
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.media.video_file import import_av
from convmae_deploy.tasks.base import LOGITS, NO_OPTIONS, PredictOptions, Prepared, Report, Source
from convmae_deploy.tasks.classification import ClassPredictor
from convmae_deploy.tasks.clips import ClipViews, read_clips
from convmae_deploy.tasks.features import POOLED, FeaturePredictor

VIDEO_FEATURE_OUTPUTS = (POOLED, "pooled_frames", "e1", "e2", "e3", "e4")
VIDEO_OUTPUTS = (LOGITS, *VIDEO_FEATURE_OUTPUTS)


class VideoFeatures(FeaturePredictor):
    """Features of videos in space and time.

    `pooled` is one vector a clip. `pooled_frames` is one for each slot of two frames, normalised in the same way; as
    each is normalised for itself, their mean is not `pooled`.
    """

    MEDIUM = "video"
    PREPROCESSING = ClipPreprocessing
    PREPROCESSED_BY = "clips.read_clips(path, spec)` does it for one video file."
    ONE_BY_ONE = True
    OPTIONS: ClassVar[tuple[str, ...]] = ("temporal_views", "spatial_views", "frame_sampling_rate", "levels")

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

    def check_options(self, options: PredictOptions, *, spell: Callable[[str], str | None] = str) -> None:
        """See `Predictor.check_options`; of several views only `pooled` can be averaged, as places differ."""
        super().check_options(options, spell=spell)
        views = views_of(options)
        if views.total > 1 and options.levels is not None and set(options.levels) != {POOLED}:
            found = ", ".join(level for level in options.levels if level != POOLED)
            raise ConvMAEError(
                f"of {views.temporal} x {views.spatial} views only {POOLED} can be averaged; got {found}, ask for one "
                "view"
            )

    def sampling_of(self, options: PredictOptions) -> ClipPreprocessing:
        """The model's sampling, with the distance of frames that is asked for."""
        return self.sampling.model_copy(
            update={} if options.frame_sampling_rate is None else {"stride": options.frame_sampling_rate}
        )

    def prepare(self, source: Source, options: PredictOptions = NO_OPTIONS) -> Prepared:
        """See `Predictor.prepare`.

        Raises:
            VideoError: it is no video that can be decoded; the reason is its `code`.
            ConvMAEError: the file cannot be read, or PyAV is not installed.
        """
        if isinstance(source, Image.Image):
            raise ConvMAEError("expected a video file or its content; got an image, give its path")
        file = Path(source) if isinstance(source, str) else source
        clips = read_clips(file, self.sampling_of(options), views=views_of(options))
        return Prepared(rows=clips, size=self.sampling.crop)


class VideoClassifier(ClassPredictor, VideoFeatures):
    """Names of what a video shows, and features of it; `pooled` is what its head was trained on."""

    TASK = "video-classification"
    OPTIONS = ("top_k", "function_to_apply", *VideoFeatures.OPTIONS)

    @classmethod
    def expected_outputs(cls, classes: int, axes: tuple[int, ...]) -> Mapping[str, OutputSpec | None]:
        return dict.fromkeys(VIDEO_OUTPUTS) | {LOGITS: OutputSpec(shape=(classes,))}

    def report(self, options: PredictOptions, out: Path | None) -> Report:
        """The best classes in a table.

        Raises:
            ConvMAEError: see `Predictor.report`; also, PyAV is not installed.
        """
        import_av()
        return super().report(options, out)


class VideoEncoder(VideoFeatures):
    """A model of videos without a head."""

    TASK = "video-features"

    @classmethod
    def expected_outputs(cls, classes: int, axes: tuple[int, ...]) -> Mapping[str, OutputSpec | None]:
        return dict.fromkeys(VIDEO_FEATURE_OUTPUTS)


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
