"""What runs a graph, in few words, and ONNX Runtime on the CPU or on an NVIDIA GPU, there with TensorRT too."""

import contextlib
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from convmae_deploy.backends.gpu import Gpu, find_gpu
from convmae_deploy.backends.tensorrt_library import cache_folder, import_tensorrt
from convmae_deploy.bundle.graph_checks import GraphTensor, check_graph, checked_path
from convmae_deploy.bundle.loading import Bundle, BundleError
from convmae_deploy.bundle.manifest import InputSpec
from convmae_deploy.errors import ConvMAEError, ModelError

logger = logging.getLogger("convmae_deploy")

Device = Literal["auto", "cpu", "cuda"]

_TENSORRT, _CUDA, _CPU = "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"
_TYPES = {"float32": "tensor(float)", "int64": "tensor(int64)"}  # as ONNX Runtime calls them
_LOG_ERRORS, _LOG_FATAL_ERRORS = 3, 4  # of ONNX Runtime's severities


class Backend(Protocol):
    """Runs batches through one graph; `run` may be called from several threads at once."""

    @property
    def name(self) -> str:
        """What runs the graph, for people."""

    @property
    def providers(self) -> tuple[str, ...]:
        """Where it runs, by the backend's own names, the preferred one first."""

    def run(self, image: NDArray[np.float32], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Runs images (B, 3, H, W), or clips (B, 3, T, H, W), and returns the named outputs, each (B, ...).

        Raises:
            ModelError: the graph does not run.
        """


def describe_backend(backend: Backend) -> str:
    """What runs the graph, and where, in a few words."""
    return f"{backend.name} ({', '.join(backend.providers)})"


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
        self.name = "onnxruntime-tensorrt" if tensorrt else "onnxruntime"
        engines = _tensorrt_options(bundle, path, _tensorrt_gpu(device)) if tensorrt else None
        self._session = _start(path, "cuda" if tensorrt else device, threads, engines)
        inputs, outputs = _tensors(self._session.get_inputs()), _tensors(self._session.get_outputs())
        check_graph(inputs, outputs, bundle.manifest, path, _TYPES)
        self._input, self._path = bundle.manifest.input.name, path
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())

    def run(self, image: NDArray[np.float32], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Runs images (B, 3, H, W), or clips (B, 3, T, H, W), and returns the named outputs, each (B, ...)."""
        try:
            found = self._session.run(list(outputs), {self._input: image})
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise does_not_run(f"ONNX Runtime {onnxruntime.__version__}", self._path, len(image), error) from error
        return dict(zip(outputs, found, strict=True))


def does_not_run(runtime: str, path: Path, images: int, error: Exception) -> ModelError:
    """What to raise where a runtime fails in a run of so many images.

    The graph was checked and has run or will run with others, so memory is the likeliest reason.
    """
    reason = " ".join(str(error).split())
    return ModelError(
        f"{runtime} could not run {path} on a batch of {images} ({reason}); free memory, use smaller batches, or "
        "export it again"
    )


def check_threads(threads: int | None) -> None:
    """Raises ConvMAEError unless `threads` is at least 1, or None."""
    if threads is not None and threads < 1:
        raise ConvMAEError(f"threads must be at least 1; got {threads}")


def _start(path: Path, device: Device, threads: int | None, engines: dict[str, str] | None = None) -> Any:
    """A session; with `engines`, TensorRT's options, one in which TensorRT runs."""
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    if device == "cuda":
        _require_gpu()
    has_cuda = _CUDA in onnxruntime.get_available_providers()
    cuda = device == "cuda" or (device == "auto" and has_cuda and _gpu_is_present())
    # Why a GPU does not start is in the log alone; all else that goes wrong is raised as well.
    options.log_severity_level = _LOG_ERRORS if cuda else _LOG_FATAL_ERRORS
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
            session = onnxruntime.InferenceSession(str(path), sess_options=options, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        reason = " ".join(str(error).split())
        raise BundleError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {path} ({reason}); export it again"
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


def _require_gpu() -> None:
    if _CUDA not in onnxruntime.get_available_providers():
        raise ConvMAEError(
            f"device cuda needs onnxruntime-gpu, found onnxruntime {onnxruntime.__version__} without CUDA; "
            "install onnxruntime-gpu or use device cpu"
        )
    if not _gpu_is_present():
        raise ConvMAEError("device cuda needs an NVIDIA GPU with its driver, found none; use device auto or cpu")


def _gpu_is_present() -> bool:
    """Asks the driver itself: ONNX Runtime answers the question with warnings on stderr."""
    return find_gpu() is not None


def _tensorrt_gpu(device: Device) -> Gpu:
    """The GPU that ONNX Runtime's TensorRT is to run on.

    Raises:
        ConvMAEError: there is none, or TensorRT is not there.
    """
    gpu = find_gpu()
    if device == "cpu" or gpu is None:
        found = "got device cpu" if device == "cpu" else "found none"
        raise ConvMAEError(
            f"runtime onnxruntime-tensorrt needs an NVIDIA GPU with its driver, {found}; use runtime onnxruntime"
        )
    if _TENSORRT not in onnxruntime.get_available_providers():
        raise ConvMAEError(
            f"runtime onnxruntime-tensorrt needs onnxruntime-gpu, found onnxruntime {onnxruntime.__version__} without "
            "TensorRT; install onnxruntime-gpu or use runtime onnxruntime"
        )
    import_tensorrt("tensorrt")  # whose libraries are on no library path; ONNX Runtime finds those that are loaded
    return gpu


def _tensorrt_options(bundle: Bundle, path: Path, gpu: Gpu) -> dict[str, str]:
    """Options of ONNX Runtime's TensorRT: the graph's types, the bundle's batches, and what to keep where."""
    _, description = bundle.graph(path.name)
    machine = re.sub(r"[^a-z0-9.]+", "-", f"{gpu.name} cuda{gpu.cuda} onnxruntime{onnxruntime.__version__}".lower())
    folder = cache_folder() / "onnxruntime" / machine / description.sha256[:16]
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
    """The batches that the engine takes; without them every new size builds another."""
    batches = {"min": spec.min_batch, "opt": spec.max_batch, "max": spec.max_batch}
    return {
        f"trt_profile_{which}_shapes": f"{spec.name}:{'x'.join(map(str, (batch, *spec.shape)))}"
        for which, batch in batches.items()
    }


def _tensors(items: Any) -> list[GraphTensor]:
    return [GraphTensor(item.name, item.type, tuple(item.shape)) for item in items]
