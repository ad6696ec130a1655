"""What of a bundle Triton is to run: one of its graphs, or a TensorRT engine that was built from one."""

from dataclasses import dataclass
from pathlib import Path

import onnx

from convmae_deploy.backends.engine_record import ENGINE_SUFFIX, EngineRecord, check_engine, find_engine, read_record
from convmae_deploy.backends.tensorrt_library import TITLES
from convmae_deploy.bundle.graph_checks import checked_path
from convmae_deploy.bundle.loading import Bundle, BundleError
from convmae_deploy.bundle.manifest import BundleFile, InputSpec, Manifest, OutputSpec
from convmae_deploy.errors import ConvMAEError


@dataclass(frozen=True, kw_only=True)
class TritonSource:
    """A file that one of Triton's backends runs."""

    path: Path
    description: BundleFile  # the graph, or that which the engine was built from
    max_batch: int
    engine: EngineRecord | None = None  # None: it is a graph

    def shape(self, manifest: Manifest, tensor: InputSpec | OutputSpec) -> tuple[int, ...]:
        """Of an input or output without the batch axis, -1 for an open side; an engine runs at the bundle's size."""
        return manifest.open_shape(tensor) if self.engine is None else tensor.shape

    @property
    def backend(self) -> str:
        """Triton's name of what runs it."""
        return "onnxruntime" if self.engine is None else "tensorrt"

    @property
    def platform(self) -> str:
        """Triton's older name of the same."""
        return "onnxruntime_onnx" if self.engine is None else "tensorrt_plan"

    @property
    def name(self) -> str:
        """What the backend looks for."""
        return "model.onnx" if self.engine is None else "model.plan"


def find_source(bundle: Bundle, file: str | None) -> TritonSource:
    """A graph, or where `file` ends in .engine an engine in the bundle's folder.

    Raises:
        BundleError: it is not there, or was changed.
        ConvMAEError: Triton cannot run it.
    """
    if file is None or not file.endswith(ENGINE_SUFFIX):
        graph, description = bundle.graph(file)
        check_graph(bundle, graph)
        return TritonSource(path=graph, description=description, max_batch=bundle.manifest.input.max_batch)
    path = find_engine(bundle, file)
    record = read_record(path)
    check_engine(path, record, bundle)
    if record.flavour != "tensorrt":
        raise ConvMAEError(
            f"{path} is an engine of {TITLES[record.flavour]}, and Triton runs those of TensorRT alone; build one with "
            f"python -m export.to_tensorrt {bundle.path} --precision {record.precision} --flavour tensorrt"
        )
    least = record.profiles[0].min_batch
    if least > 1:
        raise ConvMAEError(
            f"{path} must take batches from 1 upwards, which Triton makes of requests as they come; found {least} as "
            "the smallest, export the bundle again"
        )
    description = bundle.manifest.files[record.graph]
    return TritonSource(path=path, description=description, max_batch=record.batch_sizes[-1], engine=record)


def check_graph(bundle: Bundle, graph: Path) -> None:
    """Raises BundleError unless the graph is harmless and takes every batch Triton may make of requests."""
    if graph.suffix != ".onnx":
        raise BundleError(f"{graph} is no ONNX graph, and only those can be written for Triton; choose another --file")
    try:
        model = onnx.load(graph, load_external_data=False)
    except Exception as error:  # protobuf's exceptions differ from version to version
        raise BundleError(f"{graph} is no ONNX model; export it again") from error
    checked_path(bundle, graph.name)
    spec = bundle.manifest.input
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    if batch.HasField("dim_value") or spec.min_batch > 1:
        least = batch.dim_value or spec.min_batch
        raise BundleError(
            f"{graph} must take batches from 1 upwards, which Triton makes of requests as they come; "
            f"found {least} as the smallest, export it again"
        )
