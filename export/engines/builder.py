"""Building a TensorRT engine, in a process of its own: TensorRT can end the process that it is in.

The process reads the graph, which is strongly typed: its tensors' types are the engine's, and there are no flags for
precisions. What it has to say comes through a pipe: messages, progress, and at the end a `Build` or a sentence.
"""

import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from convmae_deploy.backends.engine_record import EngineProfile
from convmae_deploy.backends.gpu import Gpu, find_gpu
from convmae_deploy.backends.tensorrt_library import TITLES, Flavour, Severity, import_tensorrt, make_logger
from convmae_deploy.bundle.graph_checks import GraphTensor, check_graph
from convmae_deploy.bundle.manifest import Manifest
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import atomic_file
from convmae_deploy.machine import peak_memory_bytes
from export.engines.layers import MARK, FoundLayer, parse_layers

TENSOR_TYPES = {"float32": "FLOAT", "int64": "INT64", "uint8": "UINT8"}  # as TensorRT calls them
AMPERE = "8.0"  # compute capability, from which on hardware-compatible engines and those of TensorRT for RTX run


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What to build."""

    graph: Path
    engine: Path  # the file to write
    manifest: Manifest  # that describes the graph
    flavour: Flavour
    profiles: tuple[EngineProfile, ...]
    workspace_bytes: int | None = None  # GPU memory that a layer may take for its scratch; None: all
    optimisation_level: int | None = None  # 0 to 5; None: TensorRT's default
    version_compatible: bool = False
    hardware_compatible: bool = False
    compute_capabilities: tuple[str, ...] = ()  # TensorRT for RTX: to build for; none: its default
    timing_cache: Path  # folder of measured kernel times


@dataclass(frozen=True, kw_only=True)
class Build:
    """How it went."""

    tensorrt_version: str
    gpu: Gpu | None  # the building machine's
    compute_capabilities: tuple[str, ...]
    newer_gpus: bool
    seconds: float
    peak_memory_bytes: int
    layers: tuple[FoundLayer, ...]  # of the engine; none: TensorRT did not describe them


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Something that TensorRT has begun or done."""

    phase: str
    parent: str | None  # None: it is the outermost phase
    steps: int | None = None  # how many the phase will have, when it begins
    step: int | None = None  # which one is done


def build_engine(
    request: BuildRequest, on_message: Callable[[Severity, str], None], on_progress: Callable[[Progress], None]
) -> Build:
    """Builds in a child process, and reports what it says.

    Args:
        request: what to build.
        on_message: gets each message of TensorRT.
        on_progress: gets each step.

    Raises:
        ConvMAEError: TensorRT refuses the graph, fails, or ended its process.
    """
    context = multiprocessing.get_context("spawn")  # a fork would share locks of threads that it does not have
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_build_and_send, args=(request, sender))
    child.start()
    sender.close()  # so that the pipe ends with the child
    last_error = ""
    try:
        while True:
            try:
                event = receiver.recv()
            except EOFError:
                child.join()
                raise ConvMAEError(_ended(request, child.exitcode, last_error)) from None
            if isinstance(event, Build):
                return event
            if isinstance(event, ConvMAEError | OSError):
                raise event
            if isinstance(event, Progress):
                on_progress(event)
            else:
                severity, message = event
                last_error = message if severity == "error" else last_error
                on_message(severity, message)
    finally:
        child.terminate()
        child.join()
        receiver.close()


def _ended(request: BuildRequest, status: int | None, last_error: str) -> str:
    """The sentence about a child that gave no answer."""
    how = f"status {status}"
    if status is not None and status < 0:
        how = f"signal {signal.Signals(-status).name}"
    why = f"; its last message was: {last_error}" if last_error else ""
    memory = ", as where memory runs out" if status == -getattr(signal, "SIGKILL", 0) else ""
    return (
        f"{TITLES[request.flavour]} ended its process while it built an engine of {request.graph} "
        f"({how}{memory}){why}; build with --log-level verbose to see where"
    )


def _build_and_send(request: BuildRequest, sender: Connection) -> None:
    """The child: everything that it finds out goes into the pipe."""
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")  # TensorRT asks for it, as it saves memory
    lock = threading.Lock()  # TensorRT reports from several threads

    def send(event: Any) -> None:
        with lock:
            sender.send(event)

    try:
        send(_build(request, send))
    except (ConvMAEError, OSError) as error:  # of a full disk, too
        send(error)


