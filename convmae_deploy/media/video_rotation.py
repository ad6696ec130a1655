"""How a player turns and mirrors the frames of a video: what its file says, and doing it."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_FIXED_POINT = 1 << 16  # one, in a display matrix


def display_matrix(frame: "VideoFrame") -> NDArray[np.int32] | None:
    """(9,), what is done to the frames of the video; None: nothing.

    PyAV's side data and their frame hold each other in a cycle: a frame that was asked stays in memory for long.
    """
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    return None if data is None else np.frombuffer(data, dtype=np.int32).copy()


def upright(rgb: NDArray[np.uint8], matrix: NDArray[np.int32] | None) -> NDArray[np.uint8]:
    """Applies a display matrix of quarter turns and mirrorings; others are left alone.

    The matrix sends a pixel (x, y) to (a x + c y, b x + d y), x rightwards and y downwards.

    Args:
        rgb: (H, W, 3).
        matrix: from `display_matrix`.

    Returns:
        (H, W, 3) or, after a quarter turn, (W, H, 3).
    """
    if matrix is None:
        return rgb
    a, b, _, c, d = (int(value) for value in matrix[:5])
    if {abs(a), abs(d)} == {0} and {abs(b), abs(c)} == {_FIXED_POINT}:
        rgb, across, down = rgb.transpose(1, 0, 2), c, b
    elif {abs(a), abs(d)} == {_FIXED_POINT} and {abs(b), abs(c)} == {0}:
        across, down = a, d
    else:
        return rgb
    return np.ascontiguousarray(rgb[:: 1 if down > 0 else -1, :: 1 if across > 0 else -1])
