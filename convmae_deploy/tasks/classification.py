"""Classification: names of what a photo shows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convmae_deploy.bundle.manifest import OutputSpec
from convmae_deploy.tasks.base import (
    LOGITS,
    NO_OPTIONS,
    PHOTO_LIMITS,
    PredictOptions,
    Predictor,
    Prepared,
    Report,
    Row,
    Run,
)
from convmae_deploy.tasks.clips import average_views
from convmae_deploy.tasks.features import FEATURE_OUTPUTS, FeaturePredictor, PhotoFeatures
from convmae_deploy.tasks.postprocess import Prediction, top_k

CLASSIFIER_OUTPUTS = (LOGITS, *FEATURE_OUTPUTS)
DEFAULT_TOP_K = 5


class ClassPredictor(FeaturePredictor):
    """A task whose graph gives classes, and features where those are asked for."""

    KEY_OUTPUT = LOGITS
    KEY_WORDS = "Logits"
    OUTPUT_WORDS = {LOGITS: "one for each line of labels.txt; softmax makes scores of them"}
    CLIENT_STEPS = "Ask only for the outputs that you need; Triton can also return the best classes with their labels."

    def interpret(
        self, prepared: Sequence[Prepared], options: PredictOptions = NO_OPTIONS, run: Run | None = None
    ) -> list[Any]:
        """The best classes of each by the mean of its views' scores, best first; or features."""
        if options.levels is not None:
            return super().interpret(prepared, options, run)
        function, count = options.function_to_apply or "softmax", options.top_k or DEFAULT_TOP_K
        return [
            top_k(average_views(each[LOGITS], function), self.manifest.classes, count)
            for each in self._run_together(prepared, (LOGITS,), run)
        ]

    def report(self, options: PredictOptions, out: Path | None) -> Report:
        """The best classes in a table."""
        self.check_options(options)
        return ClassReport(self, options)


class Classifier(ClassPredictor, PhotoFeatures):
    """Names of what a photo shows, and multi-scale features of it."""

    TASK = "classification"
    OPTIONS = ("top_k", "function_to_apply", "levels", *PHOTO_LIMITS)

    @classmethod
    def expected_outputs(cls, classes: int, axes: tuple[int, ...]) -> Mapping[str, OutputSpec | None]:
        return dict.fromkeys(CLASSIFIER_OUTPUTS) | {LOGITS: OutputSpec(shape=(classes,))}


class ClassReport:
    """The best classes of photos or videos."""

    columns = ("label", "score")

    def __init__(self, predictor: Predictor, options: PredictOptions) -> None:
        self.predictor, self.options = predictor, options

    def describe(self, file: Path) -> Row:
        """Runs a photo or a video."""
        predictions: list[Prediction] = self.predictor.predict(file, self.options)
        return Row(
            fields={"predictions": [vars(prediction) for prediction in predictions]},
            rows=[(prediction.label, f"{prediction.score:.4f}") for prediction in predictions],
        )

    def finish(self) -> list[str]:
        """Nothing is written."""
        return []
