"""`python -m export RUN_OR_CHECKPOINT --out BUNDLE`: a model as an ONNX bundle, written only if its numbers hold.

`--precision fp32,fp16,bf16,int8,int8-fp16` writes a file in each: `model.onnx`, which is always there,
`model.fp16.onnx` and so on. Each is held against PyTorch in fp32 with the gates of its precision; those with int8
layers, which need photos by `--calibrate`, have the task's metric as their gate. Most of the time goes into that:
seconds for a nano, minutes for a ConvMAE-B on two CPU cores.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Self

import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from convmae_deploy.backends.base import FloatArray
from convmae_deploy.bundle.graph_metadata import metadata_of
from convmae_deploy.bundle.manifest import INT8, MAX_BATCH, NAME_PATTERN, BundleFile, Manifest, Precision, SideRange
from convmae_deploy.bundle.preprocessing import InputType
from convmae_deploy.checkpoints.native import CONFIG_NAME, WEIGHTS_NAME, find_checkpoint
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import atomic_directory, check_is_new, sha256_of
from convmae_deploy.models.convmae import check_image_size
from convmae_deploy.program import failures_in_words, run_program
from convmae_deploy.tasks import TASKS
from convmae_deploy.terminal import Terminal
from export import failures
from export.comma_list import comma_list
from export.conformance_kit import add_kit
from export.costs import CostMeter
from export.graph_files import write_graph
from export.graphs.to_onnx import (
    BFLOAT16_OPSET,
    HALF_SCALES_OPSET,
    ONNX_LIMIT_BYTES,
    OPSETS,
    ExportedGraph,
    weight_bytes,
)
from export.graphs.traced import peak_bytes_per_image
from export.int8.maker import Int8Maker, Int8Options
from export.packaging import (
    BundleContent,
    check_with_runtime,
    describe_file,
    find_licence,
    unmade_manifest,
    write_manifest,
)
from export.precisions import GRAPHS, GraphRequest, file_name, parse_precision
from export.reports.outcomes import print_report
from export.runtimes.runners import file_runner, runtimes_for
from export.steps import find_loss, photo_batch, run_verification
from export.tasks import open_task
from export.tasks.base import ExportTask, with_input
from export.tool_versions import tool_versions
from export.unfinished import Unfinished, temporary_files_in, unfinished
from export.verification.divergence import Divergence, find_divergence
from export.verification.elementwise import Verification, VerificationError
from export.verification.explaining import Suspect, explain
from export.verification.gates import GATES
from export.verification.inputs import Batch, verification_batches
from export.verification.layer_errors import LayerErrors
from export.verification.reproducer import FAILED_SUFFIX
from export.verification.samples import Samples, verification_samples

# for what a file holds, and what it says of itself
DECISIVE = (
    "task",
    "bundle_name",
    "image_size",
    "dynamic_size",
    "static_batch",
    "input",
    "max_batch",
    "opset",
    "data",
    "calibrate",
    "max_drop",
    "licence",
)
MEMORY_BUDGET = 2 * 2**30  # bytes that one forward pass of the largest batch may take in the verification


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Exports a finetuned model, of photos or of videos, to ONNX and proves its numbers against PyTorch."""

    checkpoint: Annotated[Path, tyro.conf.Positional]  # run folder or checkpoint of a training or convmae import
    out: Path  # the bundle to create; must not exist
    # the files to write, as fp32,fp16,bf16,int8,int8-fp16 (what is not in int8 in fp16, not fp32); fp32, the bundle's
    # default, is written too unless --without-fp32
    precision: Annotated[tuple[Precision, ...], comma_list(parse_precision, "PRECISION,...")] = ("fp32",)
    # the half precision of --precision alone: half the disk, memory and time, for models that are large
    without_fp32: bool = False
    # what it is for, by the name of a task; features (of videos: video-features) leave the head out and can be taken
    # from any checkpoint that holds an encoder; default: what it was trained for
    task: Annotated[str | None, tyro.conf.arg(metavar="|".join(TASKS))] = None
    name: str | None = None  # what the server calls the model; default: the name of --out
    image_size: tuple[int, int] | None = None  # height and width in pixels, multiples of 32; default: the checkpoint's
    # one graph for every height and width that are multiples of 32, up to this many pixels; default: one size
    dynamic_size: int | None = None
    static_batch: int | None = None  # batches of this size alone, for runtimes that know no other (default: any)
    # uint8: the graphs take levels 0 to 255 as (B, 3, H, W) and normalise them themselves, the same numbers from a
    # quarter of the bytes; float32: normalised values
    input: InputType = "float32"
    # largest batch of the bundle, all of it verified; default: 32, videos 8, detectors 2, or what fits
    max_batch: int | None = None
    # version of ONNX's operators, 18 to 22; default: 20, for bf16 22, the first that has its convolutions
    opset: int | None = None
    # photos or videos for the verification, for int8's metric too; default: those the run was validated on, else made
    data: Path | None = None
    # int8: folder of photos or videos as the model will meet them, without labels; some are left to compare on
    calibrate: Path | None = None
    # int8: layers that stay out of it, as patterns of their names (head,encoder.blocks3.*)
    exclude: Annotated[tuple[str, ...], comma_list(str, "LAYER,...")] = ()
    # int8: folder of the ranges of earlier calibrations; default: ~/.cache/convmae_deploy/calibration
    calibration_cache: Path | None = None
    max_drop: float = 1.0  # int8: points that it may lose of the task's metric, without labels of agreement with fp32
    licence: Path | None = None  # full text of the weights' licence; default: the checkpoint's

    def __post_init__(self) -> None:
        if not re.fullmatch(NAME_PATTERN, self.bundle_name):
            raise ConvMAEError(
                "a bundle's name must be 1 to 64 letters, digits, '.', '_' or '-' and start with a letter or digit; "
                f"got {self.bundle_name!r}, choose another with --name"
            )
        if self.image_size is not None:
            check_image_size(self.image_size)
        if self.max_batch is not None and not 1 <= self.max_batch <= MAX_BATCH:
            raise ConvMAEError(f"--max-batch must be between 1 and {MAX_BATCH}; got {self.max_batch}")
        if self.opset is not None and not OPSETS[0] <= self.opset <= OPSETS[1]:
            raise ConvMAEError(f"--opset must be from {OPSETS[0]} to {OPSETS[1]}; got {self.opset}")
        if self.opset is not None and "bf16" in self.precision and self.opset < BFLOAT16_OPSET:
            raise ConvMAEError(
                f"bf16 needs --opset {BFLOAT16_OPSET}, as ONNX's convolutions take no bfloat16 before; got "
                f"{self.opset}, leave bf16 or --opset out"
            )
        if self.without_fp32 and not set(self.precision) <= {"fp16", "bf16"}:
            raise ConvMAEError(
                f"--without-fp32 goes with --precision fp16, bf16 or both; got {','.join(self.precision)}"
            )
        if self.dynamic_size is not None:
            check_image_size((self.dynamic_size, self.dynamic_size))
            if self.image_size is not None:
                raise ConvMAEError("--dynamic-size gives every size, so that --image-size says nothing; leave one out")
        if self.static_batch is not None and not 1 <= self.static_batch <= MAX_BATCH:
            raise ConvMAEError(f"--static-batch must be between 1 and {MAX_BATCH}; got {self.static_batch}")
        if self.static_batch is not None and self.max_batch is not None:
            raise ConvMAEError("--static-batch is the largest batch too; leave --max-batch out")
        if self.opset is not None and "int8-fp16" in self.precision and self.opset < HALF_SCALES_OPSET:
            raise ConvMAEError(
                f"int8-fp16 needs --opset {HALF_SCALES_OPSET}, as ONNX's QuantizeLinear takes no float16 before; got "
                f"{self.opset}, leave int8-fp16 or --opset out"
            )
        if bool(set(INT8).intersection(self.precision)) != (self.calibrate is not None):
            raise ConvMAEError(
                "--precision int8 or int8-fp16 and --calibrate FOLDER, with photos or videos as the model will meet "
                "them, need each other; give both or neither"
            )
        if self.exclude and self.calibrate is None:
            raise ConvMAEError("--exclude is for --precision int8 and int8-fp16; leave it out")

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Each once, fp32 first."""
        return tuple(dict.fromkeys(self.precision if self.without_fp32 else ("fp32", *self.precision)))

    @property
    def bundle_name(self) -> str:
        """The name that the manifest will carry."""
        return self.out.resolve().name if self.name is None else self.name


@dataclass(frozen=True, kw_only=True)
class Written:
    """A file that was made and has passed."""

    file: BundleFile
    verification: Verification

    @classmethod
    def before(cls, file: BundleFile) -> Self:
        """One that an earlier export had finished."""
        assert file.numerics is not None  # nothing else is kept
        return cls(file=file, verification=Verification(report=file.numerics, failures=()))


def export_bundle(config: ExportConfig, console: Console, command: Sequence[str]) -> dict[str, Written]:
    """Writes the bundle, or raises and leaves a folder that reproduces the failure.

    Args:
        config: what to export.
        console: where the report goes.
        command: the program's arguments, for the reproducer.

    Returns:
        Name of each file -> what it is.

    Raises:
        VerificationError: the numbers do not hold.
        ConvMAEError: the request cannot be carried out.
    """
    check_is_new(config.out)
    task = with_input(open_task(config.checkpoint, config.image_size, config.task), config.input)
    if set(INT8).intersection(config.precision) and weight_bytes(task.wrapper) > ONNX_LIMIT_BYTES:
        raise ConvMAEError(
            f"int8 is made of a graph in one file, of at most {ONNX_LIMIT_BYTES / 1e9:g} GB; this model has "
            f"{weight_bytes(task.wrapper) / 1e9:.1f} GB of weights, leave int8 out or choose a smaller variant"
        )
    record, preprocessing = task.record, task.preprocessing
    photos = verification_samples(TASKS[task.task], preprocessing, config.data, config.checkpoint)
    licence_file = find_licence(record, config.checkpoint, config.licence)
    content = BundleContent(
        name=config.bundle_name,
        task=task.task,
        record=record,
        checkpoint=config.checkpoint,
        preprocessing=preprocessing,
        max_batch=config.static_batch or config.max_batch or task.max_batch,
        min_batch=config.static_batch or 1,
        sides=side_range(config, task),
        licence_file=licence_file,
    )
    blank = np.zeros((1, 3, *preprocessing.input_axes), preprocessing.dtype)
    shapes = {name: value.shape[1:] for name, value in task.reference(blank).items()}
    manifest = unmade_manifest(content, shapes)  # what it refuses, it refuses before minutes of work
    int8 = int8_maker(config, manifest, console, command)
    with unfinished(config.out, facts_of(config)) as kept, atomic_directory(config.out) as directory:
        exporter = Exporter(
            config=config,
            task=task,
            photos=photos,
            int8=int8,
            manifest=manifest,
            console=console,
            command=command,
            kept=kept,
        )
        with temporary_files_in(directory):
            written = {file_name(precision): exporter.write(precision, directory) for precision in config.precisions}
        content = replace(content, max_batch=exporter.manifest.input.max_batch)
        write_manifest(directory, content, shapes=shapes, files={name: made.file for name, made in written.items()})
        add_kit(directory, task.reference)
        check_with_runtime(directory, task.reference, photo_batch(exporter.batches), task.check)
    print_costs({name: made.file for name, made in written.items()}, console)
    return written


def facts_of(config: ExportConfig) -> dict[str, object]:
    """All that decides what the files of an export hold; the content of folders of photos is taken for granted."""
    checkpoint = find_checkpoint(config.checkpoint)
    chosen = {name: getattr(config, name) for name in DECISIVE}
    hashes = {name: sha256_of(checkpoint / name) for name in (CONFIG_NAME, WEIGHTS_NAME)}
    return {**chosen, **hashes, "first": config.precisions[0], "tools": tool_versions()}


def side_range(config: ExportConfig, task: ExportTask) -> SideRange | None:
    """What `--dynamic-size` asks for.

    Raises:
        ConvMAEError: models of the task have one size, or that of this one is larger.
    """
    if config.dynamic_size is None:
        return None
    if task.smallest_side is None:
        raise ConvMAEError(
            f"a graph for {task.task} has one size; leave --dynamic-size out, and choose the size with --image-size"
        )
    size = task.preprocessing.input_size
    if max(size) > config.dynamic_size:
        raise ConvMAEError(
            f"--dynamic-size must be at least the {size[0]} x {size[1]} pixels that photos become; got "
            f"{config.dynamic_size}"
        )
    return SideRange(smallest=task.smallest_side, largest=config.dynamic_size)


def int8_maker(config: ExportConfig, manifest: Manifest, console: Console, command: Sequence[str]) -> Int8Maker | None:
    """What makes the int8 graph, whose data are looked at before minutes of work; None: none is wanted."""
    if config.calibrate is None:
        return None
    options = Int8Options(
        calibrate=config.calibrate,
        max_drop=config.max_drop,
        data=config.data,
        exclude=config.exclude,
        cache=config.calibration_cache,
    )
    return Int8Maker(manifest, options, console, failed=failed_folder(config), command=command)


def failed_folder(config: ExportConfig) -> Path:
    """Where what reproduces a failure goes."""
    return config.out.with_name(config.out.name + FAILED_SUFFIX)


@dataclass(kw_only=True)
class Exporter:
    """Makes one file after the other; the first, fp32, settles the largest batch and with it the inputs of all."""

    config: ExportConfig
    task: ExportTask
    photos: Samples
    int8: Int8Maker | None
    manifest: Manifest  # without files; its largest batch is that which is asked for until `_settle`
    console: Console
    command: Sequence[str]
    kept: Unfinished
    float32: ExportedGraph | None = None
    batches: list[Batch] = field(default_factory=list)

    def write(self, precision: Precision, directory: Path) -> Written:
        """Makes a file and holds it against PyTorch.

        Raises:
            VerificationError: its numbers do not hold; a folder that reproduces it is left.
        """
        task, path, meter = self.task, directory / file_name(precision), CostMeter()
        kept = self.kept.take(path.name, directory)
        if kept is not None:
            self.console.print(f"{path.name}: finished before the interruption, taken over.", highlight=False)
            if precision != "fp32":  # which others are made of
                return Written.before(kept)
        entry = self.manifest.input
        size = " x ".join(map(str, task.preprocessing.input_axes)) if entry.sides is None else "every size"
        request = GraphRequest(
            task=task,
            entry=entry,
            fixed_batch=self.config.static_batch is not None,
            float32=self.float32,
            int8=self.int8,
            opset=self.config.opset,
            path=path,
        )
        doing = f"Exporting {task.record.variant} at {size} in {precision} ..."
        # int8 has progress bars of its own
        with nullcontext() if precision in INT8 else self.console.status(doing), meter.step("export"):
            graph = GRAPHS[precision](request)
        if precision == "fp32":
            self.float32 = graph
        if not self.batches:
            self._settle(graph)
        if kept is not None:
            return Written.before(kept)
        write_graph(graph.model, path, leave_out=task.probes, metadata=metadata_of(self.manifest, precision))
        with meter.step("verification"):
            verification = run_verification(task, graph, path, self.batches, precision)
        print_report(verification.report, self.console)
        if verification.failures:
            raise self._failure(graph, path, precision, verification)
        description = describe_file(
            path, precision, numerics=verification.report, cost=meter.cost, quantisation=graph.quantisation
        )
        self.kept.keep(path.name, directory, description)
        return Written(file=description, verification=verification)

    def _settle(self, graph: ExportedGraph) -> None:
        """Takes note of what all graphs are tried on."""
        kind, spec, entry = TASKS[self.task.task], self.task.preprocessing, self.manifest.input
        if self.config.max_batch is None and self.config.static_batch is None:
            one = entry.model_copy(update={"max_batch": 1, "sides": None})
            first = verification_batches(kind, spec, self.photos, one)[0]
            largest = affordable_batch(graph, first, self.task.max_batch, self.console)
            entry = entry.model_copy(update={"max_batch": largest})
            self.manifest = self.manifest.model_copy(update={"input": entry})
        self.batches = verification_batches(kind, spec, self.photos, entry)

    def _failure(
        self, graph: ExportedGraph, path: Path, precision: Precision, verification: Verification
    ) -> VerificationError:
        task, gate, runtime = self.task, GATES[precision], runtimes_for(precision)[0]
        failure = verification.worst

        def find(images: FloatArray) -> Divergence | LayerErrors:
            if precision == "fp32" or self.float32 is None:
                return find_divergence(graph, images, gate)
            return find_loss(task, graph.model, self.float32.model, Batch(failure.batch.name, images), precision)

        suspect = Suspect(
            model=graph.model,
            input=graph.input,
            min_batch=self.config.static_batch or 1,
            outputs=task.outputs,
            precision=precision,
            runtime=runtime,
            start=lambda: file_runner(runtime, path, task.outputs),
            find=find,
        )
        evidence = explain(suspect, verification, task.reference, failed_folder(self.config), self.command)
        return VerificationError(
            f"the graph does not give PyTorch's numbers in {precision}, so no bundle was written: worst output "
            f"{failure.output} on {failure.batch.name}, {failure.comparison.problem}{evidence}"
        )


def print_costs(files: Mapping[str, BundleFile], console: Console) -> None:
    """Sizes, and what making the files took."""
    first = next(iter(files.values()))
    table = Table("file", "MB", f"of {first.precision}", "export s", "verify s", "peak MB", box=box.SIMPLE, padding=0)
    for name, file in files.items():
        assert file.cost is not None
        cost = file.cost
        table.add_row(
            name,
            f"{file.all_bytes / 1e6:.1f}",
            f"{file.all_bytes / first.all_bytes:.0%}",
            f"{cost.seconds:.1f}",
            f"{cost.verification_seconds:.1f}",
            f"{cost.peak_bytes / 1e6:.0f}",
        )
    console.print(table)


def affordable_batch(graph: ExportedGraph, example: Batch, wanted: int, console: Console) -> int:
    """The default of the largest batch: as wanted, or, said aloud, what the verification has memory for."""
    fits = max(2, MEMORY_BUDGET // peak_bytes_per_image(graph.program, example.images))
    if fits < wanted:
        console.print(
            f"The largest batch is {fits}: to verify one of {wanted} takes over {MEMORY_BUDGET >> 30} GiB; "
            "give --max-batch to do it all the same.",
            highlight=False,
        )
    return min(fits, wanted)


@failures_in_words(failures.in_words)
def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    config = tyro.cli(ExportConfig, args=given, prog="python -m export", description=ExportConfig.__doc__)
    console = Terminal()
    export_bundle(config, console, ["python", "-m", "export", *given])
    console.print(f"Verified and written: {config.out}", highlight=False)


if __name__ == "__main__":
    run_program(main)
