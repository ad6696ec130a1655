"""`python -m export.to_tensorrt BUNDLE --precision fp16 --batch 1,8,32`: a graph of a bundle as a TensorRT engine.

The engine `model.fp16.engine` and its record `model.fp16.engine.json` land beside the bundle's graphs, where
`--runtime tensorrt` of `convmae`, the server and `python -m export.verify` find them. They are not in the manifest: a
bundle is for any machine, an engine for one. An engine that is there with its record is replaced.

Networks are strongly typed: the graph's own types are the engine's, so `--precision` says which graph of the bundle is
taken and nothing is rounded that the graph does not round. TF32 is off.

Each size of `--batch` gets a profile of its own, with kernels chosen for that size. It also takes the smaller batches
down to the size before, so that every batch from the bundle's smallest to the last size runs in any program.

The record keeps the layers that TensorRT made and the types that they compute in, which `convmae info ENGINE --layers`
shows. An engine of a half-precision graph most of whose multiplications are in fp32 all the same is refused.

With `--in-set` it lands in `engines/sm8.9-10.9.0.34/` instead, named by the GPU and the version that it is for: one
folder then holds the engines of several kinds of machines, and each takes its own.

TensorRT 10 and 11 build for the GPU of this machine. TensorRT for RTX needs no GPU, and builds for all of RTX from
compute capability 8.0 on; it is what the tests build with. TensorRT itself has built nothing here yet.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal

import onnx
import tyro
from rich.console import Console
from rich.progress import Progress as ProgressBar

from convmae_deploy.backends.engine_record import (
    ENGINE_SUFFIXES,
    SETS,
    EngineProfile,
    EngineRecord,
    engine_name,
    read_record,
    record_path,
    set_name,
)
from convmae_deploy.backends.gpu import find_gpu
from convmae_deploy.backends.tensorrt_library import (
    TITLES,
    Flavour,
    Severity,
    cache_folder,
    import_tensorrt,
    is_installed,
)
from convmae_deploy.bundle.graph_checks import checked_path
from convmae_deploy.bundle.loading import Bundle, BundleError
from convmae_deploy.bundle.manifest import InputSpec, Manifest, Precision
from convmae_deploy.bundle.preprocessing import Size, parse_size
from convmae_deploy.errors import ConvMAEError, missing_extra
from convmae_deploy.files import atomic_file, check_can_create
from convmae_deploy.program import failures_in_words, run_program
from convmae_deploy.tasks import load_bundle
from convmae_deploy.terminal import Terminal
from export import failures
from export.comma_list import comma_list
from export.engines.builder import Build, BuildRequest, Progress, build_engine, engine_targets
from export.engines.layers import check_types
from export.engines.recorded import build_with_record
from export.graphs.operators import refuse_operators

LEVELS: dict[Severity, int] = {"error": 0, "warning": 1, "info": 2, "verbose": 3}
BUILDER_OPTIONS = (  # those that the record names, where they were given
    "workspace_mb",
    "optimisation_level",
    "version_compatible",
    "hardware_compatible",
    "compute_capability",
)

logger = logging.getLogger("convmae_deploy")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Builds a TensorRT engine from a graph of a bundle."""

    bundle: Annotated[Path, tyro.conf.Positional]  # folder that python -m export wrote
    precision: Precision | None = None  # which graph of the bundle; default: its first
    # batch sizes to be fast for; default: the bundle's smallest and largest
    batch: Annotated[tuple[int, ...], comma_list(int, "1,8,32")] = ()
    # sizes of inputs besides the bundle's, each with profiles of its own; for bundles made with --dynamic-size
    size: Annotated[tuple[Size, ...], comma_list(parse_size, "384x640,...")] = ()
    out: Path | None = None  # folder or file (.engine, .plan); default: the bundle's folder
    in_set: bool = False  # in the bundle's engines/SM-VERSION/ instead, beside engines for other machines
    flavour: Literal["auto", "tensorrt", "tensorrt-rtx"] = "auto"  # auto: TensorRT where it and a GPU are there
    workspace_mb: int | None = None  # GPU memory that a layer may take for itself; default: all of the GPU's
    optimisation_level: int | None = None  # 0 (quick to build) to 5 (slow); default: TensorRT's, 3
    version_compatible: bool = False  # for later TensorRT of the same major version too, not this one alone
    hardware_compatible: bool = False  # for every GPU since Ampere, not this one alone; slower
    # TensorRT for RTX: compute capabilities to build for, such as 8.9,12.0; default: 8.0 and more
    compute_capability: Annotated[tuple[str, ...], comma_list(str, "8.9,12.0")] = ()
    # folder of measured kernel times, which make the next build quicker; default: ~/.cache/convmae_deploy/tensorrt
    timing_cache: Path | None = None
    log_level: Severity = "warning"  # of TensorRT's messages, those that are shown

    def __post_init__(self) -> None:
        if self.workspace_mb is not None and self.workspace_mb < 1:
            raise ConvMAEError(f"--workspace-mb must be at least 1; got {self.workspace_mb}")
        if self.in_set and self.out is not None:
            raise ConvMAEError("--in-set and --out both say where the engine goes; give one of them")
        if self.optimisation_level is not None and not 0 <= self.optimisation_level <= 5:
            raise ConvMAEError(f"--optimisation-level must be between 0 and 5; got {self.optimisation_level}")


