"""The int8 file of a bundle: calibrated on real photos, held to the task's metric, its worst layers back in fp32.

1. The ranges of what the layers read, over the photos or videos of `--calibrate`; see `calibration`.
2. All layers in int8; see `quantisation`.
3. The task's metric of that graph and of the fp32 graph: on labelled data the task's own (top-1, mask AP, mIoU), on
   data without labels how often both say the same, and with no data at all the same on photos of the calibration's
   folder that were not used to calibrate.
4. While the metric falls by more than `--max-drop`, the layers that int8 hurts most go back to fp32; see `sensitivity`.

The int8-fp16 file is the fp16 graph with the same layers in int8, by the same ranges and the same ranking: what does
not become int8 stays in fp16. Layers are known in both graphs by the paths of their modules.

Deterministic: the same photos give the same file.
"""

import json
import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from numpy.typing import NDArray
from rich.console import Console

from convmae_deploy.bundle.manifest import Manifest, Precision
from convmae_deploy.bundle.numerics import Quantisation
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import atomic_directory
from convmae_deploy.tasks import task_of
from export.graph_files import without_outputs
from export.graphs.to_onnx import ExportedGraph
from export.int8.calibration import METHOD, CalibrationData, cache_folder, cached_ranges, read_calibration
from export.int8.quantisation import Layer, Ranges, fold_weights, quantisable_layers, quantise
from export.int8.sensitivity import Step, find_step, rank_layers
from export.runtimes.runners import onnx_runner, open_graph
from export.tasks import EXPORTS, read_task_data
from export.verification.divergence import REFERENCE
from export.verification.elementwise import VerificationError
from export.verification.task_data import TaskData
from export.verification.task_metrics import predictor_on
from export.verification.verify_detector import FED, with_fed_heads

SCORED = 1000  # samples of the data that the metric is taken on, at most: it is taken again with every step
RANKED = 4  # samples that layers are ranked on


@dataclass(frozen=True, kw_only=True)
class Int8Options:
    """What a user says about int8."""

    calibrate: Path  # folder of photos or videos, without labels
    max_drop: float = 1.0  # points of the metric that int8 may cost
    data: Path | None = None  # what the metric is taken on; None: photos of `calibrate` that are left
    exclude: tuple[str, ...] = ()  # patterns of layers that stay out of int8; a module's path stands for all in it
    cache: Path | None = None  # folder of the ranges of earlier calibrations; None: the user's cache

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop <= 100:
            raise ConvMAEError(f"--max-drop must be between 0 and 100 points; got {self.max_drop:g}")


@dataclass(frozen=True, kw_only=True)
class Quantisable:
    """A graph whose layers become int8, in full or in half precision."""

    graph: ExportedGraph
    model: onnx.ModelProto  # from `fold_weights`
    layers: tuple[Layer, ...]
    ranges: Ranges
    precision: Precision  # of the graph with int8 layers

    @property
    def rest(self) -> str:
        """What the layers compute in that are not in int8."""
        return "fp16" if self.precision == "int8-fp16" else "fp32"

    def quantised(self, returned: Collection[Layer] = ()) -> onnx.ModelProto:
        """The graph with all layers but some in int8; these are known by their names."""
        names = {layer.name for layer in returned}
        return quantise(self.model, [layer for layer in self.layers if layer.name not in names], self.ranges)


