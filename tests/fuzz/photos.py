"""Target: the photos that a stranger sends, in every format that is decoded."""

import random
import struct
from collections.abc import Sequence

from PIL import Image, PngImagePlugin, features

from tests.fuzz.chunks import mutate_chunks
from tests.fuzz.target import Check, MutateBytes, require, require_sentence
from tests.media.photo_files import (
    encode,
    insert_after_jpeg_start,
    jpeg_segment,
    orientation_exif,
    photo,
    png_chunk,
)

MAX_PIXELS = 65_536  # so that decoding costs little
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

JPEG_TOKENS = (
    b"\xff\xd8\xff",
    b"\xff\xda",
    b"\xff\xd9",
    b"\xff\xc0",
    b"\xff\xc2",
    b"\xff\xc4",
    b"\xff\xdb",
    b"\xff\xdd",
)
PHOTO_TOKENS = (
    *JPEG_TOKENS,
    *(
        b"\xff\xe0",
        b"\xff\xe1",
        b"\xff\xe2",
        b"\xff\xee",
        b"JFIF\0",
        b"Exif\0\0",
        b"ICC_PROFILE\0",
        b"Adobe\0",
        b"MPF\0",
    ),
    *(b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"iCCP", b"sRGB", b"tEXt", b"zTXt", b"iTXt"),
    *(b"eXIf", b"pHYs", b"acTL", b"fcTL", b"fdAT", b"Raw profile type exif", b"exif", b"XML:com.adobe.xmp"),
    *(b"GIF87a", b"GIF89a", b"!\xf9\x04", b"!\xff\x0bNETSCAPE2.0\x03\x01", b"!\xfe", b",", b";"),
    *(b"RIFF", b"WEBP", b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"EXIF", b"XMP ", b"\x9d\x01\x2a", b"/"),
    *(b"BM", b"\x0c\0\0\0", b"\x28\0\0\0", b"\x7c\0\0\0", b"ftypavif", b"meta", b"iprp", b"ispe", b"av1C", b"iloc"),
    *(b"II*\0", b"MM\0*", b"\x12\x01\x03\0"),
)
TIFF_TOKENS = (
    *_TIFF_MAGIC,
    *(struct.pack("<HH", tag, 3) for tag in (256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320)),
    *(struct.pack("<HH", tag, 4) for tag in (256, 257, 273, 279, 322, 323, 324, 325, 338, 339, 347, 512, 513, 514)),
    *(struct.pack("<HH", 259, 3) + struct.pack("<II", 1, scheme) for scheme in (1, 2, 3, 4, 5, 6, 7, 8, 32773, 50000)),
    *JPEG_TOKENS,
)


def photo_seeds() -> dict[str, bytes]:
    """A file of each kind, in a few hundred bytes."""
    picture = photo(16, 12)
    exif = orientation_exif(6)
    icc = b"\0\0\0\x80" + bytes(124)
    seeds = {
        "baseline.jpg": encode(picture, "JPEG", quality=50, exif=exif),
        "progressive.jpg": encode(picture, "JPEG", quality=50, progressive=True, icc_profile=icc),
        "cmyk.jpg": encode(picture.convert("CMYK"), "JPEG", quality=50),
        "restarts.jpg": encode(picture.convert("L"), "JPEG", quality=50, restart_marker_blocks=1),
        "lossy.webp": encode(picture, "WEBP", quality=20),
        "lossless.webp": encode(picture, "WEBP", lossless=True),
        "extended.webp": encode(picture.convert("RGBA"), "WEBP", quality=20, exif=exif, icc_profile=icc),
        "animated.webp": encode(picture, "WEBP", save_all=True, append_images=[photo(16, 12, seed=1)], quality=20),
        "animated.gif": encode(picture, "GIF", save_all=True, append_images=[photo(16, 12, seed=1)]),
        "interlaced.gif": encode(picture.quantize(4), "GIF", interlace=1),
        "colours.bmp": encode(photo(8, 6), "BMP"),
        "palette.bmp": encode(photo(8, 6).quantize(4), "BMP"),
        "run_lengths.bmp": _run_length_bmp(),
        "tiny.tif": encode(photo(8, 6), "TIFF", compression="tiff_lzw"),
    }
    seeds["preview.jpg"] = insert_after_jpeg_start(seeds["baseline.jpg"], jpeg_segment(0xE2, b"MPF\0MM\0*\0\0\0\x08"))
    if features.check("avif"):
        seeds["still.avif"] = encode(picture, "AVIF", quality=20, exif=exif)
    return seeds | _png_seeds(picture, exif, icc)


def _png_seeds(picture: Image.Image, exif: bytes, icc: bytes) -> dict[str, bytes]:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Raw profile type exif", "\nexif\n      20\n" + exif[6:].hex(), zip=True)
    texts.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>', zip=True)
    grey = encode(picture.convert("L"), "PNG")
    return {
        "colours.png": encode(picture, "PNG", exif=exif, icc_profile=icc, dpi=(72, 72)),
        "texts.png": encode(picture.convert("L"), "PNG", pnginfo=texts),
        "palette.png": encode(picture.quantize(4), "PNG", transparency=1),
        "wide.png": encode(picture.convert("I;16"), "PNG"),
        "animated.png": encode(picture, "PNG", save_all=True, append_images=[photo(16, 12, seed=1)]),
        # Its rows come in another order than the header now says; that is a picture too.
        "interlaced.png": grey[:8] + png_chunk(b"IHDR", grey[16:28] + b"\x01") + grey[33:],
    }


