"""Photos and videos in tar files, read from front to back: what a header says is not believed."""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from convmae_deploy.media.photo_files import MAX_PHOTO_BYTES
from convmae_deploy.printing import printable

# tarfile reads these headers whole, however large they say they are; the longest path is a quarter of this.
_TEXT_HEADERS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
_MAX_TEXT_HEADER_BYTES = 16 * 1024
_PIECE_BYTES = 1024 * 1024
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}  # by first bytes


class _StrictHeader(tarfile.TarInfo):
    """A header whose damage is an error, which tarfile takes for the end of the archive, and whose text is short."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_StrictHeader":
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf == tarfile.NUL * tarfile.BLOCKSIZE:
                raise  # the true end
            for magic, program in _COMPRESSED.items():
                if buf.startswith(magic):
                    raise tarfile.ReadError(f"it is compressed with {program}; unpack it") from None
            raise tarfile.ReadError(f"the archive is cut off or damaged ({error})") from None
        if header.type in _TEXT_HEADERS and not 0 <= header.size <= _MAX_TEXT_HEADER_BYTES:
            raise tarfile.ReadError(f"a header says that its text has {header.size} bytes")
        return header


@contextmanager
def open_tar(file: IO[bytes], *, seekable: bool = True) -> Iterator[tarfile.TarFile]:
    """The archive in an open file that is not compressed; where it can seek, members that are not read are skipped."""
    with tarfile.open(fileobj=file, mode="r:" if seekable else "r|", tarinfo=_StrictHeader) as archive:
        yield archive


def members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The headers of an archive in order, in constant memory.

    Raises:
        Exception: the archive is damaged or cut off: tarfile raises anything then, and so do pipes.
    """
    while (member := archive.next()) is not None:
        if member.size < 0:
            raise tarfile.ReadError("a member says that it has less than no bytes")  # tarfile would go back
        yield member
        archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all


def read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | str:
    """The content of a regular file in an archive, or why it cannot be read, in words.

    Args:
        archive: from `open_tar`.
        member: the one that `members` has just given.
    """
    name = printable(member.name)
    if member.issparse():  # its holes take no place in the archive and all of it in the memory
        return f"{name}: is stored with holes, as no photo is"
    if member.size > MAX_PHOTO_BYTES:
        return f"{name}: {member.size} bytes are too many, at most {MAX_PHOTO_BYTES} are read"
    content = archive.extractfile(member)
    assert content is not None  # it is a regular file
    try:
        return b"".join(iter(lambda: content.read(_PIECE_BYTES), b""))  # not all at once, as its size may be a lie
    except (tarfile.TarError, OSError) as error:
        return f"{name}: {error}"