class Int8Maker:
    """Makes the int8 graph of one fp32 graph."""

    def __init__(
        self, manifest: Manifest, options: Int8Options, console: Console, *, failed: Path, command: Sequence[str]
    ) -> None:
        """
        Args:
            manifest: of the bundle; its files do not matter.
            options: what the user says.
            console: where the steps are printed.
            failed: folder of the reproducer, should the metric not hold; an older one is replaced.
            command: the program's arguments, for the reproducer.

        Raises:
            ConvMAEError: a folder does not hold what it should.
        """
        self.manifest = manifest
        self.options = options
        self.console = console
        self.failed = failed
        self.command = command
        count = EXPORTS[manifest.task].calibrated
        self.calibration = read_calibration(
            options.calibrate, task_of(manifest), manifest.preprocessing, count, hold_out=options.data is None
        )
        self.data = scoring_data(self.calibration, manifest, options.data)
        self.metric: Metric | None = None
        self.float32: Quantisable | None = None  # None until it was calibrated
        self.excluded: tuple[Layer, ...] = ()
        self.ranking: tuple[tuple[Layer, float], ...] = ()  # empty until it is needed

    def make(self, graph: ExportedGraph, half: ExportedGraph | None = None) -> ExportedGraph:
        """Calibrates, quantises, and returns layers until the metric holds.

        Args:
            graph: in fp32; a detector's with its probes as outputs.
            half: the same in fp16, whose layers are to be quantised; None: those of `graph`.

        Raises:
            ConvMAEError: a pattern of the options fits no layer, or all of them.
            VerificationError: the metric does not hold whatever is returned.
        """
        float32, metric = self._calibrated(graph)
        chosen = float32 if half is None else self._in_half(float32, half)
        layers, rest = chosen.layers, chosen.rest

        def score(returned: Sequence[Layer]) -> float:
            value = metric.measure(chosen.quantised(returned), chosen.precision)
            back = f", {names_of(returned)} in {rest}" if returned else ""
            drop = metric.reference - value
            self.console.print(
                f"{chosen.precision}: {value:.2f} %, a drop of {drop:.2f} points{back}.", highlight=False
            )
            return value

        steps = find_step(lambda: self._ranked(float32), len(layers), score, metric.reference - self.options.max_drop)
        if steps[-1].value < metric.reference - self.options.max_drop:
            raise self._failure(steps, metric, chosen)
        calibration = self.calibration
        odd = f" ({calibration.odd})" if calibration.odd else ""
        folder = self.options.calibrate.resolve().name
        return replace(
            chosen.graph,
            model=chosen.quantised(steps[-1].returned),
            quantisation=Quantisation(
                calibrated_on=f"{len(calibration.files)} {calibration.kind} of {folder}{odd}",
                method=METHOD,
                layers=len(layers) - len(steps[-1].returned),
                returned=tuple(layer.name for layer in steps[-1].returned),
                excluded=tuple(layer.name for layer in self.excluded),
                metric=metric.describe(),
                samples=metric.samples,
                fp32=metric.reference,
                int8=steps[-1].value,
                max_drop=self.options.max_drop,
            ),
        )

    def _calibrated(self, graph: ExportedGraph) -> tuple[Quantisable, "Metric"]:
        """The fp32 graph with its ranges, and the metric with the fp32 graph's value; measured once."""
        if self.float32 is not None and self.metric is not None:
            return self.float32, self.metric
        model = fold_weights(graph.model)
        found = quantisable_layers(model)
        self.excluded = excluded_layers(found, self.options.exclude)
        layers = tuple(layer for layer in found if layer not in self.excluded)
        if self.excluded:
            self.console.print(f"Not in int8: {names_of(self.excluded)}.", highlight=False)
        values = dict.fromkeys(value for layer in layers for value in layer.inputs)
        ranges = cached_ranges(model, values, self.calibration, self.options.cache or cache_folder())
        metric = Metric(self.data, self.manifest, self._source())
        metric.measure(model, "fp32")
        self.console.print(f"fp32: {metric.describe()} {metric.reference:.2f} %.", highlight=False)
        self.metric = metric
        self.float32 = Quantisable(graph=graph, model=model, layers=layers, ranges=ranges, precision="int8")
        return self.float32, metric

    def _in_half(self, float32: Quantisable, half: ExportedGraph) -> Quantisable:
        """The fp16 graph with the ranges that the inputs of the same layers have in fp32."""
        known = {layer.name: layer for layer in float32.layers}
        model = fold_weights(half.model)
        layers = tuple(layer for layer in quantisable_layers(model) if layer.name in known)
        missing = [layer for layer in float32.layers if layer.name not in {layer.name for layer in layers}]
        if missing:
            self.console.print(
                f"Not in int8, as the fp16 graph has no such layer: {names_of(missing)}.", highlight=False
            )
        ranges = {
            value: float32.ranges[source]
            for layer in layers
            for value, source in zip(layer.inputs, known[layer.name].inputs, strict=True)
        }
        return Quantisable(graph=half, model=model, layers=layers, ranges=ranges, precision="int8-fp16")

    def _source(self) -> str:
        """Where the data of the metric are from; names alone, as paths tell nobody else anything."""
        if self.options.data is not None:
            return self.options.data.resolve().name
        return f"{self.options.calibrate.resolve().name} that are not calibrated on"

    def _ranked(self, float32: Quantisable) -> list[Layer]:
        if not self.ranking:
            model, feeds = self._ranked_on(float32.model)
            total = min(RANKED, len(self.calibration.files))
            self.ranking = rank_layers(model, float32.layers, float32.ranges, feeds, total)
        return [layer for layer, _ in self.ranking]

    def _ranked_on(self, model: onnx.ModelProto) -> tuple[onnx.ModelProto, Iterator[dict[str, NDArray[Any]]]]:
        """The graph whose outputs count, and what to run it on."""
        name = self.manifest.input.name
        images = (image for image, _ in zip(self.calibration.inputs(), range(RANKED), strict=False))
        task = task_of(self.manifest)
        if not task.GIVES_LISTS:  # lists have no order to compare in: they are ranked by what the heads give
            others = {output.name for output in model.graph.output} - {task.KEY_OUTPUT}
            return without_outputs(model, others), ({name: image} for image in images)
        graph = open_graph("onnxruntime", model)

        def fed() -> Iterator[dict[str, NDArray[Any]]]:
            for image in images:
                found = graph.run(FED, {name: image})
                yield {name: image, **{REFERENCE + value: found[value] for value in FED}}

        return with_fed_heads(model), fed()

    def _failure(self, steps: Sequence[Step], metric: "Metric", chosen: Quantisable) -> VerificationError:
        """Leaves both graphs and what was tried, and says so."""
        best = max(steps, key=lambda step: step.value)
        report = {
            "metric": metric.describe(),
            "fp32": metric.reference,
            "max_drop": self.options.max_drop,
            "steps": [
                {"int8": step.value, f"in_{chosen.rest}": [layer.name for layer in step.returned]} for step in steps
            ],
            "errors": {layer.name: error for layer, error in self.ranking},
        }
        with atomic_directory(self.failed, replace=True) as directory:
            onnx.save(chosen.model, directory / "model.onnx")
            onnx.save(chosen.quantised(), directory / f"model.{chosen.precision}.onnx")
            (directory / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
            (directory / "command.txt").write_text(shlex.join(self.command) + "\n", encoding="utf-8")
        return VerificationError(
            f"{chosen.precision} must keep {metric.describe()} within {self.options.max_drop:g} points of fp32's "
            f"{metric.reference:.2f} %; the best was {best.value:.2f} % with {len(best.returned)} of "
            f"{len(chosen.layers)} layers in {chosen.rest}, so no bundle was written; what was tried is in "
            f"{self.failed}: give other photos to --calibrate, or a larger --max-drop"
        )


class Metric:
    """The number that int8 must keep, in percent."""

    def __init__(self, data: TaskData[Any], manifest: Manifest, folder: str) -> None:
        """
        Args:
            data: what it is taken on.
            manifest: of the bundle.
            folder: where the data are from, in words.
        """
        self.data = data
        self.folder = folder
        self.manifest = manifest
        self.reference = 100.0  # the fp32 graph's, once that was measured
        self.name = ""
        self.samples = 0
        self._predictions: list[Any] = []  # the fp32 graph's, where there are no labels

    def describe(self) -> str:
        """What is measured, and on what."""
        return f"{self.name} on {self.samples} {self.data.kind} of {self.folder}"

    def measure(self, model: onnx.ModelProto, name: str) -> float:
        """The metric of a graph; the first one measured is the fp32 graph."""
        outputs = tuple(self.manifest.outputs)
        others = {output.name for output in model.graph.output} - set(outputs)
        with TemporaryDirectory(prefix="convmae-int8-") as folder:
            path = Path(folder) / "model.onnx"
            onnx.save(without_outputs(model, others), path)
            predictor = predictor_on(onnx_runner(path, outputs), self.manifest, name)
            predictions = self.data.predictions(predictor, title=f"Measuring {name}")
        first = not self.name
        if self.data.labelled:
            metric = self.data.metrics(predictions)[-1]
            self.name, self.samples, value = metric.name, metric.samples, metric.value
        else:
            self._predictions = predictions if first else self._predictions
            agreement = self.data.agreement(self._predictions, predictions)
            self.name = f"agreement with fp32 ({agreement.counted})"
            self.samples = sum(one is not None for one in predictions)
            value = 100 * agreement.share
        if first:
            self.reference = value
        return value


def scoring_data(calibration: CalibrationData, manifest: Manifest, data: Path | None) -> TaskData[Any]:
    """What the metric is taken on: the user's data, else what was put aside of the calibration's folder."""
    if data is not None:
        return read_task_data(data, manifest, limit=SCORED)
    return EXPORTS[manifest.task].unlabelled(calibration.others, manifest)


def excluded_layers(layers: Sequence[Layer], patterns: Sequence[str]) -> tuple[Layer, ...]:
    """The layers that patterns fit, as they are or as what is inside of a module.

    Raises:
        ConvMAEError: one fits none, or together they fit all.
    """
    found = []
    for pattern in patterns:
        own = [layer for layer in layers if fnmatchcase(layer.name, pattern) or fnmatchcase(layer.name, f"{pattern}.*")]
        if not own:
            names = [layer.name for layer in layers]
            like = [name for name in names if pattern in name][:3] or get_close_matches(pattern, names, cutoff=0.0)
            raise ConvMAEError(
                f"--exclude must name layers of the model, such as {', '.join(like)}, or patterns of them, such as "
                f"'*.attn.*'; none of its {len(names)} layers fits {pattern!r}"
            )
        found += [layer for layer in own if layer not in found]
    if layers and len(found) == len(layers):
        raise ConvMAEError("--exclude must leave a layer for int8; it names all of them")
    return tuple(found)


def names_of(layers: Sequence[Layer]) -> str:
    """Few layers by their names, of many the first and their number."""
    shown = ", ".join(layer.name for layer in layers[:3])
    return shown if len(layers) <= 3 else f"{shown} and {len(layers) - 3} more layers"
