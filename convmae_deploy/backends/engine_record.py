"""What stands beside a TensorRT engine: how it was built, and so where it can run.

`NAME.engine` is the engine as TensorRT wrote it, with nothing before or after, so that Triton and NVIDIA's own tools
read it. `NAME.engine.json` is its record. An engine is for one version of TensorRT and, as a rule, for one kind of GPU,
while a bundle is for any machine: engines lie in the bundle's folder but are none of the files in its manifest.

One folder can hold the engines of several machines, each set in `engines/NAME/`. Which of them is loaded follows from
their records and from the machine, not from the names of the folders.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from convmae_deploy.backends.gpu import Gpu, find_gpu
from convmae_deploy.backends.tensorrt_library import TITLES, Flavour, import_tensorrt, is_installed
from convmae_deploy.bundle.loading import Bundle, BundleError, file_inside
from convmae_deploy.bundle.manifest import MAX_BATCH, Precision
from convmae_deploy.bundle.preprocessing import Size
from convmae_deploy.files import read_regular

ENGINE_SUFFIX = ".engine"
ENGINE_SUFFIXES = (ENGINE_SUFFIX, ".plan")  # with Triton's, by which no bundle finds one
MAX_ENGINE_BYTES = 2**34
MAX_RECORD_BYTES = 2**22
SETS = "engines"  # folder of a bundle with a folder for each kind of machine
FLOATS = ("fp8", "fp16", "bf16", "fp32")  # types of numbers in an engine, the narrowest first

Batch = Annotated[int, Field(ge=1, le=MAX_BATCH)]
Version = Annotated[str, Field(max_length=50)]
Word = Annotated[str, Field(max_length=200)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EngineProfile(_Record):
    """The batches that one set of kernels takes; they were chosen for the largest."""

    min_batch: Batch
    max_batch: Batch
    size: Size | None = None  # (height, width) in pixels of its inputs; None: the bundle's


class EngineLayer(_Record):
    """A kernel of an engine, as TensorRT made it of the graph. Types are fp32, fp16, bf16, int8, ..., each once."""

    name: Word
    kind: Word  # in TensorRT's words
    reads: tuple[Version, ...]
    weights: tuple[Version, ...]  # of its constants
    gives: tuple[Version, ...]
    work: int = Field(default=0, ge=0)  # multiply-adds of one image in its convolutions and matrix products

    @property
    def computes_in(self) -> str:
        """The type of its products: int8 where it reads that, else the narrowest of the numbers that go in."""
        if "int8" in self.reads:
            return "int8"
        return next((kind for kind in FLOATS if kind in (*self.reads, *self.weights)), "")


class EngineRecord(_Record):
    """How an engine was built."""

    schema_version: Literal[1] = 1
    flavour: Flavour
    tensorrt_version: Version
    compute_capabilities: tuple[Version, ...] = Field(min_length=1)  # of the GPUs that it is for, for instance ("8.9",)
    newer_gpus: bool = False  # whether it is for all beyond the last of them too
    version_compatible: bool = False  # whether later versions of the same major version of TensorRT run it
    engine_sha256: Digest
    engine_bytes: int = Field(gt=0, le=MAX_ENGINE_BYTES)
    graph: str  # the bundle's file that it was built from
    graph_sha256: Digest
    precision: Precision  # the graph's
    # those of the bundle's size, then those of each other one; of each by batch size, without gaps
    profiles: tuple[EngineProfile, ...] = Field(min_length=1)
    options: dict[str, str | int]  # what the builder was given
    gpu: str | None  # that it was built on; None: on none
    cuda: str | None  # newest of that GPU's driver
    build_seconds: float = Field(ge=0, allow_inf_nan=False)
    peak_memory_bytes: int = Field(ge=0, le=2**50)  # of the building process, without what is on the GPU
    layers: tuple[EngineLayer, ...] = Field(default=(), max_length=100_000)  # none: TensorRT did not say

    @property
    def types_in_words(self) -> str:
        """Which types the multiplications of the engine are computed in, the most frequent first."""
        total, sums = sum(layer.work for layer in self.layers), Counter[str]()
        for layer in self.layers:
            sums[layer.computes_in or "unknown types"] += layer.work
        if not total:
            return "in types that TensorRT did not tell"
        return ", ".join(f"{work / total:.1%} in {kind}" for kind, work in sums.most_common() if work)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The batches of the bundle's size that the engine is fast for."""
        return tuple(profile.max_batch for profile in self.profiles if profile.size is None)

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The other sizes, (height, width) in pixels, that it takes."""
        return tuple(dict.fromkeys(profile.size for profile in self.profiles if profile.size is not None))


def record_path(engine: Path) -> Path:
    """Where an engine's record is."""
    return engine.with_name(f"{engine.name}.json")


