"""Whether a graph is the one that its manifest describes, whatever runs it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convmae_deploy.bundle.graphs.limits import cost_of
from convmae_deploy.bundle.graphs.onnx_file import OnnxGraph, read_graph
from convmae_deploy.bundle.graphs.protobuf import FormatProblem
from convmae_deploy.bundle.graphs.weights import check_weights
from convmae_deploy.bundle.loading import Bundle, BundleError
from convmae_deploy.bundle.manifest import InputSpec, Manifest
from convmae_deploy.errors import ConvMAEError


@dataclass(frozen=True)
class GraphTensor:
    """An input or output as a runtime reports it."""

    name: str
    type: str  # by the runtime's own name
    shape: tuple[int | str, ...]  # a name in place of a number is a dimension that the graph leaves open


def checked_path(bundle: Bundle, file: str | None) -> Path:
    """Where a graph is, known to be an ONNX model of the manifest's opset that does no harm when it is run.

    See `graphs.limits` for what it may do, and `graphs.weights` for where its weights may be.

    Args:
        bundle: where the graph is.
        file: its name in the manifest; None for the default.

    Raises:
        BundleError: the manifest does not list it, or it is something else.
    """
    path, description = bundle.graph(file)
    graph = _read(path, description.opset)
    if graph.opset != description.opset:
        raise _unlike(path, description.opset, f"opset {graph.opset}")
    try:
        check_weights(graph.weights.values(), bundle.path, description.weights)
        for shape in extreme_shapes(bundle.manifest.input):
            cost_of(graph, shape)
    except FormatProblem as problem:
        raise BundleError(f"convmae_deploy cannot load {path}: {problem}; export it again") from None
    return path


def extreme_shapes(spec: InputSpec) -> tuple[tuple[int, ...], ...]:
    """The input's shape, and the corners of the range of shapes where the graph takes several; no batch axis."""
    if spec.sides is None:
        return (spec.shape,)
    ends = spec.sides.smallest, spec.sides.largest
    return (spec.shape, *((spec.shape[0], height, width) for height in ends for width in ends))


def check_images(images: NDArray[np.float32], spec: InputSpec) -> None:
    """Refuses a batch that a runtime might run all the same, or give other numbers for.

    Raises:
        ConvMAEError: its images are of a size that the graph does not take.
    """
    if not len(images) or not spec.takes(images.shape[1:]):
        raise ConvMAEError(f"a batch must be {spec.in_words}; got {images.shape}")


def _read(path: Path, opset: int) -> OnnxGraph:
    try:
        return read_graph(path)
    except FormatProblem as problem:
        raise _unlike(path, opset, f"no ONNX model of a bundle ({problem})") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}); check its permissions") from error


def _unlike(path: Path, opset: int, found: str) -> BundleError:
    return BundleError(f"{path} must be an ONNX model of opset {opset}, found {found}; export it again")


def check_graph(
    inputs: Sequence[GraphTensor],
    outputs: Sequence[GraphTensor],
    manifest: Manifest,
    path: Path,
    type_names: Mapping[str, str],
) -> None:
    """Refuses a graph that the manifest does not describe.

    Args:
        inputs: of the graph.
        outputs: of the graph.
        manifest: what they must be.
        path: of the graph, for the sentence.
        type_names: the manifest's types, as the runtime calls them.

    Raises:
        BundleError: with what was expected and what was found.
    """
    if [item.name for item in inputs] != [manifest.input.name]:
        names = ", ".join(item.name for item in inputs)
        raise BundleError(f"{path} must have the one input {manifest.input.name!r}, found {names}; export it again")
    _check_tensor(inputs[0], manifest.input.shape, manifest.input.dtype, "input", path, type_names)
    batch = inputs[0].shape[0]
    if isinstance(batch, int) and not manifest.input.min_batch == manifest.input.max_batch == batch:
        raise BundleError(
            f"{path} must take batches of {manifest.input.min_batch} to {manifest.input.max_batch}, "
            f"found a fixed batch of {batch}; export it again"
        )
    if manifest.input.sides is not None and any(isinstance(side, int) for side in inputs[0].shape[2:]):
        found_sides = " x ".join(map(str, inputs[0].shape[2:]))
        raise BundleError(f"{path} must take any height and width, found {found_sides}; export it again")
    found = {item.name: item for item in outputs}
    for name, spec in manifest.outputs.items():
        if name not in found:
            raise BundleError(f"{path} must have an output {name!r}, found {', '.join(found)}; export it again")
        _check_tensor(found[name], spec.shape, spec.dtype, "output", path, type_names)


def _check_tensor(
    found: GraphTensor, shape: tuple[int, ...], dtype: str, role: str, path: Path, type_names: Mapping[str, str]
) -> None:
    # The size of a dimension that the graph leaves open is checked when it is known.
    fits = len(found.shape) == len(shape) + 1 and all(
        not isinstance(size, int) or size == expected for size, expected in zip(found.shape[1:], shape, strict=True)
    )
    if found.type != type_names[dtype] or not fits:
        raise BundleError(
            f"{role} {found.name!r} of {path} must be {dtype} ({', '.join(map(str, ('batch', *shape)))}), "
            f"found {found.type} ({', '.join(map(str, found.shape))}); export it again"
        )
