"""Changes to protobuf messages, at any depth, that leave the lengths around them right."""

import random

from tests.fuzz.target import MutateBytes

Entry = tuple[int, bytes | int]  # key (field number and wire type), value

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_ODD_NUMBERS = (0, 1, 2, 7, 8, 64, 127, 128, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def mutate_protobuf(data: bytes, most: int, dice: random.Random, mutate_bytes: MutateBytes) -> bytes:
    """Changes one field of a message or of one inside it, or leaves it out, moves it, or has it twice."""
    entries = _split(data)
    if not entries or dice.random() < 0.05:
        return mutate_bytes(data, most)
    room = max(most - len(data), 0)
    place = dice.randrange(len(entries))
    key, value = entries[place]
    action = dice.random()
    if action < 0.05:
        del entries[place]
    elif action < 0.1:
        entries.insert(dice.randrange(len(entries) + 1), entries[place])
    elif action < 0.13:
        entries[place] = (dice.randrange(1, 24) << 3 | key & 7), value
    elif isinstance(value, int):
        entries[place] = key, dice.choice((*_ODD_NUMBERS, value + 1, max(value - 1, 0), value * 2)) & (2**64 - 1)
    elif key & 7 == _BYTES:
        entries[place] = key, mutate_protobuf(value, len(value) + room, dice, mutate_bytes)
    else:
        entries[place] = key, mutate_bytes(value, len(value)).ljust(len(value), b"\0")[: len(value)]
    return b"".join(map(_written, entries))[:most]


def _split(data: bytes) -> list[Entry] | None:
    """The fields of a message; None where these bytes are none."""
    entries: list[Entry] = []
    place = 0
    try:
        while place < len(data):
            key, place = _read_varint(data, place)
            wire_type = key & 7
            if wire_type == _VARINT:
                number, place = _read_varint(data, place)
                entries.append((key, number))
                continue
            sizes = {_FIXED64: 8, _FIXED32: 4}
            size, place = _read_varint(data, place) if wire_type == _BYTES else (sizes[wire_type], place)
            if key < 8 or place + size > len(data):
                return None
            entries.append((key, data[place : place + size]))
            place += size
    except (IndexError, KeyError):
        return None
    return entries


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while data[place] >= 0x80:
        value |= (data[place] & 0x7F) << shift
        place, shift = place + 1, shift + 7
    return value | data[place] << shift, place + 1


def _written(entry: Entry) -> bytes:
    key, value = entry
    if isinstance(value, int):
        return _varint(key) + _varint(value)
    return _varint(key) + (_varint(len(value)) if key & 7 == _BYTES else b"") + value


def _varint(value: int) -> bytes:
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)
