"""One way through a TensorRT engine: a stream with memory of its own, which takes one batch at a time.

Everything is allocated once, for the largest profile: the input and all outputs on the GPU, TensorRT's scratch, and
page-locked memory on the host for what is copied. Each profile has an execution context, made when it is first needed;
they share the scratch, as only one of them runs at a time. A profile always runs at its largest batch, whose kernels
were chosen for it, and so its shapes never change: the second run captures it as a CUDA graph, which is one launch
from then on. TensorRT for RTX captures graphs by itself, as it goes on compiling kernels while it runs.

Written against the documented interfaces of TensorRT 10 and 11, TensorRT for RTX 1.7 and cuda-bindings 13. The tests
run it on a stand-in for these; nobody has run it on a GPU yet.
"""

import ctypes
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convmae_deploy.backends.tensorrt_library import Flavour
from convmae_deploy.errors import ConvMAEError

logger = logging.getLogger("convmae_deploy")


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """What a lane must know of an engine."""

    flavour: Flavour
    input: str
    # of each profile, in their order: by the name of an input or output, without the batch axis
    shapes: tuple[Mapping[str, tuple[int, ...]], ...]
    types: Mapping[str, np.dtype[Any]]
    batches: tuple[int, ...]  # the largest of each profile

    def row_bytes(self, name: str, profile: int) -> int:
        """Bytes of one row of a tensor."""
        return int(np.prod(self.shapes[profile][name], dtype=np.int64)) * self.types[name].itemsize

    def most_bytes(self, name: str) -> int:
        """Bytes of a tensor in the profile where it is largest."""
        return max(batch * self.row_bytes(name, profile) for profile, batch in enumerate(self.batches))


class Cuda:
    """CUDA's runtime, whose errors are raised."""

    def __init__(self, runtime: Any) -> None:
        self.runtime = runtime  # the module cuda.bindings.runtime

    def call(self, name: str, *arguments: Any) -> Any:
        """Calls a function by its name and returns what it gives beside the status.

        Raises:
            ConvMAEError: the status is an error.
        """
        status, *values = getattr(self.runtime, name)(*arguments)
        if status != self.runtime.cudaError_t.cudaSuccess:
            raise ConvMAEError(f"CUDA failed in {name} ({status.name}); see the GPU's memory and its driver's log")
        return values[0] if len(values) == 1 else None

    def try_call(self, name: str, *arguments: Any) -> Any:
        """As `call`, but gives None after an error."""
        try:
            return self.call(name, *arguments)
        except ConvMAEError:
            return None


