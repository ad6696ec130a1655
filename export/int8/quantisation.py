"""The int8 graph: which layers are quantised, and how `onnxruntime.quantization` is told so.

Quantised are the layers with trained weights and most of the work: `Conv`, `Gemm` and `MatMul` by a constant. Their
weights are int8, one scale for each output channel (depthwise kernels too); their inputs go through a pair of
QuantizeLinear and DequantizeLinear with one symmetric int8 scale. All else stays as it is, in fp32 or, in a graph that
was made in half precision, in fp16 with scales in fp16: biases, LayerNorm, Softmax,
GELU, sums with the residual, the products within attention, a detector's boxes, suppression and sampling of regions.
Nothing but the quantised layers reads a rounded value, so e1 ... e4 and a pyramid's maps are not rounded themselves.

Why ONNX Runtime's quantiser, and not NNCF or ModelOpt, which are maintained as well: it is here already, as the
runtime; it takes a list of nodes, and ranges that were measured elsewhere, so that layers can be returned to fp32 one
by one without calibrating again; and its graph is of ONNX's own operators, which every runtime here reads.
Two of its defaults do not fit: biases in int32 (TensorRT refuses them), and unsigned activations (TensorRT wants
symmetric int8).
"""

import tempfile
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import TensorData, TensorsData, save_tensors_data
from onnxscript import optimizer

from export.graphs.to_onnx import MODULE_KEY, WRAPPED, module_path

QUANTISED = ("Conv", "Gemm", "MatMul")
# A smaller weight wins neither bytes nor time. Among them are the matrices that an adaptive pooling is made of
# (see `export.graphs.pooling`), which nobody trained.
LEAST_WEIGHTS = 256
LEVELS = 127  # of int8 on either side of 0
NUMPY_TYPES: dict[int, type[np.floating]] = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}
FOLDED = ("Transpose", "Reshape")  # what the exporter leaves between a large weight and its product
ALIAS = "/int8"  # suffix of a value's name while the quantiser works: read by quantised layers alone
# The quantiser warns unless it is told that the graph was prepared; that is what `fold_weights` does.
PREPARED = ("onnx.quant.pre_process", "onnxruntime.quant")

