"""`python -m export.verify BUNDLE --checkpoint RUN [--data FOLDER]`: does a finished bundle give PyTorch's numbers?

What is compared, each against the checkpoint that the bundle was made from:

1. The files with the hashes of the manifest, and the licence.
2. The graph in ONNX Runtime with the PyTorch model, on the inputs and with the gates of `python -m export`. Where one
   does not hold, the first diverging layer is named and a folder that reproduces it is left.
3. The manifest's task, classes and preprocessing with the checkpoint's. A wrong mean, or means in the order of BGR,
   cannot show in 2, as the graph takes pixels that are normalised already; here every figure is compared.
4. With `--data` for classifiers, `FOLDER/val/<class>/*`: top-1 of PyTorch with the checkpoint's preprocessing and of
   the bundle as it is served with the manifest's, and that they agree on every photo that is no near tie. It says what
   a difference found in 2 or 3 costs.

Exit status: 0 where all holds, 1 where something does not, 2 where the request cannot be carried out.
"""

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import onnx
import torch
import tyro
from rich.console import Console

from convmae_deploy.checkpoints.native import WEIGHTS_NAME, find_checkpoint
from convmae_deploy.data.photo_folder import PhotoFolder
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import check_can_create, sha256_of
from convmae_deploy.program import SOME_INPUTS_BAD
from convmae_deploy.runtime.base_predictor import ModelOutputError
from convmae_deploy.runtime.bundle import Bundle, BundleError, load_bundle
from convmae_deploy.runtime.manifest import MANIFEST_NAME, Manifest, input_axes
from convmae_deploy.runtime.predictor import Classifier
from export.agreement import SPLIT, measure_agreement, read_labelled
from export.inputs import verification_batches
from export.packaging import check_with_runtime
from export.report import FAILED_SUFFIX, print_report
from export.runners import onnx_runner
from export.tasks import ExportTask, open_task
from export.to_onnx import ExportedGraph, export_graph
from export.verification import explain, photo_batch, run_verification, verification_samples
from export.verify import Verification, VerificationError


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Holds a finished bundle against the checkpoint that it was made from."""

    bundle: Annotated[Path, tyro.conf.Positional]  # folder that python -m export wrote
    checkpoint: Path  # the run folder or checkpoint
    # photos or videos for the comparison, labelled ones for top-1; default: those the run was validated on, else made
    data: Path | None = None
    out: Path | None = None  # folder for what reproduces a failure; default: beside the bundle, its name with .failed

    @property
    def failed(self) -> Path:
        """Where the reproducer goes; an older one is replaced."""
        bundle = self.bundle.resolve()
        return bundle.with_name(bundle.name + FAILED_SUFFIX) if self.out is None else self.out


def verify_bundle(config: VerifyConfig, console: Console, command: Sequence[str]) -> Verification:
    """Prints the table and what else was compared.

    Args:
        config: what to compare.
        console: where the report goes.
        command: the program's arguments, for the reproducer.

    Raises:
        BundleError: a file was changed.
        VerificationError: something does not hold; the message is about all of it.
        ConvMAEError: the request cannot be carried out.
    """
    if not (config.bundle / MANIFEST_NAME).is_file():
        raise ConvMAEError(f"a bundle is a folder with a {MANIFEST_NAME}; found none at {config.bundle}")
    check_can_create(config.failed)
    bundle = load_bundle(config.bundle)
    path, description = bundle.graph()
    if description.precision != "fp32":
        raise ConvMAEError(f"{path} is {description.precision}; only fp32 graphs have gates here")
    task = open_reference(bundle, config.checkpoint)
    if config.data is not None and task.task == "classification":
        labelled = read_labelled(config.data, bundle.manifest.classes)  # before minutes of work
    else:
        labelled = None
    samples = verification_samples(task.preprocessing, config.data, config.checkpoint)
    batches = verification_batches(task.preprocessing, samples, bundle.manifest.input.max_batch)
    with console.status("Tracing the checkpoint's model ..."):
        graph = traced_graph(path, task, bundle.manifest)
    verification = run_verification(task, graph, path, batches)
    print_report(verification.report, console)
    problems = manifest_problems(bundle.manifest, task)
    if labelled is not None and all(row.max_abs < float("inf") for row in verification.report.outputs.values()):
        problems += labelled_problems(task, config.bundle, labelled, console)
    elif config.data is not None and labelled is None and task.task == "classification":
        console.print(f"No top-1: {config.data} has no folder {SPLIT} of classes.", highlight=False)
    origin = origin_note(bundle.manifest, config.checkpoint)
    if origin is not None:
        console.print(f"Note: {origin}.", highlight=False)
    if verification.failures:
        runner = onnx_runner(path, task.outputs)
        error = explain(task, graph, runner, verification, config.failed, command, "")
        problems.insert(0, str(error) if origin is None else f"{error}; {origin}")
    if problems:
        raise VerificationError("; and ".join(problems))
    check_with_runtime(config.bundle, task.reference, photo_batch(batches), task.check)
    return verification


def open_reference(bundle: Bundle, checkpoint: Path) -> ExportTask:
    """The checkpoint's model for the bundle's image size.

    Raises:
        ConvMAEError: it is one for another task, or cannot be opened.
    """
    task = open_task(checkpoint, bundle.manifest.preprocessing.input_size)
    if task.task != bundle.manifest.task:
        raise ConvMAEError(
            f"{bundle.path} is a {bundle.manifest.task} model and {checkpoint} one for {task.task}; "
            "give the checkpoint that it was exported from"
        )
    return task


def traced_graph(path: Path, task: ExportTask, manifest: Manifest) -> ExportedGraph:
    """The bundle's graph with the traced program that it should compute, and with the task's probes as outputs.

    Raises:
        BundleError: the graph is no ONNX model.
        VerificationError: it lacks a value that the verification looks at.
    """
    fresh = export_graph(
        task.wrapper, input_axes(task.preprocessing), manifest.input.max_batch, (*task.outputs, *task.probes)
    )
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's exceptions differ from version to version
        raise BundleError(f"{path} is no ONNX model; export it again") from error
    return ExportedGraph(with_outputs(model, fresh.model, task.probes), fresh.program, fresh.outputs)


def with_outputs(model: onnx.ModelProto, source: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """`model` with values that it has inside as outputs too, declared as `source` declares them.

    Raises:
        VerificationError: it has no such value.
    """
    produced = {name for node in model.graph.node for name in node.output}
    missing = [name for name in names if name not in produced]
    if missing:
        raise VerificationError(f"the graph lacks the values {', '.join(missing)}, which every export has")
    model.graph.output.extend(output for output in source.graph.output if output.name in names)
    return model


def manifest_problems(manifest: Manifest, task: ExportTask) -> list[str]:
    """What the manifest says otherwise than the checkpoint, a clause each."""
    pairs = {
        "category_ids": (task.record.category_ids, manifest.category_ids),
        **{
            f"preprocessing.{field}": (value, getattr(manifest.preprocessing, field, None))
            for field, value in task.preprocessing
        },
    }
    problems = [
        f"the manifest's {name} must be {expected} as in the checkpoint, found {found}"
        for name, (expected, found) in pairs.items()
        if expected != found
    ]
    if task.record.classes != manifest.classes:
        problems.insert(0, classes_problem(task.record.classes, manifest.classes))
    return problems


def classes_problem(expected: tuple[str, ...], found: tuple[str, ...]) -> str:
    """How two lists of class names differ."""
    if len(expected) != len(found):
        return f"the manifest must name the checkpoint's {len(expected)} classes, found {len(found)}"
    index = next(index for index, pair in enumerate(zip(expected, found, strict=True)) if pair[0] != pair[1])
    return f"the manifest's class {index} must be {expected[index]!r} as in the checkpoint, found {found[index]!r}"


def labelled_problems(task: ExportTask, bundle: Path, folder: PhotoFolder, console: Console) -> list[str]:
    """Prints top-1 of both sides; what is wrong with it, if anything."""
    try:
        agreement = measure_agreement(task, Classifier.open(bundle, device="cpu"), folder)
    except ModelOutputError as error:
        return [f"the bundle does not classify the labelled photos: {error}"]
    sentence = agreement.sentence()
    console.print(f"Labelled photos: {sentence}.", highlight=False)
    return [sentence] if agreement.agreeing < agreement.decided else []


def origin_note(manifest: Manifest, checkpoint: Path) -> str | None:
    """Said where the bundle was made from other weights, or by another PyTorch, than those at hand."""
    stated = manifest.provenance.get("checkpoint_sha256")
    if stated is not None and stated != sha256_of(find_checkpoint(checkpoint) / WEIGHTS_NAME):
        return f"the bundle says that it was exported from other weights, of the SHA-256 {stated}"
    made_by = manifest.tools.get("torch", torch.__version__)
    if made_by != torch.__version__:
        return f"the bundle was exported by torch {made_by}, here is {torch.__version__}: names of layers may differ"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    config = tyro.cli(VerifyConfig, args=given, prog="python -m export.verify", description=VerifyConfig.__doc__)
    console = Console()
    try:
        verify_bundle(config, console, ["python", "-m", "export.verify", *given])
    except (VerificationError, BundleError) as error:
        print(f"error: {error}", file=sys.stderr)
        return SOME_INPUTS_BAD
    console.print(f"Verified: {config.bundle}", highlight=False)
    return 0
