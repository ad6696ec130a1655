import struct

import pytest

from convmae_deploy.media.exif import read_orientation


def block(order: str, kind: int, value: bytes, count: int = 1) -> bytes:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(order + "IHHHI", 8, 1, 0x0112, kind, count) + value + bytes(4)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0"])
def test_the_orientation_is_read_in_both_byte_orders_with_and_without_prefix(order: str, prefix: bytes) -> None:
    assert read_orientation(prefix + block(order, 3, struct.pack(order + "HH", 6, 0))) == 6
    assert read_orientation(prefix + block(order, 4, struct.pack(order + "I", 8))) == 8


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"nonsense",
        block("<", 3, struct.pack("<HH", 99, 0)),
        block("<", 2, b"6\0\0\0"),
        block("<", 3, struct.pack("<HH", 6, 6), count=2),
        block("<", 3, b"")[:20],
        b"II*\0\xf0\xff\xff\xff",
    ],
)
def test_anything_else_is_upright(exif: bytes) -> None:
    assert read_orientation(exif) == 1
