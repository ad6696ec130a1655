"""Photos in WebDataset shards: tar files read from front to back, from a disk or through a pipe from an object store.

Of the webdataset library this uses what finds and opens shards: brace patterns, and URLs read through its pipes
(`https://`, `gs://`, `pipe:aws s3 cp … -`). Its pipeline is left out: it deals whole shards to the decoding workers, so
that batches depend on how many there are; it takes an archive that is cut off between two files for a whole one; and it
reads a member whatever size its header claims. Here a process reads its shards itself, in order, and the workers only
decode (`shard_sampler`), which makes every batch, and what a resumed run skips, a function of (seed, epoch, update).
"""

import re
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.progress import track

from convmae_deploy.errors import ConvMAEError

EXTENSIONS = frozenset(("jpg", "jpeg", "png", "webp"))  # of the members that are photos, in any case
NO_PHOTOS = f"samples are members with the extensions {', '.join(sorted(EXTENSIONS))}"
_URL = re.compile(r"pipe:|[a-z][a-z0-9+.-]*://")
_MAX_PHOTO_BYTES = 256 * 1024 * 1024  # a sparse member of a few bytes can claim to be of any size
_COUNTING_THREADS = 8  # they wait for the disk


def find_shards(data: str) -> tuple[str, ...]:
    """The shards that `data` names, sorted: the *.tar of a folder, a path or URL, or a pattern "data-{000..146}.tar".

    Empty where it is something else, for instance a folder of photos. Whether a shard exists shows when it is read.

    Raises:
        ConvMAEError: the pattern cannot be expanded, or webdataset is missing.
    """
    if Path(data).is_dir():
        return tuple(sorted(str(path) for path in Path(data).glob("*.tar") if not path.name.startswith(".")))
    if not (_URL.match(data) or "{" in data or data.endswith(".tar")):
        return ()
    try:
        from webdataset.shardlists import expand_urls
    except ImportError:
        raise ConvMAEError("shards need webdataset; run pip install 'convmae_deploy[train]'") from None
    try:
        return tuple(sorted(set(expand_urls(data))))
    except (ValueError, AssertionError) as error:  # an unset ${variable} is an assertion there
        raise ConvMAEError(f'expected a pattern such as "data-{{000..146}}.tar"; got {data!r} ({error})') from None


def read_shard(shard: str, *, headers_only: bool = False) -> Iterator[bytes | str]:
    """The encoded photos of a shard in order; never raises because of what is in it.

    A photo is a file with one of `EXTENSIONS` after the first dot of its name (`7.seg.png` is none), the first of its
    key where there are several. In place of one that cannot be read comes a str that says why, and another where the
    shard itself is missing or ends.

    Args:
        shard: path or URL.
        headers_only: gives b"" for each photo, which is fast where the shard is a file.
    """
    try:
        with _open_shard(shard) as archive:
            key = None
            while (member := archive.next()) is not None:
                previous, key = key, _photo_key(member) or key
                if key != previous:
                    yield b"" if headers_only else _read_member(archive, member)
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
    except MemoryError:
        raise
    except Exception as error:  # tarfile raises anything on damaged headers, and so do pipes
        yield f"{shard}: {error}"


class _StrictHeader(tarfile.TarInfo):
    """A header whose damage is an error; tarfile takes it for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_StrictHeader":
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf == tarfile.NUL * tarfile.BLOCKSIZE:
                raise  # the true end
            raise tarfile.ReadError(f"the archive is cut off or damaged ({error})") from None


@contextmanager
def _open_shard(shard: str) -> Iterator[tarfile.TarFile]:
    if not _URL.match(shard):
        with tarfile.open(shard, "r:", tarinfo=_StrictHeader) as archive:
            yield archive
        return
    from webdataset.gopen import gopen

    stream = gopen(shard)
    try:
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_StrictHeader) as archive:
            yield archive
    finally:
        with suppress(OSError):  # the command minds that nobody reads on
            stream.close()


def _photo_key(member: tarfile.TarInfo) -> str | None:
    folder, _, name = member.name.rpartition("/")
    stem, _, extension = name.partition(".")
    is_photo = member.isreg() and stem and extension.lower() in EXTENSIONS
    return f"{folder}/{stem}" if is_photo else None


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | str:
    if member.size > _MAX_PHOTO_BYTES:
        return f"{member.name}: {member.size} bytes are too many for a photo"
    content = archive.extractfile(member)
    assert content is not None  # it is a regular file
    try:
        return content.read()
    except (tarfile.TarError, OSError) as error:
        return f"{member.name}: {error}"


class Shards:
    """The shards of a data set, and how many samples each gives: counted when first needed, then remembered."""

    def __init__(self, names: Sequence[str]) -> None:
        """
        Args:
            names: from `find_shards`, the same on all processes.
        """
        self.names = tuple(names)
        self._samples: dict[int, int] = {}

    def samples(self, shard: int) -> int:
        """Samples of one shard, unreadable ones included; goes through its headers the first time."""
        if shard not in self._samples:
            self._count(shard)
        return self._samples[shard]

    def count(self, console: Console) -> int:
        """Samples of all shards, unreadable ones included. For URLs this reads all the data once.

        Raises:
            ConvMAEError: there is no photo in any of them.
        """
        total = len(self.names)
        photos, errors = 0, []
        with ThreadPoolExecutor(_COUNTING_THREADS) as pool:
            counts = pool.map(self._count, range(total))
            hidden = not console.is_terminal
            for found, error in track(
                counts, "counting photos", total=total, console=console, transient=True, disable=hidden
            ):
                photos += found
                if error is not None:
                    errors.append(error)
        problem = f"{len(errors)} damaged or missing, the first: {errors[0]}" if errors else ""
        if not photos:
            raise ConvMAEError(f"expected photos in {total} shards, found none; {problem or NO_PHOTOS}")
        console.print(f"{photos} photos in {total} shards" + (f" ({problem})" if problem else ""), markup=False)
        return sum(self._samples.values())

    def _count(self, shard: int) -> tuple[int, str | None]:
        """Photos of one shard, and what is wrong with it."""
        photos, error = 0, None
        for item in read_shard(self.names[shard], headers_only=True):
            if isinstance(item, bytes):
                photos += 1
            else:
                error = item
        self._samples[shard] = photos + (error is not None)
        return photos, error
