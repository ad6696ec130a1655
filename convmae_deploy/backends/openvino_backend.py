"""OpenVINO on the CPU: the same graphs as ONNX Runtime's, in bf16 too where the CPU has it."""

import sys
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from convmae_deploy.backends.base import (
    ComputePrecision,
    Device,
    Feeds,
    GraphSource,
    InputArray,
    OpenGraph,
    Outputs,
    PerformanceHint,
    Runtime,
    check_threads,
    does_not_run,
)
from convmae_deploy.bundle.graph_checks import GraphTensor, check_graph, check_images, checked_path
from convmae_deploy.bundle.loading import Bundle, BundleError
from convmae_deploy.bundle.manifest import Precision
from convmae_deploy.errors import ConvMAEError, missing_extra

_TYPES = {"float32": "f32", "int64": "i64", "uint8": "u8"}  # as OpenVINO calls them
_PRECISION_HINTS: dict[ComputePrecision, str] = {"fp32": "f32", "bf16": "bf16"}
_AS_IN_GRAPH = "dynamic"  # a precision hint; with "f32" it computes float16 graphs in float32
_RUNS_ALL = (2026, 3)  # the first version; those before know no GridSample of opset 20, which detectors have
_CAPABILITIES: dict[Precision, str] = {
    "fp32": "FP32",
    "fp16": "FP16",
    "bf16": "BF16",
    "int8": "FP32",
    "int8-fp16": "FP16",
}


