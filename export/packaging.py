"""The bundle's files around a verified graph: the manifest and the licence, and a last look through the runtime."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from convmae_deploy.backends.base import Backend, Outputs, describe_backend
from convmae_deploy.backends.runtimes import RUNTIMES, RuntimeOptions, start_backend
from convmae_deploy.bundle.graphs.onnx_file import read_graph
from convmae_deploy.bundle.loading import Bundle, file_inside, in_words
from convmae_deploy.bundle.manifest import (
    LICENCE_NAME,
    MANIFEST_NAME,
    BundleFile,
    InputSpec,
    Licence,
    Manifest,
    Precision,
    SideRange,
    StoredFile,
)
from convmae_deploy.bundle.numerics import ExportCost, NumericsReport, Quantisation
from convmae_deploy.bundle.preprocessing import AnyPreprocessing
from convmae_deploy.checkpoints.native import WEIGHTS_NAME, CheckpointRecord, find_checkpoint
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import sha256_of
from convmae_deploy.tasks import TASKS, check_manifest, load_bundle
from convmae_deploy.tasks.features import feature_spec
from export.graph_files import check_valid
from export.graphs.to_onnx import OPSET
from export.runtimes.runners import Runner
from export.tool_versions import tool_versions
from export.verification.elementwise import VerificationError
from export.verification.inputs import Batch

UNSPECIFIED = "unspecified"  # how the name of a licence nobody stated begins


@dataclass(frozen=True, kw_only=True)
class BundleContent:
    """What the manifest says besides what the graph itself shows."""

    name: str
    task: str
    record: CheckpointRecord
    checkpoint: Path | None  # run folder or checkpoint, as the user gave it; None: the weights were never stored
    preprocessing: AnyPreprocessing
    max_batch: int
    min_batch: int = 1
    sides: SideRange | None = None  # None: the graphs take the size that the preprocessing makes alone
    licence_file: Path | None  # from `find_licence`


def find_licence(record: CheckpointRecord, checkpoint: Path, given: Path | None) -> Path | None:
    """The licence's full text: the file that was given, else the checkpoint's own, else none.

    Raises:
        ConvMAEError: the file is not there.
    """
    if given is not None:
        if not given.is_file():
            raise ConvMAEError(f"--licence must be a text file; found none at {given}")
        return given
    if record.licence.file is None:
        return None
    own = file_inside(find_checkpoint(checkpoint), record.licence.file)  # its text becomes part of the bundle
    if not own.is_file():
        raise ConvMAEError(
            f"the checkpoint names the licence {own.name}, which it does not hold; give one with --licence"
        )
    return own


def describe_file(
    path: Path,
    precision: Precision,
    *,
    numerics: NumericsReport | None = None,
    cost: ExportCost | None = None,
    quantisation: Quantisation | None = None,
) -> BundleFile:
    """What the manifest says of a graph.

    Args:
        path: of the graph.
        precision: that it is in.
        numerics: its report; None: not verified.
        cost: of making it; None: not measured.
        quantisation: how an int8 graph was made.

    Raises:
        ConvMAEError: it is no valid ONNX.
    """
    check_valid(path)
    graph = read_graph(path)
    others = sorted({weight.external.file for weight in graph.weights.values() if weight.external is not None})
    return BundleFile(
        sha256=sha256_of(path),
        bytes=path.stat().st_size,
        precision=precision,
        opset=graph.opset,
        weights={name: _stored(path.with_name(name)) for name in others},
        numerics=numerics,
        cost=cost,
        quantisation=quantisation,
    )


def _stored(path: Path) -> StoredFile:
    return StoredFile(sha256=sha256_of(path), bytes=path.stat().st_size)


def write_manifest(
    directory: Path, content: BundleContent, *, shapes: dict[str, tuple[int, ...]], files: dict[str, BundleFile]
) -> None:
    """Completes a folder that holds graphs to a bundle.

    Args:
        directory: the folder.
        content: what the bundle is.
        shapes: the graphs' outputs without the batch axis.
        files: name of each graph -> what it is; the first is the default.
    """
    manifest = manifest_of(content, shapes=shapes, files=files, licence=_copy_licence(directory, content))
    text = manifest.model_dump_json(indent=2)
    (directory / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")


def unmade_manifest(content: BundleContent, shapes: dict[str, tuple[int, ...]]) -> Manifest:
    """The manifest of a bundle whose graphs are still to be made.

    Raises:
        ConvMAEError: it would not be valid.
    """
    unmade = {"model.onnx": BundleFile(sha256="0" * 64, bytes=1, precision="fp32", opset=OPSET)}
    return manifest_of(content, shapes=shapes, files=unmade, licence=bundle_licence(content))


def manifest_of(
    content: BundleContent, *, shapes: dict[str, tuple[int, ...]], files: dict[str, BundleFile], licence: Licence
) -> Manifest:
    """What the manifest says, see `write_manifest`; the licence's file is that of the bundle.

    Raises:
        ConvMAEError: it would not be valid.
    """
    axes = content.preprocessing.input_axes
    known = TASKS[content.task].expected_outputs(len(content.record.classes), axes)
    try:
        manifest = Manifest(
            name=content.name,
            task=content.task,
            variant=content.record.variant,
            input=InputSpec(
                name=content.preprocessing.INPUT_NAME,
                dtype=content.preprocessing.dtype,
                shape=(3, *axes),
                sides=content.sides,
                min_batch=content.min_batch,
                max_batch=content.max_batch,
            ),
            preprocessing=content.preprocessing,
            classes=content.record.classes,
            category_ids=content.record.category_ids,
            outputs={name: known.get(name) or feature_spec(shape, axes) for name, shape in shapes.items()},
            files=files,
            tools=tool_versions(),
            licence=licence,
            provenance=_provenance(content),
        )
    except ValidationError as error:
        raise ConvMAEError(
            f"the bundle's manifest would not be valid: {in_words(error)}; mend the checkpoint's config.json, or give "
            "other flags"
        ) from None
    check_manifest(manifest)
    return manifest


def check_with_runtime(
    directory: Path, reference: Runner, batch: Batch, check: Callable[[Outputs, Outputs, Precision], str | None]
) -> None:
    """Loads each graph of the finished bundle as a server would and holds one batch against PyTorch.

    Args:
        directory: the bundle.
        reference: gives the numbers that hold.
        batch: the input.
        check: what is wrong, given what was expected and found; None: nothing.

    Raises:
        ConvMAEError: a runtime refuses the bundle, or its numbers differ.
    """
    bundle = load_bundle(directory, unsigned=True)
    names, expected = tuple(bundle.manifest.outputs), reference(batch.images)
    for file, description in bundle.manifest.files.items():
        backend = serving_backend(bundle, file, description.precision)
        if backend is None:
            continue
        problem = check(expected, backend.run(batch.images, names), description.precision)
        if problem is not None:
            raise VerificationError(
                f"{describe_backend(backend)} gives other outputs of {file} than PyTorch on {batch.name}: {problem}"
            )


def serving_backend(bundle: Bundle, file: str, precision: Precision) -> Backend | None:
    """What would serve a graph on a CPU: the first runtime that can; None: nothing that is here."""
    for name, runtime in RUNTIMES.items():
        if runtime.problem("cpu", precision) is None:
            return start_backend(bundle, device="cpu", options=RuntimeOptions(runtime=name, file=file))
    return None


def _provenance(content: BundleContent) -> dict[str, str]:
    if content.checkpoint is None:
        return content.record.provenance
    directory = find_checkpoint(content.checkpoint)
    given = content.checkpoint.resolve()
    # Names only: a path of the exporting machine tells nobody else anything.
    name = given.name if directory.resolve() == given else f"{given.name}/{directory.name}"
    return content.record.provenance | {"checkpoint": name, "checkpoint_sha256": sha256_of(directory / WEIGHTS_NAME)}


def _copy_licence(directory: Path, content: BundleContent) -> Licence:
    """Puts the licence's text into the bundle, where there is one."""
    if content.licence_file is not None:
        shutil.copyfile(content.licence_file, directory / LICENCE_NAME)
    return bundle_licence(content)


def bundle_licence(content: BundleContent) -> Licence:
    """What a bundle says of its licence, whose text is in it where there is one."""
    licence = content.record.licence
    if content.licence_file is None:
        return licence
    name = licence.name
    if name.startswith(UNSPECIFIED):
        lines = content.licence_file.read_text(encoding="utf-8", errors="replace").split("\n")
        name = next((line.strip()[:120] for line in lines if line.strip()), name)
    return Licence(name=name, file=LICENCE_NAME)
