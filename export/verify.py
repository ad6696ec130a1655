"""`python -m export.verify BUNDLE [--checkpoint RUN] [--data FOLDER]`: does a finished bundle give the right numbers?

All files of the bundle are run on all runtimes that are here, those of TensorRT and CUDA where there is a GPU, and held
against PyTorch with the weights of `--checkpoint`, or without it against the bundle's own fp32 graph in ONNX Runtime:

1. The files with the hashes of the manifest, and the licence.
2. Every output, on random numbers, pictures and constants at several batch sizes, with the gates of the file's
   precision. Where one does not hold, the first diverging layer is named and a folder that reproduces it is left.
3. With a checkpoint, the manifest's task, classes and preprocessing. A wrong mean, or means in the order of BGR, cannot
   show in 2, as the graph takes pixels that are normalised already; here every figure is compared.
4. With `--data`, the bundle as it is served: where there are labels (see `task_metrics`) top-1, mAP or mIoU of the
   reference and of each file, and always how often they agree. It says what a difference found in 2 or 3 costs.

`--report FILE.html` writes all of it as one page for those who decide on a deployment.

Exit status: 0 where all holds, 1 where something does not, 2 where the request cannot be carried out.
"""

import shlex
import sys
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import onnx
import torch
import tyro
from rich.console import Console

