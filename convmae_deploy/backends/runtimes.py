"""The runtimes: one file for each, and one table of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from convmae_deploy.backends.base import Backend, ComputePrecision, Device, PerformanceHint, Runtime
from convmae_deploy.backends.onnxruntime_backend import ONNX_RUNTIME, ONNX_RUNTIME_TENSORRT
from convmae_deploy.backends.openvino_backend import OPENVINO
from convmae_deploy.backends.tensorrt_backend import TENSORRT
from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.errors import ConvMAEError

RuntimeName = Literal["onnxruntime", "openvino", "onnxruntime-tensorrt", "tensorrt"]
AutoName = Literal["auto"]
AUTO: AutoName = "auto"
RUNTIMES: Mapping[RuntimeName, Runtime] = {
    "onnxruntime": ONNX_RUNTIME,
    "openvino": OPENVINO,
    "onnxruntime-tensorrt": ONNX_RUNTIME_TENSORRT,
    "tensorrt": TENSORRT,
}


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """What runs the model."""

    # what runs the model; openvino is for CPUs, the two of TensorRT for NVIDIA GPUs; auto is what
    # export.benchmark chose for the bundle on this machine, file included (default: onnxruntime)
    runtime: RuntimeName | AutoName | None = None
    # which graph of the bundle, for instance model.fp16.onnx, of tensorrt which engine (default: the first)
    file: str | None = None
    precision: ComputePrecision | None = None  # openvino: bf16 is faster and less exact (default: fp32)
    hint: PerformanceHint | None = None  # openvino: what to be fast for (default: latency, that of one run)
    # tensorrt: run the program inside a version-compatible engine, with all of your rights; only for engines that you
    # built or whose maker you trust, as a hash beside an engine says nothing about who made it
    trust_engine_code: bool = False

    @property
    def settled(self) -> RuntimeName:
        """The runtime's name, once it is known; see `choice.settle` for `auto`."""
        assert self.runtime != AUTO
        return self.runtime or "onnxruntime"


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
        options: what runs it; not `auto`.

    Raises:
        ConvMAEError: the graph is not in order, the runtime or the device does not start, or an option is not for this
            runtime.
    """
    runtime = RUNTIMES[options.settled]
    given = _given(options)
    for name, value in given.items():
        if name not in runtime.options:
            raise _misplaced(name, value)
    assert runtime.open is not None  # all in the table serve
    return runtime.open(bundle, file=options.file, device=device, threads=threads, **given)


def _given(options: RuntimeOptions) -> dict[str, str | bool]:
    """The options of one runtime alone that somebody chose."""
    values = {name: getattr(options, name) for runtime in RUNTIMES.values() for name in runtime.options}
    return {name: value for name, value in values.items() if value}


def _misplaced(name: str, value: str | bool) -> ConvMAEError:
    takers = " or ".join(title for title, runtime in RUNTIMES.items() if name in runtime.options)
    if value is True:
        return ConvMAEError(f"{name} is for runtime {takers}; choose it or leave {name} out")
    return ConvMAEError(
        f"{name} {value} is for runtime {takers}, the others run a graph as it is; "
        f"choose runtime {takers} or leave {name} out"
    )
