"""What runs a graph: ONNX Runtime on the CPU or on an NVIDIA GPU."""

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
from convmae_deploy.runtime.manifest import Manifest
from convmae_deploy.runtime.onnx_header import read_opset

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
        if threads is not None and threads < 1:
            raise ConvMAEError(f"threads must be at least 1; got {threads}")
        path, description = bundle.graph(file)
        opset = read_opset(path)
        if opset != description.opset:
            found = "no ONNX model" if opset is None else f"opset {opset}"
            raise BundleError(
                f"{path} must be an ONNX model of opset {description.opset}, found {found}; export it again"
            )
        self._session = _start(path, device, threads)
        _check_graph(self._session, bundle.manifest, path)
        self._input = bundle.manifest.input.name
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())

    def run(self, image: NDArray[np.float32], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Runs images (B, 3, H, W), or clips (B, 3, T, H, W), and returns the named outputs, each (B, ...)."""
        return dict(zip(outputs, self._session.run(list(outputs), {self._input: image}), strict=True))


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


def _check_graph(session: Any, manifest: Manifest, path: Path) -> None:
    inputs = session.get_inputs()
    if [item.name for item in inputs] != [manifest.input.name]:
        found = ", ".join(item.name for item in inputs)
        raise BundleError(f"{path} must have the one input {manifest.input.name!r}, found {found}; export it again")
    _check_tensor(inputs[0], manifest.input.shape, "float32", "input", path)
    batch = inputs[0].shape[0]
    if isinstance(batch, int) and not manifest.input.min_batch == manifest.input.max_batch == batch:
        raise BundleError(
            f"{path} must take batches of {manifest.input.min_batch} to {manifest.input.max_batch}, "
            f"found a fixed batch of {batch}; export it again"
        )
    outputs = {item.name: item for item in session.get_outputs()}
    for name, spec in manifest.outputs.items():
        if name not in outputs:
            raise BundleError(f"{path} must have an output {name!r}, found {', '.join(outputs)}; export it again")
        _check_tensor(outputs[name], spec.shape, spec.dtype, "output", path)


def _check_tensor(found: Any, shape: tuple[int, ...], dtype: str, role: str, path: Path) -> None:
    # A name in place of a number is a dimension that the graph leaves open; its size is checked when it is known.
    fits = len(found.shape) == len(shape) + 1 and all(
        not isinstance(size, int) or size == expected for size, expected in zip(found.shape[1:], shape, strict=True)
    )
    if found.type != _TYPES[dtype] or not fits:
        raise BundleError(
            f"{role} {found.name!r} of {path} must be {dtype} ({', '.join(map(str, ('batch', *shape)))}), "
            f"found {found.type} ({', '.join(map(str, found.shape))}); export it again"
        )
