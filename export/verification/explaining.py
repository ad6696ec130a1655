"""What a failed verification leaves: the first diverging layer, and a folder that reproduces it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from convmae_deploy.backends.base import FloatArray
from convmae_deploy.backends.engine_record import ENGINE_SUFFIX, read_record
from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.bundle.manifest import Precision
from convmae_deploy.terminal import Terminal
from export.graph_files import read_model
from export.graphs.to_onnx import ExportedGraph
from export.runtimes.combinations import GRAPH_RUNTIMES, Combination
from export.runtimes.runners import Runner, runtimes_for, start
from export.verification.divergence import Divergence, find_divergence
from export.verification.elementwise import Verification, smallest_failing_images
from export.verification.engine_bisection import EngineProbe, find_in_engine
from export.verification.gates import FP32, GATES
from export.verification.inputs import Batch
from export.verification.layer_errors import LayerErrors, layer_errors
from export.verification.reproducer import write_failure
from export.verification.verify_runs import Outcome, Reference, scatter_batch


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A graph that failed, and how to look into it."""

    model: onnx.ModelProto | Path  # the graph, or its file
    input: str  # name of its input
    min_batch: int  # images that it takes at once, at least
    outputs: tuple[str, ...]  # that `start` gives; others cannot be had from the bundle's own graph
    precision: Precision  # whose gate it failed
    runtime: str  # by the name that reproduce.py knows
    start: Callable[[], Runner]
    find: Callable[[FloatArray], Divergence | LayerErrors]  # on images (B, ...) that show the failure


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was found out about a failure; in words, what follows the failure in a sentence."""

    layer: str | None  # the first diverging one, in one clause; None: it was not found
    folder: Path
    unwritten: str | None = None  # why the system refused the folder; None: it is there

    def __str__(self) -> str:
        layer = "" if self.layer is None else f"; first diverging layer: {self.layer}"
        if self.unwritten is not None:
            return f"{layer}; what reproduces it could not be written to {self.folder} ({self.unwritten})"
        return f"{layer}; everything to reproduce it is in {self.folder}, run reproduce.py there"


def explain(
    suspect: Suspect, verification: Verification, reference: Runner, folder: Path, command: Sequence[str]
) -> Evidence:
    """Finds the layer and writes the reproducer.

    Args:
        suspect: what failed.
        verification: with at least one failure.
        reference: gives the numbers that hold.
        folder: of the reproducer; an older one is replaced.
        command: the program's arguments, for the reproducer.
    """
    failure, gate = verification.worst, GATES[suspect.precision]
    divergence: Divergence | LayerErrors | None = None
    images = failure.batch.images
    arrays = {suspect.input: images}
    try:
        runner = suspect.start()
        if failure.output in suspect.outputs:
            images = smallest_failing_images(reference, runner, failure, gate, least=suspect.min_batch)
        arrays = {suspect.input: images}
        arrays |= {f"expected_{name}": value for name, value in reference(images).items()}
        arrays |= {f"found_{name}": value for name, value in runner(images).items()}
        divergence = suspect.find(images)
    except Exception as error:  # the graph does not run, or not in pieces: the failure itself must still be told
        Terminal(stderr=True).print(f"The diverging layer was not found: {error}", style="yellow", highlight=False)
    unwritten = None
    try:
        write_failure(
            folder,
            model=suspect.model,
            verification=verification,
            divergence=divergence,
            arrays=arrays,
            command=command,
            runs_in=suspect.runtime,
            tolerance=gate,
        )
    except OSError as error:  # a full disk must not hide the failure
        unwritten = error.strerror or str(error)
    layer = None if divergence is None else divergence.explanation
    return Evidence(layer=layer, folder=folder, unwritten=unwritten)


@dataclass(frozen=True, kw_only=True)
class Explainer:
    """Looks into the failures of a bundle's files; knows the graph that is right."""

    bundle: Bundle
    reference: Reference
    right: onnx.ModelProto  # the fp32 graph: of the checkpoint where there is one, else the bundle's own
    traced: ExportedGraph | None  # the bundle's fp32 graph with the program that it should compute
    folder: Path  # where the reproducers go, a folder for each file
    command: Sequence[str]

    @property
    def min_batch(self) -> int:
        """Images that every graph of the bundle takes."""
        return self.bundle.manifest.input.min_batch

    def explain(self, outcome: Outcome) -> Outcome:
        """The outcome with the first diverging layer and where its reproducer is."""
        one = outcome.combination
        assert outcome.report is not None
        suspect = Suspect(
            model=self.bundle.path / one.file,
            input=self.bundle.manifest.input.name,
            min_batch=self.min_batch,
            outputs=tuple(self.bundle.manifest.outputs),
            precision=one.gate,
            runtime=one.runtime if one.computes_in is None else f"{one.runtime}-{one.computes_in}",
            start=lambda: start(one, self.bundle)[0],
            find=lambda images: self.divergence(one, images),
        )
        verification = Verification(report=outcome.report, failures=outcome.failures)
        of_engine = one.file.endswith(ENGINE_SUFFIX)  # whose graph may have failed too
        folder = self.folder / (one.file.replace("/", "-") if of_engine else Path(one.file).stem)
        evidence = explain(suspect, verification, self.reference.runner, folder, self.command)
        problems = (f"{outcome.problems[0]}{evidence}", *outcome.problems[1:])
        return replace(outcome, divergence=evidence.layer, reproducer=folder, problems=problems)

    def divergence(self, one: Combination, images: FloatArray) -> Divergence | LayerErrors:
        """The fp32 graph in ONNX Runtime is held against the traced program, any other graph against the right one.

        Of an engine other engines are built: see `engine_bisection`.
        """
        if one.file.endswith(ENGINE_SUFFIX):
            return self.in_engine(one, images)
        if one.file == self.bundle.default_file and one.runtime == "onnxruntime" and self.traced is not None:
            return find_divergence(self.traced, images, FP32)
        return self.layers(one, images)

    def in_engine(self, one: Combination, images: FloatArray) -> Divergence:
        """An engine, module by module, on as few of some images as it takes."""
        record = read_record(self.bundle.path / one.file)
        probe = EngineProbe(
            bundle=self.bundle,
            record=record,
            combination=one,
            model=onnx.load(self.bundle.path / record.graph),
            images=images[: self.min_batch],
        )
        return find_in_engine(self.right, probe)

    def layers(self, one: Combination, images: FloatArray) -> LayerErrors:
        """A graph of the bundle module by module, on as few of some images as it takes, computed as it is written."""
        precision = self.bundle.manifest.files[one.file].precision
        written = one.runtime in GRAPH_RUNTIMES and precision not in GRAPH_RUNTIMES[one.runtime].widens
        runtime = one.runtime if written and one.computes_in != "bf16" else runtimes_for(precision)[0]
        model = read_model(self.bundle.path / one.file)
        return layer_errors(self.right, model, images[: self.min_batch], precision=precision, runtime=runtime)

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
