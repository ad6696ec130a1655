"""Folders of videos whose label is a motion, so that a single frame says nothing of it."""

import random
from pathlib import Path

import av
import numpy as np

MOTIONS = {"left": -1, "right": 1}
SIZE = 64  # pixels, height and width
FRAMES = 8


def make_motion_folder(root: Path, *, train: int = 8, val: int = 4) -> Path:
    """`root/{train,val}/{left,right}/*.mp4`: a bright square that moves 4 pixels a frame, elsewhere in each video.

    Args:
        root: made.
        train: videos of each class.
        val: videos of each class.
    """
    places = random.Random(0)
    for split, count in (("train", train), ("val", val)):
        for name, step in MOTIONS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                start = places.randrange(4, 12) if step > 0 else places.randrange(36, 44)
                write_motion(folder / f"{number}.mp4", top=places.randrange(4, 44), left=start, step=4 * step)
    return root


def write_motion(path: Path, *, top: int, left: int, step: int) -> None:
    """A square of 16 pixels at (top, left) that goes `step` pixels to the right each frame."""
    with av.open(path, "w") as output:
        stream = output.add_stream("libx264", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.height = stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        for number in range(FRAMES):
            frame = np.full((SIZE, SIZE, 3), 60, dtype=np.uint8)
            frame[top : top + 16, max(left + step * number, 0) : left + step * number + 16] = 220
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        output.mux(stream.encode(None))
