"""Multi-scale features: what a model without a head gives, and what classifiers give besides their classes.

Shapes: B photos, V views of one video, C channels, D width of a pooled vector, T frames of a clip, H W the input.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convmae_deploy.bundle.manifest import OutputSpec, Preprocessing
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.base import (
    LOGITS,
    NO_OPTIONS,
    PredictOptions,
    Predictor,
    Report,
    Source,
    open_photo,
)
from convmae_deploy.tasks.clips import ClipViews
from convmae_deploy.tasks.preprocess import preprocess

POOLED = "pooled"  # the one level that says something of several views of a video together
FEATURE_OUTPUTS = (POOLED, "e1", "e2", "e3", "e4")

Features = dict[str, NDArray[np.float32]]


class FeaturePredictor(Predictor):
    """A task whose graph gives features, whatever else it gives."""

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the features: every output but the logits."""
        return tuple(name for name in self.manifest.outputs if name != LOGITS)

    @abstractmethod
    def check_levels(self, levels: Sequence[str], views: ClipViews | None = None) -> None:
        """Refuses levels that this model does not have, or that several views do not have together.

        Args:
            levels: names.
            views: of each file; None: one.

        Raises:
            ConvMAEError: a level is none of `levels`, none is given, or the views do not fit.
        """

    @abstractmethod
    def inputs(self, source: Source, views: ClipViews | None = None) -> NDArray[np.float32]:
        """A photo or a video as the graph takes it, (V, 3, ...) with V = 1 for photos.

        Raises:
            ConvMAEError: it cannot be read or decoded.
        """


class PhotoFeatures(FeaturePredictor):
    """Features of photos."""

    MEDIUM = "photo"
    PREPROCESSING = Preprocessing

    def check_levels(self, levels: Sequence[str], views: ClipViews | None = None) -> None:
        """See `FeaturePredictor.check_levels`; a photo has one view."""
        self._check_names(levels, self.levels)
        if views is not None and views.total > 1:
            raise ConvMAEError(f"a photo has one view; got {views.temporal} x {views.spatial}, leave them out")

    def inputs(self, source: Source, views: ClipViews | None = None) -> NDArray[np.float32]:
        """A photo as the graph takes it, (1, 3, H, W)."""
        return self.preprocess(open_photo(source))[None]

    def preprocess(self, image: Image.Image) -> NDArray[np.float32]:
        """An RGB photo as the graph takes it, (3, H, W)."""
        assert isinstance(self.manifest.preprocessing, Preprocessing)  # `check_manifest` says so
        return preprocess(image, self.manifest.preprocessing)

    def features(self, images: Sequence[Image.Image], levels: Sequence[str]) -> Features:
        """Features of RGB photos.

        Args:
            images: photos of any size, at least one.
            levels: names from `levels`: maps (C, H / stride, W / stride), or the pooled vector (D,).

        Returns:
            Level -> (number of photos, ...).

        Raises:
            ConvMAEError: no photo or no level is given, or a level does not exist.
        """
        self.check_levels(levels)
        if not images:
            raise ConvMAEError("features need at least one image; got none")
        results = {
            level: np.empty((len(images), *self.manifest.outputs[level].shape), dtype=np.float32) for level in levels
        }
        start = 0
        for chunk, outputs in self._run_photos(images, levels, self.preprocess):
            for level, values in outputs.items():
                results[level][start : start + len(chunk)] = values
            start += len(chunk)
        return results


class FeatureExtractor(PhotoFeatures):
    """A model of photos without a head."""

    TASK = "features"
    KEY_OUTPUT = POOLED
    KEY_WORDS = "Pooled vectors"

    @classmethod
    def expected_outputs(cls, classes: int, axes: tuple[int, ...]) -> Mapping[str, OutputSpec | None]:
        """See `Predictor.expected_outputs`."""
        return dict.fromkeys(FEATURE_OUTPUTS)

    def predict(self, source: Source, options: PredictOptions = NO_OPTIONS) -> Features:
        """All features of a photo, level -> values without a batch axis."""
        self.check_options(options)
        return {level: values[0] for level, values in self.features([open_photo(source)], self.levels).items()}

    def report(self, options: PredictOptions, out: Path | None) -> Report:
        """Refuses: features are for programs; `convmae features` writes them."""
        refuse_report(self.manifest.name)


def refuse_report(name: str) -> NoReturn:
    """Raises ConvMAEError: there is nothing that a person could read."""
    raise ConvMAEError(f"{name} gives features and no predictions; write them to a file with convmae features")
