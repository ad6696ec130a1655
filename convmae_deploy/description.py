"""A bundle in words and tables, for people at a terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from convmae_deploy.backends.engine_record import EngineRecord, engines_of, read_record
from convmae_deploy.backends.tensorrt_library import TITLES
from convmae_deploy.bundle.graph_metadata import GraphMetadata
from convmae_deploy.bundle.loading import Bundle, BundleError
from convmae_deploy.bundle.manifest import BundleFile, Description, Manifest, OutputSpec
from convmae_deploy.bundle.signing import SIGNATURE_NAME, required_key
from convmae_deploy.printing import printable

MAX_VALUE: Final = 2000  # characters of what a file of others says are shown
NOTHING: Final[Mapping[str, str]] = {}


def describe(bundle: Bundle, console: Console) -> None:
    """Prints what the bundle is, what goes in and comes out, its graphs with their numerics, engines and origin."""
    manifest = bundle.manifest
    for table in (
        _summary(manifest, {"signature": _signature(bundle)}),
        _outputs(manifest),
        _files(manifest),
        _engines(bundle),
    ):
        if table.row_count:
            console.print(table)
    for name, file in manifest.files.items():
        if file.numerics is not None:
            console.print(_numerics(name, file))


def describe_graph(metadata: GraphMetadata, sha256: str, console: Console) -> None:
    """Prints what a graph's file says of itself, which nothing proves; of a file of others, the pairs in it.

    Args:
        metadata: of the file.
        sha256: of the file.
        console: where it goes.
    """
    found, others = metadata.description, metadata.others
    opset = "unknown" if metadata.header.opset is None else str(metadata.header.opset)
    facts = {"SHA-256 of the file": sha256, "opset": opset}
    if found is not None:
        facts |= {"precision": others["precision"]} if "precision" in others else {}
        console.print(_summary(found, facts))
        console.print(_outputs(found))
        return
    console.print(_rows(facts | {key: value[:MAX_VALUE] for key, value in others.items()}))
    if not others:
        console.print("It says nothing else of itself: no names, preprocessing or licence.", highlight=False)


def _summary(manifest: Description, more: Mapping[str, str] = NOTHING) -> Table:
    spec, entry = manifest.preprocessing, manifest.input
    rows = {
        "name": manifest.name,
        "task": manifest.task,
        "variant": manifest.variant,
        "input": f"{entry.name}, {entry.dtype} {entry.in_words}, B from {entry.min_batch} to {entry.max_batch}"
        + (f" at {_shape(entry.shape)}" if entry.sides is not None else ""),
        "preprocessing": f"{spec.geometry} (height x width, {spec.interpolation}), mean {_numbers(spec.mean)}, "
        f"std {_numbers(spec.std)}",
        "classes": str(len(manifest.classes)),
        "licence": manifest.licence.name + (f" ({manifest.licence.file})" if manifest.licence.file else ""),
        "tools": ", ".join(f"{package} {version}" for package, version in manifest.tools.items()),
        **{f"provenance: {label}": value for label, value in manifest.provenance.items()},
    }
    return _rows({**rows, **more})


def _rows(rows: Mapping[str, str]) -> Table:
    table = Table(show_header=False)
    for label, value in rows.items():
        table.add_row(Text(printable(label)), Text(printable(value), overflow="fold"))
    return table


def _signature(bundle: Bundle) -> str:
    """What is known of who made the bundle; whoever loaded it has checked what had to be checked."""
    key = required_key()
    if key is not None:
        return f"by the owner of {key}"
    if (bundle.path / SIGNATURE_NAME).is_file():
        return f"{SIGNATURE_NAME}, not checked: set CONVMAE_REQUIRE_SIGNATURE to its maker's public key"
    return "none"


def _outputs(manifest: Description) -> Table:
    table = Table("output", "shape", "type", "stride")
    for name, spec in manifest.outputs.items():
        table.add_row(Text(printable(name)), f"({', '.join(map(str, ('B', *spec.shape)))})", spec.dtype, _stride(spec))
    return table


def _stride(spec: OutputSpec) -> str:
    """Pixels, with a time axis behind frames."""
    parts = [] if spec.time_stride is None else [f"{spec.time_stride} frames"]
    return ", ".join(parts + ([] if spec.stride is None else [str(spec.stride)]))


def _files(manifest: Manifest) -> Table:
    first = next(iter(manifest.files.values()))
    table = Table("file", "precision", "MB", "size", "opset", "numerics")
    for name, file in manifest.files.items():
        size = f"{file.all_bytes / first.all_bytes:.0%}"  # against the default file's
        verdict, opset = Text(printable(_verdict(file))), str(file.opset)
        table.add_row(Text(printable(name)), file.precision, f"{file.all_bytes / 1e6:.2f}", size, opset, verdict)
    return table


def _engines(bundle: Bundle) -> Table:
    """The TensorRT engines in the bundle's folder, which the manifest does not list."""
    table = Table("engine", "precision", "MB", "batches", "built by", "for compute capability")
    for name in engines_of(bundle):
        try:
            record = read_record(bundle.path / name)
        except BundleError as error:
            table.add_row(Text(printable(name)), *[""] * 3, Text(printable(error), overflow="fold"), "")
            continue
        gpus = ", ".join(record.compute_capabilities) + (" and more" if record.newer_gpus else "")
        builder = f"{TITLES[record.flavour]} {record.tensorrt_version}"
        size, batches = f"{record.engine_bytes / 1e6:.2f}", ", ".join(map(str, record.batch_sizes))
        table.add_row(Text(printable(name)), record.precision, size, batches, builder, gpus)
    return table


