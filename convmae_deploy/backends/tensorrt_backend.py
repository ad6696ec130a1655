"""TensorRT on an NVIDIA GPU: engines that were built before, checked before they are loaded.

An engine is a program, not data: kernels for the GPU, which TensorRT loads as they are. NVIDIA says that engines must
come from a source that is trusted, and the hash in an engine's record, which lies beside it, says nothing about who
made both. So no engine is run unless its user chose runtime tensorrt, which is never the default; whoever got a bundle
from somebody they do not trust takes its graph, which is checked (see `bundle.graphs.limits`), and builds the engine
themselves. A version-compatible engine holds a program for the CPU as well, which runs with all rights of the process:
it takes a further choice, `trust_engine_code`.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convmae_deploy.backends.base import Device, InputArray, Outputs, Runtime, check_threads
from convmae_deploy.backends.engine_record import (
    EngineRecord,
    check_engine,
    check_machine,
    find_engine,
    read_record,
    rebuild,
)
from convmae_deploy.backends.gpu import find_gpu
from convmae_deploy.backends.lanes import Lanes
from convmae_deploy.backends.tensorrt_lane import Cuda, EngineSpec, Lane
from convmae_deploy.backends.tensorrt_library import Severity, import_tensorrt, make_logger
from convmae_deploy.bundle.graph_checks import GraphTensor, check_graph
from convmae_deploy.bundle.loading import Bundle, BundleError
from convmae_deploy.bundle.manifest import Manifest, Precision
from convmae_deploy.errors import ConvMAEError, missing_extra

logger = logging.getLogger("convmae_deploy")

_TYPES = {"float32": "FLOAT", "int64": "INT64", "uint8": "UINT8"}  # as TensorRT calls them


class TensorRtBackend:
    """An engine on the GPU, known to be built from a graph of this bundle, for this GPU and this TensorRT."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        file: str | None = None,
        device: Device = "auto",
        threads: int | None = None,
        streams: int = 2,
        trust_engine_code: bool = False,
    ) -> None:
        """Loads an engine.

        Args:
            bundle: whose folder the engine is in.
            file: its name, or that of the graph that it was built from; see `find_engine`.
            device: "auto" is the GPU too.
            threads: has no meaning on a GPU.
            streams: batches that run side by side, each with memory of its own; more callers wait.
            trust_engine_code: whether the program for the CPU that a version-compatible engine holds may run.

        Raises:
            BundleError: there is no engine, or it is not for this bundle, GPU or version of TensorRT.
            ConvMAEError: TensorRT is not installed, there is no GPU, or it does not load the engine.
        """
        check_threads(threads)
        gpu = find_gpu()  # first of all: without a driver TensorRT may end the process
        if device == "cpu" or gpu is None:
            raise ConvMAEError(_problem(device))
        engine = find_engine(bundle, file)
        record = read_record(engine)
        content = check_engine(engine, record, bundle)
        tensorrt = import_tensorrt(record.flavour)
        check_machine(engine, record, tensorrt.__version__, gpu)
        if record.version_compatible and not trust_engine_code:
            raise ConvMAEError(
                f"{engine} holds a program that runs with your rights, and nothing says who made it; if you built it "
                "or trust its maker, use --trust-engine-code (server: CONVMAE_TRUST_ENGINE_CODE=true), else "
                f"{rebuild(record.precision)}"
            )
        self._tensorrt, self._cuda = tensorrt, Cuda(import_cuda())
        self._logger = make_logger(tensorrt, _on_message)
        self._engine = self._load(engine, content, record)
        self._spec = self._describe(engine, bundle.manifest, record)
        self._any_size = bundle.manifest.input.sides is not None
        self.name = f"{record.flavour} {record.precision}"
        self.providers = (gpu.name,)
        self.batch_sizes = record.batch_sizes  # those that run without rows to fill up
        self.lanes = streams
        self._lanes = Lanes(lambda: Lane(self._cuda, self._tensorrt, self._engine, self._spec), streams)

    def run(self, image: InputArray, outputs: Sequence[str]) -> Outputs:
        """Runs images (B, 3, H, W), or clips (B, 3, T, H, W), and returns the named outputs, each (B, ...).

        A batch runs in the smallest profile that takes it, filled up to that profile's size; one above the largest
        runs in parts.
        """
        inputs = [shapes[self._spec.input] for shapes in self._spec.shapes]
        fitting = {place: self._spec.batches[place] for place, shape in enumerate(inputs) if shape == image.shape[1:]}
        if not fitting:
            known = " or ".join(f"(B, {', '.join(map(str, shape))})" for shape in dict.fromkeys(inputs))
            more = "; build the engine with --size for others" if self._any_size else ""
            raise ConvMAEError(f"a batch must be {known}; got {image.shape}{more}")
        image = np.ascontiguousarray(image, dtype=self._spec.types[self._spec.input])
        largest = max(fitting.values())
        parts = []
        with self._lanes.take() as lane:
            for start in range(0, len(image), largest):
                part = image[start : start + largest]
                profile = next(place for place, size in fitting.items() if len(part) <= size)
                parts.append(lane.run(part, profile, outputs))
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in outputs}

    def _load(self, path: Path, content: bytes, record: EngineRecord) -> Any:
        self._runtime = self._tensorrt.Runtime(self._logger)  # must outlive the engine
        if record.version_compatible:
            self._runtime.engine_host_code_allowed = True  # its user said so; else it would not have come this far
        engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise BundleError(
                f"TensorRT {self._tensorrt.__version__} does not load {path}, its messages above say why; "
                f"{rebuild(record.precision)}"
            )
        return engine

    def _describe(self, path: Path, manifest: Manifest, record: EngineRecord) -> EngineSpec:
        """What lanes must know, checked against the manifest and the record."""
        engine = self._engine
        tensors: dict[str, list[GraphTensor]] = {"INPUT": [], "OUTPUT": []}
        types: dict[str, np.dtype[Any]] = {}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            kind = engine.get_tensor_dtype(name)
            shape = tuple("batch" if size < 0 else size for size in engine.get_tensor_shape(name))
            tensors[engine.get_tensor_mode(name).name].append(GraphTensor(name, kind.name, shape))
            types[name] = np.dtype(self._tensorrt.nptype(kind))
        check_graph(tensors["INPUT"], tensors["OUTPUT"], manifest, path, _TYPES)
        if engine.num_optimization_profiles != len(record.profiles):
            raise BundleError(
                f"{path} must have {len(record.profiles)} profiles, found {engine.num_optimization_profiles}; "
                f"{rebuild(record.precision)}"
            )
        at = [manifest if profile.size is None else manifest.at(profile.size) for profile in record.profiles]
        return EngineSpec(
            flavour=record.flavour,
            input=manifest.input.name,
            shapes=tuple(
                {one.input.name: one.input.shape} | {name: output.shape for name, output in one.outputs.items()}
                for one in at
            ),
            types=types,
            batches=tuple(profile.max_batch for profile in record.profiles),
        )


def import_cuda() -> Any:
    """CUDA's runtime for Python.

    Raises:
        ConvMAEError: it is not installed.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise missing_extra("runtime tensorrt", "cuda-bindings", "tensorrt") from error
    return runtime


def _on_message(severity: Severity, message: str) -> None:
    if severity in ("error", "warning"):
        logger.warning("TensorRT: %s", message)


def _problem(device: Device, precision: Precision = "fp32") -> str | None:
    """Why no engine can run here; whether one fits this machine is in its record."""
    if device == "cpu":
        return "runtime tensorrt runs on an NVIDIA GPU, not on device cpu; use runtime onnxruntime there"
    if find_gpu() is None:
        return "runtime tensorrt needs an NVIDIA GPU with its driver, found none; use runtime onnxruntime"
    return None


TENSORRT = Runtime(
    title="TensorRT",
    extras=("tensorrt", "tensorrt-rtx"),
    devices=("cuda",),
    problem=_problem,
    open=TensorRtBackend,
    options=("trust_engine_code",),
    takes_engines=True,
)
