"""What stands in an ONNX file, read without the `onnx` package, which the runtime does not need otherwise.

Fields and their numbers: onnx.proto. What a bundle's graph never has is refused here already: functions, graphs inside
nodes, sparse tensors, tensors of text, operators of other domains than ONNX's own. Weights are views of the mapped
file, so that a graph of gigabytes costs no memory.
"""

import math
import mmap
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from convmae_deploy.bundle.graphs.protobuf import (
    FIXED32,
    VARINT,
    Field,
    Fields,
    FormatProblem,
    Message,
    ProtobufReader,
    number,
    numbers,
    signed,
    text,
    texts,
)
from convmae_deploy.files import open_regular, shortened

MAX_NODES = 4000  # and weights: more than in any graph here, and runtimes need minutes for some times as many
MAX_INPUTS = 4 * MAX_NODES  # and outputs, of all nodes together
MAX_AXES = 8
MAX_METADATA = 1000  # entries
MAX_METADATA_BYTES = 16 * 2**20  # 100 000 classes with long names take half of it
MAX_NUMBERS = 64  # entries of a tensor that can say what a shape is
STANDARD_DOMAINS = ("", "ai.onnx")

# Numbers of onnx.proto's TensorProto.DataType.
FLOAT, UINT8, INT32, INT64, BOOL, FLOAT16, DOUBLE, UINT32, UINT64, BFLOAT16 = 1, 2, 6, 7, 9, 10, 11, 12, 13, 16
WHOLE_NUMBER_TYPES = (2, 3, 4, 5, 6, 7, 12, 13)
TYPE_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2} | dict.fromkeys(
    (17, 18, 19, 20), 1
)
_NUMBER_FORMATS = {FLOAT: "f", INT32: "i", INT64: "q"}  # as the module struct writes them
_EXTERNAL = 1  # of TensorProto.DataLocation
# Where values stand when they are not in raw_data: as they are in memory, or as whole numbers of any length.
_FIXED_DATA = {FLOAT: "float_data", DOUBLE: "double_data"}
_VARINT_DATA = {INT64: "int64_data", UINT32: "uint64_data", UINT64: "uint64_data"}  # others: int32_data

_ENTRY: Fields = {1: Field("key"), 2: Field("value")}
_TENSOR: Fields = {
    1: Field("dims", VARINT, repeated=True),
    2: Field("data_type", VARINT),
    4: Field("float_data"),
    5: Field("int32_data"),
    7: Field("int64_data"),
    8: Field("name"),
    9: Field("raw_data"),
    10: Field("double_data"),
    11: Field("uint64_data"),
    12: Field("doc_string"),
    13: Field("external_data", repeated=True),
    14: Field("data_location", VARINT),
    16: Field("metadata_props", repeated=True),
}
_ATTRIBUTE: Fields = {
    1: Field("name"),
    2: Field("f", FIXED32),
    3: Field("i", VARINT),
    4: Field("s"),
    5: Field("t"),
    6: Field("a graph inside it, as a loop or a branch has", refused=True),
    7: Field("floats", FIXED32, repeated=True),
    8: Field("ints", VARINT, repeated=True),
    9: Field("texts", refused=True),
    11: Field("graphs inside it", refused=True),
    13: Field("doc_string"),
    20: Field("type", VARINT),
}
_ATTRIBUTE_TYPES = {1: "f", 2: "i", 3: "s", 4: "t", 6: "floats", 7: "ints"}
_NODE: Fields = {
    1: Field("input", repeated=True),
    2: Field("output", repeated=True),
    3: Field("name"),
    4: Field("op_type"),
    5: Field("attribute", repeated=True),
    6: Field("doc_string"),
    7: Field("domain"),
    9: Field("metadata_props", repeated=True),
}
_DIMENSION: Fields = {1: Field("value", VARINT), 2: Field("parameter"), 3: Field("denotation")}
_SHAPE: Fields = {1: Field("dim", repeated=True)}
_TENSOR_TYPE: Fields = {1: Field("elem_type", VARINT), 2: Field("shape")}
_TYPE: Fields = {1: Field("tensor_type"), 6: Field("denotation")}
_VALUE: Fields = {1: Field("name"), 2: Field("type"), 3: Field("doc_string"), 4: Field("metadata_props", repeated=True)}
_GRAPH: Fields = {
    1: Field("node", repeated=True),
    2: Field("name"),
    5: Field("initializer", repeated=True),
    10: Field("doc_string"),
    11: Field("input", repeated=True),
    12: Field("output", repeated=True),
    13: Field("value_info", repeated=True),
    15: Field("a sparse tensor", refused=True),
    16: Field("metadata_props", repeated=True),
}
_OPSET: Fields = {1: Field("domain"), 2: Field("version", VARINT)}
_MODEL: Fields = {
    1: Field("ir_version", VARINT),
    2: Field("producer_name"),
    3: Field("producer_version"),
    4: Field("domain"),
    5: Field("model_version", VARINT),
    6: Field("doc_string"),
    7: Field("graph"),
    8: Field("opset_import", repeated=True),
    14: Field("metadata_props", repeated=True),
    20: Field("a training", refused=True),
    25: Field("a function", refused=True),
}
# Of a file whose graph is not looked at: of whoever made it, what a bundle has not is no reason to refuse it.
_ANY_MODEL: Fields = {
    **_MODEL,
    20: Field("training_info", repeated=True),
    25: Field("functions", repeated=True),
    26: Field("configuration", repeated=True),
}