from convmae_deploy.bundle.graph_checks import checked_path
from convmae_deploy.bundle.loading import Bundle, BundleError
from convmae_deploy.bundle.manifest import KIT_NAME, MANIFEST_NAME, Manifest
from convmae_deploy.checkpoints.native import WEIGHTS_NAME, find_checkpoint
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import atomic_file, check_can_create, sha256_of
from convmae_deploy.printing import printable
from convmae_deploy.program import SOME_INPUTS_BAD, failures_in_words, run_program
from convmae_deploy.tasks import load_bundle, task_of
from convmae_deploy.terminal import Terminal
from export import failures
from export.graph_files import read_model
from export.graphs.to_onnx import ExportedGraph, export_graph
from export.reports.html_report import html_report
from export.reports.outcomes import print_outcomes
from export.runtimes.combinations import Combination, Verified, to_verify
from export.runtimes.runners import start
from export.steps import run_verification
from export.tasks import SPLIT, open_task, read_task_data
from export.tasks.base import ExportTask, with_input
from export.verification.elementwise import VerificationError
from export.verification.explaining import Explainer
from export.verification.inputs import Batch, verification_batches
from export.verification.reproducer import FAILED_SUFFIX
from export.verification.samples import verification_samples
from export.verification.task_data import TaskData
from export.verification.task_metrics import predictor_on
from export.verification.verify_runs import Examiner, KeptRunner, Outcome, Reference, Results, TaskOutcome


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Holds a finished bundle against the checkpoint that it was made from, file by file and runtime by runtime."""

    bundle: Annotated[Path, tyro.conf.Positional]  # folder that python -m export wrote
    # the run folder or checkpoint; default: none, the bundle's own fp32 graph in ONNX Runtime is the reference
    checkpoint: Path | None = None
    file: tuple[str, ...] = ()  # which files of the bundle; default: all, engines too
    runtime: tuple[Verified, ...] = ()  # what to run them on; default: all that are here
    # run the programs inside version-compatible engines, with all of your rights: built by you or somebody you trust
    trust_engine_code: bool = False
    # photos or videos, labelled ones for the task's metric; default: those the run was validated on, else made
    data: Path | None = None
    split: str = SPLIT  # which part of labelled data
    limit: int | None = None  # so many photos or videos of the data at most, spread evenly; default: all
    report: Path | None = None  # a page to write, FILE.html; default: none
    out: Path | None = None  # folder for what reproduces a failure; default: beside the bundle, its name with .failed

    def __post_init__(self) -> None:
        if self.report is not None and self.report.suffix not in (".html", ".htm"):
            raise ConvMAEError(f"--report must be the name of a page, FILE.html; got {self.report}")

    @property
    def failed(self) -> Path:
        """Where the reproducers go, in a folder for each file; older ones are replaced."""
        bundle = self.bundle.resolve()
        return bundle.with_name(bundle.name + FAILED_SUFFIX) if self.out is None else self.out


def verify_bundle(config: VerifyConfig, console: Console, command: Sequence[str]) -> Results:
    """Prints the tables and what else was compared, and writes the page.

    Args:
        config: what to compare.
        console: where the tables go.
        command: the program's arguments, for the page and the reproducers.

    Raises:
        BundleError: a file was changed.
        VerificationError: something does not hold; the message is about all of it.
        ConvMAEError: the request cannot be carried out.
    """
    if not (config.bundle / MANIFEST_NAME).is_file():
        raise ConvMAEError(f"a bundle is a folder with a {MANIFEST_NAME}; found none at {config.bundle}")
    try:
        check_can_create(config.failed)
    except ConvMAEError as error:
        raise ConvMAEError(f"{error} for what reproduces a failure, with --out FOLDER") from None
    if config.report is not None:
        check_can_create(config.report)
    bundle = load_bundle(config.bundle)
    if config.checkpoint is None:
        check_has_reference(bundle)
    combinations = to_verify(bundle, config.file, config.runtime, trusted=config.trust_engine_code)
    size, task = bundle.manifest.preprocessing.input_size, None
    if config.checkpoint is not None:
        task = with_input(open_task(config.checkpoint, size, bundle.manifest.task), bundle.manifest.input.dtype)
    reference = torch_reference(bundle, task) if task is not None else own_reference(bundle)
    data = None  # before minutes of work: a mistake in them ends it all
    if config.data is not None:
        data = read_task_data(config.data, bundle.manifest, split=config.split, limit=config.limit)
    spec = reference.manifest.preprocessing
    medium = task_of(bundle.manifest)
    samples = verification_samples(medium, spec, config.data, config.checkpoint)
    batches = verification_batches(medium, spec, samples, bundle.manifest.input)
    with tempfile.TemporaryDirectory() as folder:
        if task is None:
            traced, right = None, read_model(checked_path(bundle, None))
        else:
            with console.status("Tracing the checkpoint's model ..."):
                traced, right = traced_graph(bundle, task, Path(folder))
        explainer = Explainer(
            bundle=bundle,
            reference=reference,
            right=right,
            traced=traced,
            folder=config.failed,
            command=command,
        )
        results = examine_all(bundle, reference, combinations, batches, data, task, explainer)
    results = replace(
        results,
        manifest_problems=() if task is None else tuple(manifest_problems(bundle.manifest, task)),
        notes=tuple(notes_on(bundle, config, data)),
    )
    print_outcomes(results, console)
    if config.report is not None:
        with atomic_file(config.report) as temporary:
            temporary.write_text(html_report(results, command), encoding="utf-8")
        console.print(f"Report: {config.report}", highlight=False)
    if results.problems:
        origin = None if config.checkpoint is None else origin_note(bundle.manifest, config.checkpoint)
        raise VerificationError("; and ".join([*results.problems, *([] if origin is None else [origin])]))
    return results


def check_has_reference(bundle: Bundle) -> None:
    """Raises ConvMAEError where there is no fp32 file, and says what can be done without the checkpoint."""
    path, description = bundle.graph()
    if description.precision == "fp32":
        return
    advice = "give --checkpoint RUN"
    runs_photos = description.precision == "fp16" and bundle.manifest.input.min_batch == 1  # in ONNX Runtime, singly
    if runs_photos and (bundle.path / KIT_NAME).is_file():
        command = ["convmae", "conform", str(bundle.path), "--onnx", str(path), "--precision", description.precision]
        advice += f", or hold it against PyTorch's numbers for the kit's photos with {shlex.join(command)}"
    raise ConvMAEError(f"{bundle.path} has no fp32 file, which the others could be held against; {advice}")


def examine_all(
    bundle: Bundle,
    reference: Reference,
    combinations: Sequence[Combination],
    batches: list[Batch],
    data: TaskData[Any] | None,
    task: ExportTask | None,
    explainer: Explainer,
) -> Results:
    """Every combination against the reference, failures explained, once for each file.

    Args:
        bundle: whose files.
        reference: what is right.
        combinations: files on runtimes; those that cannot be run are taken over as they are.
        batches: the inputs of the graphs.
        data: the user's.
        task: of the checkpoint; None: there is none.
        explainer: of failures.
    """
    predictions, reference_task = None, None
    if data is not None:
        predictor = predictor_on(reference.runner, reference.manifest, reference.short)
        predictions = data.predictions(predictor, title=f"{reference.short}: {data.kind}")
        reference_task = TaskOutcome(metrics=data.metrics(predictions))
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        kept = replace(reference, runner=KeptRunner(reference.runner, Path(folder)))
        examiner = Examiner(
            bundle=bundle, reference=kept, batches=batches, data=data, reference_predictions=predictions
        )
        for combination in combinations:
            is_first = combination.file == bundle.default_file and combination.runtime == "onnxruntime"
            if is_first and task is None and combination.reason is None:
                continue  # it is the reference
            verification = None
            if is_first and task is not None and explainer.traced is not None and combination.reason is None:
                verification = run_verification(task, explainer.traced, bundle.graph()[0], batches)
            outcome = examiner.examine(combination, verification)
            explained = any(other.reproducer and other.combination.file == combination.file for other in outcomes)
            outcomes.append(explainer.explain(outcome) if outcome.failures and not explained else outcome)
    return Results(
        bundle=bundle,
        reference=reference,
        outcomes=tuple(outcomes),
        reference_task=reference_task,
        data=data,
        layers=explainer.layers_of_files(outcomes, batches),
    )


def torch_reference(bundle: Bundle, task: ExportTask) -> Reference:
    """PyTorch, with the checkpoint's own classes and preprocessing."""
    fields = {"classes": task.record.classes, "preprocessing": task.preprocessing}
    return Reference(
        runner=task.reference,
        title=f"torch {torch.__version__} eager fp32 (cpu)",
        short="PyTorch",
        manifest=bundle.manifest.model_copy(update=fields),
    )