def engine_name(graph: str) -> str:
    """What the engine of a graph is called by default: model.fp16.engine for model.fp16.onnx."""
    return f"{Path(graph).stem}{ENGINE_SUFFIX}"


def read_record(engine: Path) -> EngineRecord:
    """The record of an engine.

    Raises:
        BundleError: there is none that can be read.
    """
    path = record_path(engine)
    try:
        return EngineRecord.model_validate_json(read_regular(path, MAX_RECORD_BYTES))
    except FileNotFoundError:
        raise BundleError(
            f"{engine} has no record {path.name} beside it, which says where it can run; {rebuild()}"
        ) from None
    except (OSError, ValidationError) as error:
        reason = error.errors(include_url=False)[0]["msg"] if isinstance(error, ValidationError) else error.strerror
        raise BundleError(f"{path} is no record of an engine ({reason}); {rebuild()}") from error


def engines_of(bundle: Bundle) -> list[str]:
    """The engines in a bundle's folder and in its sets, by their names in the folder."""
    found = [*bundle.path.glob(f"*{ENGINE_SUFFIX}"), *bundle.path.glob(f"{SETS}/*/*{ENGINE_SUFFIX}")]
    return sorted(
        (path.relative_to(bundle.path).as_posix() for path in found), key=lambda name: (name.count("/"), name)
    )


def set_name(compute_capabilities: Sequence[str], newer_gpus: bool, version: str) -> str:
    """What the folder of a set is called, for people: sm8.9-10.9.0.34, sm8.0+-1.7.1.116."""
    first, *others = compute_capabilities
    gpus = f"{first}+" if newer_gpus else "_".join((first, *others))
    return f"sm{gpus}-{version}"


def find_engine(bundle: Bundle, file: str | None) -> Path:
    """The engine to run, which is in the bundle's folder or in one of its sets.

    Args:
        bundle: whose folder.
        file: its name, or that of the graph that it was built from; None: that of the default graph, or of another
            where all engines are of one. Where the folder and its sets hold several of that name, it is the first for
            this machine.

    Raises:
        BundleError: there is none, or none of several is for this machine.
    """
    found = engines_of(bundle)
    if file in found:
        return _inside(bundle, file)
    if file is not None and file.endswith(ENGINE_SUFFIX):
        wanted, precision = file, None
    else:
        _, graph = bundle.graph(file)
        wanted, precision = engine_name(file or bundle.default_file), graph.precision
        names = {name.rpartition("/")[2] for name in found}
        if file is None and len(names) == 1:
            (wanted,) = names
    candidates = [_inside(bundle, name) for name in found if name.rpartition("/")[2] == wanted]
    if not candidates:
        if precision is None:
            raise BundleError(f"bundle {bundle.path} has no engine {wanted}, {_listed(found)}; {rebuild()}")
        raise BundleError(
            f"runtime tensorrt needs an engine in {bundle.path}: {wanted}, {_listed(found)}; {rebuild(precision)}"
        )
    return candidates[0] if len(candidates) == 1 else _for_this_machine(candidates)


