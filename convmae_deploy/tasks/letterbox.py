"""A photo fitted into a detector's input, and boxes back to the photo, without torch.

Shapes: H W the input, h w the photo in it, n boxes. Boxes XYXY in pixels, where (0, 0) is the top left
corner of the first pixel.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convmae_deploy.backends.base import InputArray
from convmae_deploy.bundle.preprocessing import Letterbox, Size
from convmae_deploy.tasks.preprocess import FILTERS, graph_input


def fitted_size(photo: Size, size: Size) -> Size:
    """(height, width) of a photo as large as fits, aspect ratio kept: each side times the same ratio, rounded.

    Half pixels go to the even number (Python's `round`), and a side has at least one pixel.

    Args:
        photo: its (height, width) in pixels.
        size: (height, width) in pixels to fit into.
    """
    ratio = min(size[0] / photo[0], size[1] / photo[1])
    return max(1, round(photo[0] * ratio)), max(1, round(photo[1] * ratio))


def letterbox(image: Image.Image, spec: Letterbox) -> InputArray:
    """Resizes to fit into `spec.size`, fills the rest below or on the right, and gives what `graph_input` does.

    Args:
        image: an RGB photo of any size.
        spec: the numbers of the model.

    Returns:
        (3, H, W).
    """
    height, width = fitted_size((image.height, image.width), spec.size)
    canvas = Image.new("RGB", (spec.size[1], spec.size[0]), (spec.fill,) * 3)
    canvas.paste(image.resize((width, height), FILTERS[spec.interpolation]))
    return graph_input(np.asarray(canvas), spec)


def boxes_to_photo(boxes: NDArray[np.float32], photo: Size, spec: Letterbox) -> NDArray[np.float32]:
    """Boxes in the input's pixels as boxes in the photo's; where they reach into the padding they leave the photo.

    Both axes are undone by their own ratio, as both sides were rounded.

    Args:
        boxes: (n, 4) XYXY.
        photo: its (height, width) in pixels.
        spec: what `letterbox` was given.

    Returns:
        (n, 4) XYXY.
    """
    height, width = fitted_size(photo, spec.size)
    ratios = np.array([photo[1] / width, photo[0] / height] * 2)  # x, y, x, y
    return np.asarray(boxes * ratios, dtype=np.float32)
