"""A tiny but real bundle, built without torch: pools and 1x1 convolutions with seeded random weights."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from convmae_deploy.files import sha256_of
from convmae_deploy.runtime.manifest import MANIFEST_NAME, Manifest

CHANNELS = (4, 6, 8)  # of e1, e2 and e3; e4 and pooled have those of e3
STRIDES = (4, 8, 16, 32)
OPSET = 20


def make_bundle(
    directory: Path,
    *,
    name: str = "tiny",
    classes: Sequence[str] = ("a", "b", "c"),
    size: tuple[int, int] = (64, 64),
    max_batch: int = 8,
    verified: bool = True,
    **overrides: Any,
) -> Path:
    """Writes `directory` / model.onnx, LICENSE-WEIGHTS and manifest.json.

    Args:
        directory: the folder to write into; made when missing.
        name: the manifest's name.
        classes: class names, one per logit.
        size: (height, width) of the graph's input in pixels, multiples of 32.
        max_batch: the largest batch that the manifest allows.
        verified: whether the manifest carries a numerics report that passed.
        **overrides: fields of the manifest, in JSON form, that replace those made here; they are not validated, so a
            test can write a manifest that does not load.

    Returns:
        `directory`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    onnx.save(make_graph(len(classes), size), directory / "model.onnx")
    (directory / "LICENSE-WEIGHTS").write_text("Random numbers; do as you please.\n", encoding="utf-8")
    fields = _manifest_fields(directory, name, list(classes), size, max_batch)
    if verified:
        fields["files"]["model.onnx"]["numerics"] = _numerics(list(fields["outputs"]))
    manifest = Manifest.model_validate(fields).model_dump(mode="json")
    write_manifest(directory, manifest | overrides)
    return directory


def write_manifest(directory: Path, manifest: dict[str, Any]) -> None:
    """Writes `manifest` as it is, valid or not."""
    (directory / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def make_graph(class_count: int, size: tuple[int, int]) -> onnx.ModelProto:
    """The graph: image (batch, 3, H, W) -> logits, pooled, e1, e2, e3, e4, all float32."""
    random = np.random.default_rng(0)
    weights: list[TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def weight(label: str, *shape: int) -> str:
        weights.append(numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), label))
        return label

    previous, previous_channels = "image", 3
    for level, channels in enumerate(CHANNELS, start=1):
        window = 4 if level == 1 else 2
        pool, kernel = f"pool{level}", weight(f"weight{level}", channels, previous_channels, 1, 1)
        nodes.append(
            helper.make_node("AveragePool", [previous], [pool], kernel_shape=[window] * 2, strides=[window] * 2)
        )
        nodes.append(helper.make_node("Conv", [pool, kernel], [f"e{level}"]))
        previous, previous_channels = f"e{level}", channels
    nodes.append(helper.make_node("MaxPool", ["e3"], ["e4"], kernel_shape=[2, 2], strides=[2, 2]))
    nodes.append(helper.make_node("GlobalAveragePool", ["e3"], ["mean"]))
    nodes.append(helper.make_node("Flatten", ["mean"], ["pooled"]))
    head = weight("head", previous_channels, class_count)
    nodes.append(helper.make_node("MatMul", ["pooled", head], ["logits"]))

    outputs = [
        helper.make_tensor_value_info(label, TensorProto.FLOAT, ["batch", *shape])
        for label, shape in output_shapes(class_count, size).items()
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, *size])
    graph = helper.make_graph(nodes, "tiny", [image], outputs, initializer=weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def output_shapes(class_count: int, size: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """Shape of each output without the batch axis, in the manifest's order."""
    maps = {
        f"e{level}": (channels, size[0] // stride, size[1] // stride)
        for level, (channels, stride) in enumerate(zip((*CHANNELS, CHANNELS[-1]), STRIDES, strict=True), start=1)
    }
    return {"logits": (class_count,), "pooled": (CHANNELS[-1],), **maps}


def _manifest_fields(
    directory: Path, name: str, classes: list[str], size: tuple[int, int], max_batch: int
) -> dict[str, Any]:
    strides = {f"e{level}": stride for level, stride in enumerate(STRIDES, start=1)}
    model = directory / "model.onnx"
    return {
        "name": name,
        "task": "classification",
        "variant": "tiny-test",
        "input": {"shape": [3, *size], "max_batch": max_batch},
        "preprocessing": {"resize": [side * 8 // 7 for side in size], "crop": list(size)},
        "classes": classes,
        "outputs": {
            label: {"shape": list(shape), "stride": strides.get(label)}
            for label, shape in output_shapes(len(classes), size).items()
        },
        "files": {
            "model.onnx": {
                "sha256": sha256_of(model),
                "bytes": model.stat().st_size,
                "precision": "fp32",
                "opset": OPSET,
            }
        },
        "tools": {"onnx": onnx.__version__},
        "licence": {"name": "test weights", "file": "LICENSE-WEIGHTS"},
        "provenance": {"weights": "random, seed 0"},
    }


def _numerics(outputs: Sequence[str]) -> dict[str, Any]:
    exact = {"max_abs": 0.0, "max_rel": 0.0, "cosine": 1.0, "passed": True}
    return {
        "runtime": "onnxruntime (CPUExecutionProvider)",
        "reference": "the same graph",
        "inputs": ["random batch 1"],
        "tolerance": "max_abs <= 1e-5",
        "outputs": {label: {**exact, "top1_agreement": 1.0 if label == "logits" else None} for label in outputs},
        "passed": True,
    }
