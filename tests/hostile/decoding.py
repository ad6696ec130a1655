"""What hostile photos and videos are given to, in a process of its own: little is imported, and nothing made here."""

from convmae_deploy.machine import give_back_freed_memory
from convmae_deploy.media.image_formats import DECODABLE
from convmae_deploy.media.images import ImageLimits, decode_image


def decode_photo(data: bytes) -> tuple[int, tuple[int, int]]:
    """Decodes a photo of any format.

    Returns:
        The bytes of memory that it said it might take, and the photo's (width, height).
    """
    give_back_freed_memory()  # as the server does
    reserved: list[int] = []
    decoded = decode_image(data, limits=ImageLimits(formats=DECODABLE), reserve=reserved.append)
    return sum(reserved), decoded.image.size