class Lane:
    """See the module's text; not for several threads at once."""

    def __init__(self, cuda: Cuda, tensorrt: Any, engine: Any, spec: EngineSpec) -> None:
        self._cuda, self._tensorrt, self._engine, self._spec = cuda, tensorrt, engine, spec
        self._device: dict[str, int] = {}
        self._pinned: dict[str, int] = {}
        self._contexts: dict[int, Any] = {}  # by profile
        self._graphs: dict[int, Any] = {}  # by profile; None: it runs without one
        self._stream: Any = None
        self._scratch, self._scratch_bytes = 0, 0
        self._stream = cuda.call("cudaStreamCreateWithFlags", cuda.runtime.cudaStreamNonBlocking)
        self._scratch_bytes = engine.device_memory_size_v2  # for the profile that needs most
        if self._scratch_bytes:
            self._scratch = cuda.call("cudaMalloc", self._scratch_bytes)
        for name in spec.types:
            self._device[name] = cuda.call("cudaMalloc", spec.most_bytes(name))

    def run(self, image: NDArray[Any], profile: int, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Runs a batch of at most the profile's size; the rows that it lacks are zeros.

        Args:
            image: (B, ...), contiguous.
            profile: its place among the engine's.
            outputs: names of those to copy from the GPU.

        Returns:
            The outputs by name, each (B, ...), in memory of their own.
        """
        cuda, spec, count = self._cuda, self._spec, len(image)
        kinds = cuda.runtime.cudaMemcpyKind
        context = self._context(profile)
        self._view(spec.input, profile)[:count] = image
        row, device = spec.row_bytes(spec.input, profile), self._device[spec.input]
        host = self._pinned[spec.input]
        cuda.call("cudaMemcpyAsync", device, host, count * row, kinds.cudaMemcpyHostToDevice, self._stream)
        missing = spec.batches[profile] - count
        if missing:
            cuda.call("cudaMemsetAsync", device + count * row, 0, missing * row, self._stream)
        self._enqueue(context, profile)
        views = {name: self._view(name, profile) for name in outputs}
        for name in outputs:
            size = count * spec.row_bytes(name, profile)
            copied = (self._pinned[name], self._device[name], size, kinds.cudaMemcpyDeviceToHost, self._stream)
            cuda.call("cudaMemcpyAsync", *copied)
        cuda.call("cudaStreamSynchronize", self._stream)
        return {name: view[:count].copy() for name, view in views.items()}

    def _context(self, profile: int) -> Any:
        """The execution context of a profile, with its shapes and addresses set."""
        if profile in self._contexts:
            return self._contexts[profile]
        spec = self._spec
        user_managed = self._tensorrt.ExecutionContextAllocationStrategy.USER_MANAGED
        if spec.flavour == "tensorrt-rtx":
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(user_managed)
            config.cuda_graph_strategy = self._tensorrt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context(user_managed)
        if context is None:
            raise ConvMAEError("TensorRT made no execution context; see the GPU's memory and TensorRT's messages above")
        context.set_device_memory(self._scratch, self._scratch_bytes)
        done = context.set_optimization_profile_async(profile, int(self._stream))
        done = done and context.set_input_shape(spec.input, (spec.batches[profile], *spec.shapes[profile][spec.input]))
        for name, address in self._device.items():
            done = done and context.set_tensor_address(name, address)
        if not done:
            raise ConvMAEError("TensorRT refused the shapes of its own engine; see its messages above")
        self._contexts[profile] = context
        return context

    def _enqueue(self, context: Any, profile: int) -> None:
        """The first run as it is, in which TensorRT makes up its mind; the second and all others as a graph."""
        if self._graphs.get(profile) is not None:
            self._cuda.call("cudaGraphLaunch", self._graphs[profile], self._stream)
            return
        first = profile not in self._graphs
        if not context.execute_async_v3(int(self._stream)):
            raise ConvMAEError("TensorRT did not run the engine; see its messages above")
        if first:
            self._graphs[profile] = None if self._spec.flavour == "tensorrt-rtx" else self._capture(context)

    def _capture(self, context: Any) -> Any:
        """What a run enqueues, as a graph to launch; None where it cannot be captured."""
        cuda = self._cuda
        cuda.call("cudaStreamSynchronize", self._stream)
        # captures this thread only: other lanes may allocate meanwhile
        mode = cuda.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        enqueued = False
        # whatever goes wrong from here on costs the graph, not the run, whose outputs are on the device already
        with suppress(ConvMAEError):
            cuda.call("cudaStreamBeginCapture", self._stream, mode)
            enqueued = context.execute_async_v3(int(self._stream))
        graph = cuda.try_call("cudaStreamEndCapture", self._stream)
        launchable = None
        if graph is not None:
            launchable = cuda.try_call("cudaGraphInstantiate", graph, 0) if enqueued else None
            cuda.try_call("cudaGraphDestroy", graph)
        if launchable is None:
            logger.warning("TensorRT's work for this engine cannot be captured as a CUDA graph; it runs without one")
        return launchable

    def _view(self, name: str, profile: int) -> NDArray[Any]:
        """The page-locked memory of a tensor, as an array of a profile's largest batch."""
        size = self._spec.most_bytes(name)
        if name not in self._pinned:
            self._pinned[name] = self._cuda.call("cudaMallocHost", size)
        memory = memoryview((ctypes.c_byte * size).from_address(self._pinned[name]))
        shape = self._spec.batches[profile], *self._spec.shapes[profile][name]
        view: NDArray[Any] = np.frombuffer(memory, self._spec.types[name], count=math.prod(shape))
        return view.reshape(shape)

    def __del__(self) -> None:
        for graph in self._graphs.values():
            if graph is not None:
                self._cuda.try_call("cudaGraphExecDestroy", graph)
        self._contexts.clear()  # before the memory that they use
        for address in (*self._device.values(), *([self._scratch] if self._scratch else [])):
            self._cuda.try_call("cudaFree", address)
        for address in self._pinned.values():
            self._cuda.try_call("cudaFreeHost", address)
        if self._stream is not None:
            self._cuda.try_call("cudaStreamDestroy", self._stream)
