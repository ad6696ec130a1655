"""What runs a graph for a comparison, computed in the types that it is written in: PyTorch and the runtimes."""

import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from convmae_deploy.backends.base import (
    ComputePrecision,
    FloatArray,
    GraphSource,
    OpenGraph,
    Outputs,
    describe_backend,
)
from convmae_deploy.bundle.graph_checks import checked_path
from convmae_deploy.bundle.loading import Bundle
from convmae_deploy.bundle.manifest import Precision
from export.graph_files import files_of_weights, write_graph
from export.runtimes.combinations import GRAPH_RUNTIMES, HINTED, PLACES, REFERENCE, Combination, open_backend

Runner = Callable[[FloatArray], Outputs]  # images (B, 3, H, W) or clips (B, 3, T, H, W) -> name -> (B, ...)


def torch_runner(model: nn.Module, outputs: Sequence[str]) -> Runner:
    """A module that gives a tuple of tensors, run eagerly in its own precision on the CPU."""

    @torch.inference_mode()
    def run(images: FloatArray) -> Outputs:
        return {name: tensor.numpy() for name, tensor in zip(outputs, model(torch.from_numpy(images)), strict=True)}

    return run


def one_by_one(runner: Runner) -> Runner:
    """The same image by image."""

    def run(images: FloatArray) -> Outputs:
        parts = [runner(images[index : index + 1]) for index in range(len(images))]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    return run


def open_graph(runtime: str, source: GraphSource | onnx.ModelProto, *, optimised: bool = True) -> OpenGraph:
    """A graph in one of GRAPH_RUNTIMES; see `GraphOpener`."""
    opener = GRAPH_RUNTIMES[runtime].open_graph
    assert opener is not None
    if not isinstance(source, onnx.ModelProto):
        return opener(source, optimised=optimised)
    weights = files_of_weights(source)
    if not weights:
        return opener(source.SerializeToString(), optimised=optimised)
    path = weights[0].with_name(f".{uuid.uuid4().hex[:8]}.onnx")  # a graph finds weights beside itself alone
    try:
        write_graph(source, path)
        return opener(path, optimised=optimised)
    finally:
        path.unlink(missing_ok=True)


def file_runner(runtime: str, path: Path, outputs: Sequence[str]) -> Runner:
    """An ONNX file as a function of its one input.

    It is opened by the first run, so that a graph which does not load fails like one that does not run.
    """
    opened: list[OpenGraph] = []

    def run(images: FloatArray) -> Outputs:
        if not opened:
            opened.append(open_graph(runtime, path))
        (image,) = opened[0].inputs
        return opened[0].run(outputs, {image: images})

    return run


onnx_runner = partial(file_runner, "onnxruntime")


def describe(runtime: str, precision: Precision, computes_in: ComputePrecision | None = None) -> str:
    """One of GRAPH_RUNTIMES with its version, for reports.

    Args:
        runtime: its name.
        precision: of the file.
        computes_in: what it was told to compute in; None: as the file is written.
    """
    of_runtime = GRAPH_RUNTIMES[runtime].describe
    assert of_runtime is not None
    return of_runtime(precision, computes_in)


def runtimes_for(precision: Precision) -> tuple[str, ...]:
    """What can run files of a precision on this CPU; the first verifies exports.

    ONNX Runtime takes float16 graphs and computes most of them in float32, where nothing overflows; so what computes
    them as they are written comes first, where the CPU has it.
    """
    able = [name for name, runtime in GRAPH_RUNTIMES.items() if runtime.problem("cpu", precision) is None]
    return tuple(sorted(able, key=lambda name: precision in GRAPH_RUNTIMES[name].widens))


def start(combination: Combination, bundle: Bundle) -> tuple[Runner, str]:
    """What runs a combination, and its description with versions: as it is served, or as it is written.

    Raises:
        ConvMAEError: it does not start.
    """
    outputs, runtime, file = tuple(bundle.manifest.outputs), combination.runtime, combination.file
    if runtime == REFERENCE or (runtime in HINTED and combination.computes_in is None):
        return file_runner(runtime, checked_path(bundle, file), outputs), describe(runtime, combination.precision)
    backend = open_backend(combination, bundle)

    def run(images: FloatArray) -> Outputs:
        return backend.run(images, outputs)

    if PLACES[runtime].device == "cuda":
        return run, describe_backend(backend)
    return run, describe(runtime, combination.precision, combination.computes_in)
