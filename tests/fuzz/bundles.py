"""Targets: what a bundle's folder holds."""

import json
import tempfile
from pathlib import Path
from typing import Any

from tests.fuzz.scratch import scratch_folder
from tests.fuzz.target import Check, require, require_sentence

MANIFEST = "manifest.json"
GRAPH = "model.onnx"
ONNX_TOKENS = (
    b"\x08\x0a",
    b"\x12\x07",
    b"\x3a\x80\x01",
    b"\x42\x04\x0a\x00\x10\x14",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
)
MANIFEST_TOKENS = tuple(
    f'"{word}"'.encode()
    for word in (
        *("schema_version", "name", "task", "variant", "input", "shape", "min_batch", "max_batch", "preprocessing"),
        *("resize", "crop", "interpolation", "mean", "std", "size", "fill", "window", "stride", "short_side"),
        *("frames", "classes", "category_ids", "outputs", "dtype", "time_stride", "files", "sha256", "bytes"),
        *("precision", "opset", "numerics", "quantisation", "cost", "tools", "licence", "file", "provenance"),
        *("classification", "detection", "segmentation", "video-classification", "fp32", "int8", "bicubic"),
    )
)


def manifest_seeds() -> dict[str, bytes]:
    """The manifest of a bundle of each task; all of them describe the same graph, of which only the hash is asked."""
    from tests.bundle_factory import make_bundle, make_detection_bundle, make_segmentation_bundle, make_video_bundle

    seeds: dict[str, bytes] = {}
    files: dict[str, Any] = {}
    makers = {"photos": make_bundle, "boxes": make_detection_bundle, "areas": make_segmentation_bundle}
    with tempfile.TemporaryDirectory() as folder:
        for name, make in (makers | {"videos": make_video_bundle}).items():
            manifest = json.loads((make(Path(folder) / name) / MANIFEST).read_text())
            files = files or manifest["files"]
            seeds[f"{name}.json"] = json.dumps(manifest | {"files": files}, separators=(",", ":")).encode()
    return seeds


def manifest_check() -> Check:
    """Opening a bundle whose manifest is the input."""
    from convmae_deploy.bundle.loading import BundleError
    from convmae_deploy.bundle.manifest import Manifest
    from convmae_deploy.tasks import load_bundle
    from tests.bundle_factory import make_bundle

    folder = make_bundle(scratch_folder())

    def check(data: bytes) -> None:
        (folder / MANIFEST).write_bytes(data)
        try:
            manifest = load_bundle(folder).manifest
        except BundleError as error:
            require_sentence(error, quotes_input=True)
            return
        again = Manifest.model_validate_json(manifest.model_dump_json())
        require(again == manifest, "a manifest that was accepted must be accepted again as it was")

    return check


def graph_seeds() -> dict[str, bytes]:
    """The graphs of a classifier, a segmenter and a video classifier; a detector's is too large."""
    from tests.bundle_factory import make_graph, make_segmentation_graph

    return {
        "photos.onnx": make_graph(3, (64, 64)).SerializeToString(),
        "areas.onnx": make_segmentation_graph(4, (64, 64)).SerializeToString(),
        "videos.onnx": make_graph(3, (64, 64), 4).SerializeToString(),
    }


def graph_check() -> Check:
    """Looking at the graph of a bundle before a runtime gets it."""
    from convmae_deploy.bundle.graph_checks import checked_path
    from convmae_deploy.bundle.loading import BundleError
    from convmae_deploy.tasks import load_bundle
    from tests.bundle_factory import make_bundle

    bundle = load_bundle(make_bundle(scratch_folder()))

    def check(data: bytes) -> None:
        (bundle.path / GRAPH).write_bytes(data)
        try:
            require(checked_path(bundle, None) == bundle.path / GRAPH, "a graph must be the one that was looked at")
        except BundleError as error:
            require_sentence(error, quotes_input=True)

    return check


def engine_seeds() -> dict[str, bytes]:
    """Records of engines."""
    record: dict[str, Any] = {
        "flavour": "tensorrt",
        "tensorrt_version": "10.3.0",
        "compute_capabilities": ["8.9"],
        "engine_sha256": "0" * 64,
        "engine_bytes": 5,
        "graph": GRAPH,
        "graph_sha256": "0" * 64,
        "precision": "fp16",
        "profiles": [{"min_batch": 1, "max_batch": 1}, {"min_batch": 2, "max_batch": 8}],
        "options": {"builder_optimization_level": 3, "timing_cache": "none"},
        "gpu": None,
        "cuda": None,
        "build_seconds": 1.5,
        "peak_memory_bytes": 1000,
    }
    portable = record | {"newer_gpus": True, "version_compatible": True, "gpu": "L4", "cuda": "12.9"}
    return {name: json.dumps(item).encode() for name, item in (("exact.json", record), ("portable.json", portable))}


def engine_check() -> Check:
    """Reading an engine's record and asking it whether the engine can run here."""
    from convmae_deploy.backends.engine_record import EngineRecord, check_machine, read_record, record_path
    from convmae_deploy.backends.gpu import Gpu
    from convmae_deploy.bundle.loading import BundleError

    engine = scratch_folder() / "model.engine"
    gpu = Gpu(name="L4", compute_capability="8.9", cuda="12.9")

    def check(data: bytes) -> None:
        record_path(engine).write_bytes(data)
        try:
            record = read_record(engine)
            again = EngineRecord.model_validate_json(record.model_dump_json())
            require(again == record, "a record that was accepted must be accepted again as it was")
            check_machine(engine, record, "10.3.0", gpu)
        except BundleError as error:
            require_sentence(error, quotes_input=True)

    return check
