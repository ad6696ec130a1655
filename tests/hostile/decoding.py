"""What hostile photos and videos are given to, in a process of its own: little is imported, and nothing made here."""

import numpy as np

from convmae_deploy.machine import give_back_freed_memory
from convmae_deploy.media.image_formats import DECODABLE
from convmae_deploy.media.images import ImageLimits, decode_image
from convmae_deploy.media.video_file import import_av, open_video
from convmae_deploy.media.video_limits import VideoLimits

import_av()  # here, so that what the library takes is not taken for that of a video


def decode_photo(data: bytes) -> tuple[int, tuple[int, int]]:
    """Decodes a photo of any format.

    Returns:
        The bytes of memory that it said it might take, and the photo's (width, height).
    """
    give_back_freed_memory()  # as the server does
    reserved: list[int] = []
    decoded = decode_image(data, limits=ImageLimits(formats=DECODABLE), reserve=reserved.append)
    return sum(reserved), decoded.image.size


def decode_video(data: bytes) -> int:
    """Decodes four frames of a video in this process, with the limits of a server but for those of time.

    Returns:
        How many frames it has.
    """
    give_back_freed_memory()
    limits = VideoLimits(max_bytes=50_000_000, decoding_seconds=1000.0)
    with open_video(data, limits=limits) as video:
        for frame in video.frames(np.linspace(0, len(video) - 1, 4).astype(np.intp)):
            assert frame.shape[2] == 3
        return len(video)
