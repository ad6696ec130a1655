"""Changes to tar files after which the checksums of their headers are right again."""

import random

from tests.fuzz.target import MutateBytes

_BLOCK = 512
_CHECKSUM = slice(148, 156)


def mutate_tar(data: bytes, most: int, dice: random.Random, mutate_bytes: MutateBytes) -> bytes:
    """Changes bytes anywhere, most often inside one block; then every block that looks like a header gets its sum."""
    if data and dice.random() < 0.75:
        start = _BLOCK * dice.randrange(-(-len(data) // _BLOCK))
        block = mutate_bytes(data[start : start + _BLOCK], _BLOCK).ljust(_BLOCK, b"\0")
        data = data[:start] + block + data[start + _BLOCK :]
    else:
        data = mutate_bytes(data, most)
    blocks = [data[start : start + _BLOCK] for start in range(0, len(data), _BLOCK)]
    return b"".join(_summed(block) if block[257:262] == b"ustar" else block for block in blocks)[:most]


def _summed(block: bytes) -> bytes:
    blank = block[: _CHECKSUM.start] + b" " * 8 + block[_CHECKSUM.stop :]
    return block[: _CHECKSUM.start] + b"%06o\0 " % sum(blank) + block[_CHECKSUM.stop :]
