"""The operator-set version of an ONNX file, read without the `onnx` package, which the runtime does not need otherwise.

An ONNX file is one protobuf message. Only its outermost fields are looked at; the graph, which may be gigabytes, is
skipped. Field numbers: onnx.proto, messages ModelProto and OperatorSetIdProto.
"""

from pathlib import Path
from typing import BinaryIO

_OPSET_IMPORT = 8  # of ModelProto
_DOMAIN, _VERSION = 1, 2  # of OperatorSetIdProto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read_opset(path: Path) -> int | None:
    """Version of the default operator set that the model at `path` imports; None when the file is no ONNX model."""
    with path.open("rb") as file:
        try:
            while (key := _read_varint(file)) is not None:
                field, wire_type = key >> 3, key & 7
                if wire_type == _BYTES and field == _OPSET_IMPORT:
                    version = _default_version(file, _require_varint(file))
                    if version is not None:
                        return version
                else:
                    _skip(file, wire_type)
        except ValueError:
            return None
    return None


def _default_version(file: BinaryIO, length: int) -> int | None:
    """Version of an OperatorSetIdProto of `length` bytes, None where it belongs to another domain."""
    end = file.tell() + length
    domain, version = b"", None
    while file.tell() < end:
        key = _require_varint(file)
        if key == _VERSION << 3 | _VARINT:
            version = _require_varint(file)
        elif key == _DOMAIN << 3 | _BYTES:
            domain = file.read(_require_varint(file))
        else:
            _skip(file, key & 7)
    return version if domain in (b"", b"ai.onnx") else None


def _skip(file: BinaryIO, wire_type: int) -> None:
    if wire_type == _VARINT:
        _require_varint(file)
    elif wire_type == _BYTES:
        file.seek(_require_varint(file), 1)
    elif wire_type in (_FIXED32, _FIXED64):
        file.seek(4 if wire_type == _FIXED32 else 8, 1)
    else:
        raise ValueError(f"no protobuf wire type {wire_type}")


def _require_varint(file: BinaryIO) -> int:
    value = _read_varint(file)
    if value is None:
        raise ValueError("the message ends too early")
    return value


def _read_varint(file: BinaryIO) -> int | None:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            return None
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("a number of more than ten bytes")