def _build(request: BuildRequest, send: Callable[[Any], None]) -> Build:
    begun = time.perf_counter()
    errors: list[str] = []
    described: list[str] = []  # what TensorRT says of the engine's layers

    def on_message(severity: Severity, message: str) -> None:
        if severity == "error":
            errors.append(message)
        if MARK in message:
            described.append(message)
        send((severity, message))

    tensorrt = import_tensorrt(request.flavour)
    gpu = find_gpu()
    logger = make_logger(tensorrt, on_message)
    tensorrt.init_libnvinfer_plugins(logger, "")
    builder = tensorrt.Builder(logger)
    if builder is None:
        raise ConvMAEError(_failed(request, tensorrt, "start", errors))
    # the parser owns the weights, so it stays until the end
    network, parser = _parse(request, tensorrt, builder, logger)
    config = builder.create_builder_config()
    config.progress_monitor = monitor = _make_monitor(tensorrt, send)
    _configure(request, tensorrt, config)
    _add_profiles(request, builder, network, config)
    cache = _timing_cache_path(request, tensorrt, gpu)
    if cache is not None:
        _load_timing_cache(config, cache)
    engine = builder.build_serialized_network(network, config)
    del monitor, parser  # TensorRT keeps no references of its own to them
    if engine is None:
        raise ConvMAEError(_failed(request, tensorrt, "build an engine of", errors))
    request.engine.write_bytes(engine)
    if cache is not None:
        with atomic_file(cache) as path:
            path.write_bytes(config.get_timing_cache().serialize())
    if gpu is not None:
        described = [_inspected(request, tensorrt, logger, engine, errors)]
    targets, newer = engine_targets(request, gpu, tensorrt)
    return Build(
        tensorrt_version=tensorrt.__version__,
        gpu=gpu,
        compute_capabilities=targets,
        newer_gpus=newer,
        seconds=time.perf_counter() - begun,
        peak_memory_bytes=peak_memory_bytes(),
        layers=parse_layers(" ".join(described)),
    )


def _inspected(request: BuildRequest, tensorrt: Any, logger: Any, content: Any, errors: list[str]) -> str:
    """Loads the new engine, as whoever runs it will, and has TensorRT describe its layers.

    Raises:
        ConvMAEError: it does not load.
    """
    runtime = tensorrt.Runtime(logger)
    runtime.engine_host_code_allowed = request.version_compatible  # the program in it was made just now
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise ConvMAEError(_failed(request, tensorrt, "load the engine that it built of", errors))
    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(tensorrt.LayerInformationFormat.ONELINE))


def _parse(request: BuildRequest, tensorrt: Any, builder: Any, logger: Any) -> tuple[Any, Any]:
    """The graph as TensorRT's network, and the parser.

    Raises:
        ConvMAEError: the parser does not take the graph, or the manifest does not describe it.
    """
    # TensorRT 11 knows nothing but strongly typed networks, and no longer minds the flag
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(request.graph)):
        reasons = [parser.get_error(index) for index in range(parser.num_errors)]
        raise ConvMAEError(_failed(request, tensorrt, "read", [_parser_error(reason) for reason in reasons]))
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    check_graph(graph_tensors(inputs), graph_tensors(outputs), request.manifest, request.graph, TENSOR_TYPES)
    return network, parser


def graph_tensors(tensors: list[Any]) -> list[GraphTensor]:
    """Inputs or outputs of a network."""
    return [
        GraphTensor(tensor.name, tensor.dtype.name, tuple("batch" if size < 0 else size for size in tensor.shape))
        for tensor in tensors
    ]


def _configure(request: BuildRequest, tensorrt: Any, config: Any) -> None:
    config.profiling_verbosity = tensorrt.ProfilingVerbosity.DETAILED  # so that it tells the types of its layers
    config.clear_flag(tensorrt.BuilderFlag.TF32)  # fp32 is to be fp32; who wants less builds from an fp16 graph
    if request.workspace_bytes is not None:
        config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
    if request.optimisation_level is not None:
        config.builder_optimization_level = request.optimisation_level
    if request.version_compatible:
        config.set_flag(tensorrt.BuilderFlag.VERSION_COMPATIBLE)
    if request.hardware_compatible:
        config.hardware_compatibility_level = tensorrt.HardwareCompatibilityLevel.AMPERE_PLUS
    if request.compute_capabilities:
        config.num_compute_capabilities = len(request.compute_capabilities)
        for index, wanted in enumerate(request.compute_capabilities):
            found = getattr(tensorrt.ComputeCapability, f"SM{wanted.replace('.', '')}", None)
            if found is None or not config.set_compute_capability(found, index):
                known = sorted(name for name in tensorrt.ComputeCapability.__members__ if name.startswith("SM"))
                raise ConvMAEError(
                    f"{TITLES[request.flavour]} {tensorrt.__version__} cannot build for compute capability {wanted}; "
                    f"it knows {', '.join(known)}"
                )


