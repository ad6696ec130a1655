"""Changes to files of chunks that leave their lengths and checksums right, so that readers get past those."""

import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from tests.fuzz.target import MutateBytes

Chunk = tuple[bytes, bytes]  # kind of four bytes, content

_FOLDERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"moof", b"traf", b"mvex", b"udta", b"iprp")
_LISTS = (b"RIFF", b"LIST")  # whose content begins with a kind of its own


@dataclass(frozen=True)
class _Layout:
    """How a format writes its chunks."""

    head: int  # bytes before the first
    split: Callable[[bytes], list[Chunk]]
    join: Callable[[list[Chunk]], bytes]


def _split_png(data: bytes) -> list[Chunk]:
    chunks, position = [], 0
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        chunks.append((kind, data[position + 8 : position + 8 + length]))
        position += 12 + length
    return chunks


def _join_png(chunks: list[Chunk]) -> bytes:
    return b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def _split_riff(data: bytes) -> list[Chunk]:
    chunks, position = [], 0
    while position + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, position)
        chunks.append((kind, data[position + 8 : position + 8 + length]))
        position += 8 + length + length % 2
    return chunks


def _join_riff(chunks: list[Chunk]) -> bytes:
    return b"".join(
        kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2) for kind, content in chunks
    )


def _split_boxes(data: bytes) -> list[Chunk]:
    chunks, position = [], 0
    while position + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        size = max(size, 8) if size else len(data) - position
        chunks.append((kind, data[position + 8 : position + size]))
        position += size
    return chunks


def _join_boxes(chunks: list[Chunk]) -> bytes:
    return b"".join(struct.pack(">I", 8 + len(content)) + kind + content for kind, content in chunks)


_LAYOUTS = {
    "png": _Layout(head=8, split=_split_png, join=_join_png),
    "riff": _Layout(head=0, split=_split_riff, join=_join_riff),
    "boxes": _Layout(head=0, split=_split_boxes, join=_join_boxes),
}


def mutate_chunks(data: bytes, layout: str, most: int, dice: random.Random, mutate_bytes: MutateBytes) -> bytes:
    """Changes one chunk, or leaves it out, or has it twice, and writes lengths and checksums anew.

    Args:
        data: the file.
        layout: "png", "riff" (WebP, AVI) or "boxes" (MP4, AVIF).
        most: bytes that may come out.
        dice: what is changed, and how.
        mutate_bytes: changes the content of a chunk.
    """
    shape = _LAYOUTS[layout]
    chunks = shape.split(data[shape.head :])
    if not chunks:
        return mutate_bytes(data, most)
    room = max(most - len(data), 0)
    place = dice.randrange(len(chunks))
    kind, content = chunks[place]
    skipped = 4 if kind in _LISTS else 0
    if kind in (*_LISTS, *_FOLDERS) and dice.random() < 0.9:
        inside = mutate_chunks(content[skipped:], layout, len(content) + room, dice, mutate_bytes)
        chunks[place] = kind, content[:skipped] + inside
    else:
        _change(chunks, place, dice, lambda data: mutate_bytes(data or b"\0", len(data) + room + 1))
    return (data[: shape.head] + shape.join(chunks))[:most]


def _change(chunks: list[Chunk], place: int, dice: random.Random, mutate: Callable[[bytes], bytes]) -> None:
    kind, content = chunks[place]
    match dice.choices(("content", "twice", "out", "elsewhere", "kind"), (12, 1, 1, 1, 1))[0]:
        case "content":
            chunks[place] = kind, mutate(content)
        case "twice":
            chunks.insert(dice.randrange(len(chunks) + 1), chunks[place])
        case "out":
            del chunks[place]
        case "elsewhere":
            chunks.insert(dice.randrange(len(chunks)), chunks.pop(place))
        case "kind":
            chunks[place] = mutate(kind)[:4].ljust(4, b"\0"), content
