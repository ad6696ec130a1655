"""Choosing what runs a bundle's graph."""

from dataclasses import dataclass
from typing import Literal

from convmae_deploy.backends.onnxruntime_backend import Backend, Device, OnnxRuntimeBackend
from convmae_deploy.backends.openvino_backend import ComputePrecision, OpenVinoBackend, PerformanceHint
from convmae_deploy.backends.tensorrt_backend import TensorRtBackend
from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.errors import ConvMAEError

RuntimeName = Literal["onnxruntime", "openvino", "tensorrt", "onnxruntime-tensorrt"]


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """What runs the model."""

    # what runs the model; openvino is for CPUs, the two of TensorRT for NVIDIA GPUs (default: onnxruntime)
    runtime: RuntimeName | None = None
    # which graph of the bundle, for instance model.fp16.onnx, of tensorrt which engine (default: the first)
    file: str | None = None
    precision: ComputePrecision | None = None  # openvino: bf16 is faster and less exact (default: fp32)
    hint: PerformanceHint | None = None  # openvino: what to be fast for (default: latency, that of one run)
    # tensorrt: run the program inside a version-compatible engine, with all of your rights; only for engines that you
    # built or whose maker you trust, as a hash beside an engine says nothing about who made it
    trust_engine_code: bool = False


DEFAULT_RUNTIME = RuntimeOptions()


def start_backend(
    bundle: Bundle,
    *,
    device: Device = "auto",
    threads: int | None = None,
    options: RuntimeOptions = DEFAULT_RUNTIME,
) -> Backend:
    """Starts a graph of a bundle.

    Args:
        bundle: where the graph is.
        device: where to run; "auto" prefers a GPU that works.
        threads: CPU threads for one run, of OpenVINO for all runs together; None leaves the number to the backend.
        options: what runs it.

    Raises:
        ConvMAEError: the graph is not in order, the runtime or the device does not start, or an option is not for this
            runtime.
    """
    if options.runtime == "openvino":
        return OpenVinoBackend(
            bundle,
            file=options.file,
            device=device,
            threads=threads,
            precision=options.precision or "fp32",
            hint=options.hint or "latency",
        )
    for name, value in (("precision", options.precision), ("hint", options.hint)):
        if value is not None:
            raise ConvMAEError(
                f"{name} {value} is for runtime openvino, the others run a graph as it is; "
                f"choose runtime openvino or leave {name} out"
            )
    if options.runtime == "tensorrt":
        return TensorRtBackend(
            bundle, file=options.file, device=device, threads=threads, trust_code=options.trust_engine_code
        )
    if options.trust_engine_code:
        raise ConvMAEError("trust_engine_code is for runtime tensorrt; choose it or leave trust_engine_code out")
    tensorrt = options.runtime == "onnxruntime-tensorrt"
    return OnnxRuntimeBackend(bundle, file=options.file, device=device, threads=threads, tensorrt=tensorrt)
