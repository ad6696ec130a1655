"""Classification: names of what a photo shows."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convmae_deploy.bundle.manifest import OutputSpec
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.base import LOGITS, NO_OPTIONS, PredictOptions, Report, Row, Source, open_photo
from convmae_deploy.tasks.features import FEATURE_OUTPUTS, PhotoFeatures
from convmae_deploy.tasks.postprocess import Prediction, ScoreFunction, scores, top_k

CLASSIFIER_OUTPUTS = (LOGITS, *FEATURE_OUTPUTS)
DEFAULT_TOP_K = 5


class Classifier(PhotoFeatures):
    """Names of what a photo shows, and multi-scale features of it."""

    TASK = "classification"
    OPTIONS = ("top_k",)
    OUTPUT_WORDS = {LOGITS: "one for each line of labels.txt; softmax makes scores of them"}
    CLIENT_STEPS = "Ask only for the outputs that you need; Triton can also return the best classes with their labels."

    @classmethod
    def expected_outputs(cls, classes: int, axes: tuple[int, ...]) -> Mapping[str, OutputSpec | None]:
        """See `Predictor.expected_outputs`."""
        return dict.fromkeys(CLASSIFIER_OUTPUTS) | {LOGITS: OutputSpec(shape=(classes,))}

    def predict(self, source: Source, options: PredictOptions = NO_OPTIONS) -> list[Prediction]:
        """The best classes of a photo, best first."""
        self.check_options(options)
        return self.classify([open_photo(source)], top_k=options.top_k or DEFAULT_TOP_K)[0]

    def report(self, options: PredictOptions, out: Path | None) -> Report:
        """The best classes in a table."""
        self.check_options(options)
        return ClassReport(lambda file: self.predict(file, options))

    def classify(
        self, images: Sequence[Image.Image], *, top_k: int = 5, function: ScoreFunction = "softmax"
    ) -> list[list[Prediction]]:
        """The best classes of each RGB photo, best first.

        Args:
            images: photos of any size.
            top_k: how many classes a photo, at least 1; all when larger than their number.
            function: how logits become scores.

        Raises:
            ConvMAEError: `top_k` is less than 1.
        """
        if top_k < 1:
            raise ConvMAEError(f"top_k must be at least 1; got {top_k}")
        return [
            predictions
            for _, outputs in self._run_photos(images, (LOGITS,), self.preprocess)
            for predictions in self.rank(outputs[LOGITS], top_k=top_k, function=function)
        ]

    def rank(
        self, logits: NDArray[np.float32], *, top_k: int = 5, function: ScoreFunction = "softmax"
    ) -> list[list[Prediction]]:
        """The best classes of each row of logits (B, K), best first."""
        return [_best(row, self.manifest.classes, top_k) for row in scores(logits, function)]


class ClassReport:
    """The best classes of photos or videos."""

    columns = ("label", "score")

    def __init__(self, predict: Callable[[Path], list[Prediction]]) -> None:
        self.predict = predict

    def describe(self, file: Path) -> Row:
        """Runs a photo or a video."""
        predictions = self.predict(file)
        return Row(
            fields={"predictions": [vars(prediction) for prediction in predictions]},
            rows=[(prediction.label, f"{prediction.score:.4f}") for prediction in predictions],
        )

    def finish(self) -> list[str]:
        """Nothing is written."""
        return []


_best = top_k  # `classify` and `rank` have parameters of that name