def write_engine(config: EngineConfig, console: Console) -> tuple[Path, EngineRecord]:
    """Builds an engine and writes it with its record.

    Args:
        config: what to build.
        console: where progress and TensorRT's messages go.

    Returns:
        The engine and its record.

    Raises:
        ConvMAEError: the bundle lacks the precision, TensorRT does not take the graph, or a flag does not fit.
    """
    bundle = load_bundle(config.bundle)
    name = file_of_precision(bundle, config.precision)
    graph, description = checked_path(bundle, name), bundle.manifest.files[name]
    flavour = choose_flavour(config.flavour)
    check_flags(config, flavour)
    request = BuildRequest(
        graph=graph,
        engine=graph,  # until it is known
        manifest=bundle.manifest,
        flavour=flavour,
        profiles=all_profiles(config, bundle.manifest),
        workspace_bytes=None if config.workspace_mb is None else config.workspace_mb * 2**20,
        optimisation_level=config.optimisation_level,
        version_compatible=config.version_compatible,
        hardware_compatible=config.hardware_compatible,
        compute_capabilities=config.compute_capability,
        timing_cache=config.timing_cache or cache_folder(),
    )
    engine = engine_path(config, graph.name, request)
    refuse_operators(onnx.load(graph, load_external_data=False))
    verified = description.numerics is not None and description.numerics.passed
    if name != bundle.default_file and not verified:  # for the default `load_bundle` says it
        logger.warning("%s of bundle %s was not verified against PyTorch", graph.name, config.bundle)
    with atomic_file(engine) as file, atomic_file(record_path(engine)) as record_file:
        record = build_with_record(
            replace(request, engine=file),
            description,
            lambda request: build_with_progress(request, config.log_level, console),
            options=given_options(config),
        )
        check_types(record.layers, record.precision, f"the engine of {graph}")
        record_file.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return engine, record


def file_of_precision(bundle: Bundle, precision: Precision | None) -> str:
    """The bundle's first graph of that precision.

    Raises:
        BundleError: it has none.
    """
    if precision is None:
        return bundle.default_file
    for name, file in bundle.manifest.files.items():
        if file.precision == precision:
            return name
    there = ", ".join(dict.fromkeys(file.precision for file in bundle.manifest.files.values()))
    raise BundleError(
        f"bundle {bundle.path} has no {precision} graph, it has {there}; export the model again with "
        f"python -m export RUN --precision {there.replace(' ', '')},{precision} --out NEW_BUNDLE"
    )


def choose_flavour(wanted: Literal["auto", "tensorrt", "tensorrt-rtx"]) -> Flavour:
    """What to build with.

    Raises:
        ConvMAEError: it is not installed, or has no GPU to build on.
    """
    installed: list[Flavour] = [flavour for flavour in TITLES if is_installed(flavour)]
    candidates = [flavour for flavour in installed if wanted in ("auto", flavour)]
    if not candidates:
        what = "TensorRT or TensorRT for RTX" if wanted == "auto" else TITLES[wanted]
        extra = "tensorrt-rtx" if wanted == "auto" else wanted
        raise missing_extra("building an engine", what, extra)
    if candidates[0] == "tensorrt" and find_gpu() is None:
        if "tensorrt-rtx" in candidates:
            return "tensorrt-rtx"
        raise ConvMAEError(
            "TensorRT builds an engine on the GPU that it is for, found no NVIDIA GPU with its driver; "
            "run this on the GPU machine, or install the extra tensorrt-rtx and use --flavour tensorrt-rtx"
        )
    return candidates[0]


def check_flags(config: EngineConfig, flavour: Flavour) -> None:
    """Raises ConvMAEError where a flag is for the other flavour."""
    if flavour == "tensorrt":
        wrong = {"--compute-capability": config.compute_capability != ()}
        advice = "TensorRT builds for the GPU of this machine; leave it out, or use --hardware-compatible"
    else:
        wrong = {"--version-compatible": config.version_compatible, "--hardware-compatible": config.hardware_compatible}
        wrong["--timing-cache"] = config.timing_cache is not None
        advice = (
            "TensorRT for RTX builds for every GPU since Ampere and one version, and measures nothing; leave it out"
        )
    for flag, given in wrong.items():
        if given:
            raise ConvMAEError(f"{flag} is not for flavour {flavour}: {advice}")