Ranges = Mapping[str, tuple[float, float]]  # value of the fp32 graph -> its smallest and its largest entry


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One trained weight with every node that uses it."""

    name: str  # path of the module in the model, numbered where it has several weights; the weight's without a module
    weight: str  # name of the initialiser
    nodes: tuple[str, ...]  # names
    inputs: tuple[str, ...]  # the values that go in, one for each node
    type: int = TensorProto.FLOAT  # ONNX element type of its weight and of what it reads and gives

    @property
    def own_weights(self) -> tuple[str, ...]:
        """The weight of each node in the int8 graph; ONNX Runtime refuses shared ones with `session.x64quantprecision`.

        Without that option its products saturate on x86 without VNNI.
        """
        return (self.weight, *(f"{self.weight}/{index}" for index in range(1, len(self.nodes))))


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
        tensor.name: tensor.data_type
        for tensor in model.graph.initializer
        if tensor.data_type in NUMPY_TYPES and np.prod(tensor.dims) >= LEAST_WEIGHTS and len(tensor.dims) > 1
    }
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        if node.op_type in QUANTISED and node.input[1] in weights and node.input[0] not in weights:
            users.setdefault(node.input[1], []).append(node)
    modules = {weight: _owner_of(weight) or _module_of(nodes[0]) or weight for weight, nodes in users.items()}
    names, seen = list(modules.values()), Counter[str]()
    numbered: dict[str, str] = {}
    for weight, module in modules.items():
        seen[module] += 1
        numbered[weight] = module if names.count(module) == 1 else f"{module}#{seen[module]}"
    return tuple(
        Layer(
            name=numbered[weight],
            weight=weight,
            type=weights[weight],
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
    nodes = sorted(name for layer in layers for name in layer.nodes)
    with tempfile.TemporaryDirectory(prefix="convmae-int8-") as folder:
        cache, target = Path(folder) / "ranges.json", Path(folder) / "int8.onnx"
        types = {value: layer.type for layer in layers for value in layer.inputs}
        save_tensors_data(_tensors_data({value: ranges[value] for value in types}, types), cache)
        quantize_static(
            _prepared(model, layers, types),
            target,
            calibration_cache_path=cache,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED),
            nodes_to_quantize=nodes,
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
    _keep_small_channels(quantised, model, layers)
    return quantised


def _owner_of(weight: str) -> str:
    """The module whose parameter a weight is; empty where the exporter has named it otherwise."""
    parts = weight.removesuffix(".weight")
    return module_path(parts) if weight.startswith(f"{WRAPPED}.") and parts != weight else ""


def _module_of(node: onnx.NodeProto) -> str:
    return next((str(entry.value) for entry in node.metadata_props if entry.key == MODULE_KEY), "")


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _tensors_data(ranges: Ranges, types: Mapping[str, int]) -> TensorsData:
    """The ranges, each in the type of its value, which its scale will have too."""
    data = {}
    for value, (lowest, highest) in ranges.items():
        kind = NUMPY_TYPES[types[value]]
        # a scale below the type's smallest normal number would become 1
        least, most = float(LEVELS * np.finfo(kind).tiny), float(np.finfo(kind).max)
        ends = np.clip([min(lowest, 0), max(highest, least)], -most, most).astype(kind)
        data[value + ALIAS] = TensorData(lowest=np.array(ends[0]), highest=np.array(ends[1]))
    return TensorsData(CalibrationMethod.MinMax, data)


def _keep_small_channels(quantised: onnx.ModelProto, model: onnx.ModelProto, layers: Collection[Layer]) -> None:
    """Gives float16 weights the scales that the quantiser replaces by 1, as they are below the smallest normal one.

    It would make zeros of channels whose largest weight is under 0.008.
    """
    stored = {tensor.name: tensor for tensor in quantised.graph.initializer}
    sources = {tensor.name: tensor for tensor in model.graph.initializer}
    readers = {name: node for node in quantised.graph.node for name in node.input[:1]}
    for layer in layers:
        if layer.type != TensorProto.FLOAT16:
            continue
        weight = numpy_helper.to_array(sources[layer.weight]).astype(np.float32)
        for own in layer.own_weights:
            read = readers[f"{own}_quantized"]
            axis = helper.get_node_attr_value(read, "axis") % weight.ndim
            others = tuple(place for place in range(weight.ndim) if place != axis)
            largest = np.abs(weight).max(axis=others, keepdims=True)
            if largest.min() / LEVELS >= np.finfo(np.float16).tiny:
                continue
            scale = np.maximum(largest / LEVELS, np.finfo(np.float16).smallest_subnormal).astype(np.float16)
            levels = np.clip(np.round(weight / scale.astype(np.float32)), -LEVELS, LEVELS).astype(np.int8)
            stored[read.input[0]].CopyFrom(numpy_helper.from_array(levels, read.input[0]))
            stored[read.input[1]].CopyFrom(numpy_helper.from_array(scale.ravel(), read.input[1]))


def _prepared(model: onnx.ModelProto, layers: Collection[Layer], values: Mapping[str, int]) -> onnx.ModelProto:
    """A copy in which the nodes of layers have weights of their own and read these values by another name.

    The quantiser gives rounded values to all readers of a value, also those it does not quantise, and to the outputs.
    """
    copy = _copy(model)
    nodes = {node.name: node for node in copy.graph.node}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for layer in layers:
        for name, own in zip(layer.nodes, layer.own_weights, strict=True):
            nodes[name].input[0] += ALIAS
            if own != layer.weight:
                nodes[name].input[1] = own
                copy.graph.initializer.add().CopyFrom(weights[layer.weight])
                copy.graph.initializer[-1].name = own
    aliases = [helper.make_node("Identity", [value], [value + ALIAS], value + ALIAS) for value in sorted(values)]
    copy.graph.value_info.extend(
        helper.make_tensor_value_info(value + ALIAS, kind, None) for value, kind in sorted(values.items())
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
    """Undoes the names of `_prepared`, and drops what else the quantiser leaves behind."""
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
