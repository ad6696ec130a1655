"""What a failed run of a verification leaves: the first diverging layer, and a folder that reproduces it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.terminal import Terminal
from export.graphs.to_onnx import ExportedGraph
from export.reports.report import explanation_of, write_failure
from export.verification.combinations import Combination, RuntimeChoice, start
from export.verification.divergence import Divergence, find_divergence
from export.verification.elementwise import Failure, Verification, smallest_failing_images
from export.verification.gates import FP32, GATES, FloatArray
from export.verification.inputs import Batch
from export.verification.layer_errors import LayerErrors, layer_errors
from export.verification.runners import Runner, RunnerName, runners_for
from export.verification.verify_runs import Outcome, Reference, scatter_batch

LAYER_RUNNERS: dict[RuntimeChoice, RunnerName] = {"openvino": "openvino", "onnx-reference": "onnx reference"}
OWN_HINTS: dict[RuntimeChoice, str] = {"openvino": "openvino-fp32"}  # fp32 and int8 graphs, for reproduce.py


@dataclass(frozen=True, kw_only=True)
class Explainer:
    """Knows the graph that is right."""

    bundle: Bundle
    reference: Reference
    right: onnx.ModelProto  # the fp32 graph: of the checkpoint where there is one, else the bundle's own
    traced: ExportedGraph | None  # the bundle's fp32 graph with the program that it should compute
    fp32_file: str
    folder: Path  # of the reproducers, one for each file
    command: Sequence[str]

    def explain(self, outcome: Outcome) -> Outcome:
        """Finds the layer, writes the reproducer and says so in the outcome."""
        combination = outcome.combination
        assert outcome.report is not None
        verification = Verification(report=outcome.report, failures=outcome.failures)
        failure = verification.worst
        arrays: dict[str, FloatArray] = {self.bundle.manifest.input.name: failure.batch.images}
        divergence: Divergence | LayerErrors | None = None
        try:
            candidate, _ = start(combination, self.bundle)
            images = self._smallest(failure, candidate, combination)
            arrays = {self.bundle.manifest.input.name: images}
            arrays |= {f"expected_{name}": value for name, value in self.reference.runner(images).items()}
            arrays |= {f"found_{name}": value for name, value in candidate(images).items()}
            divergence = self.divergence(combination, images)
        except Exception as error:  # the graph does not run, or not in pieces: the failure itself must still be told
            Terminal(stderr=True).print(f"The diverging layer was not found: {error}", style="yellow", highlight=False)
        folder = self.folder / Path(combination.file).stem
        runs_in = (
            combination.runtime if combination.precision in ("fp16", "bf16") else OWN_HINTS.get(combination.runtime)
        )
        write_failure(
            folder,
            model=self.bundle.path / combination.file,
            verification=verification,
            divergence=divergence,
            arrays=arrays,
            command=self.command,
            runs_in=runs_in or combination.runtime,
            tolerance=GATES[combination.precision],
        )
        layer = None if divergence is None else explanation_of(divergence)
        told = "" if layer is None else f"; first diverging layer: {layer}"
        evidence = f"{told}; everything to reproduce it is in {folder}, run reproduce.py there"
        problems = (outcome.problems[0] + evidence, *outcome.problems[1:])
        return replace(outcome, divergence=layer, reproducer=folder, problems=problems)

    def divergence(self, combination: Combination, images: FloatArray) -> Divergence | LayerErrors:
        """The fp32 graph in ONNX Runtime is held against the traced program, any other graph against the right one."""
        if combination.file == self.fp32_file and combination.runtime == "onnxruntime" and self.traced is not None:
            return find_divergence(self.traced, images, FP32)
        return self.layers(combination, images)

    def layers(self, combination: Combination, images: FloatArray) -> LayerErrors:
        """A graph of the bundle module by module, on the first of some images."""
        precision = self.bundle.manifest.files[combination.file].precision
        runner = LAYER_RUNNERS.get(combination.runtime) or runners_for(precision)[0]
        model = onnx.load(self.bundle.path / combination.file)
        return layer_errors(self.right, model, images[:1], precision=precision, runner=runner)

    def layers_of_files(self, outcomes: Sequence[Outcome], batches: Sequence[Batch]) -> dict[str, LayerErrors]:
        """The layers of every graph of reduced precision that was run, on one picture, in its first runtime."""
        found: dict[str, LayerErrors] = {}
        for outcome in outcomes:
            file = outcome.combination.file
            known = self.bundle.manifest.files.get(file)
            if outcome.report is None or known is None or known.precision == "fp32" or file in found:
                continue
            try:
                found[file] = self.layers(outcome.combination, scatter_batch(batches).images)
            except Exception as error:  # no runtime's exceptions have a common base; the report lacks a plot then
                Terminal(stderr=True).print(f"No layers of {file}: {error}", style="yellow", highlight=False)
        return found

    def _smallest(self, failure: Failure, candidate: Runner, combination: Combination) -> FloatArray:
        """The one image that shows a failure, where it does alone and the graph itself gives the failing output."""
        if failure.output not in self.bundle.manifest.outputs:
            return failure.batch.images
        return smallest_failing_images(self.reference.runner, candidate, failure, GATES[combination.precision])
