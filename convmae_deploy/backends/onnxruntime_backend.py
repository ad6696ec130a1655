"""ONNX Runtime on the CPU or on an NVIDIA GPU, there with TensorRT too."""

import contextlib
import logging
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime

from convmae_deploy.backends.base import (
    ComputePrecision,
    Device,
    Feeds,
    GraphSource,
    InputArray,
    OpenGraph,
    Outputs,
    Runtime,
    check_threads,
    does_not_run,
)
from convmae_deploy.backends.gpu import find_gpu, page_locked
from convmae_deploy.backends.lanes import Lanes
from convmae_deploy.backends.onnxruntime_lane import Lane
from convmae_deploy.backends.tensorrt_library import cache_folder, import_tensorrt
from convmae_deploy.bundle.graph_checks import GraphTensor, check_graph, check_images, checked_path
from convmae_deploy.bundle.loading import Bundle, BundleError
from convmae_deploy.bundle.manifest import InputSpec, Precision
from convmae_deploy.errors import ConvMAEError

logger = logging.getLogger("convmae_deploy")

_TENSORRT, _CUDA, _CPU = "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"
_TYPES = {"float32": "tensor(float)", "int64": "tensor(int64)", "uint8": "tensor(uint8)"}  # as ONNX Runtime calls them
VERSION = onnxruntime.__version__  # of a package that is called onnxruntime or onnxruntime-gpu
_UNSIGNED_PRODUCTS = "session.x64quantprecision"
_LOG_ERRORS, _LOG_FATAL_ERRORS = 3, 4  # of ONNX Runtime's severities
_LANES = 2  # batches on a GPU at once: one runs, the next is copied


class OnnxRuntimeBackend:
    """A graph in ONNX Runtime, known to be the one that the manifest describes."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        file: str | None = None,
        device: Device = "auto",
        threads: int | None = None,
        tensorrt: bool = False,
    ) -> None:
        """Loads a graph.

        Args:
            bundle: where the graph is.
            file: its name in the manifest; None for the default.
            device: "auto" takes the GPU where ONNX Runtime really starts on it and the CPU elsewhere.
            threads: CPU threads for one run; None leaves the number to ONNX Runtime (one a core).
            tensorrt: whether TensorRT is to run on the GPU what it can, and CUDA the rest. ONNX Runtime builds the
                engine at the first start, which takes minutes, and keeps it in `cache_folder`. Never run on a GPU yet.

        Raises:
            BundleError: the graph is not the one that the manifest describes, or ONNX Runtime refuses it.
            ConvMAEError: the GPU or TensorRT was asked for and does not start, or `threads` is less than 1.
        """
        check_threads(threads)
        path = checked_path(bundle, file)
        if not tensorrt:
            _refuse_bf16(bundle, path, device)
        self.name = "onnxruntime-tensorrt" if tensorrt else "onnxruntime"
        engines = _tensorrt_options(bundle, path, device) if tensorrt else None
        self._session = _start(path, "cuda" if tensorrt else device, threads, engines)
        inputs, outputs = _tensors(self._session.get_inputs()), _tensors(self._session.get_outputs())
        check_graph(inputs, outputs, bundle.manifest, path, _TYPES)
        self._input, self._path = bundle.manifest.input, path
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        self._lanes: Lanes[Lane] | None = None
        if self.providers[0] != _CPU:
            self.batch_sizes, self.lanes = _batch_sizes(self._input), _LANES
            self.host_buffer = page_locked
            self._lanes = Lanes(lambda: Lane(self._session, self._input.name, "cuda"), _LANES)

    def run(self, image: InputArray, outputs: Sequence[str]) -> Outputs:
        """Runs images (B, 3, H, W), or clips (B, 3, T, H, W), and returns the named outputs, each (B, ...).

        Raises:
            ConvMAEError: the batch is of a shape that the graph does not take.
            ModelError: the graph does not run.
        """
        check_images(image, self._input)
        try:
            if self._lanes is not None:
                with self._lanes.take() as lane:
                    return lane.run(image, outputs)
            found = self._session.run(list(outputs), {self._input.name: image})
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise does_not_run(f"ONNX Runtime {onnxruntime.__version__}", self._path, len(image), error) from error
        return dict(zip(outputs, found, strict=True))


def _start(path: Path, device: Device, threads: int | None, engines: dict[str, str] | None = None) -> Any:
    """A session; with `engines`, TensorRT's options, one in which TensorRT runs."""
    problem = _problem(device, "fp32")
    if problem is not None:
        raise ConvMAEError(problem)
    has_cuda = _CUDA in onnxruntime.get_available_providers()
    cuda = device == "cuda" or (device == "auto" and has_cuda and _gpu_is_present())
    # Why a GPU does not start is in the log alone; all else that goes wrong is raised as well.
    make_options = partial(_session_options, threads, _LOG_ERRORS if cuda else _LOG_FATAL_ERRORS)
    providers: list[str | tuple[str, dict[str, str]]] = [_CPU]
    if cuda:
        providers.insert(0, (_CUDA, {"use_tf32": "0"}))  # fp32 is to be fp32, as on the CPU
    if engines is not None:
        providers.insert(0, (_TENSORRT, engines))
    try:
        # With a GPU, onnxruntime reports trouble by print(); stdout is for results.
        with contextlib.redirect_stdout(sys.stderr) if cuda else contextlib.nullcontext():
            if cuda:
                # Finds the CUDA and cuDNN libraries of the nvidia-* wheels, which are on no library path.
                onnxruntime.preload_dlls()
            session = _session(path, make_options, providers)
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        reason = " ".join(str(error).split())
        raise BundleError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {path} ({reason}); choose another file or runtime, or "
            "export it again, for an older ONNX Runtime with opset 18"
        ) from error
    if engines is not None and _TENSORRT not in session.get_providers():
        raise ConvMAEError(
            f"ONNX Runtime {onnxruntime.__version__} could not start TensorRT, its messages above say why; install the "
            "version of TensorRT that it names, or use runtime tensorrt or onnxruntime"
        )
    if cuda and _CUDA not in session.get_providers():
        if device == "cuda":
            raise ConvMAEError(
                "ONNX Runtime found a GPU but could not start on it, its messages above say why; "
                "install the CUDA and cuDNN versions it names, or use device cpu"
            )
        logger.warning("ONNX Runtime could not start on the GPU; running on the CPU")
    return session


