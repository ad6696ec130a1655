"""Multi-scale features: what a model without a head gives, and what classifiers give besides their classes.

Shapes: B photos, V views of one photo or video, C channels, D width of a pooled vector, H W the input.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convmae_deploy.backends.base import InputArray, Outputs
from convmae_deploy.bundle.manifest import OutputSpec
from convmae_deploy.bundle.preprocessing import ClipPreprocessing, Preprocessing
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.base import (
    LOGITS,
    NO_OPTIONS,
    PHOTO_LIMITS,
    PredictOptions,
    Predictor,
    Prepared,
    Report,
    Run,
    Source,
    all_rows,
)
from convmae_deploy.tasks.clips import merge_views
from convmae_deploy.tasks.preprocess import preprocess

POOLED = "pooled"  # the one level that says something of several views of a video together
FEATURE_OUTPUTS = (POOLED, "e1", "e2", "e3", "e4")

Features = dict[str, NDArray[np.float32]]  # level -> values of one photo or video, without a batch axis


class FeaturePredictor(Predictor):
    """A task whose graph gives features, whatever else it gives."""

    OPTIONS: ClassVar[tuple[str, ...]] = ("levels",)
    KEY_OUTPUT = POOLED
    KEY_WORDS = "Pooled vectors"

    @classmethod
    def pixels(cls, picture: Image.Image, spec: Preprocessing | ClipPreprocessing) -> InputArray:
        """See `Predictor.pixels`."""
        return preprocess(picture, spec)

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the features: every output but the logits."""
        return tuple(name for name in self.manifest.outputs if name != LOGITS)

    def check_options(self, options: PredictOptions, *, spell: Callable[[str], str | None] = str) -> None:
        """See `Predictor.check_options`; also refuses levels that this model does not have."""
        super().check_options(options, spell=spell)
        if options.levels is not None:
            self._check_names(options.levels, self.levels)

    def interpret(
        self, prepared: Sequence[Prepared], options: PredictOptions = NO_OPTIONS, run: Run | None = None
    ) -> list[Features]:
        """Features of each; of several views only `pooled`, their mean."""
        default = self.levels if len(prepared[0].rows) == 1 else (POOLED,)
        outputs = self._run_together(prepared, options.levels or default, run)
        return [{name: merge_views(values) for name, values in each.items()} for each in outputs]

    def features(
        self, sources: Sequence[Source], levels: Sequence[str] = (POOLED,), options: PredictOptions = NO_OPTIONS
    ) -> Features:
        """Features of photos or videos as arrays.

        Args:
            sources: files, the contents of some, or for photos images of Pillow's; at least one.
            levels: names from `levels`: maps (C, H / stride, W / stride), of videos with T / 2 before H, or vectors
                (D,).
            options: see `PredictOptions`.

        Returns:
            Level -> (number of sources, ...).

        Raises:
            ConvMAEError: no source or no level is given, a level does not exist, or a source cannot be read.
        """
        sources = [sources] if isinstance(sources, str | Path | bytes | Image.Image) else list(sources)
        levels = (levels,) if isinstance(levels, str) else tuple(levels)
        found = self.predict_each(sources, replace(options, levels=levels))
        if not found:
            raise ConvMAEError("features need at least one photo or video; got none")
        return {level: np.stack([each[level] for each in found]) for level in levels}

    def report(self, options: PredictOptions, out: Path | None) -> Report:
        """Refuses: features are for programs; `convmae features` writes them."""
        name = self.manifest.name
        raise ConvMAEError(f"{name} gives features and no predictions; write them to a file with convmae features")

    def _run_together(self, prepared: Sequence[Prepared], names: Sequence[str], run: Run | None) -> list[Outputs]:
        """The outputs of each, (V, ...)."""
        found = (run or self.run)(all_rows(prepared), names)
        ends = np.cumsum([len(each.rows) for each in prepared])[:-1]
        parts = {name: np.split(found[name], ends) for name in names}
        return [{name: parts[name][index] for name in names} for index in range(len(prepared))]


class PhotoFeatures(FeaturePredictor):
    """Features of photos."""

    OPTIONS: ClassVar[tuple[str, ...]] = ("levels", *PHOTO_LIMITS)
    MEDIUM = "photo"
    HALVES = True
    PREPROCESSING = Preprocessing


def feature_spec(shape: tuple[int, ...], axes: tuple[int, ...]) -> OutputSpec:
    """What a manifest says of a feature of this shape, whose strides follow from the input.

    Args:
        shape: without the batch axis: a map (C, H, W) or (C, T, H, W), one vector (C,), or one for each slot (T, C).
        axes: (height, width) in pixels of the graph's input, of clips (frames, height, width).
    """
    is_map = len(shape) == 1 + len(axes)
    slots = shape[-3] if is_map else shape[0]
    has_slots = len(axes) == 3 and len(shape) > 1
    return OutputSpec(
        shape=shape,
        stride=axes[-1] // shape[-1] if is_map else None,
        time_stride=axes[0] // slots if has_slots else None,
    )


class Encoder(PhotoFeatures):
    """A model of photos without a head."""

    TASK = "features"

    @classmethod
    def expected_outputs(cls, classes: int, axes: tuple[int, ...]) -> Mapping[str, OutputSpec | None]:
        return dict.fromkeys(FEATURE_OUTPUTS)
