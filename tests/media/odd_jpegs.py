"""JPEGs of kinds that few programs write, made in memory."""

import struct

from tests.media.photo_files import jpeg_segment

SIZE = 16  # pixels a side


def odd_jpeg(frame: int, bits: int = 8, components: int = 1) -> bytes:
    """A lossless JPEG of the values of `value`, or one that says it is of another kind.

    Args:
        frame: kind of the segment that describes the picture; 0xC3 is the lossless kind.
        bits: of a value, as it says.
        components: of a pixel.
    """
    tables = b"\0" + bytes([0, 0, 0, 0, 16] + [0] * 11) + bytes(range(16))  # each length of a difference in 5 bits
    written = ""
    for y in range(SIZE):
        for x in range(SIZE):
            for component in range(components):
                left = value(x - 1, y, component) if x else value(0, y - 1, component) if y else 1 << (bits - 1)
                difference = value(x, y, component) - left
                length = abs(difference).bit_length()
                written += f"{length:05b}"
                if length:
                    written += f"{difference if difference > 0 else difference + (1 << length) - 1:0{length}b}"
    written += "1" * (-len(written) % 8)
    body = int(written, 2).to_bytes(len(written) // 8, "big").replace(b"\xff", b"\xff\0")
    numbers = range(1, components + 1)
    head = struct.pack(">BHHB", bits, SIZE, SIZE, components) + b"".join(bytes((number, 0x11, 0)) for number in numbers)
    scan = bytes((components,)) + b"".join(bytes((number, 0)) for number in numbers) + bytes((1, 0, 0))
    segments = jpeg_segment(frame, head) + jpeg_segment(0xC4, tables) + jpeg_segment(0xDA, scan)
    return b"\xff\xd8" + segments + body + b"\xff\xd9"


def value(x: int, y: int, component: int) -> int:
    """Of a pixel, 0 to 255."""
    return (7 * x + 13 * y + 50 * component) % 256
