"""A bounded reader of protobuf messages, for files of strangers.

It knows messages by a table of their fields and refuses what is not in it, a field that may stand once and stands
twice, and a wire type that is not the field's: where two readers can understand a file differently, what one of them
checks says nothing about what the other runs. Bytes are views of the file, never copies.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_FIELDS = 200_000  # the largest graph of this project has a tenth of that
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
_MASK = 2**64 - 1
_SIZES = {FIXED64: 8, FIXED32: 4}


class FormatProblem(Exception):
    """A file that is not what it must be; the message is a clause."""


@dataclass(frozen=True)
class Field:
    """A field of a message."""

    name: str
    wire: int = BYTES
    repeated: bool = False
    refused: bool = False  # known, and in no bundle; its name is a noun then


Fields = Mapping[int, Field]  # by the field's number
Message = dict[str, list[Any]]  # name of each field that is there -> its values: int, or memoryview of bytes


class ProtobufReader:
    """Reads the messages of one file, with one bound for all of them."""

    def __init__(self) -> None:
        self._left = MAX_FIELDS

    def message(self, data: memoryview, fields: Fields, kind: str) -> Message:
        """The fields of a message.

        Args:
            data: its bytes.
            fields: those that it may have.
            kind: what it is called, for the sentence.

        Raises:
            FormatProblem: it is cut off, has other fields, or the file has too many.
        """
        found: Message = {}
        place = 0
        while place < len(data):
            self._count()
            key, place = _varint(data, place)
            value, place = _value(data, place, key & 7)
            field = fields.get(key >> 3)
            if field is None or field.refused:
                found_there = f"the field {key >> 3}" if field is None else field.name
                raise FormatProblem(f"{kind} has {found_there}, which no bundle has")
            values = found.setdefault(field.name, [])
            if field.repeated and field.wire != BYTES and key & 7 == BYTES:  # packed: one after the other
                values += self.packed(value, field.wire)
                continue
            if key & 7 != field.wire:
                raise FormatProblem(f"{field.name} of {kind} is of another type")
            if values and not field.repeated:
                raise FormatProblem(f"{kind} has two fields {field.name}")
            values.append(value)
        return found

    def packed(self, data: memoryview, wire: int) -> list[Any]:
        """Values that stand one after the other without keys.

        Raises:
            FormatProblem: they are cut off, or the file has too many.
        """
        values: list[Any] = []
        place = 0
        while place < len(data):
            self._count()
            value, place = _value(data, place, wire)
            values.append(value)
        return values

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise FormatProblem(f"it has more than {MAX_FIELDS} fields")


def signed(value: int) -> int:
    """What a varint of protobuf's type int32 or int64 means."""
    return value - 2**64 if value >= 2**63 else value


def text(message: Message, name: str) -> str:
    """A field of text; empty where there is none.

    Raises:
        FormatProblem: it is not UTF-8.
    """
    values = texts(message, name)
    return values[0] if values else ""


def texts(message: Message, name: str) -> list[str]:
    """All values of a repeated field of text; as `text`."""
    try:
        return [str(value, "utf-8") for value in message.get(name, ())]
    except UnicodeDecodeError:
        raise FormatProblem(f"{name} is no text in UTF-8") from None


def number(message: Message, name: str, default: int = 0) -> int:
    """A field that is a signed whole number."""
    values = message.get(name)
    return signed(values[0]) if values else default


def numbers(message: Message, name: str) -> tuple[int, ...]:
    """All values of a repeated field of signed whole numbers."""
    return tuple(signed(value) for value in message.get(name, ()))


def _value(data: memoryview, place: int, wire: int) -> tuple[Any, int]:
    """A value, which is an int for a varint and else bytes, and the place behind it."""
    if wire == VARINT:
        return _varint(data, place)
    if wire == BYTES:
        size, place = _varint(data, place)
    elif wire in _SIZES:
        size = _SIZES[wire]
    else:
        raise FormatProblem(f"there is no protobuf wire type {wire}")
    if size > len(data) - place:
        raise FormatProblem("it is cut off")
    return data[place : place + size], place + size


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70 and place < len(data):
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value & _MASK, place
        shift += 7
    raise FormatProblem("it is cut off" if shift < 70 else "a number has more than ten bytes")
