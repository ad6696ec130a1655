import io

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from convmae_deploy.media.images import decode_image
from tests.media.photo_files import encode, orientation_exif, photo, pillow, refusal


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_decoded_and_all_are_counted(file_format: str) -> None:
    frames = [photo(seed=seed) for seed in range(3)]
    data = encode(frames[0], file_format, save_all=True, append_images=frames[1:])
    decoded = decode_image(data)
    assert decoded.frames == 3
    assert np.array_equal(np.asarray(decoded.image), pillow(data))


def test_a_phones_multi_picture_file_is_a_jpeg_of_one_frame() -> None:
    data = encode(photo(), "MPO", save_all=True, append_images=[photo(seed=1)])
    decoded = decode_image(data)
    assert (decoded.format, decoded.frames) == ("JPEG", 1)
    assert np.array_equal(np.asarray(decoded.image), pillow(data))


@pytest.mark.parametrize(
    "data",
    [
        encode(photo().convert("CMYK"), "JPEG"),
        encode(photo().convert("L"), "JPEG"),
        encode(photo().convert("L"), "PNG"),
        encode(photo().convert("1"), "PNG"),
        encode(photo().quantize(16), "PNG"),
        encode(photo().quantize(16), "PNG", transparency=3),
        encode(photo().quantize(16), "PNG", transparency=bytes(range(16))),
        encode(photo().quantize(16), "GIF", transparency=3),
        encode(photo().convert("LA"), "PNG"),
        encode(photo().convert("L"), "PNG", transparency=7),
        encode(photo().convert("RGBA"), "PNG"),
        encode(photo(), "PNG", transparency=(1, 2, 3)),
        encode(photo().convert("RGBA"), "WEBP", lossless=True),
        encode(photo().convert("CMYK"), "TIFF"),
        encode(photo().convert("RGBA"), "TIFF"),
        encode(photo().convert("YCbCr"), "TIFF"),
        encode(photo().convert("1"), "TIFF", compression="group4"),
        encode(photo(), "TIFF", compression="tiff_lzw"),
        encode(photo(), "TIFF", compression="jpeg"),
        encode(photo(), "TIFF", big_tiff=True, compression="tiff_adobe_deflate"),
        encode(photo().convert("L"), "BMP"),
        encode(photo().quantize(), "BMP"),
    ],
)
def test_every_kind_of_pixel_converts_as_pillow_converts_it(data: bytes) -> None:
    assert np.array_equal(np.asarray(decode_image(data).image), pillow(data))


def test_alpha_is_dropped_and_not_blended() -> None:
    image = photo().convert("RGBA")
    image.putalpha(0)
    assert np.array_equal(np.asarray(decode_image(encode(image, "PNG")).image), np.asarray(photo()))


def test_lab_pixels_convert_to_rgb() -> None:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.applyTransform(photo(), ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    assert lab is not None
    assert decode_image(encode(lab, "TIFF")).image.mode == "RGB"


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(file_format: str) -> None:
    values = np.array([[0, 255, 256, 32_768, 65_535]], dtype=np.uint16)
    decoded = np.asarray(decode_image(encode(Image.fromarray(values), file_format)).image)
    assert decoded[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    assert (decoded == decoded[..., :1]).all()


def test_32_bit_grey_is_scaled_where_it_fits_16_bits_and_refused_elsewhere() -> None:
    values = np.array([[0, 300, 65_535]], dtype=np.int32)
    assert np.asarray(decode_image(encode(Image.fromarray(values), "TIFF")).image)[0, :, 0].tolist() == [0, 1, 255]
    for excess in (65_536, -1):
        values[0, 1] = excess
        assert refusal(encode(Image.fromarray(values), "TIFF")) == "unsupported_format"


def test_floating_point_pixels_are_unsupported() -> None:
    assert refusal(encode(Image.fromarray(np.ones((4, 4), dtype=np.float32)), "TIFF")) == "unsupported_format"


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied_as_pillow_applies_it(file_format: str, orientation: int) -> None:
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encode(photo(), file_format, exif=orientation_exif(orientation), **options)
    decoded = decode_image(data)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert decoded.orientation == orientation
    assert decoded.original_size == (96, 64)
    assert np.array_equal(np.asarray(decoded.image), np.asarray(expected))


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_the_orientation_can_be_ignored(file_format: str) -> None:
    data = encode(photo(), file_format, exif=orientation_exif(6))
    decoded = decode_image(data, apply_orientation=False)
    assert (decoded.orientation, decoded.image.size) == (1, (96, 64))


@pytest.mark.parametrize("orientation", [0, 9, 99])
def test_an_orientation_that_does_not_exist_is_ignored(orientation: int) -> None:
    decoded = decode_image(encode(photo(), "JPEG", exif=orientation_exif(orientation)))
    assert (decoded.orientation, decoded.image.size) == (1, (96, 64))