def _add_profiles(request: BuildRequest, builder: Any, network: Any, config: Any) -> None:
    image = network.get_input(0)
    for profile in request.profiles:
        manifest = request.manifest if profile.size is None else request.manifest.at(profile.size)
        shapes = [(batch, *manifest.input.shape) for batch in (profile.min_batch, profile.max_batch)]
        ranges = builder.create_optimization_profile()
        ranges.set_shape(image.name, shapes[0], shapes[1], shapes[1])  # smallest, best for, largest
        config.add_optimization_profile(ranges)


def _make_monitor(tensorrt: Any, send: Callable[[Any], None]) -> Any:
    """TensorRT's progress; steps only of outermost phases, as the others have thousands."""
    outermost: set[str] = set()

    def phase_start(_: Any, phase: str, parent: str | None, steps: int) -> None:
        if parent is None:
            outermost.add(phase)
        send(Progress(phase=phase, parent=parent, steps=steps))

    def step_complete(_: Any, phase: str, step: int) -> bool:
        if phase in outermost:
            send(Progress(phase=phase, parent=None, step=step))
        return True  # go on

    methods = {
        "phase_start": phase_start,
        "step_complete": step_complete,
        "phase_finish": lambda _, phase: None,
        # a monitor that does not call its base class's constructor is refused
        "__init__": lambda self: tensorrt.IProgressMonitor.__init__(self),
    }
    return type("Monitor", (tensorrt.IProgressMonitor,), methods)()


def _timing_cache_path(request: BuildRequest, tensorrt: Any, gpu: Gpu | None) -> Path | None:
    """Times are those of one version on one GPU; TensorRT for RTX measures nothing while it builds."""
    if gpu is None or request.flavour == "tensorrt-rtx":
        return None
    words = f"{request.flavour} {tensorrt.__version__} {gpu.name} sm{gpu.compute_capability} cuda{gpu.cuda}"
    return request.timing_cache / f"{re.sub(r'[^a-z0-9.]+', '-', words.lower())}.timing"


def _load_timing_cache(config: Any, path: Path) -> None:
    cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
    config.set_timing_cache(cache, ignore_mismatch=False)


def engine_targets(request: BuildRequest, gpu: Gpu | None, tensorrt: Any) -> tuple[tuple[str, ...], bool]:
    """Compute capabilities that an engine is for, and whether GPUs beyond them run it too.

    Args:
        request: what is built.
        gpu: the building machine's.
        tensorrt: the package.
    """
    if request.compute_capabilities:
        return request.compute_capabilities, False
    if request.flavour == "tensorrt-rtx":  # it has no data centres' GPUs, such as 9.0
        known = [int(name[2:]) for name in tensorrt.ComputeCapability.__members__ if re.fullmatch(r"SM\d+", name)]
        names = [f"{number // 10}.{number % 10}" for number in sorted(known)]
        return tuple(name for name in names if float(name) >= float(AMPERE)), True
    if request.hardware_compatible:
        return (AMPERE,), True
    assert gpu is not None  # which TensorRT cannot build without
    return (gpu.compute_capability,), False


def _parser_error(error: Any) -> str:
    where = f" at node {error.node_name()}" if error.node_name() else ""
    operator = f" ({error.node_operator()})" if error.node_operator() else ""
    return f"{error.desc()}{where}{operator}"


def _failed(request: BuildRequest, tensorrt: Any, what: str, reasons: list[str]) -> str:
    reason = " ".join(reasons[0].split()) if reasons else "it gave no reason"
    # its messages end with where they come from in NVIDIA's own sources
    reason = re.sub(r"[.,]?\s*In \S+ at \S+", "", reason)
    return f"{TITLES[request.flavour]} {tensorrt.__version__} cannot {what} {request.graph}: {reason}"