class OpenVinoBackend:
    """A graph compiled by OpenVINO for this CPU, known to be the one that the manifest describes."""

    providers = ("CPU",)

    def __init__(
        self,
        bundle: Bundle,
        *,
        file: str | None = None,
        device: Device = "auto",
        threads: int | None = None,
        precision: ComputePrecision = "fp32",
        hint: PerformanceHint = "latency",
    ) -> None:
        """Loads and compiles a graph.

        Args:
            bundle: where the graph is.
            file: its name in the manifest; None for the default.
            device: "auto" is the CPU too.
            threads: CPU threads of all runs together; None leaves the number to OpenVINO (one a core).
            precision: what floating-point layers compute in; quantised layers compute in int8 whatever this says.
            hint: "latency" gives each run all threads, one after the other; "throughput" lets as many runs as OpenVINO
                finds good share the threads side by side, and cuts a batch into that many parts.

        Raises:
            BundleError: the graph is not the one that the manifest describes, or OpenVINO refuses it.
            ConvMAEError: OpenVINO is not installed, a GPU was asked for, the CPU does not have the precision, or
                `threads` is less than 1.
        """
        check_threads(threads)
        if device == "cuda":
            raise ConvMAEError("runtime openvino runs on the CPU, not on device cuda; use device cpu or auto")
        openvino = import_openvino()
        path = checked_path(bundle, file)
        core = openvino_core()
        _require(precision, core)
        # without its precision it would be bf16 wherever the CPU has it
        settings = _settings(_PRECISION_HINTS[precision], threads) | {"PERFORMANCE_HINT": hint.upper()}
        self._compiled = _compile(core, path, settings, openvino.__version__)
        computes_in = self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if computes_in != _PRECISION_HINTS[precision]:
            raise ConvMAEError(f"OpenVINO was asked for {precision} and compiled {path} in {computes_in}")
        manifest = bundle.manifest
        inputs = _tensors(self._compiled.inputs, [manifest.input.name])
        check_graph(inputs, _tensors(self._compiled.outputs, manifest.outputs), manifest, path, _TYPES)
        self.name = f"openvino {precision}"
        self.streams: int = self._compiled.get_property("NUM_STREAMS")  # runs side by side
        self.threads: int = self._compiled.get_property("INFERENCE_NUM_THREADS")  # all runs share them
        self._input = manifest.input
        self._path, self._version = path, openvino.__version__
        # A request runs one batch at a time; idle ones wait here, and one more is made where none is idle.
        self._idle: deque[Any] = deque()

    def run(self, image: InputArray, outputs: Sequence[str]) -> Outputs:
        """Runs images (B, 3, H, W), or clips (B, 3, T, H, W), and returns the named outputs, each (B, ...).

        Raises:
            ConvMAEError: the batch is of another shape.
            ModelError: the graph does not run.
        """
        check_images(image, self._input)  # others OpenVINO would run, whatever it reads then
        parts = np.array_split(image, max(1, min(self.streams, len(image) // self._input.min_batch)))
        try:
            return self._run(parts, outputs)
        except RuntimeError as error:  # all that OpenVINO raises
            raise does_not_run(f"OpenVINO {self._version}", self._path, len(image), error) from error

    def _run(self, parts: Sequence[InputArray], outputs: Sequence[str]) -> Outputs:
        """Runs parts of a batch side by side."""
        with self._requests(len(parts)) as requests:
            if len(parts) == 1:
                return _outputs(requests[0].infer({self._input.name: parts[0]}, share_outputs=True), outputs)
            for request, part in zip(requests, parts, strict=True):
                request.start_async({self._input.name: part})
            found = []
            for request in requests:
                request.wait()
                found.append({name: request.get_tensor(name).data for name in outputs})
            return {name: np.concatenate([values[name] for values in found]) for name in outputs}

    @contextmanager
    def _requests(self, count: int) -> Iterator[list[Any]]:
        """Requests that nobody else uses until the end; after an error they are not used again."""
        requests = []
        for _ in range(count):
            try:
                requests.append(self._idle.pop())
            except IndexError:
                requests.append(self._compiled.create_infer_request())
        yield requests
        self._idle.extend(requests)


def import_openvino() -> Any:
    """The package.

    Raises:
        ConvMAEError: it is not installed.
    """
    # OpenVINO reports every import to its maker through this package, and does without it where it cannot be imported.
    # No variable of the environment turns that off.
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)
    try:
        import openvino
    except ImportError as error:
        raise missing_extra("runtime openvino", "OpenVINO", "openvino") from error
    return openvino


@cache
def openvino_core() -> Any:
    """The one `openvino.Core` of this process, never let go.

    Each one gives the thread that makes it a larger stack for signal handlers, which AMX needs, and takes it away at
    its end. When two end in the order in which they were made, the thread is left with a stack that is gone, and the
    next signal, such as the end of a child process, ends this one (OpenVINO 2026.4).

    Raises:
        ConvMAEError: OpenVINO is not installed.
    """
    return import_openvino().Core()


def openvino_capabilities() -> tuple[str, ...]:
    """What OpenVINO can compute in on this CPU, by its own names; the only place that asks.

    Raises:
        ConvMAEError: OpenVINO is not installed.
    """
    return tuple(openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def _require(precision: ComputePrecision, core: Any) -> None:
    found = openvino_capabilities()
    if _CAPABILITIES[precision] not in found:
        name = core.get_property("CPU", "FULL_DEVICE_NAME")
        raise ConvMAEError(
            f"precision {precision} needs a CPU that has it, OpenVINO finds {', '.join(sorted(found))} on {name}; "
            "use precision fp32"
        )


def open_graph(source: GraphSource, *, optimised: bool = True) -> OpenGraph:
    """A graph on the CPU, which OpenVINO always optimises; see `GraphOpener`."""
    import_openvino()  # the core of earlier graphs would hide that it is missing
    core = openvino_core()
    compiled = core.compile_model(core.read_model(source), "CPU", _settings(_AS_IN_GRAPH, None))

    def run(outputs: Sequence[str], feeds: Feeds) -> Outputs:
        return _outputs(compiled(dict(feeds)), outputs)

    return OpenGraph(tuple(port.any_name for port in compiled.inputs), run)


def _settings(precision_hint: str, threads: int | None) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": precision_hint,
        # Pinned, the models of one server, and every other process with OpenVINO, would all take the first cores.
        "ENABLE_CPU_PINNING": False,
    }
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    return settings


def _compile(core: Any, path: Path, settings: dict[str, Any], version: str) -> Any:
    try:
        return core.compile_model(path, "CPU", settings)
    except Exception as error:  # OpenVINO's exceptions have no common base
        reason = " ".join(str(error).split())
        old = tuple(map(int, version.split(".")[:2])) < _RUNS_ALL
        advice = "install OpenVINO 2026.3, the first that runs every file" if old else "export it again"
        raise BundleError(f"OpenVINO {version} cannot load {path} ({reason}); {advice}") from error


def _problem(device: Device, precision: Precision) -> str | None:
    """Why OpenVINO cannot compute graphs of a precision as they are written."""
    try:
        import_openvino()
    except ConvMAEError as error:
        return str(error)
    if _CAPABILITIES[precision] not in openvino_capabilities():
        return f"OpenVINO computes {precision} in fp32 on this CPU"
    return None


def _describe(precision: Precision, computes_in: ComputePrecision | None) -> str:
    version = import_openvino().__version__.split("-")[0]
    types = computes_in or "the graph's types"
    return f"openvino {version} (CPU, in {types})"


def _outputs(results: Any, names: Sequence[str]) -> Outputs:
    # The results are views of the request's memory, which its next run overwrites; the others need no copy.
    return {name: np.array(results[name]) for name in names}


def _tensors(ports: Any, known: Collection[str]) -> list[GraphTensor]:
    """Inputs or outputs by their known names: a tensor that passes through an Identity has the one before it too."""
    return [
        GraphTensor(
            name,
            port.element_type.to_string(),
            tuple("batch" if size.is_dynamic else size.get_length() for size in port.partial_shape),
        )
        for port in ports
        for name in sorted(port.get_names() & set(known)) or [port.any_name]
    ]


OPENVINO = Runtime(
    title="OpenVINO",
    extras=("openvino",),
    problem=_problem,
    open=OpenVinoBackend,
    options=("precision", "hint"),
    shares_threads=True,
    open_graph=open_graph,
    describe=_describe,
)
