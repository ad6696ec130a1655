"""Classification: names of what a photo shows."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from convmae_deploy.bundle.manifest import OutputSpec
from convmae_deploy.bundle.preprocessing import Preprocessing
from convmae_deploy.files import atomic_file
from convmae_deploy.program import readable
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
    Source,
)
from convmae_deploy.tasks.clips import average_views
from convmae_deploy.tasks.explanation import CELLS, MEANING, Explainer, Explanation, find_class
from convmae_deploy.tasks.explanation_drawing import draw_explanation, small_copy
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
    OPTIONS = ("top_k", "function_to_apply", "levels", "explain", *PHOTO_LIMITS)

    @classmethod
    def expected_outputs(cls, classes: int, axes: tuple[int, ...]) -> Mapping[str, OutputSpec | None]:
        return dict.fromkeys(CLASSIFIER_OUTPUTS) | {LOGITS: OutputSpec(shape=(classes,))}

    @cached_property
    def explainer(self) -> Explainer:
        """What explains its logits.

        Raises:
            ConvMAEError: the model makes its logits in another way than of the mean over all cells.
        """
        return Explainer(self.bundle)

    def check_options(self, options: PredictOptions, *, spell: Callable[[str], str | None] = str) -> None:
        """See `Predictor.check_options`; also refuses classes that this model does not know, or cannot explain."""
        super().check_options(options, spell=spell)
        if options.explain is not None:
            self._explained(options)
            self.explainer  # noqa: B018  # raises before the first run

    def prepare(self, source: Source, options: PredictOptions = NO_OPTIONS) -> Prepared:
        """See `Predictor.prepare`; for an explanation also a small copy of the photo, to draw on."""
        if options.explain is None:
            return super().prepare(source, options)
        photo = self.open_photo(source, options)
        return replace(super().prepare(photo, options), photo=small_copy(photo))

    def interpret(
        self, prepared: Sequence[Prepared], options: PredictOptions = NO_OPTIONS, run: Run | None = None
    ) -> list[Any]:
        """As `ClassPredictor.interpret`; or for each photo its explanations, one for each class that is asked for."""
        if options.explain is None:
            return super().interpret(prepared, options, run)
        outputs = self._run_together(prepared, (LOGITS, CELLS), run)
        classes = self._explained(options)
        return [
            self.explainer.explain({name: values[0] for name, values in found.items()}, classes, each.photo)
            for each, found in zip(prepared, outputs, strict=True)
        ]

    def draw(self, explanation: Explanation) -> Image.Image:
        """The picture of an explanation that this model gave, over its photo."""
        spec = self.manifest.preprocessing
        assert isinstance(spec, Preprocessing) and explanation.photo is not None  # `check_manifest`, and `prepare`
        return draw_explanation(explanation.photo, explanation, spec)

    def report(self, options: PredictOptions, out: Path | None) -> Report:
        """The best classes in a table; or explanations, with pictures and numbers where a path is given."""
        if options.explain is None:
            return super().report(options, out)
        self.check_options(options)
        return ExplanationReport(self, options, out)

    def _explained(self, options: PredictOptions) -> list[int] | None:
        """The classes that are asked for; None: the best one."""
        return [find_class(self.manifest.classes, wanted) for wanted in options.explain or ()] or None


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


class ExplanationReport:
    """What the cells of photos add to the logits of some classes: the strongest in a table, all in files.

    Args:
        classifier: the model.
        options: which classes.
        out: a picture (.png) for one photo, with its numbers beside it (.json), or a folder for those of several;
            None: nothing is written.
    """

    columns = ("label", "logit", "of the cells", "bias", "strongest cells: row, column")

    def __init__(self, classifier: Classifier, options: PredictOptions, out: Path | None) -> None:
        self.classifier, self.options, self.out = classifier, options, out
        self.pictures: list[Path] = []

    def describe(self, file: Path) -> Row:
        """Runs a photo and draws its explanations."""
        found: list[Explanation] = self.classifier.predict(file, self.options)
        for explanation in found if self.out is not None else ():
            picture = self._path(file, explanation, len(found))
            with atomic_file(picture) as temporary:
                self.classifier.draw(explanation).save(temporary, format="PNG")
            with atomic_file(picture.with_suffix(".json")) as temporary:
                temporary.write_text(json.dumps({"file": str(file), **explanation.fields()}), encoding="utf-8")
            self.pictures.append(picture)
        rows = [
            (
                explanation.label,
                f"{explanation.logit:.4f}",
                f"{explanation.of_cells:.4f}",
                f"{explanation.bias:.4f}",
                _strongest(explanation),
            )
            for explanation in found
        ]
        return Row(fields={"explanations": [explanation.fields() for explanation in found]}, rows=rows)

    def finish(self) -> list[str]:
        """Says what the numbers are, and where the pictures."""
        said = [f"This is {MEANING}."]
        if self.pictures:
            others = f", the first of {len(self.pictures)} pictures" if len(self.pictures) > 1 else ""
            said.append(f"{readable(self.pictures[0])}{others}; the numbers of each beside it as JSON")
        return said

    def _path(self, file: Path, explanation: Explanation, classes: int) -> Path:
        assert self.out is not None
        ending = f".{explanation.index}" if classes > 1 else ""
        if is_picture(self.out):
            return self.out.with_name(f"{self.out.stem}{ending}{self.out.suffix}")
        return self.out / f"{file.stem}.explained{ending}.png"


def is_picture(path: Path) -> bool:
    """Whether a path is one picture, and no folder for several."""
    return path.suffix.lower() == ".png" and not path.is_dir()


def _strongest(explanation: Explanation) -> str:
    """The three cells that add most, best first."""
    cells = explanation.contributions
    best = [divmod(int(place), cells.shape[1]) for place in (-cells).argsort(axis=None, kind="stable")[:3]]
    return "; ".join(f"{row}, {column}: {cells[row, column]:+.3f}" for row, column in best)