@dataclass(frozen=True)
class ExternalData:
    """Where a weight's values are, when they are not in the graph's own file."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class Weight:
    """A constant tensor."""

    name: str
    type: int
    shape: tuple[int, ...]
    data: memoryview | None  # its values, little-endian; None: in another form, or elsewhere
    external: ExternalData | None = None
    stated: tuple[int, ...] | None = None  # values of a small one that does not stand as bytes

    @property
    def entries(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    @property
    def numbers(self) -> tuple[float, ...] | None:
        """The values of a small one, as far as they can say what a shape is."""
        if self.data is None or self.type not in _NUMBER_FORMATS or self.entries > MAX_NUMBERS:
            return self.stated
        return struct.unpack(f"<{self.entries}{_NUMBER_FORMATS[self.type]}", self.data)


Attribute = int | float | str | tuple[int, ...] | tuple[float, ...] | Weight


@dataclass(frozen=True)
class Node:
    """An operation."""

    name: str
    operator: str
    inputs: tuple[str, ...]  # "" for one that is left out
    outputs: tuple[str, ...]
    attributes: dict[str, Attribute]


@dataclass(frozen=True)
class GraphInput:
    """An input as the graph declares it."""

    name: str
    type: int
    shape: tuple[int | None, ...]  # None: left open


@dataclass(frozen=True)
class OnnxGraph:
    """The content of an ONNX file."""

    opset: int  # version of ONNX's own operators
    nodes: tuple[Node, ...]
    weights: dict[str, Weight]
    inputs: tuple[GraphInput, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class ModelHeader:
    """What an ONNX file says of itself beside its graph."""

    opset: int | None  # version of ONNX's own operators; None: it states none
    metadata: dict[str, str]  # in the order of the file


def read_header(path: Path) -> ModelHeader:
    """What stands around the graph of an ONNX file, of a bundle or not.

    Raises:
        FormatProblem: it is no ONNX file, or has more metadata than any file needs.
        OSError: it cannot be opened.
    """
    return _Reader().header_of(map_file(path))


def read_graph(path: Path) -> OnnxGraph:
    """The graph of an ONNX file.

    Raises:
        FormatProblem: it is none, or has what no bundle has.
        OSError: it cannot be opened.
    """
    return _Reader().graph_of(map_file(path))


def map_file(path: Path) -> memoryview:
    """The bytes of a regular file, read as they are looked at.

    Raises:
        OSError: it cannot be opened or is no regular file.
    """
    with open_regular(path) as file:
        if not os.fstat(file.fileno()).st_size:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


class _Reader(ProtobufReader):
    """Makes the records above of messages."""

    def header_of(self, data: memoryview) -> ModelHeader:
        model = self.message(data, _ANY_MODEL, "the model")
        if "graph" not in model:
            raise FormatProblem("it has no graph")
        entries = model.get("metadata_props", ())
        if len(entries) > MAX_METADATA or sum(map(len, entries)) > MAX_METADATA_BYTES:
            raise FormatProblem(f"it has more than {MAX_METADATA} entries of metadata or {MAX_METADATA_BYTES} bytes")
        pairs = [self.message(entry, _ENTRY, "an entry of metadata") for entry in entries]
        versions = self._opsets(model)
        return ModelHeader(
            opset=versions[0] if versions else None, metadata={text(pair, "key"): text(pair, "value") for pair in pairs}
        )

    def _opsets(self, model: Message) -> list[int]:
        """Versions of ONNX's own operators; there should be one."""
        opsets = [self.message(part, _OPSET, "an operator set") for part in model.get("opset_import", ())]
        return [number(opset, "version") for opset in opsets if text(opset, "domain") in STANDARD_DOMAINS]

    def graph_of(self, data: memoryview) -> OnnxGraph:
        model = self.message(data, _MODEL, "the model")
        versions = self._opsets(model)
        if len(versions) != 1 or "graph" not in model:
            raise FormatProblem("it has no graph, or not one set of ONNX's operators")
        graph = self.message(model["graph"][0], _GRAPH, "the graph")
        for part in ("node", "initializer"):
            if len(graph.get(part, ())) > MAX_NODES:
                raise FormatProblem(f"it has {len(graph[part])} nodes or weights, at most {MAX_NODES} are taken")
        weights = [self._weight(part) for part in graph.get("initializer", ())]
        by_name = {weight.name: weight for weight in weights}
        if len(by_name) != len(weights):
            raise FormatProblem("two of its weights have the same name")
        nodes = tuple(self._node(part) for part in graph.get("node", ()))
        if sum(len(node.inputs) + len(node.outputs) for node in nodes) > MAX_INPUTS:
            raise FormatProblem(f"its nodes have more than {MAX_INPUTS} inputs and outputs")
        return OnnxGraph(
            opset=versions[0],
            nodes=nodes,
            weights=by_name,
            inputs=tuple(self._input(part) for part in graph.get("input", ())),
            outputs=tuple(text(self.message(part, _VALUE, "an output"), "name") for part in graph.get("output", ())),
        )

    def _node(self, data: memoryview) -> Node:
        node = self.message(data, _NODE, "a node")
        operator, domain = text(node, "op_type"), text(node, "domain")
        if domain not in STANDARD_DOMAINS:
            raise FormatProblem(f"its node {shortened(operator)} is of the domain {shortened(domain)}, not of ONNX's")
        attributes: dict[str, Attribute] = {}
        for part in node.get("attribute", ()):
            name, value = self._attribute(part)
            if name in attributes:
                raise FormatProblem(f"a node {operator} has two attributes {shortened(name)}")
            attributes[name] = value
        return Node(
            name=text(node, "name"),
            operator=operator,
            inputs=tuple(texts(node, "input")),
            outputs=tuple(texts(node, "output")),
            attributes=attributes,
        )

    def _attribute(self, data: memoryview) -> tuple[str, Attribute]:
        attribute = self.message(data, _ATTRIBUTE, "an attribute")
        name, kind = text(attribute, "name"), _ATTRIBUTE_TYPES.get(number(attribute, "type"))
        others = attribute.keys() - {"name", "doc_string", "type", kind}
        if kind is None or others:
            raise FormatProblem(f"the attribute {shortened(name)} is of a type that no bundle has")
        value: Attribute
        if kind == "f":
            value = _float(attribute["f"][0]) if "f" in attribute else 0.0
        elif kind == "i":
            value = number(attribute, "i")
        elif kind == "s":
            value = text(attribute, "s")
        elif kind == "t":
            value = self._weight(attribute["t"][0] if "t" in attribute else memoryview(b""))
        elif kind == "floats":
            value = tuple(_float(part) for part in attribute.get("floats", ()))
        else:
            value = numbers(attribute, "ints")
        return name, value

    def _weight(self, data: memoryview) -> Weight:
        tensor = self.message(data, _TENSOR, "a tensor")
        name, kind, shape = text(tensor, "name"), number(tensor, "data_type"), numbers(tensor, "dims")
        if kind not in TYPE_BYTES:
            raise FormatProblem(f"the weight {shortened(name)} is of a type that no bundle has")
        if len(shape) > MAX_AXES or any(side < 0 for side in shape):
            raise FormatProblem(f"the weight {shortened(name)} has an impossible shape")
        expected = math.prod(shape) * TYPE_BYTES[kind]
        if number(tensor, "data_location") == _EXTERNAL:
            return Weight(name, kind, shape, None, external=self._external(tensor, name, expected))
        values = None
        if "raw_data" in tensor:
            (values,) = tensor["raw_data"]
        elif kind in _FIXED_DATA and _FIXED_DATA[kind] in tensor:
            (values,) = tensor[_FIXED_DATA[kind]]
        if values is not None:
            if len(values) != expected:
                raise FormatProblem(f"the weight {shortened(name)} has {len(values)} bytes, its shape takes {expected}")
            return Weight(name, kind, shape, values)
        return self._weight_of_varints(tensor, name, kind, shape)

    def _weight_of_varints(self, tensor: Message, name: str, kind: int, shape: tuple[int, ...]) -> Weight:
        """A tensor whose values stand as whole numbers of any length, each of one byte at least."""
        entries = math.prod(shape)
        (data,) = tensor.get(_VARINT_DATA.get(kind, "int32_data"), (memoryview(b""),))
        if entries > len(data):
            raise FormatProblem(f"the weight {shortened(name)} has fewer values than the {entries} of its shape")
        values = None
        if entries <= MAX_NUMBERS:
            values = tuple(signed(value) for value in self.packed(data, VARINT))
            if len(values) != entries:
                raise FormatProblem(f"the weight {shortened(name)} has {len(values)} values, its shape {entries}")
        return Weight(name, kind, shape, None, stated=values)

    def _external(self, tensor: Message, name: str, expected: int) -> ExternalData:
        entries: dict[str, str] = {}
        for part in tensor.get("external_data", ()):
            entry = self.message(part, _ENTRY, "an entry")
            entries[text(entry, "key")] = text(entry, "value")
        stated = entries.get("offset", "0"), entries.get("length", str(expected))
        once = len(entries) == len(tensor.get("external_data", ()))
        if not once or not all(re.fullmatch("[0-9]{1,18}", value) for value in stated):
            raise FormatProblem(f"the weight {shortened(name)} says unclearly where its values are")
        offset, length = map(int, stated)
        if length != expected:
            raise FormatProblem(f"the weight {shortened(name)} has {length} bytes, its shape takes {expected}")
        return ExternalData(entries.get("location", ""), offset, length)

    def _input(self, data: memoryview) -> GraphInput:
        value = self.message(data, _VALUE, "an input")
        name = text(value, "name")
        kind = self.message(_first(value, "type"), _TYPE, "a type")
        tensor = self.message(_first(kind, "tensor_type"), _TENSOR_TYPE, "a tensor's type")
        dimensions = self.message(_first(tensor, "shape"), _SHAPE, "a shape").get("dim", [])
        shape = []
        for part in dimensions:
            dimension = self.message(part, _DIMENSION, "a dimension")
            shape.append(number(dimension, "value") if "value" in dimension else None)
        if len(shape) > MAX_AXES or any(side is not None and side < 1 for side in shape):
            raise FormatProblem(f"the input {shortened(name)} has an impossible shape")
        return GraphInput(name, number(tensor, "elem_type"), tuple(shape))


def _first(message: Message, name: str) -> memoryview:
    """The bytes of a message inside a message; none where it is not there, which means the same."""
    value: memoryview = message[name][0] if name in message else memoryview(b"")
    return value


def _float(data: memoryview) -> float:
    value: float = struct.unpack("<f", data)[0]
    return value