def own_reference(bundle: Bundle) -> Reference:
    """The bundle's fp32 graph in ONNX Runtime."""
    combination = Combination(file=bundle.default_file, runtime="onnxruntime", precision="fp32")
    runner, runtime = start(combination, bundle)
    return Reference(
        runner=runner,
        title=f"{bundle.default_file} in {runtime}",
        short=f"{bundle.default_file} in ONNX Runtime",
        manifest=bundle.manifest,
    )


def traced_graph(bundle: Bundle, task: ExportTask, folder: Path) -> tuple[ExportedGraph | None, onnx.ModelProto]:
    """The bundle's fp32 graph with the traced program that it should compute and the task's probes as outputs; and a
    fresh graph, the right one. The first is None where the bundle has no fp32 graph.

    Args:
        bundle: whose first graph is meant.
        task: of the checkpoint.
        folder: for the weights of a fresh graph that does not fit into memory as one.

    Raises:
        BundleError: the graph is no ONNX model.
        VerificationError: it lacks a value that the verification looks at.
    """
    path, description = bundle.graph()
    try:
        model = read_model(path)
    except Exception as error:  # protobuf's exceptions differ from version to version
        raise BundleError(f"{path} is no ONNX model; export it again") from error
    fixed = model.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")
    names = (*task.outputs, *task.probes)
    fresh = export_graph(task.wrapper, bundle.manifest.input, names, path=folder / "model.onnx", fixed_batch=fixed)
    if description.precision != "fp32":
        return None, fresh.model
    return ExportedGraph(with_outputs(model, fresh.model, task.probes), fresh.program, fresh.outputs), fresh.model


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


def notes_on(bundle: Bundle, config: VerifyConfig, data: TaskData[Any] | None) -> list[str]:
    """What a reader must know besides the results, sentences without their full stop; where it is from comes first."""
    notes = []
    numerics = bundle.graph()[1].numerics
    if config.checkpoint is not None:
        origin = origin_note(bundle.manifest, config.checkpoint)
        notes += [] if origin is None else [origin]
    elif numerics is None or not numerics.passed:
        state = "was never verified" if numerics is None else "failed its verification"
        notes.append(f"the reference is {bundle.default_file}, which {state} against PyTorch; give --checkpoint")
    else:
        notes.append(
            f"without a checkpoint the reference is {bundle.default_file} in ONNX Runtime, of which the manifest says "
            f"that it was verified against {numerics.reference}"
        )
    if data is not None and not data.labelled:
        notes.append(
            f"the {len(data.files)} {data.kind} of --data have no labels that are known here, so there is no metric, "
            "only agreement"
        )
    return notes


def origin_note(manifest: Manifest, checkpoint: Path) -> str | None:
    """Said where the bundle was made from other weights, or by another PyTorch, than those at hand."""
    stated = manifest.provenance.get("checkpoint_sha256")
    if stated is not None and stated != sha256_of(find_checkpoint(checkpoint) / WEIGHTS_NAME):
        return f"the bundle says that it was exported from other weights, of the SHA-256 {stated}"
    made_by = manifest.tools.get("torch", torch.__version__)
    if made_by != torch.__version__:
        return f"the bundle was exported by torch {made_by}, here is {torch.__version__}: names of layers may differ"
    return None


@failures_in_words(failures.in_words)
def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    config = tyro.cli(VerifyConfig, args=given, prog="python -m export.verify", description=VerifyConfig.__doc__)
    console = Terminal()
    try:
        verify_bundle(config, console, ["python", "-m", "export.verify", *given])
    except (VerificationError, BundleError) as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return SOME_INPUTS_BAD
    console.print(f"Verified: {config.bundle}", highlight=False)
    return 0


if __name__ == "__main__":
    run_program(main)
