"""Where does a graph lose its precision? Two graphs of one model, compared at the end of each of its modules.

Every export keeps the path of its module at each node. The last float value of a module in one graph and in the other
are the same quantity, whatever precision the second computes in, so there are two figures for each module:

- *built up*: the error that has come together there when both graphs are given the same input;
- *own*: the error that the module makes by itself, when what it reads is the first graph's, rounded to its own type.

A damaged weight shows in the second as one module that stands out, in the first as a fall that never recovers.

Limits: behind a selection of regions (TopK) rows may change places, so a detector is followed up to there; a module
that only one of the graphs has is left out.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, shape_inference

from convmae_deploy.backends.base import FloatArray
from convmae_deploy.bundle.manifest import Precision
from export.graphs.to_onnx import MODULE_KEY
from export.runtimes.runners import open_graph
from export.verification.divergence import REFERENCE, reading_inputs
from export.verification.gates import EXACT_DB, GATES, signal_to_noise

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
SELECTING = ("TopK", "NonZero", "NonMaxSuppression")
PROBE = "probe/"  # prefix of the outputs that give values as float32
MAX_BYTES = 2**30  # for one image's values of all modules
LEAST_DB: dict[Precision, float] = {"fp32": 90.0, "int8": 5.0, "int8-fp16": 5.0}  # where the gate names none
STANDS_OUT_DB = 20.0  # how much noisier than the median a module must be to be blamed within the gate

ModuleValues = dict[str, str]  # path of a module -> its last float value


@dataclass(frozen=True, kw_only=True)
class ModuleError:
    """Two signal-to-noise ratios at the end of a module, in decibels, at most EXACT_DB."""

    module: str
    built_up_db: float
    own_db: float


@dataclass(frozen=True, kw_only=True)
class LayerErrors:
    """Of all modules that two graphs share, in the order of the graph."""

    precision: Precision  # the second graph's
    modules: tuple[ModuleError, ...]

    @property
    def first(self) -> ModuleError | None:
        """The module to look at first; None where there is none to be compared.

        That is the first whose own error is beyond the gate of an output, else the one whose own error is largest.
        """
        floor = least_db(self.precision)
        beyond = next((module for module in self.modules if module.own_db < floor), None)
        return beyond or min(self.modules, key=lambda module: module.own_db, default=None)

    @property
    def explanation(self) -> str:
        """One clause for a message."""
        first = self.first
        if first is None:
            return "unknown: no module of the graph could be compared"
        median = float(np.median([module.own_db for module in self.modules if module.own_db < EXACT_DB] or [EXACT_DB]))
        clause = f"{first.module}, whose own signal-to-noise ratio is {first.own_db:.0f} dB"
        if first.own_db < median - STANDS_OUT_DB:
            return f"{clause} (the median of all layers is {median:.0f} dB)"
        return f"{clause}, the lowest, though none stands out (the median of all layers is {median:.0f} dB)"


def layer_errors(
    reference: onnx.ModelProto,
    model: onnx.ModelProto,
    images: FloatArray,
    *,
    precision: Precision,
    runtime: str,
) -> LayerErrors:
    """Compares two graphs module by module.

    Where the values of all modules together would take over `MAX_BYTES`, the modules with the largest are left out.

    Args:
        reference: the graph that is right, fp32.
        model: the one in question, with the same module paths.
        images: (B, 3, H, W), or clips (B, 3, T, H, W).
        precision: of `model`.
        runtime: of GRAPH_RUNTIMES, what runs `model`; the reference runs in ONNX Runtime.
    """
    found_ends, expected = module_values(reference, model, images)
    built_up = _run(probed(model, found_ends.values()), images, list(found_ends.values()), runtime)
    pairs = {module: (expected[module], built_up[end]) for module, end in found_ends.items()}
    comparable = {module for module, (one, other) in pairs.items() if one.shape == other.shape}
    fed = {end: expected[module] for module, end in found_ends.items() if module in comparable}
    own = _run(probed(fed_with(model, fed), found_ends.values()), images, list(found_ends.values()), runtime, fed)
    return LayerErrors(
        precision=precision,
        modules=tuple(
            ModuleError(
                module=module,
                built_up_db=snr_db(*pairs[module]),
                own_db=snr_db(expected[module], own[end]),
            )
            for module, end in found_ends.items()
            if module in comparable
        ),
    )


def module_values(
    reference: onnx.ModelProto, model: onnx.ModelProto, images: FloatArray
) -> tuple[ModuleValues, dict[str, FloatArray]]:
    """The modules that two graphs share: their last values in the second, and what these are in the first.

    Args:
        reference: the graph that is right, fp32; runs in ONNX Runtime.
        model: the one in question.
        images: (B, 3, ...).
    """
    before, after = module_ends(reference), module_ends(model)
    shared = affordable([module for module in before if module in after], reference, before)
    ends = [before[module] for module in shared]
    expected = _run(probed(reference, ends), images, ends, "onnxruntime")
    return {module: after[module] for module in shared}, {module: expected[before[module]] for module in shared}


def least_db(precision: Precision) -> float:
    """The signal-to-noise ratio below which a module is off."""
    return LEAST_DB.get(precision, GATES[precision].snr_db)


def snr_db(expected: FloatArray, found: FloatArray) -> float:
    """The signal-to-noise ratio of an array in decibels; the least where something is not finite."""
    if not np.isfinite(found).all():
        return -EXACT_DB
    exact = expected.astype(np.float64)
    return signal_to_noise(float(np.linalg.norm(exact)), float(np.linalg.norm(exact - found)))


def module_ends(model: onnx.ModelProto) -> ModuleValues:
    """The last float value of each module, in the order of the graph, before any selection of rows."""
    types = element_types(model)
    selected: set[str] = set()  # values that a selection decides on
    ends: ModuleValues = {}
    for node in model.graph.node:
        if node.op_type in SELECTING or selected.intersection(node.input):
            selected.update(node.output)
            continue
        module = next((entry.value for entry in node.metadata_props if entry.key == MODULE_KEY), None)
        value = next((name for name in node.output if types.get(name) in FLOATS), None)
        if module is not None and value is not None:
            ends.pop(module, None)
            ends[module] = value
    return ends


def affordable(modules: list[str], model: onnx.ModelProto, ends: ModuleValues) -> list[str]:
    """The modules whose values can all be held for one image, in their order."""
    sizes = {}
    for value in shape_inference.infer_shapes(model).graph.value_info:
        sizes[value.name] = 4 * math.prod(max(1, side.dim_value) for side in value.type.tensor_type.shape.dim)
    total, kept = 0, set()
    for module in sorted(modules, key=lambda module: sizes.get(ends[module], 0)):
        total += sizes.get(ends[module], 0)
        if total <= MAX_BYTES:
            kept.add(module)
    return [module for module in modules if module in kept]


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """The ONNX element type of each value, where it can be inferred."""
    graph = shape_inference.infer_shapes(model).graph
    values = [*graph.value_info, *graph.output, *graph.input]
    return {value.name: value.type.tensor_type.elem_type for value in values}


def probed(model: onnx.ModelProto, values: Iterable[str]) -> onnx.ModelProto:
    """A copy of a graph whose only outputs are some of its values as float32, `probe/NAME`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    for name in values:
        copy.graph.node.append(helper.make_node("Cast", [name], [PROBE + name], to=TensorProto.FLOAT))
        copy.graph.output.append(helper.make_tensor_value_info(PROBE + name, TensorProto.FLOAT, None))
    return copy


