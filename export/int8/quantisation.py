"""The int8 graph: which layers are quantised, and how `onnxruntime.quantization` is told so.

Quantised are the layers with trained weights and most of the work: `Conv`, `Gemm` and `MatMul` by a constant. Their
weights are int8, one scale for each output channel (depthwise kernels too); their inputs go through a pair of
QuantizeLinear and DequantizeLinear with one symmetric int8 scale. All else stays in fp32: biases, LayerNorm, Softmax,
GELU, sums with the residual, the products within attention, a detector's boxes, suppression and sampling of regions.
Nothing but the quantised layers reads a rounded value, so e1 ... e4 and a pyramid's maps are not rounded themselves.

Why ONNX Runtime's quantiser, and not NNCF or ModelOpt, which are maintained as well: it is here already, as the
runtime; it takes a list of nodes, and ranges that were measured elsewhere, so that layers can be returned to fp32 one
by one without calibrating again; and its graph is of ONNX's own operators, read by ONNX Runtime, OpenVINO and TensorRT.
Two of its defaults do not fit: biases in int32 (TensorRT refuses them), and unsigned activations (TensorRT wants
symmetric int8).
"""

import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import TensorData, TensorsData, save_tensors_data
from onnxscript import optimizer

from export.graphs.to_onnx import MODULE_KEY

QUANTISED = ("Conv", "Gemm", "MatMul")
# A smaller weight wins neither bytes nor time. Among them are the matrices that an adaptive pooling is made of
# (see `export.graphs.pooling`), which nobody trained.
LEAST_WEIGHTS = 256
FOLDED = ("Transpose", "Reshape")  # what the exporter leaves between a large weight and its product
ALIAS = "/int8"  # suffix of a value's name while the quantiser works: read by quantised layers alone
# The quantiser warns unless it is told that the graph was prepared; that is what `fold_weights` does.
PREPARED = ("onnx.quant.pre_process", "onnxruntime.quant")

Ranges = Mapping[str, tuple[float, float]]  # value of the fp32 graph -> its smallest and its largest entry


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One trained weight with every node that uses it."""

    name: str  # path of the module in the model; of the weight where that is not known, or has several weights
    weight: str  # name of the initialiser
    nodes: tuple[str, ...]  # names
    inputs: tuple[str, ...]  # the values that go in, one for each node


def fold_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which weights are constants, not transposed and reshaped ones."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    limit = 2**31 - 1
    optimizer.fold_constants(
        copy,
        input_size_limit=limit,
        output_size_limit=limit,
        should_fold=lambda node: node.op_type in FOLDED,
    )
    del copy.graph.value_info[:]
    return copy


def quantisable_layers(model: onnx.ModelProto) -> tuple[Layer, ...]:
    """The layers that can be quantised, in the order of the graph.

    Args:
        model: from `fold_weights`.
    """
    weights = {
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) >= LEAST_WEIGHTS and len(tensor.dims) > 1
    }
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        if node.op_type in QUANTISED and node.input[1] in weights and node.input[0] not in weights:
            users.setdefault(node.input[1], []).append(node)
    modules = {weight: _module_of(nodes[0]) or weight for weight, nodes in users.items()}
    names = list(modules.values())
    return tuple(
        Layer(
            name=modules[weight] if names.count(modules[weight]) == 1 else f"{modules[weight]} ({weight})",
            weight=weight,
            nodes=tuple(node.name for node in nodes),
            inputs=tuple(node.input[0] for node in nodes),
        )
        for weight, nodes in users.items()
    )


def quantise(model: onnx.ModelProto, layers: Collection[Layer], ranges: Ranges) -> onnx.ModelProto:
    """A copy of the graph with these layers in int8.

    Args:
        model: from `fold_weights`.
        layers: of `quantisable_layers`.
        ranges: of the inputs of all of them.
    """
    if not layers:
        return _copy(model)
    nodes = {name for layer in layers for name in layer.nodes}
    with tempfile.TemporaryDirectory(prefix="convmae-int8-") as folder:
        cache, target = Path(folder) / "ranges.json", Path(folder) / "int8.onnx"
        values = {value: ranges[value] for layer in layers for value in layer.inputs}
        save_tensors_data(_tensors_data(values), cache)
        quantize_static(
            _with_aliases(model, nodes, values),
            target,
            calibration_cache_path=cache,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED),
            nodes_to_quantize=sorted(nodes),
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "OpTypesToExcludeOutputQuantization": list(QUANTISED),
            },
        )
        quantised = onnx.load(target)
    _remove_aliases(quantised)
    return quantised


def _module_of(node: onnx.NodeProto) -> str:
    return next((str(entry.value) for entry in node.metadata_props if entry.key == MODULE_KEY), "")


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _tensors_data(values: Ranges) -> TensorsData:
    return TensorsData(
        CalibrationMethod.MinMax,
        {
            value + ALIAS: TensorData(lowest=np.array(lowest, np.float32), highest=np.array(highest, np.float32))
            for value, (lowest, highest) in values.items()
        },
    )


def _with_aliases(model: onnx.ModelProto, nodes: Collection[str], values: Collection[str]) -> onnx.ModelProto:
    """A copy in which these nodes read these values by another name.

    The quantiser gives rounded values to all readers of a value, also those it does not quantise, and to the outputs.
    """
    copy = _copy(model)
    readers = {node.name: node for node in copy.graph.node if node.name in nodes}
    for node in readers.values():
        node.input[0] += ALIAS
    aliases = [helper.make_node("Identity", [value], [value + ALIAS], value + ALIAS) for value in sorted(values)]
    copy.graph.value_info.extend(
        helper.make_tensor_value_info(value + ALIAS, TensorProto.FLOAT, None) for value in sorted(values)
    )
    _insert(copy.graph, aliases)
    copy.metadata_props.add(key=PREPARED[0], value=PREPARED[1])
    return copy


def _insert(graph: onnx.GraphProto, aliases: Collection[onnx.NodeProto]) -> None:
    """Puts each node behind the one that it reads from."""
    waiting = {node.input[0]: node for node in aliases}
    ordered = [waiting.pop(entry.name) for entry in graph.input if entry.name in waiting]
    for node in graph.node:
        ordered.append(node)
        ordered += [waiting.pop(name) for name in node.output if name in waiting]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(nodes)


def _remove_aliases(model: onnx.ModelProto) -> None:
    """Undoes `_with_aliases`, and drops what else the quantiser leaves behind."""
    graph = model.graph
    sources = {node.output[0]: node.input[0] for node in graph.node if node.output[0].endswith(ALIAS)}
    kept = [node for node in graph.node if node.output[0] not in sources]
    for node in kept:
        for index, name in enumerate(node.input):
            node.input[index] = sources.get(name, name)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    del model.metadata_props[:]
