"""An engine with its record: what `export.to_tensorrt` writes, and what a search for a fault is made with."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import onnx

from convmae_deploy.backends.engine_record import EngineRecord
from convmae_deploy.bundle.manifest import BundleFile
from convmae_deploy.files import sha256_of
from export.engines.builder import Build, BuildRequest
from export.engines.layers import node_work, with_work


def build_with_record(
    request: BuildRequest,
    description: BundleFile,
    build: Callable[[BuildRequest], Build],
    options: Mapping[str, str | int] = MappingProxyType({}),
) -> EngineRecord:
    """Builds an engine and says how it was built.

    Args:
        request: what to build.
        description: the manifest's, of the graph.
        build: `build_engine`, with somebody to listen.
        options: that the record is to name.
    """
    built = build(request)
    return EngineRecord(
        flavour=request.flavour,
        tensorrt_version=built.tensorrt_version,
        compute_capabilities=built.compute_capabilities,
        newer_gpus=built.newer_gpus,
        version_compatible=request.version_compatible,
        engine_sha256=sha256_of(request.engine),
        engine_bytes=request.engine.stat().st_size,
        graph=request.graph.name,
        graph_sha256=description.digest,
        precision=description.precision,
        profiles=request.profiles,
        options=dict(options),
        gpu=None if built.gpu is None else built.gpu.name,
        cuda=None if built.gpu is None else built.gpu.cuda,
        build_seconds=round(built.seconds, 2),
        peak_memory_bytes=built.peak_memory_bytes,
        layers=with_work(built.layers, node_work(onnx.load(request.graph, load_external_data=False))),
    )