def open_graph(source: GraphSource, *, optimised: bool = True) -> OpenGraph:
    """A graph on the CPU; see `GraphOpener`."""

    def make_options() -> Any:
        options = _session_options(None, _LOG_FATAL_ERRORS)  # the exception says it all
        options.enable_cpu_mem_arena = False  # it would keep the memory of the largest batch
        if not optimised:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return options

    session = _session(source, make_options, [_CPU])

    def run(outputs: Sequence[str], feeds: Feeds) -> Outputs:
        return dict(zip(outputs, session.run(list(outputs), dict(feeds)), strict=True))

    inputs, outputs = session.get_inputs(), session.get_outputs()
    return OpenGraph(
        tuple(entry.name for entry in inputs),
        run,
        outputs=tuple(entry.name for entry in outputs),
        takes_bytes=any(entry.type == "tensor(uint8)" for entry in inputs),
    )


def _session_options(threads: int | None, log_severity: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = log_severity
    options.intra_op_num_threads = threads or 0
    return options


def _session(source: GraphSource, make_options: Callable[[], Any], providers: Sequence[Any]) -> Any:
    graph, options = str(source) if isinstance(source, Path) else source, make_options()
    # int8: on x86 without VNNI products of unsigned by signed bytes saturate; those of unsigned ones do not
    options.add_session_config_entry(_UNSIGNED_PRODUCTS, "1")
    try:
        return onnxruntime.InferenceSession(graph, sess_options=options, providers=providers)
    except Exception:  # 1.31 cannot where int8 layers share a weight (older files); other faults come again
        return onnxruntime.InferenceSession(graph, sess_options=make_options(), providers=providers)


def _problem(device: Device, precision: Precision) -> str | None:
    """Why ONNX Runtime cannot run graphs of a precision on a device."""
    if device != "cuda":
        return "ONNX Runtime's CPU provider has no bf16" if precision == "bf16" else None
    if precision == "bf16":
        return "ONNX Runtime's CUDA provider has no bf16 convolutions"  # as its list of kernels says
    if _CUDA not in onnxruntime.get_available_providers():
        return (
            f"device cuda needs onnxruntime-gpu, found onnxruntime {onnxruntime.__version__} without CUDA; "
            "install onnxruntime-gpu or use device cpu"
        )
    if not _gpu_is_present():
        return "device cuda needs an NVIDIA GPU with its driver, found none; use device auto or cpu"
    return None


def _refuse_bf16(bundle: Bundle, path: Path, device: Device) -> None:
    """Raises ConvMAEError where a file is bf16: exporting it again would not help."""
    precision = bundle.graph(path.name)[1].precision
    if precision == "bf16":
        others = [name for name, file in bundle.manifest.files.items() if file.precision != "bf16"]
        choice = f", or choose another file: {', '.join(others)}" if others else ", or export it in fp16"
        raise ConvMAEError(
            f"{path} is bf16, and {_problem(device, precision)}; use runtime openvino, on a GPU runtime tensorrt with "
            f"an engine of this bundle{choice}"
        )


def _gpu_is_present() -> bool:
    """Asks the driver itself: ONNX Runtime answers the question with warnings on stderr."""
    return find_gpu() is not None


def _tensorrt_problem(device: Device, precision: Precision) -> str | None:
    """Why ONNX Runtime's TensorRT cannot run here, as far as can be told without loading it."""
    if device == "cpu" or not _gpu_is_present():
        found = "got device cpu" if device == "cpu" else "found none"
        return f"runtime onnxruntime-tensorrt needs an NVIDIA GPU with its driver, {found}; use runtime onnxruntime"
    if _TENSORRT not in onnxruntime.get_available_providers():
        return (
            f"runtime onnxruntime-tensorrt needs onnxruntime-gpu, found onnxruntime {onnxruntime.__version__} without "
            "TensorRT; install onnxruntime-gpu or use runtime onnxruntime"
        )
    return None


def _describe(precision: Precision, computes_in: ComputePrecision | None) -> str:
    """The CPU's provider with its version; the package is called onnxruntime or onnxruntime-gpu."""
    where = _CPU + (f", which computes most of {precision} in fp32" if precision in ONNX_RUNTIME.widens else "")
    return f"onnxruntime {onnxruntime.__version__} ({where})"


def _tensorrt_options(bundle: Bundle, path: Path, device: Device) -> dict[str, str]:
    """Options of ONNX Runtime's TensorRT: the graph's types, the bundle's batches, and what to keep where.

    Raises:
        ConvMAEError: TensorRT cannot run here.
    """
    problem, gpu = _tensorrt_problem(device, "fp32"), find_gpu()
    if problem is not None or gpu is None:
        raise ConvMAEError(problem)
    import_tensorrt("tensorrt")  # whose libraries are on no library path; ONNX Runtime finds those that are loaded
    _, description = bundle.graph(path.name)
    machine = re.sub(r"[^a-z0-9.]+", "-", f"{gpu.name} cuda{gpu.cuda} onnxruntime{onnxruntime.__version__}".lower())
    folder = cache_folder() / "onnxruntime" / machine / description.digest[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return {
        # neither may be on, else ONNX Runtime builds weakly typed engines and TensorRT rounds where it likes
        "trt_fp16_enable": "0",
        "trt_int8_enable": "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
        **_batch_range(bundle.manifest.input),
    }


def _batch_range(spec: InputSpec) -> dict[str, str]:
    """The batches and sizes that the engine takes; without them every new one builds another."""
    shapes = {which: spec.shape for which in ("min", "opt", "max")}
    if spec.sides is not None:
        shapes["min"], shapes["max"] = (
            (spec.shape[0], side, side) for side in (spec.sides.smallest, spec.sides.largest)
        )
    batches = {"min": spec.min_batch, "opt": spec.max_batch, "max": spec.max_batch}
    return {
        f"trt_profile_{which}_shapes": f"{spec.name}:{'x'.join(map(str, (batch, *shapes[which])))}"
        for which, batch in batches.items()
    }


def _batch_sizes(spec: InputSpec) -> tuple[int, ...]:
    """Powers of two up to the largest batch, and that; ONNX Runtime takes any."""
    powers = (1 << power for power in range(spec.max_batch.bit_length()))
    return (*(size for size in powers if spec.min_batch <= size < spec.max_batch), spec.max_batch)


def _tensors(items: Any) -> list[GraphTensor]:
    return [GraphTensor(item.name, item.type, tuple(item.shape)) for item in items]


ONNX_RUNTIME = Runtime(
    title="ONNX Runtime",
    devices=("cpu", "cuda"),
    problem=_problem,
    open=OnnxRuntimeBackend,
    open_graph=open_graph,
    describe=_describe,
    widens=("fp16", "int8-fp16"),  # x86-64, 1.31
)
ONNX_RUNTIME_TENSORRT = Runtime(
    title="ONNX Runtime TensorRT",
    devices=("cuda",),
    problem=_tensorrt_problem,
    open=partial(OnnxRuntimeBackend, tensorrt=True),
)
