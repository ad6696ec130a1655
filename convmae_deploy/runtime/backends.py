"""What runs a graph, in few words, and ONNX Runtime on the CPU or on an NVIDIA GPU."""

import contextlib
import ctypes
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.runtime.bundle import Bundle, BundleError
from convmae_deploy.runtime.graph_checks import GraphTensor, check_graph, checked_path

logger = logging.getLogger("convmae_deploy")

Device = Literal["auto", "cpu", "cuda"]

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_TYPES = {"float32": "tensor(float)", "int64": "tensor(int64)"}  # as ONNX Runtime calls them
_LOG_ERRORS_ONLY = 3  # of ONNX Runtime's severities


class Backend(Protocol):
    """Runs batches through one graph; `run` may be called from several threads at once."""

    @property
    def name(self) -> str:
        """What runs the graph, for people."""

    @property
    def providers(self) -> tuple[str, ...]:
        """Where it runs, by the backend's own names, the preferred one first."""

    def run(self, image: NDArray[np.float32], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Runs images (B, 3, H, W), or clips (B, 3, T, H, W), and returns the named outputs, each (B, ...)."""


def describe_backend(backend: Backend) -> str:
    """What runs the graph, and where, in a few words."""
    return f"{backend.name} ({', '.join(backend.providers)})"


class OnnxRuntimeBackend:
    """A graph in ONNX Runtime, known to be the one that the manifest describes."""

    name = "onnxruntime"

    def __init__(
        self, bundle: Bundle, *, file: str | None = None, device: Device = "auto", threads: int | None = None
    ) -> None:
        """Loads a graph.

        Args:
            bundle: where the graph is.
            file: its name in the manifest; None for the default.
            device: "auto" takes the GPU where ONNX Runtime really starts on it and the CPU elsewhere.
            threads: CPU threads for one run; None leaves the number to ONNX Runtime (one a core).

        Raises:
            BundleError: the graph is not the one that the manifest describes, or ONNX Runtime refuses it.
            ConvMAEError: the GPU was asked for and does not start, or `threads` is less than 1.
        """
        check_threads(threads)
        path = checked_path(bundle, file)
        self._session = _start(path, device, threads)
        inputs, outputs = _tensors(self._session.get_inputs()), _tensors(self._session.get_outputs())
        check_graph(inputs, outputs, bundle.manifest, path, _TYPES)
        self._input = bundle.manifest.input.name
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())

    def run(self, image: NDArray[np.float32], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Runs images (B, 3, H, W), or clips (B, 3, T, H, W), and returns the named outputs, each (B, ...)."""
        return dict(zip(outputs, self._session.run(list(outputs), {self._input: image}), strict=True))


def check_threads(threads: int | None) -> None:
    """Raises ConvMAEError unless `threads` is at least 1, or None."""
    if threads is not None and threads < 1:
        raise ConvMAEError(f"threads must be at least 1; got {threads}")


def _start(path: Path, device: Device, threads: int | None) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _LOG_ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    if device == "cuda":
        _require_gpu()
    has_cuda = _CUDA in onnxruntime.get_available_providers()
    cuda = device == "cuda" or (device == "auto" and has_cuda and _gpu_is_present())
    try:
        # With a GPU, onnxruntime reports trouble by print(); stdout is for results.
        with contextlib.redirect_stdout(sys.stderr) if cuda else contextlib.nullcontext():
            if cuda:
                # Finds the CUDA and cuDNN libraries of the nvidia-* wheels, which are on no library path.
                onnxruntime.preload_dlls()
            providers = [_CUDA, _CPU] if cuda else [_CPU]
            session = onnxruntime.InferenceSession(str(path), sess_options=options, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        reason = " ".join(str(error).split())
        raise BundleError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {path} ({reason}); export it again"
        ) from error
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
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def _tensors(items: Any) -> list[GraphTensor]:
    return [GraphTensor(item.name, item.type, tuple(item.shape)) for item in items]
