"""The int8 file of a bundle: calibrated on real photos, held to the task's metric, its worst layers back in fp32.

1. The ranges of what the layers read, over the photos or videos of `--calibrate`; see `calibration`.
2. All layers in int8; see `quantisation`.
3. The task's metric of that graph and of the fp32 graph: on labelled data the task's own (top-1, mask AP, mIoU), on
   data without labels how often both say the same, and with no data at all the same on photos of the calibration's
   folder that were not used to calibrate.
4. While the metric falls by more than `--max-drop`, the layers that int8 hurts most go back to fp32; see `sensitivity`.

Deterministic: the same photos give the same file.
"""

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from numpy.typing import NDArray
from rich.console import Console

from convmae_deploy.bundle.manifest import Manifest
from convmae_deploy.bundle.numerics import Quantisation
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import atomic_directory
from convmae_deploy.tasks import task_of
from export.graph_files import without_outputs
from export.graphs.to_onnx import ExportedGraph
from export.int8.calibration import METHOD, CalibrationData, activation_ranges, read_calibration
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

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop <= 100:
            raise ConvMAEError(f"--max-drop must be between 0 and 100 points; got {self.max_drop:g}")


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
        self.model = onnx.ModelProto()  # in fp32
        self.layers: tuple[Layer, ...] = ()
        self.ranges: Ranges = {}
        self.ranking: tuple[tuple[Layer, float], ...] = ()  # empty until it is needed

    def make(self, graph: ExportedGraph) -> ExportedGraph:
        """Calibrates, quantises, and returns layers until the metric holds.

        Args:
            graph: in fp32; a detector's with its probes as outputs.

        Raises:
            VerificationError: it does not hold whatever is returned.
        """
        self.model = fold_weights(graph.model)
        self.layers = quantisable_layers(self.model)
        values = dict.fromkeys(value for layer in self.layers for value in layer.inputs)
        files = self.calibration.files
        self.ranges = activation_ranges(self.model, values, self.calibration.inputs(), len(files))
        metric = Metric(self.data, self.manifest, self._source())
        least = metric.measure(self.model, "fp32") - self.options.max_drop
        self.console.print(f"fp32: {metric.describe()} {metric.reference:.2f} %.", highlight=False)

        def score(returned: Sequence[Layer]) -> float:
            value = metric.measure(self._quantised(returned), "int8")
            in_fp32 = f", {names_of(returned)} in fp32" if returned else ""
            drop = metric.reference - value
            self.console.print(f"int8: {value:.2f} %, a drop of {drop:.2f} points{in_fp32}.", highlight=False)
            return value

        steps = find_step(self._ranked, len(self.layers), score, least)
        if steps[-1].value < least:
            raise self._failure(steps, metric)
        return replace(
            graph,
            model=self._quantised(steps[-1].returned),
            quantisation=Quantisation(
                calibrated_on=f"{len(files)} {self.calibration.kind} of {self.options.calibrate.resolve().name}",
                method=METHOD,
                layers=len(self.layers) - len(steps[-1].returned),
                returned=tuple(layer.name for layer in steps[-1].returned),
                metric=metric.describe(),
                samples=metric.samples,
                fp32=metric.reference,
                int8=steps[-1].value,
                max_drop=self.options.max_drop,
            ),
        )

    def _source(self) -> str:
        """Where the data of the metric are from; names alone, as paths tell nobody else anything."""
        if self.options.data is not None:
            return self.options.data.resolve().name
        return f"{self.options.calibrate.resolve().name} that are not calibrated on"

    def _quantised(self, returned: Sequence[Layer]) -> onnx.ModelProto:
        names = {layer.weight for layer in returned}
        return quantise(self.model, [layer for layer in self.layers if layer.weight not in names], self.ranges)

    def _ranked(self) -> list[Layer]:
        model, feeds = self._ranked_on()
        total = min(RANKED, len(self.calibration.files))
        self.ranking = rank_layers(model, self.layers, self.ranges, feeds, total)
        return [layer for layer, _ in self.ranking]

    def _ranked_on(self) -> tuple[onnx.ModelProto, Iterator[dict[str, NDArray[Any]]]]:
        """The graph whose outputs count, and what to run it on."""
        name = self.manifest.input.name
        images = (image for image, _ in zip(self.calibration.inputs(), range(RANKED), strict=False))
        task = task_of(self.manifest)
        if not task.GIVES_LISTS:  # lists have no order to compare in: they are ranked by what the heads give
            others = {output.name for output in self.model.graph.output} - {task.KEY_OUTPUT}
            return without_outputs(self.model, others), ({name: image} for image in images)
        graph = open_graph("onnxruntime", self.model)

        def fed() -> Iterator[dict[str, NDArray[Any]]]:
            for image in images:
                found = graph.run(FED, {name: image})
                yield {name: image, **{REFERENCE + value: found[value] for value in FED}}

        return with_fed_heads(self.model), fed()

    def _failure(self, steps: Sequence[Step], metric: "Metric") -> VerificationError:
        """Leaves both graphs and what was tried, and says so."""
        best = max(steps, key=lambda step: step.value)
        report = {
            "metric": metric.describe(),
            "fp32": metric.reference,
            "max_drop": self.options.max_drop,
            "steps": [{"int8": step.value, "in_fp32": [layer.name for layer in step.returned]} for step in steps],
            "errors": {layer.name: error for layer, error in self.ranking},
        }
        with atomic_directory(self.failed, replace=True) as directory:
            onnx.save(self.model, directory / "model.onnx")
            onnx.save(self._quantised(()), directory / "model.int8.onnx")
            (directory / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
            (directory / "command.txt").write_text(shlex.join(self.command) + "\n", encoding="utf-8")
        return VerificationError(
            f"int8 must keep {metric.describe()} within {self.options.max_drop:g} points of fp32's "
            f"{metric.reference:.2f} %; the best was {best.value:.2f} % with {len(best.returned)} of "
            f"{len(self.layers)} layers in fp32, so no bundle was written; what was tried is in {self.failed}: give "
            "other photos to --calibrate, or a larger --max-drop"
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


def names_of(layers: Sequence[Layer]) -> str:
    """Few layers by their names, of many the first and their number."""
    shown = ", ".join(layer.name for layer in layers[:3])
    return shown if len(layers) <= 3 else f"{shown} and {len(layers) - 3} more layers"
