"""Stand-ins for TensorRT and CUDA: "device" memory is the host's, an "engine" the bundle's graph in ONNX Runtime.

They do what is documented of the real ones, and fail a test that breaks their rules: a copy outside of what was
allocated, a run without scratch memory, with shapes outside of the profile, or on a stream that is capturing.
"""

import ctypes
import enum
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from convmae_deploy.backends.engine_record import EngineProfile
from convmae_deploy.bundle.manifest import Manifest

SCRATCH = 1 << 12


class CudaError(enum.Enum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorStreamCaptureUnsupported = 900


OK = CudaError.cudaSuccess


class FakeStream:
    """Work is done when it is enqueued, unless the stream is capturing."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.captured: list[Callable[[], None]] | None = None

    def __int__(self) -> int:
        return self.handle


class FakeCuda:
    """The module cuda.bindings.runtime, as far as it is used."""

    cudaError_t = CudaError
    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self) -> None:
        self.device: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, FakeStream] = {}
        self.mallocs, self.launches, self.captures = 0, 0, 0
        self.out_of_memory, self.can_begin_capture, self.can_capture = False, True, True

    def _allocate(self, where: dict[int, Any], size: int) -> tuple[Any, ...]:
        if self.out_of_memory:
            return (CudaError.cudaErrorMemoryAllocation, 0)
        self.mallocs += 1
        buffer = ctypes.create_string_buffer(b"\xff" * size, size)  # NaN where nothing is written
        where[ctypes.addressof(buffer)] = buffer
        return (OK, ctypes.addressof(buffer))

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        return self._allocate(self.device, size)

    def cudaMallocHost(self, size: int) -> tuple[Any, ...]:
        return self._allocate(self.pinned, size)

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        del self.device[address]
        return (OK,)

    def cudaFreeHost(self, address: int) -> tuple[Any, ...]:
        del self.pinned[address]
        return (OK,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        stream = FakeStream(len(self.streams) + 1)
        self.streams[stream.handle] = stream
        return (OK, stream)

    def cudaStreamDestroy(self, stream: FakeStream) -> tuple[Any, ...]:
        del self.streams[stream.handle]
        return (OK,)

    def cudaStreamSynchronize(self, stream: FakeStream) -> tuple[Any, ...]:
        assert stream.captured is None
        return (OK,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: FakeStream) -> tuple[Any, ...]:
        assert stream.captured is None
        to_device = kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice
        inside(self.device if to_device else self.pinned, target, size)
        inside(self.pinned if to_device else self.device, source, size)
        ctypes.memmove(target, source, size)
        return (OK,)

    def cudaMemsetAsync(self, address: int, value: int, size: int, stream: FakeStream) -> tuple[Any, ...]:
        inside(self.device, address, size)
        ctypes.memset(address, value, size)
        return (OK,)

    def cudaStreamBeginCapture(self, stream: FakeStream, mode: int) -> tuple[Any, ...]:
        if not self.can_begin_capture:
            return (CudaError.cudaErrorStreamCaptureUnsupported,)
        self.captures += 1
        stream.captured = []
        return (OK,)

    def cudaStreamEndCapture(self, stream: FakeStream) -> tuple[Any, ...]:
        captured, stream.captured = stream.captured, None
        return (OK, captured) if self.can_capture else (CudaError.cudaErrorStreamCaptureUnsupported, None)

    def cudaGraphInstantiate(self, graph: list[Callable[[], None]], flags: int) -> tuple[Any, ...]:
        return (OK, tuple(graph))

    def cudaGraphLaunch(self, graph: Sequence[Callable[[], None]], stream: FakeStream) -> tuple[Any, ...]:
        self.launches += 1
        for work in graph:
            work()
        return (OK,)

    def cudaGraphDestroy(self, graph: Any) -> tuple[Any, ...]:
        return (OK,)

    def cudaGraphExecDestroy(self, graph: Any) -> tuple[Any, ...]:
        return (OK,)


def inside(memory: dict[int, Any], address: int, size: int) -> None:
    """Fails unless the bytes are of one allocation."""
    assert any(start <= address and address + size <= start + len(buffer) for start, buffer in memory.items())


class FakeContext:
    """An execution context that runs the graph on the addresses that it was given."""

    def __init__(self, engine: "FakeEngine") -> None:
        self.engine = engine
        self.profile = -1
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.scratch = (0, 0)

    def set_device_memory(self, memory: int, size: int) -> None:
        inside(self.engine.cuda.device, memory, size)
        assert size >= SCRATCH
        self.scratch = (memory, size)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return 0 <= index < len(self.engine.profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        profile = self.engine.profiles[self.profile]
        self.shape = shape
        spec = self.engine.manifest.input
        size = profile.size or spec.shape[-2:]
        return name == spec.name and shape[-2:] == size and profile.min_batch <= shape[0] <= profile.max_batch

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.engine.names

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert self.scratch[0] and set(self.addresses) == set(self.engine.names)
        if self.engine.broken:
            return False
        stream = self.engine.cuda.streams[stream_handle]
        if stream.captured is None:
            self.engine.executions += 1
            self._run()
        else:
            stream.captured.append(self._run)
        return True

    def _run(self) -> None:
        manifest = self.engine.manifest.at((self.shape[-2], self.shape[-1]))
        spec = manifest.input
        image = self._array(spec.name, spec.shape, "float32")
        self.engine.seen.append(image.copy())
        self.engine.meet()
        names = list(manifest.outputs)
        for name, values in zip(names, self.engine.session.run(names, {spec.name: image}), strict=True):
            output = manifest.outputs[name]
            self._array(name, output.shape, output.dtype)[...] = values

    def _array(self, name: str, shape: tuple[int, ...], dtype: str) -> Any:
        kind = np.dtype(dtype)
        full = (self.shape[0], *shape)
        size = int(np.prod(full)) * kind.itemsize
        inside(self.engine.cuda.device, self.addresses[name], size)
        memory = memoryview((ctypes.c_byte * size).from_address(self.addresses[name]))
        return np.frombuffer(memory, kind).reshape(full)


class FakeEngine:
    """What deserialising gives."""

    def __init__(self, cuda: FakeCuda, manifest: Manifest, graph: Path, profiles: Sequence[EngineProfile]) -> None:
        self.cuda, self.manifest, self.profiles = cuda, manifest, profiles
        self.session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
        self.names = [manifest.input.name, *manifest.outputs]
        self.num_io_tensors = len(self.names)
        self.num_optimization_profiles = len(profiles)
        self.device_memory_size_v2 = SCRATCH
        self.strategies: list[Any] = []  # what contexts were made with
        self.seen: list[Any] = []  # inputs of all runs, with what fills them up
        self.executions = 0  # those outside of CUDA graphs
        self.broken = False
        self.meet: Callable[[], Any] = lambda: None  # called in each run

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> Any:
        return SimpleNamespace(name="INPUT" if name == self.names[0] else "OUTPUT")

    def get_tensor_dtype(self, name: str) -> Any:
        is_integer = name in self.manifest.outputs and self.manifest.outputs[name].dtype == "int64"
        return SimpleNamespace(name="INT64" if is_integer else "FLOAT")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        spec = self.manifest.input if name == self.names[0] else self.manifest.outputs[name]
        return (-1, *self.manifest.open_shape(spec))

    def create_runtime_config(self) -> Any:
        def keep(strategy: str) -> None:
            config.strategy = strategy

        config = SimpleNamespace(set_execution_context_allocation_strategy=keep)
        return config

    def create_execution_context(self, strategy: Any) -> FakeContext:
        self.strategies.append(strategy)
        return FakeContext(self)


class FakeTensorRt:
    """The module tensorrt or tensorrt_rtx, as far as it is used."""

    ILogger = object
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
    CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole graph")

    def __init__(self, version: str, engine: FakeEngine) -> None:
        self.__version__ = version
        self.engine: FakeEngine | None = engine
        self.runtimes: list[Any] = []

    def nptype(self, kind: Any) -> Any:
        return {"FLOAT": np.float32, "INT64": np.int64}[kind.name]

    def Runtime(self, logger: Any) -> Any:
        def deserialize(content: bytes) -> FakeEngine | None:
            runtime.deserialized = content
            return self.engine

        runtime = SimpleNamespace(logger=logger, deserialize_cuda_engine=deserialize, engine_host_code_allowed=False)
        self.runtimes.append(runtime)
        return runtime