def describe_engine(engine: Path, console: Console, *, layers: bool = False) -> None:
    """Prints what an engine is, from its record, and with `layers` the types that TensorRT chose for each.

    Raises:
        BundleError: it has no record.
    """
    record = read_record(engine)
    gpus = ", ".join(record.compute_capabilities) + (" and more" if record.newer_gpus else "")
    rows = {
        "engine": f"{record.engine_bytes / 1e6:.2f} MB, {record.precision}, of {record.graph}",
        "built by": f"{TITLES[record.flavour]} {record.tensorrt_version}"
        + (" and runs in later ones of the same major version" if record.version_compatible else ""),
        "for compute capability": gpus,
        "batches": ", ".join(f"{profile.min_batch} to {profile.max_batch}" for profile in record.profiles),
        "options": ", ".join(f"{option} {value}" for option, value in record.options.items()) or "none",
        "multiplications": record.types_in_words,
    }
    table = Table(show_header=False)
    for label, value in rows.items():
        table.add_row(Text(label), Text(printable(value), overflow="fold"))
    console.print(table)
    if layers and record.layers:
        console.print(_layers(record))


def _layers(record: EngineRecord) -> Table:
    total = sum(layer.work for layer in record.layers)
    table = Table("layer", "kind", "reads", "weights", "gives", "of the work")
    for layer in record.layers:
        types = (" ".join(kinds) for kinds in (layer.reads, layer.weights, layer.gives))
        share = f"{layer.work / total:.1%}" if layer.work else ""
        table.add_row(Text(printable(layer.name), overflow="fold"), layer.kind, *types, share)
    return table


def _numerics(name: str, file: BundleFile) -> Table:
    report = file.numerics
    assert report is not None
    title = f"{name}: {report.runtime} against {report.reference}; {report.tolerance}; {', '.join(report.inputs)}"
    headings = ("output", "max abs", "max rel", "SNR dB", "cosine", "top-1", "passed")
    table = Table(*headings, title=Text(printable(title)))
    for output, numbers in report.outputs.items():
        agreement = "" if numbers.top1_agreement is None else f"{numbers.top1_agreement:.4f}"
        table.add_row(
            Text(printable(output)),
            f"{numbers.max_abs:.2e}",
            f"{numbers.max_rel:.2e}",
            "" if numbers.snr_db is None else f"{numbers.snr_db:.1f}",
            f"{numbers.cosine:.7f}",
            agreement,
            "yes" if numbers.passed else "NO",
        )
    return table


def _verdict(file: BundleFile) -> str:
    if file.numerics is None:
        return "never verified"
    verdict = f"{'verified' if file.numerics.passed else 'FAILED'} in {file.numerics.runtime}"
    made = file.quantisation
    if made is None:
        return verdict
    return f"{verdict}; {made.metric}: {made.fp32:.2f} % became {made.int8:.2f} %"


def _shape(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)