def all_profiles(config: EngineConfig, manifest: Manifest) -> tuple[EngineProfile, ...]:
    """Those of the bundle's size, and those of each further one.

    Raises:
        ConvMAEError: the bundle does not take a size or a batch.
    """
    found = list(batch_profiles(config.batch, manifest.input))
    for size in dict.fromkeys(config.size):
        if size != manifest.preprocessing.input_size:
            limits = manifest.at(size).input
            batches = [batch for batch in config.batch if batch <= limits.max_batch]  # of larger images fewer
            found += [profile.model_copy(update={"size": size}) for profile in batch_profiles(batches, limits)]
    return tuple(found)


def batch_profiles(sizes: Sequence[int], spec: InputSpec) -> tuple[EngineProfile, ...]:
    """A profile for each size, from the batch above the size before.

    Args:
        sizes: batches to be fast for; none: the smallest and the largest.
        spec: the batches of the bundle.

    Raises:
        ConvMAEError: the bundle does not take a size.
    """
    for size in sizes:
        if not spec.min_batch <= size <= spec.max_batch:
            raise ConvMAEError(
                f"--batch must be between the bundle's smallest and largest, {spec.min_batch} and {spec.max_batch}; "
                f"got {size}"
            )
    largest = sorted(set(sizes or (spec.min_batch, spec.max_batch)))
    smallest = [spec.min_batch, *(size + 1 for size in largest)]
    return tuple(EngineProfile(min_batch=least, max_batch=most) for least, most in zip(smallest, largest, strict=False))


def engine_path(config: EngineConfig, graph: str, request: BuildRequest) -> Path:
    """Where the engine of a graph goes.

    Raises:
        ConvMAEError: something is there that is no engine with its record.
    """
    out = config.out or config.bundle
    if config.in_set:
        tensorrt = import_tensorrt(request.flavour)
        out = out / SETS / set_name(*engine_targets(request, find_gpu(), tensorrt), tensorrt.__version__)
    if out.suffix in ENGINE_SUFFIXES and not out.is_dir():
        path = out
    elif out.exists() and not out.is_dir():
        raise ConvMAEError(f"--out must be a folder or a file that ends in {' or '.join(ENGINE_SUFFIXES)}; got {out}")
    else:
        path = out / engine_name(graph)
    if path.exists():
        try:
            read_record(path)
        except BundleError:
            raise ConvMAEError(f"{path} exists, with no record of ours beside it; remove it or choose --out") from None
    check_can_create(path)
    return path


def build_with_progress(request: BuildRequest, shown: Severity, console: Console) -> Build:
    """Builds, with a bar on a terminal and TensorRT's messages up to a level."""
    with ProgressBar(console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("starting", total=None)

        def on_message(severity: Severity, message: str) -> None:
            if LEVELS[severity] <= LEVELS[shown]:
                console.print(f"{severity}: {message}", style="dim", markup=False, highlight=False)

        def on_progress(event: Progress) -> None:
            if event.parent is None and event.steps is not None:
                progress.reset(bar, total=event.steps, description=event.phase)
            elif event.step is not None:
                progress.update(bar, completed=event.step + 1)
            else:
                progress.update(bar, description=event.phase)

        return build_engine(request, on_message, on_progress)


def given_options(config: EngineConfig) -> dict[str, str | int]:
    """The builder's options that are not the default, for the record."""
    options: dict[str, str | int] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in BUILDER_OPTIONS and value != field.default:
            options[field.name] = ",".join(value) if isinstance(value, tuple) else value
    return options


def summary(engine: Path, record: EngineRecord) -> str:
    """What was built, in a few lines."""
    gpus = " ".join(record.compute_capabilities) + (" and more" if record.newer_gpus else "")
    batches = ", ".join(map(str, record.batch_sizes))
    if record.sizes:
        batches += f"; also for {', '.join(f'{height} x {width}' for height, width in record.sizes)}"
    return (
        f"Written: {engine} ({record.engine_bytes / 1e6:.1f} MB, {record.precision}, batches {batches}) by "
        f"{TITLES[record.flavour]} {record.tensorrt_version} for compute capability {gpus}, in "
        f"{record.build_seconds:.1f} s with {record.peak_memory_bytes / 1e9:.2f} GB of memory.\n"
        f"Multiplications: {record.types_in_words}; layer by layer: convmae info {engine} --layers\n"
        "Its numbers were not compared; on a machine with such a GPU: "
        "python -m export.verify BUNDLE --runtime tensorrt"
    )


@failures_in_words(failures.in_words)
def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    config = tyro.cli(EngineConfig, args=given, prog="python -m export.to_tensorrt", description=EngineConfig.__doc__)
    console = Terminal()
    engine, record = write_engine(config, console)
    console.print(summary(engine, record), highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run_program(main)
