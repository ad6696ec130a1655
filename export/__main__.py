"""`python -m export RUN_OR_CHECKPOINT --out BUNDLE`: a model as an ONNX bundle, written only if its numbers hold.

Most of the time goes into the comparison with PyTorch: seconds for a nano, minutes for a ConvMAE-B on two CPU cores.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import onnx
import tyro
from rich.console import Console

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import atomic_directory, check_can_create
from convmae_deploy.models.convmae import check_image_size
from convmae_deploy.program import run_program
from convmae_deploy.runtime.manifest import NAME_PATTERN, input_axes
from export.inputs import Batch, verification_batches
from export.packaging import (
    MODEL_NAME,
    BundleContent,
    check_with_runtime,
    find_licence,
    write_manifest,
)
from export.report import FAILED_SUFFIX, print_report
from export.runners import onnx_runner
from export.tasks import open_task
from export.to_onnx import ExportedGraph, export_graph, without_outputs
from export.traced import peak_bytes_per_image
from export.verification import explain, photo_batch, run_verification, verification_samples
from export.verify import Verification

MEMORY_BUDGET = 2 * 2**30  # bytes that one forward pass of the largest batch may take in the verification


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Exports a finetuned model, of photos or of videos, to ONNX and proves its numbers against PyTorch."""

    checkpoint: Annotated[Path, tyro.conf.Positional]  # run folder or checkpoint of a training or convmae import
    out: Path  # the bundle to create; must not exist
    name: str | None = None  # what the server calls the model; default: the name of --out
    image_size: tuple[int, int] | None = None  # height and width in pixels, multiples of 32; default: the checkpoint's
    max_batch: int | None = (
        None  # largest batch of the bundle, all of it verified; default: 32, videos 8, detectors 2, or what fits
    )
    # photos or videos for the verification; default: those the run was validated on, else made pictures
    data: Path | None = None
    licence: Path | None = None  # full text of the weights' licence; default: the checkpoint's

    def __post_init__(self) -> None:
        if not re.match(NAME_PATTERN, self.bundle_name):
            raise ConvMAEError(
                "a bundle's name must be 1 to 64 letters, digits, '.', '_' or '-' and start with a letter or digit; "
                f"got {self.bundle_name!r}, choose another with --name"
            )
        if self.image_size is not None:
            check_image_size(self.image_size)
        if self.max_batch is not None and self.max_batch < 1:
            raise ConvMAEError(f"--max-batch must be at least 1; got {self.max_batch}")

    @property
    def bundle_name(self) -> str:
        """The name that the manifest will carry."""
        return self.out.resolve().name if self.name is None else self.name


def export_bundle(config: ExportConfig, console: Console, command: Sequence[str]) -> Verification:
    """Writes the bundle, or raises and leaves a folder that reproduces the failure.

    Args:
        config: what to export.
        console: where the report goes.
        command: the program's arguments, for the reproducer.

    Raises:
        VerificationError: the numbers do not hold.
        ConvMAEError: the request cannot be carried out.
    """
    check_output(config.out)
    task = open_task(config.checkpoint, config.image_size)
    record, preprocessing = task.record, task.preprocessing
    photos = verification_samples(preprocessing, config.data, config.checkpoint)
    size = input_axes(preprocessing)
    licence_file = find_licence(record, config.checkpoint, config.licence)
    with console.status(f"Exporting {record.variant} at {' x '.join(map(str, size))} ..."):
        graph = export_graph(task.wrapper, size, config.max_batch or task.max_batch, (*task.outputs, *task.probes))
    first = verification_batches(preprocessing, photos, 1)[0]
    largest = config.max_batch or affordable_batch(graph, first, task.max_batch, console)
    content = BundleContent(
        name=config.bundle_name,
        task=task.task,
        record=record,
        checkpoint=config.checkpoint,
        preprocessing=preprocessing,
        max_batch=largest,
        licence_file=licence_file,
    )
    batches = verification_batches(preprocessing, photos, largest)
    with atomic_directory(config.out) as directory:
        onnx.save(without_outputs(graph.model, task.probes), directory / MODEL_NAME)
        verification = run_verification(task, graph, directory / MODEL_NAME, batches)
        print_report(verification.report, console)
        if verification.failures:
            candidate = onnx_runner(directory / MODEL_NAME, task.outputs)
            folder = config.out.with_name(config.out.name + FAILED_SUFFIX)
            raise explain(task, graph, candidate, verification, folder, command, ", so no bundle was written")
        shapes = {name: value.shape[1:] for name, value in task.reference(first.images).items()}
        write_manifest(directory, content, shapes=shapes, numerics=verification.report)
        check_with_runtime(directory, task.reference, photo_batch(batches), task.check)
    return verification


def check_output(out: Path) -> None:
    """Raises ConvMAEError unless a folder can be made at `out`."""
    if out.exists():
        raise ConvMAEError(f"{out} exists already; remove it or choose another --out")
    check_can_create(out)


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


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    config = tyro.cli(ExportConfig, args=given, prog="python -m export", description=ExportConfig.__doc__)
    console = Console()
    export_bundle(config, console, ["python", "-m", "export", *given])
    console.print(f"Verified and written: {config.out}", highlight=False)


if __name__ == "__main__":
    run_program(main)