def _run_length_bmp() -> bytes:
    """A grey picture of 8 x 2 pixels in runs."""
    pixels = b"\x08\x01\0\0\0\x04\x01\x02\x03\x04\x04\x05\0\0\0\x01"
    header = struct.pack("<IiiHHIIiiII", 40, 8, 2, 1, 8, 1, len(pixels), 0, 0, 8, 8)
    palette = b"".join(bytes((level, level, level, 0)) for level in range(0, 256, 32))
    offset = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(pixels), 0, 0, offset) + header + palette + pixels


def tiff_seeds() -> dict[str, bytes]:
    """A TIFF of each kind of pixels and compression."""
    picture = photo(8, 6)
    seeds = {
        "raw.tif": encode(picture, "TIFF", tiffinfo={274: 6}),
        "big.tif": encode(picture, "TIFF", big_tiff=True),
        "pages.tif": encode(picture, "TIFF", save_all=True, append_images=[photo(8, 6, seed=1)]),
        "wide.tif": encode(picture.convert("I;16"), "TIFF"),
        "wide_big_endian.tif": encode(Image.frombytes("I;16B", (8, 6), bytes(range(96))), "TIFF"),
        "float.tif": encode(picture.convert("F"), "TIFF"),
        "palette.tif": encode(picture.quantize(4), "TIFF"),
        "alpha.tif": encode(picture.convert("RGBA"), "TIFF", compression="tiff_adobe_deflate"),
        "cmyk.tif": encode(picture.convert("CMYK"), "TIFF", compression="packbits"),
        "jpeg.tif": encode(photo(16, 16), "TIFF", compression="jpeg"),
        "ycbcr.tif": encode(photo(16, 16).convert("YCbCr"), "TIFF", compression="jpeg"),
        "tiles.tif": _tiled_tiff(),
    }
    for scheme in ("tiff_lzw", "tiff_deflate", "zstd", "lzma"):
        seeds[f"{scheme}.tif"] = encode(picture, "TIFF", compression=scheme)
    for scheme in ("group3", "group4", "tiff_ccitt"):
        seeds[f"{scheme}.tif"] = encode(picture.convert("1"), "TIFF", compression=scheme)
    return seeds


def _tiled_tiff() -> bytes:
    """A grey picture of 16 x 16 pixels, in one uncompressed tile."""
    values = ((256, 16), (257, 16), (258, 8), (259, 1), (262, 1), (277, 1), (322, 16), (323, 16), (324, 8), (325, 256))
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in values)
    return b"MM\0*" + struct.pack(">I", 264) + bytes(range(256)) + struct.pack(">H", len(values)) + entries + bytes(4)


def photo_check() -> Check:
    """Decoding in every format."""
    return _decoding_check(("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF"))


def tiff_check() -> Check:
    """Decoding of what begins like a TIFF."""
    check = _decoding_check(("TIFF",))

    def check_tiff(data: bytes) -> None:
        if data.startswith(_TIFF_MAGIC):
            check(data)

    return check_tiff


def _decoding_check(formats: Sequence[str]) -> Check:
    from convmae_deploy.media.images import ImageError, ImageLimits, decode_image

    limits = ImageLimits(max_pixels=MAX_PIXELS, max_side=4096, formats=tuple(formats))

    def check(data: bytes) -> None:
        try:
            decoded = decode_image(data, limits=limits)
        except ImageError as error:
            require_sentence(error)
            return
        width, height = decoded.original_size
        require(decoded.image.mode == "RGB", f"a decoded photo must be RGB; it is {decoded.image.mode}")
        require(0 < width * height <= MAX_PIXELS, f"{width} x {height} pixels must be within the limit")
        require(1 <= decoded.orientation <= 8, f"an orientation must be 1 to 8; it is {decoded.orientation}")
        turned = (height, width) if decoded.orientation >= 5 else (width, height)
        require(decoded.image.size == turned, f"the size must be {turned}; it is {decoded.image.size}")
        pixels = decoded.image.tobytes()
        require(len(pixels) == 3 * width * height, "every pixel must be there")
        for mode in ("L", "RGB"):
            Image.new(mode, (width, height), 0xAAAAAA)  # what a decoder does not write it would now show
        again = decode_image(data, limits=limits).image.tobytes()
        require(again == pixels, "pixels must come from the file; these differ from read to read")
        require(decoded.frames >= 1 and decoded.format in formats, f"{decoded.frames} frames of {decoded.format}")

    return check


def mutate_photo(data: bytes, most: int, dice: random.Random, mutate_bytes: MutateBytes) -> bytes:
    """PNG and WebP keep whole chunks with right checksums most of the time; other formats have none."""
    for magic, kind in ((b"\x89PNG\r\n\x1a\n", "png"), (b"RIFF", "riff"), (b"\0\0\0", "boxes")):
        if data.startswith(magic) and dice.random() < 0.75:
            return mutate_chunks(data, kind, most, dice, mutate_bytes)
    return mutate_bytes(data, most)
