"""Frames are turned and mirrored as their file says."""

import numpy as np
import pytest
from numpy.typing import NDArray

from convmae_deploy.media.video_file import open_video
from convmae_deploy.media.video_rotation import upright
from tests.video_files import make_video

ONE = 1 << 16


def matrix(a: int, b: int, c: int, d: int) -> NDArray[np.int32]:
    return np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], dtype=np.int32)


def literally(rgb: NDArray[np.uint8], a: int, b: int, c: int, d: int) -> NDArray[np.uint8]:
    """Pixel by pixel: (x, y) goes to (a x + c y, b x + d y), and the corner of the picture to (0, 0)."""
    height, width, _ = rgb.shape
    places = {(a * x + c * y, b * x + d * y): rgb[y, x] for y in range(height) for x in range(width)}
    left, top = (min(place[axis] for place in places) for axis in (0, 1))
    right, bottom = (max(place[axis] for place in places) for axis in (0, 1))
    return np.array([[places[x, y] for x in range(left, right + 1)] for y in range(top, bottom + 1)])


@pytest.mark.parametrize(
    "rotation, mirrored, size, corner",
    [
        (0, False, (48, 64), (0, 0)),
        (90, False, (64, 48), (-1, 0)),
        (180, False, (48, 64), (-1, -1)),
        (270, False, (64, 48), (0, -1)),
        (0, True, (48, 64), (0, -1)),
        (45, False, (48, 64), (0, 0)),
    ],
)
def test_frames_are_upright(rotation: int, mirrored: bool, size: tuple[int, int], corner: tuple[int, int]) -> None:
    with open_video(make_video(rotation=rotation, mirrored=mirrored)) as video:
        frame = next(video.frames([0])).astype(int)
    assert frame.shape == (*size, 3)
    red = {(y, x) for y in (0, -1) for x in (0, -1) if frame[y, x, 0] - frame[y, x, 1] > 100}
    assert red == {corner}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_all_quarter_turns_and_mirrorings_are_those_of_the_matrix(turned: bool, signs: tuple[int, int]) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    a, b, c, d = (0, signs[0], signs[1], 0) if turned else (signs[0], 0, 0, signs[1])
    found = upright(rgb, matrix(a * ONE, b * ONE, c * ONE, d * ONE))
    np.testing.assert_array_equal(found, literally(rgb, a, b, c, d))
    assert found.flags.c_contiguous


def test_any_other_matrix_and_none_leave_frames_alone() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    for other in (None, matrix(2 * ONE, 0, 0, 2 * ONE), matrix(ONE, ONE, 0, ONE), matrix(0, 0, 0, 0)):
        assert upright(rgb, other) is rgb
