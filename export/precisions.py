"""One function for each precision that a bundle may have a file in, which makes its graph."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

from torch import nn

from convmae_deploy.bundle.manifest import InputSpec, Precision
from convmae_deploy.errors import ConvMAEError
from export.graphs.half_precision import HalfPrecision, in_half_precision
from export.graphs.to_onnx import ExportedGraph, export_graph
from export.int8.maker import Int8Maker
from export.tasks.base import ExportTask


@dataclass(frozen=True, kw_only=True)
class GraphRequest:
    """What a graph is made from."""

    task: ExportTask
    entry: InputSpec  # what it must take
    opset: int | None = None  # of ONNX; None: see `export_graph`
    fixed_batch: bool = False  # whether its batches are all of one size
    float32: ExportedGraph | None = None  # the fp32 graph; None while that one is made
    path: Path | None = None  # of the file; None: it is in memory alone
    int8: Int8Maker | None = None  # None: no int8 graph is wanted

    @property
    def outputs(self) -> tuple[str, ...]:
        """What the graph must give: the bundle's outputs and the task's probes."""
        return *self.task.outputs, *self.task.probes


def float32_graph(request: GraphRequest) -> ExportedGraph:
    """The wrapper as it is."""
    return _exported(request.task.wrapper, request)


def half_graph(precision: HalfPrecision, request: GraphRequest) -> ExportedGraph:
    """The wrapper, with the task's parts in half precision."""
    wrapper = in_half_precision(request.task.wrapper, request.task.half, precision)
    return _exported(wrapper, request)


def _exported(wrapper: nn.Module, request: GraphRequest) -> ExportedGraph:
    return export_graph(wrapper, request.entry, request.outputs, request.opset, request.path, request.fixed_batch)


def int8_graph(request: GraphRequest) -> ExportedGraph:
    """The fp32 graph with int8 layers."""
    assert request.float32 is not None and request.int8 is not None  # the program asks for both
    return request.int8.make(request.float32)


def int8_half_graph(request: GraphRequest) -> ExportedGraph:
    """The fp16 graph with int8 layers."""
    assert request.float32 is not None and request.int8 is not None
    return request.int8.make(request.float32, half_graph("fp16", request))


GRAPHS: dict[Precision, Callable[[GraphRequest], ExportedGraph]] = {
    "fp32": float32_graph,  # the first, which the others may build on
    "fp16": partial(half_graph, "fp16"),
    "bf16": partial(half_graph, "bf16"),
    "int8": int8_graph,
    "int8-fp16": int8_half_graph,
}


def file_name(precision: Precision) -> str:
    """What the graph of a precision is called in a bundle."""
    return "model.onnx" if precision == "fp32" else f"model.{precision}.onnx"


def parse_precision(text: str) -> Precision:
    """One of those that can be exported.

    Raises:
        ConvMAEError: it is none of them.
    """
    for precision in get_args(Precision):
        if text == precision and precision in GRAPHS:
            return precision  # type: ignore[no-any-return]
    raise ConvMAEError(f"--precision must be some of {', '.join(GRAPHS)}, with commas between them; got {text!r}")
