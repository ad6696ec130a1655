"""From a module to an ONNX graph with open axes, and what can be asked of such a graph."""

import ast
import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import nn
from torch.export import ExportedProgram

from convmae_deploy.bundle.manifest import InputSpec
from convmae_deploy.bundle.numerics import Quantisation
from convmae_deploy.errors import ConvMAEError
from export.graph_files import read_model
from export.graphs.open_axes import check_sides, example_shape, name_axes, open_axes, resized_positions
from export.graphs.operators import refuse_operators

OPSET = 20  # with one node for each LayerNorm and each GELU, and read by the oldest runtimes that have those
HALF_SCALES_OPSET = 19  # the first whose quantisation takes scales in float16
BFLOAT16_OPSET = 22  # the first whose convolution and pooling take bfloat16
OPSETS = (18, 22)  # those before are not written; in 23 attention is one node, which TensorRT refuses in fp32
MODULE_KEY = "module"  # metadata of a node: path of the module that it was made from
WRAPPED = "model"  # attribute of the wrapper that holds the model: the first part of every path
ONNX_LIMIT_BYTES = 2_000_000_000  # protobuf holds 2 GiB in one file; a little is needed besides the weights
HALF_TYPES = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
CHATTY_LOGGERS = ("torch", "onnxscript", "onnx_ir")


@dataclass(frozen=True)
class ExportedGraph:
    """An ONNX graph with the traced program that it was translated from."""

    model: onnx.ModelProto
    program: ExportedProgram
    outputs: tuple[str, ...]
    quantisation: Quantisation | None = None  # how an int8 graph was made

    @property
    def input(self) -> str:
        """The name of its one input."""
        (only,) = self.model.graph.input
        return str(only.name)


def export_graph(
    wrapper: nn.Module,
    entry: InputSpec,
    outputs: tuple[str, ...],
    opset: int | None = None,
    path: Path | None = None,
    fixed_batch: bool = False,
) -> ExportedGraph:
    """Traces and translates a wrapper in evaluation mode; axes stay open as far as its input says.

    Args:
        wrapper: its one argument is the input, its model its attribute `model`; gives a flat tuple of tensors.
        entry: what the graph must take.
        outputs: the names of the tensors.
        opset: version of ONNX's operators, within OPSETS; None: OPSET, or BFLOAT16_OPSET where a weight needs it.
        path: where the graph is going to be; weights beyond what one file holds go beside it at once.
        fixed_batch: whether it must take the largest batch alone.

    Raises:
        ConvMAEError: the weights do not fit into one ONNX file and there is no path for a second, the model is for one
            size alone, or an operator is not for every runtime.
    """
    is_large = weight_bytes(wrapper) > ONNX_LIMIT_BYTES
    if is_large and path is None:
        raise ConvMAEError(
            f"one ONNX file holds at most {ONNX_LIMIT_BYTES / 1e9:g} GB of weights; this model has "
            f"{weight_bytes(wrapper) / 1e9:.1f} GB, choose a smaller variant"
        )
    if opset is None:
        has_bfloat16 = any(tensor.dtype == torch.bfloat16 for tensor in wrapper.state_dict().values())
        opset = BFLOAT16_OPSET if has_bfloat16 else OPSET
    (name,) = inspect.signature(wrapper.forward).parameters
    example = torch.zeros(example_shape(entry, fixed_batch), dtype=getattr(torch, entry.dtype))
    with _quiet(), resized_positions(wrapper) if entry.sides is not None else nullcontext():
        program = torch.onnx.export(
            wrapper,
            (example,),
            dynamo=True,
            opset_version=opset,
            external_data=False,
            input_names=[name],
            output_names=list(outputs),
            dynamic_shapes={name: open_axes(entry, fixed_batch)},
            verbose=False,
        )
        if program is None or program.exported_program is None:
            raise RuntimeError("torch.onnx.export gave no program")
        if is_large and path is not None:
            program.save(path, external_data=True)
            model = read_model(path)
        else:
            model = program.model_proto
    check_sides(program.exported_program, entry)
    name_axes(model.graph, entry)
    _skip_round_trips(model.graph)
    _tidy(model)
    refuse_operators(model)
    return ExportedGraph(model, program.exported_program, outputs)


def weight_bytes(module: nn.Module) -> int:
    """How many bytes all weights take together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def module_path(path: str) -> str:
    """A module path inside the wrapper as one inside the model; empty for the top level."""
    return path.removeprefix(WRAPPED).removeprefix(".")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's warnings and log lines from the terminal; exceptions pass."""
    levels = {name: logging.getLogger(name).level for name in CHATTY_LOGGERS}
    for name in CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _skip_round_trips(graph: onnx.GraphProto) -> None:
    """Takes out casts to half precision of what was just cast from it, as between two parts that compute in it."""
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    widened = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Cast" and types.get(node.input[0]) in HALF_TYPES and _target(node) == onnx.TensorProto.FLOAT
    }
    same = {
        node.output[0]: widened[node.input[0]]
        for node in graph.node
        if node.op_type == "Cast" and node.input[0] in widened and _target(node) == types[widened[node.input[0]]]
    }
    kept = [node for node in graph.node if node.output[0] not in same]
    for node in kept:
        node.input[:] = [same.get(name, name) for name in node.input]
    del graph.node[:]
    graph.node.extend(kept)


def _target(cast: onnx.NodeProto) -> int:
    """The type that a Cast casts to."""
    return int(next(attribute.i for attribute in cast.attribute if attribute.name == "to"))


def _tidy(model: onnx.ModelProto) -> None:
    """Drops what the exporter leaves behind: stack traces with paths of this machine, signatures, guessed shapes.

    Each node keeps the path of its module, for whoever reads the graph layer by layer.
    """
    graph = model.graph
    for node in graph.node:
        scopes = next((entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes"), "[]")
        modules = ast.literal_eval(scopes)[:-1]  # the last scope is the operation itself
        _clear(node)
        if modules and module_path(modules[-1]):
            node.metadata_props.add(key=MODULE_KEY, value=module_path(modules[-1]))
    for record in (model, graph, *graph.input, *graph.output, *graph.initializer):
        _clear(record)
    del graph.value_info[:]


def _clear(record: onnx.ModelProto | onnx.GraphProto | onnx.NodeProto | onnx.ValueInfoProto | onnx.TensorProto) -> None:
    del record.metadata_props[:]
    record.doc_string = ""