def _for_this_machine(engines: Sequence[Path]) -> Path:
    """The first of several engines that this machine runs.

    Raises:
        BundleError: it runs none of them; the reason is the first one's.
    """
    gpu = find_gpu()
    if gpu is None:
        raise BundleError(f"there are several engines, and no GPU to choose by; name one of {_paths(engines)}")
    problems = []
    for engine in engines:
        record = read_record(engine)
        try:
            if not is_installed(record.flavour):
                raise BundleError(f"{engine} needs {TITLES[record.flavour]}, which is not installed")
            check_machine(engine, record, import_tensorrt(record.flavour).__version__, gpu)
        except BundleError as error:
            problems.append(str(error))
        else:
            return engine
    raise BundleError(f"none of {len(engines)} engines is for this machine ({_paths(engines)}); {problems[0]}")


def _inside(bundle: Bundle, name: str) -> Path:
    """An engine by its name in the bundle's folder, none of whose parts leads out of it."""
    path = bundle.path
    for part in name.split("/"):
        path = file_inside(path, part)
    return path


def _paths(engines: Sequence[Path]) -> str:
    return ", ".join(map(str, engines))


def _listed(names: Sequence[str]) -> str:
    return f"found {', '.join(names)}" if names else "found none"


def check_engine(engine: Path, record: EngineRecord, bundle: Bundle) -> bytes:
    """The content of an engine, read once, so that what was checked is what is loaded.

    Raises:
        BundleError: it is not the one of its record, or the record's graph is not the bundle's.
    """
    try:
        content = read_regular(engine, MAX_ENGINE_BYTES)
    except OSError as error:
        raise BundleError(f"{engine} cannot be read ({error.strerror}); check its permissions") from error
    size, digest = len(content), hashlib.sha256(content).hexdigest()
    if (size, digest) != (record.engine_bytes, record.engine_sha256):
        raise BundleError(
            f"{engine} must have {record.engine_bytes} bytes and the SHA-256 {record.engine_sha256}, "
            f"found {size} and {digest}: it was changed; {rebuild(record.precision)}"
        )
    graph = bundle.manifest.files.get(record.graph)
    if graph is None or graph.digest != record.graph_sha256:
        found = f"no {record.graph}" if graph is None else f"one of {graph.digest}"
        raise BundleError(
            f"{engine} was built from a {record.graph} of the SHA-256 {record.graph_sha256}, the bundle has {found}; "
            f"{rebuild(record.precision)}"
        )
    return content


def check_machine(engine: Path, record: EngineRecord, version: str, gpu: Gpu) -> None:
    """Raises BundleError unless TensorRT's version and the GPU are ones that an engine is for.

    Args:
        engine: for the sentence.
        record: of the engine.
        version: of the TensorRT that is installed.
        gpu: that it is to run on.
    """
    title = TITLES[record.flavour]
    if not _version_fits(record, version):
        later = " or a later one of the same major version" if record.version_compatible else ""
        raise BundleError(
            f"{engine} was built by {title} {record.tensorrt_version} and needs that version{later}, "
            f"found {version}; install it, or {rebuild(record.precision)}"
        )
    if not _gpu_fits(record, gpu.compute_capability):
        wanted = " or ".join(record.compute_capabilities) + (" or more" if record.newer_gpus else "")
        raise BundleError(
            f"{engine} is for GPUs of compute capability {wanted}, found {gpu.name} with {gpu.compute_capability}; "
            f"{rebuild(record.precision)}"
        )


def rebuild(precision: Precision | None = None) -> str:
    """What to do about an engine that cannot be used."""
    return "build it on this machine" + ("" if precision is None else f" in {precision}")


def _version_fits(record: EngineRecord, version: str) -> bool:
    if version == record.tensorrt_version:
        return True
    built, found = _numbers(record.tensorrt_version), _numbers(version)
    return record.version_compatible and found[:1] == built[:1] and found >= built


def _gpu_fits(record: EngineRecord, found: str) -> bool:
    """Whether it is one of the kinds, or beyond the last: those between that are not named are left out.

    TensorRT for RTX knows 8.9 and 12.0, and none of the 9.0 and 10.0 of data centres.
    """
    last = max(map(_numbers, record.compute_capabilities))
    return found in record.compute_capabilities or (record.newer_gpus and _numbers(found) > last)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isascii() and part.isdigit())
