"""Pieces of a config.pbtxt: a ModelConfig message in protobuf's text format."""

import json
from collections.abc import Mapping, Sequence

DATA_TYPES = {"float32": "TYPE_FP32", "int64": "TYPE_INT64", "uint8": "TYPE_UINT8"}


def block(name: str, fields: Sequence[str]) -> list[str]:
    """The lines of a message."""
    return [f"{name} {{", *(f"  {field}" for field in fields), "}"]


def entry(name: str, key: str, value: str) -> str:
    """An entry of a map."""
    return f"{name} {{ key: {quoted(key)} value: {value} }}"


def quoted(text: str) -> str:
    """A string, which protobuf escapes as JSON does."""
    return json.dumps(text, ensure_ascii=False)


def tensor_fields(name: str, dtype: str, shape: tuple[int, ...], *, reshaped: bool = True) -> list[str]:
    """The fields of an input or output; `shape` is without the batch axis.

    Triton knows no tensor without further axes: a number for each image is declared as one of length 1, and `reshape`
    says that the graph gives it without that axis, where it is one that gives it.
    """
    fields = [
        f"name: {quoted(name)}",
        f"data_type: {DATA_TYPES[dtype]}",
        f"dims: {dims(shape or (1,))}",
    ]
    return fields if shape or not reshaped else [*fields, "reshape { shape: [] }"]


def dims(shape: Sequence[int]) -> str:
    """A list of numbers."""
    return f"[{', '.join(map(str, shape))}]"


def parameter_blocks(values: Mapping[str, str]) -> list[str]:
    """What clients and backends can ask the configuration for."""
    return [
        line
        for key, value in values.items()
        for line in block("parameters", [f"key: {quoted(key)}", f"value {{ string_value: {quoted(value)} }}"])
    ]
