"""Tiny but real bundles, built without torch: pools and 1x1 convolutions with seeded random weights, fixed objects."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from convmae_deploy.backends.base import Device
from convmae_deploy.backends.runtimes import DEFAULT_RUNTIME, RuntimeOptions, start_backend
from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.bundle.manifest import MANIFEST_NAME, Manifest
from convmae_deploy.files import sha256_of
from convmae_deploy.tasks import load_bundle
from convmae_deploy.tasks.base import Predictor
from convmae_deploy.tasks.clips import ClipViews
from convmae_deploy.tasks.detection import DETECTOR_OUTPUTS, MASK_SIDE, MAX_DETECTIONS

CHANNELS = (4, 6, 8)  # of e1, e2 and e3; e4 and pooled have those of e3
STRIDES = (4, 8, 16, 32)
OPSET = 20
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
VIDEO_FRAMES = 4  # of the tiny video model's clips
OBJECTS = (  # of the tiny detector: box XYXY as shares of the input, score before the photo's brightness, label
    ((0.1, 0.1, 0.5, 0.6), 0.96, 1),
    ((0.4, 0.2, 0.9, 0.9), 0.8, 0),
    ((0.0, 0.5, 0.3, 1.0), 0.4, 2),
)


AnyPredictor = TypeVar("AnyPredictor", bound=Predictor)


def open_as(
    task: type[AnyPredictor],
    path: Path,
    *,
    device: Device = "auto",
    threads: int | None = None,
    options: RuntimeOptions = DEFAULT_RUNTIME,
) -> AnyPredictor:
    """A bundle at work, as `open_predictor` gives it, of a task that is known."""
    bundle = load_bundle(path)
    return task(bundle, start_backend(bundle, device=device, threads=threads, options=options))


def features_of(predictor: Predictor, images: Sequence[Image.Image], levels: Sequence[str]) -> dict[str, Any]:
    """Features of photos, each (number of photos, ...)."""
    found = predictor(images, levels=tuple(levels))
    return {level: np.stack([each[level] for each in found]) for level in levels}


def options_of(views: ClipViews | None) -> dict[str, Any]:
    """How a predictor is asked for so many views; None: for one."""
    return {} if views is None else {"temporal_views": views.temporal, "spatial_views": views.spatial}


def make_bundle(
    directory: Path,
    *,
    name: str = "tiny",
    classes: Sequence[str] = ("a", "b", "c"),
    size: tuple[int, int] = (64, 64),
    max_batch: int = 8,
    verified: bool = True,
    largest: int | None = None,
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
        largest: side in pixels up to which the graph takes every size; None: it takes `size` alone.
        **overrides: fields of the manifest, in JSON form, that replace those made here; they are not validated, so a
            test can write a manifest that does not load.

    Returns:
        `directory`.
    """
    strides = {f"e{level}": stride for level, stride in enumerate(STRIDES, start=1)}
    sides = None if largest is None else {"largest": largest}
    fields = {
        "name": name,
        "task": "classification",
        "input": {"shape": [3, *size], "sides": sides, "max_batch": max_batch},
        "preprocessing": {"resize": [side * 8 // 7 for side in size], "crop": list(size)},
        "classes": list(classes),
        "outputs": {
            label: {"shape": list(shape), "stride": strides.get(label)}
            for label, shape in output_shapes(len(classes), size).items()
        },
    }
    graph = make_graph(len(classes), size)
    if largest is not None:
        for value in (*graph.graph.input, *graph.graph.output):
            for place, axis in enumerate(value.type.tensor_type.shape.dim[2:]):
                axis.dim_param = f"{value.name}_side{place}"
    return _write_bundle(directory, graph, fields, verified, overrides)


def make_feature_bundle(directory: Path, **facts: Any) -> Path:
    """A bundle of photos without a head: `make_bundle`'s graph, of which only the features are listed."""
    return _without_head(make_bundle(directory, **facts), "features")


def make_video_feature_bundle(directory: Path, **facts: Any) -> Path:
    """A bundle of videos without a head: `make_video_bundle`'s graph, of which only the features are listed."""
    return _without_head(make_video_bundle(directory, **facts), "video-features")


def _without_head(directory: Path, task: str) -> Path:
    manifest = json.loads((directory / MANIFEST_NAME).read_text(encoding="utf-8"))
    del manifest["outputs"]["logits"]
    write_manifest(directory, manifest | {"task": task, "classes": []})
    return directory


def make_detection_bundle(
    directory: Path,
    *,
    name: str = "boxes",
    classes: Sequence[str] = ("cat", "dog", "bird"),
    size: tuple[int, int] = (64, 96),
    max_batch: int = 4,
    converged: bool = True,
    **overrides: Any,
) -> Path:
    """Writes a detector that finds `OBJECTS` in every photo whose mean is above 0 when normalised, else nothing.

    Scores are those of `OBJECTS` times the sigmoid of the photo's mean: the brighter, the surer.

    Args:
        directory: the folder to write into; made when missing.
        name: the manifest's name.
        classes: class names, at least 3.
        size: (height, width) of the graph's input in pixels.
        max_batch: the largest batch that the manifest allows.
        converged: what the graph says of its suppression.
        **overrides: as in `make_bundle`.

    Returns:
        `directory`.
    """
    fields = {
        "name": name,
        "task": "detection",
        "input": {"shape": [3, *size], "max_batch": max_batch},
        "preprocessing": {"size": list(size)},
        "classes": list(classes),
        "category_ids": [17, 18, 16, *range(19, 16 + len(classes))],
        "outputs": {label: spec.model_dump(mode="json") for label, spec in DETECTOR_OUTPUTS.items()},
    }
    return _write_bundle(directory, make_detection_graph(size, converged), fields, True, overrides)


def make_segmentation_bundle(
    directory: Path,
    *,
    name: str = "areas",
    classes: Sequence[str] = ("sky", "road", "tree", "car"),
    window: tuple[int, int] = (64, 64),
    stride: tuple[int, int] = (43, 43),
    short_side: int | None = None,
    max_batch: int = 4,
    **overrides: Any,
) -> Path:
    """Writes a segmenter whose logits are a seeded random mixture of the colours of 4x4 pixels.

    Args:
        directory: the folder to write into; made when missing.
        name: the manifest's name.
        classes: class names.
        window: (height, width) of the graph's input in pixels.
        stride: from one window to the next, (y, x).
        short_side: of the resized photo; None: its own.
        max_batch: the largest batch that the manifest allows.
        **overrides: as in `make_bundle`.

    Returns:
        `directory`.
    """
    logits = [len(classes), window[0] // 4, window[1] // 4]
    fields = {
        "name": name,
        "task": "segmentation",
        "input": {"shape": [3, *window], "max_batch": max_batch},
        "preprocessing": {"window": list(window), "stride": list(stride), "short_side": short_side},
        "classes": list(classes),
        "outputs": {"logits": {"shape": logits, "stride": 4}},
    }
    return _write_bundle(directory, make_segmentation_graph(len(classes), window), fields, True, overrides)


def make_video_bundle(
    directory: Path,
    *,
    name: str = "motion",
    classes: Sequence[str] = ("left", "right", "up"),
    size: tuple[int, int] = (64, 64),
    frames: int = VIDEO_FRAMES,
    max_batch: int = 4,
    **overrides: Any,
) -> Path:
    """Writes a video classifier made as the one of `make_bundle`, on slots of two frames; frames are taken in a row.

    Args:
        directory: the folder to write into; made when missing.
        name: the manifest's name.
        classes: class names, one per logit.
        size: (height, width) of the graph's input in pixels, multiples of 32.
        frames: of a clip, a multiple of 2.
        max_batch: the largest batch that the manifest allows.
        **overrides: as in `make_bundle`.

    Returns:
        `directory`.
    """
    fields = {"name": name, "classes": list(classes), **video_fields(len(classes), size, frames, max_batch)}
    return _write_bundle(directory, make_graph(len(classes), size, frames), fields, True, overrides)


def video_fields(class_count: int, size: tuple[int, int], frames: int, max_batch: int = 4) -> dict[str, Any]:
    """What the manifest of a video classifier says otherwise than that of a classifier of photos."""
    strides = {f"e{level}": stride for level, stride in enumerate(STRIDES, start=1)}
    return {
        "task": "video-classification",
        "input": {"name": "clip", "shape": [3, frames, *size], "max_batch": max_batch},
        "preprocessing": {"resize": list(size), "crop": list(size), "frames": frames, "stride": 1},
        "outputs": {
            label: {
                "shape": list(shape),
                "stride": strides.get(label),
                "time_stride": None if label in ("logits", "pooled") else 2,
            }
            for label, shape in output_shapes(class_count, size, frames).items()
        },
    }


def _write_bundle(
    directory: Path, graph: onnx.ModelProto, fields: dict[str, Any], verified: bool, overrides: dict[str, Any]
) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    onnx.save(graph, directory / "model.onnx")
    (directory / "LICENSE-WEIGHTS").write_text("Random numbers; do as you please.\n", encoding="utf-8")
    file = {
        "sha256": sha256_of(directory / "model.onnx"),
        "bytes": (directory / "model.onnx").stat().st_size,
        "precision": "fp32",
        "opset": OPSET,
        "numerics": _numerics(list(fields["outputs"])) if verified else None,
    }
    about = {
        "variant": "tiny-test",
        "files": {"model.onnx": file},
        "tools": {"onnx": onnx.__version__},
        "licence": {"name": "test weights", "file": "LICENSE-WEIGHTS"},
        "provenance": {"weights": "random, seed 0"},
    }
    write_manifest(directory, Manifest.model_validate(fields | about).model_dump(mode="json") | overrides)
    return directory


def take_levels(directory: Path) -> Path:
    """Makes the graph of a bundle take levels in uint8 and normalise them itself; returns `directory`."""
    path, manifest = directory / "model.onnx", json.loads((directory / MANIFEST_NAME).read_text(encoding="utf-8"))
    model, spec = onnx.load(path), manifest["preprocessing"]
    (image,) = model.graph.input
    constants = {"of white": [255] * 3, "of mean": spec["mean"], "of std": spec["std"]}
    for name, numbers in constants.items():
        values = np.array(numbers, np.float32).reshape(3, *(1 for _ in manifest["input"]["shape"][1:]))
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    for node in model.graph.node:
        node.input[:] = ["normalised" if name == image.name else name for name in node.input]
    nodes = [helper.make_node("Cast", [image.name], ["levels"], to=FLOAT)]
    nodes += [helper.make_node("Div", ["levels", "of white"], ["shares"])]
    nodes += [helper.make_node("Sub", ["shares", "of mean"], ["centred"])]
    nodes += [helper.make_node("Div", ["centred", "of std"], ["normalised"])]
    nodes += model.graph.node
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    image.type.tensor_type.elem_type = TensorProto.UINT8
    onnx.save(model, path)
    manifest["input"]["dtype"] = spec["dtype"] = "uint8"
    manifest["files"]["model.onnx"] |= {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    write_manifest(directory, manifest)
    return directory


def write_manifest(directory: Path, manifest: dict[str, Any]) -> None:
    """Writes `manifest` as it is, valid or not."""
    (directory / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def make_graph(class_count: int, size: tuple[int, int], frames: int | None = None) -> onnx.ModelProto:
    """The graph: image (batch, 3, H, W) -> logits, pooled, e1, e2, e3, e4, all float32.

    With `frames` it takes clip (batch, 3, T, H, W), has slots of two frames, and gives pooled_frames as well.
    """
    source, ones = ("image", []) if frames is None else ("clip", [1])
    random = np.random.default_rng(0)
    weights: list[TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def weight(label: str, *shape: int) -> str:
        weights.append(numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), label))
        return label

    previous, previous_channels = source, 3
    for level, channels in enumerate(CHANNELS, start=1):
        window = [4, 4] if level == 1 else [2, 2]
        window = [2 if level == 1 else 1 for _ in ones] + window
        pool, kernel = f"pool{level}", weight(f"weight{level}", channels, previous_channels, *ones, 1, 1)
        nodes.append(helper.make_node("AveragePool", [previous], [pool], kernel_shape=window, strides=window))
        nodes.append(helper.make_node("Conv", [pool, kernel], [f"e{level}"]))
        previous, previous_channels = f"e{level}", channels
    nodes.append(helper.make_node("MaxPool", ["e3"], ["e4"], kernel_shape=[*ones, 2, 2], strides=[*ones, 2, 2]))
    nodes.append(helper.make_node("GlobalAveragePool", ["e3"], ["mean"]))
    nodes.append(helper.make_node("Flatten", ["mean"], ["pooled"]))
    if frames is not None:
        weights.append(numpy_helper.from_array(np.array([3, 4]), "places"))
        nodes.append(helper.make_node("ReduceMean", ["e3", "places"], ["slots"], keepdims=0))
        nodes.append(helper.make_node("Transpose", ["slots"], ["pooled_frames"], perm=[0, 2, 1]))
    head = weight("head", previous_channels, class_count)
    nodes.append(helper.make_node("MatMul", ["pooled", head], ["logits"]))
    for node in nodes:
        node.name = node.output[0]

    outputs = {label: (shape, int(FLOAT)) for label, shape in output_shapes(class_count, size, frames).items()}
    return _model(nodes, weights, size if frames is None else (frames, *size), outputs, source)


def make_detection_graph(size: tuple[int, int], converged: bool = True) -> onnx.ModelProto:
    """The graph: image (batch, 3, H, W) -> the six outputs of a detector."""
    empty = MAX_DETECTIONS - len(OBJECTS)
    boxes = np.array([item[0] for item in OBJECTS], np.float32) * np.array([size[1], size[0]] * 2, np.float32)
    masks = np.ones((len(OBJECTS), MASK_SIDE, MASK_SIDE), np.float32)
    masks[1, :, MASK_SIDE // 2 :] = 0  # of the second object only the left half is there
    values: dict[str, NDArray[Any]] = {
        "boxes": np.pad(boxes, ((0, empty), (0, 0))),
        "scores": np.pad(np.array([item[1] for item in OBJECTS], np.float32), (0, empty)),
        "labels": np.pad(np.array([item[2] for item in OBJECTS], np.int64), (0, empty)),
        "masks": np.pad(masks, ((0, empty), (0, 0), (0, 0))),
        "num": np.array(len(OBJECTS), np.int64),
    }
    weights = [
        *(numpy_helper.from_array(value[None], f"all_{name}") for name, value in values.items()),
        *(numpy_helper.from_array(np.array([-1] + [1] * value.ndim), f"axes_{name}") for name, value in values.items()),
        numpy_helper.from_array(np.array([int(converged)]), "all_converged"),
        numpy_helper.from_array(np.array(0, np.float32), "zero"),
        numpy_helper.from_array(np.array([1, 2, 3]), "axes"),
    ]
    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0),
        helper.make_node("Sigmoid", ["mean"], ["brightness"]),
        helper.make_node("Greater", ["mean", "zero"], ["bright"]),
        helper.make_node("Cast", ["bright"], ["found_float32"], to=FLOAT),
        helper.make_node("Cast", ["bright"], ["found_int64"], to=INT64),
        helper.make_node("Mul", ["found_float32", "brightness"], ["sure"]),
        helper.make_node("Shape", ["mean"], ["batch_size"]),
        helper.make_node("Expand", ["all_converged", "batch_size"], ["converged"]),
    ]
    for name, value in values.items():
        factor = "sure" if name == "scores" else f"found_{value.dtype}"
        nodes.append(helper.make_node("Reshape", [factor, f"axes_{name}"], [f"factor_{name}"]))
        nodes.append(helper.make_node("Mul", [f"all_{name}", f"factor_{name}"], [name]))
    types = {"float32": FLOAT, "int64": INT64}
    return _model(
        nodes, weights, size, {name: (spec.shape, types[spec.dtype]) for name, spec in DETECTOR_OUTPUTS.items()}
    )


def make_segmentation_graph(class_count: int, window: tuple[int, int]) -> onnx.ModelProto:
    """The graph: image (batch, 3, h, w) -> logits (batch, K, h / 4, w / 4)."""
    weight = 3 * np.random.default_rng(0).standard_normal((class_count, 3, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("AveragePool", ["image"], ["cells"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Conv", ["cells", "weight"], ["logits"]),
    ]
    shape = (class_count, window[0] // 4, window[1] // 4)
    return _model(nodes, [numpy_helper.from_array(weight, "weight")], window, {"logits": (shape, FLOAT)})


def _model(
    nodes: Sequence[onnx.NodeProto],
    weights: Sequence[TensorProto],
    size: tuple[int, ...],
    outputs: dict[str, tuple[tuple[int, ...], int]],
    source: str = "image",
) -> onnx.ModelProto:
    """A checked model of one input, `source`; `outputs` are shapes without the batch axis and element types."""
    values = [helper.make_tensor_value_info(name, kind, ["batch", *shape]) for name, (shape, kind) in outputs.items()]
    image = helper.make_tensor_value_info(source, FLOAT, ["batch", 3, *size])
    graph = helper.make_graph(nodes, "tiny", [image], values, initializer=weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def output_shapes(class_count: int, size: tuple[int, int], frames: int | None = None) -> dict[str, tuple[int, ...]]:
    """Shape of each output without the batch axis, in the manifest's order."""
    slots = [] if frames is None else [frames // 2]
    maps = {
        f"e{level}": (channels, *slots, size[0] // stride, size[1] // stride)
        for level, (channels, stride) in enumerate(zip((*CHANNELS, CHANNELS[-1]), STRIDES, strict=True), start=1)
    }
    vectors = {"pooled": (CHANNELS[-1],)} | ({"pooled_frames": (*slots, CHANNELS[-1])} if slots else {})
    return {"logits": (class_count,), **vectors, **maps}


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


def batch_for(bundle: Bundle, count: int) -> NDArray[np.float32]:
    """So many rows of random numbers, the same for the same number."""
    return np.random.default_rng(count).standard_normal((count, *bundle.manifest.input.shape), dtype=np.float32)