def fed_with(model: onnx.ModelProto, values: Mapping[str, FloatArray]) -> onnx.ModelProto:
    """A copy of a graph in which whatever reads one of `values` reads a float32 input instead, cast to its type."""
    types = element_types(model)
    fed = reading_inputs(model, {name: (TensorProto.FLOAT, value.shape) for name, value in values.items()})
    casts = []
    for entry in list(fed.graph.input):
        name = entry.name.removeprefix(REFERENCE)
        if name in values and types[name] != TensorProto.FLOAT:
            entry.name = f"float32/{entry.name}"
            casts.append(helper.make_node("Cast", [entry.name], [REFERENCE + name], to=types[name]))
    nodes = [*casts, *fed.graph.node]
    del fed.graph.node[:]
    fed.graph.node.extend(nodes)
    return fed


def _run(
    model: onnx.ModelProto,
    images: FloatArray,
    values: list[str],
    runtime: str,
    fed: Mapping[str, FloatArray] | None = None,
) -> dict[str, FloatArray]:
    """One run, of a graph from `probed`; without ONNX Runtime's optimisations, which could merge layers."""
    feeds: dict[str, NDArray[np.float32]] = {}
    for entry in model.graph.input:
        name = entry.name.removeprefix("float32/").removeprefix(REFERENCE)
        feeds[entry.name] = images if fed is None or name not in fed else fed[name]
    opened = open_graph(runtime, model, optimised=False)
    found = opened.run([PROBE + name for name in values], feeds)
    return {name: found[PROBE + name] for name in values}
