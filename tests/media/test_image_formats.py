import pytest

from convmae_deploy.media.image_errors import ImageError
from convmae_deploy.media.image_formats import DECODABLE, identify


def test_the_name_follows_the_bytes() -> None:
    assert identify(b"\xff\xd8\xff\xe0") == "JPEG"
    assert identify(b"MM\x00*") == "TIFF"
    assert identify(b"RIFF\x00\x00\x00\x00WEBP") == "WEBP"


def test_other_riff_files_are_no_images() -> None:
    with pytest.raises(ImageError, match="no known image format"):
        identify(b"RIFF\x00\x00\x00\x00WAVE\xff\xff")


def test_text_is_called_text_even_where_it_ends_inside_a_character() -> None:
    with pytest.raises(ImageError, match="found text"):
        identify("é".encode() * 300 + b"\xc3")


def test_what_can_be_decoded_can_be_identified() -> None:
    magics = {
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF....WEBP",
        b"BM\xff",
        b"GIF89a",
        b"II*\0",
        b"\0\0\0\x0cftypavif",
    }
    assert {identify(magic) for magic in magics} == set(DECODABLE)
