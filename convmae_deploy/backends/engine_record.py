"""What stands beside a TensorRT engine: how it was built, and so where it can run.

`NAME.engine` is the engine as TensorRT wrote it, with nothing before or after, so that Triton and NVIDIA's own tools
read it. `NAME.engine.json` is its record. An engine is for one version of TensorRT and, as a rule, for one kind of GPU,
while a bundle is for any machine: engines lie in the bundle's folder but are none of the files in its manifest.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from convmae_deploy.backends.gpu import Gpu
from convmae_deploy.backends.tensorrt_library import TITLES, Flavour
from convmae_deploy.bundle.loading import Bundle, BundleError, file_inside
from convmae_deploy.bundle.manifest import MAX_BATCH, Precision
from convmae_deploy.files import read_regular

ENGINE_SUFFIX = ".engine"
MAX_ENGINE_BYTES = 2**34
MAX_RECORD_BYTES = 2**20

Batch = Annotated[int, Field(ge=1, le=MAX_BATCH)]
Version = Annotated[str, Field(max_length=50)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EngineProfile(_Record):
    """The batches that one set of kernels takes; they were chosen for the largest."""

    min_batch: Batch
    max_batch: Batch


class EngineRecord(_Record):
    """How an engine was built."""

    schema_version: Literal[1] = 1
    flavour: Flavour
    tensorrt_version: Version
    compute_capabilities: tuple[Version, ...] = Field(min_length=1)  # of the GPUs that it is for, for instance ("8.9",)
    newer_gpus: bool = False  # whether it is for all from the first of them on
    version_compatible: bool = False  # whether later versions of the same major version of TensorRT run it
    engine_sha256: Digest
    engine_bytes: int = Field(gt=0, le=MAX_ENGINE_BYTES)
    graph: str  # the bundle's file that it was built from
    graph_sha256: Digest
    precision: Precision  # the graph's
    profiles: tuple[EngineProfile, ...] = Field(min_length=1)  # by batch size, without gaps
    options: dict[str, str | int]  # what the builder was given
    gpu: str | None  # that it was built on; None: on none
    cuda: str | None  # newest of that GPU's driver
    build_seconds: float = Field(ge=0, allow_inf_nan=False)
    peak_memory_bytes: int = Field(ge=0, le=2**50)  # of the building process, without what is on the GPU

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The batches that the engine is fast for."""
        return tuple(profile.max_batch for profile in self.profiles)


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


def find_engine(bundle: Bundle, file: str | None) -> Path:
    """The engine to run, which is in the bundle's folder.

    Args:
        bundle: whose folder.
        file: its name, or that of the graph that it was built from; None: the one that is there, of several that of
            the default graph.

    Raises:
        BundleError: there is none.
    """
    found = sorted(path.name for path in bundle.path.glob(f"*{ENGINE_SUFFIX}"))
    if file in found:
        return file_inside(bundle.path, file)
    if file is not None and file.endswith(ENGINE_SUFFIX):
        raise BundleError(f"bundle {bundle.path} has no engine {file}, {_listed(found)}; {rebuild()}")
    _, graph = bundle.graph(file)
    wanted = engine_name(file or bundle.default_file)
    if file is None and len(found) == 1:
        (wanted,) = found
    if wanted not in found:
        raise BundleError(
            f"runtime tensorrt needs an engine in {bundle.path}: {wanted}, {_listed(found)}; {rebuild(graph.precision)}"
        )
    return file_inside(bundle.path, wanted)


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
        wanted = " or ".join(record.compute_capabilities) if not record.newer_gpus else f"{_first(record)} or more"
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
    if record.newer_gpus:
        return _numbers(found) >= _numbers(_first(record))
    return found in record.compute_capabilities


def _first(record: EngineRecord) -> str:
    return min(record.compute_capabilities, key=_numbers)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isascii() and part.isdigit())
