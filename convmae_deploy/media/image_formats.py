"""Which format a file is in, recognised by its first bytes and never by its name."""

from convmae_deploy.media.image_errors import ImageError

# What `decode_image` can be allowed to decode, by Pillow's names. AVIF is not in the default allow-list.
DECODABLE = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
    (b"%PDF-", "PDF"),
    (b"%!PS", "EPS"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"8BPS", "PSD"),
    (b"\x00\x00\x01\x00", "ICO"),
    (b"\x00\x00\x02\x00", "CUR"),
    (b"DDS ", "DDS"),
    (b"SIMPLE  =", "FITS"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"II\xbc\x01", "JPEG XR"),
    (b"BPG\xfb", "BPG"),
    (b"FLIF", "FLIF"),
    (b"\x8aMNG\r\n\x1a\n", "MNG"),
    (b"\x8bJNG\r\n\x1a\n", "JNG"),
    (b"FUJIFILMCCD-RAW", "raw photo of a Fujifilm camera"),
    (b"IIU\x00", "raw photo of a Panasonic camera"),
    (b"IIRO", "raw photo of an Olympus camera"),
    (b"IIRS", "raw photo of an Olympus camera"),
    (b"MMOR", "raw photo of an Olympus camera"),
    (b"gimp xcf", "GIMP's XCF"),
    (b"AT&TFORM", "DjVu"),
    (b"icns", "ICNS"),
    (b"qoif", "QOI"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"\x1aE\xdf\xa3", "Matroska or WebM video"),
    (b"\xd7\xcd\xc6\x9a", "WMF"),
)
# Brands of the ISO base media format (bytes 8-12 after "ftyp").
_ISO_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"crx ": "raw photo of a Canon camera"} | dict.fromkeys(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"heif", b"mif1", b"mif2", b"msf1"), "HEIC"
)


def identify(data: bytes) -> str:
    """Name of the format, for instance "JPEG" or "PDF".

    Args:
        data: the file's content, not empty.

    Raises:
        ImageError: `not_an_image` when no format is recognised.
    """
    name = known_format(data)
    if name is None:
        found = "text" if is_text(data) else "bytes of no known image format"
        raise ImageError("not_an_image", f"expected an image file, found {found}; send the bytes of a photo")
    return name


def known_format(data: bytes) -> str | None:
    """Name of the format, or None where it is not known.

    Args:
        data: the file's content, not empty; its first 4096 bytes are enough.
    """
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[128:132] == b"DICM":
        return "DICOM"
    if data[4:8] == b"ftyp":
        return _iso_format(data)
    if data[:2] == b"BM" and not is_text(data[:64]):
        return "BMP"
    if data[:1] == b"P" and data[1:2] in b"123456" and data[2:3].isspace():
        return "PNM"
    return "SVG" if _is_svg(data[:4096]) else None


def is_text(data: bytes) -> bool:
    """Whether a file begins like text in UTF-8."""
    head = data[:512]
    return all(byte >= 32 or byte in b"\t\n\r\f" for byte in head) and b"\x7f" not in head and _is_utf8(head)


def _iso_format(data: bytes) -> str:
    # A HEIC-branded file may list "avif" among its compatible brands, and the other way round: the major brand decides,
    # except for the generic mif1/msf1, which both use.
    major = data[8:12]
    header_end = min(int.from_bytes(data[:4], "big"), len(data), 256)
    compatible = {data[start : start + 4] for start in range(16, header_end - 3, 4)}
    if major in (b"mif1", b"msf1") and compatible & {b"avif", b"avis"}:
        return "AVIF"
    return _ISO_BRANDS.get(major, "MP4 or QuickTime video")


def _is_utf8(head: bytes) -> bool:
    try:
        # The head may end inside a character: up to three bytes of it are forgiven.
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 3 and error.reason == "unexpected end of data"
    return True


def _is_svg(head: bytes) -> bool:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return text.startswith(b"<svg") or (text.startswith((b"<?xml", b"<!", b"<!--")) and b"<svg" in text)
