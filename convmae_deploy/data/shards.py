"""Photos in WebDataset shards: tar files read from front to back, from a disk or through a pipe from an object store.

Whether a shard is a file or a URL is decided once, by `find_shards`, from what the user typed: a `Path` is opened as a
file whatever its name, and only a `ShardUrl` reaches webdataset, which runs a command for it.

Of the webdataset library this uses what finds and opens shards: brace patterns, and URLs read through its pipes
(`https://`, `gs://`, `pipe:aws s3 cp … -`). Its pipeline is left out: it deals whole shards to the decoding workers, so
that batches depend on how many there are; it takes an archive that is cut off between two files for a whole one; and it
reads a member whatever size its header claims. Here a process reads its shards itself, in order, and the workers only
decode (`shard_sampler`), which makes every batch, and what a resumed run skips, a function of (seed, epoch, update).
"""

import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track

from convmae_deploy.braces import check_count
from convmae_deploy.data.class_folder import names_of_split, note_unused, split_folder
from convmae_deploy.data.findings import UNREAD_PHOTOS, Findings
from convmae_deploy.errors import ConvMAEError, missing_extra
from convmae_deploy.files import open_regular
from convmae_deploy.folders import holds_files
from convmae_deploy.media.photo_files import IMAGE_SUFFIXES
from convmae_deploy.media.tar_files import members, open_tar, read_member
from convmae_deploy.printing import counted, printable

EXTENSIONS = frozenset(("jpg", "jpeg", "png", "webp"))  # which members are photos; upper case too
FURTHER = "further pictures of a sample, of which the first is taken"
NO_PHOTOS = f"samples are members with the extensions {', '.join(sorted(EXTENSIONS))}"
SCHEMES = ("http", "https", "gs", "hf", "ais", "sftp", "ftps", "scp")  # that webdataset opens without a shell
_URL = re.compile(r"(pipe):|([a-z][a-z0-9+.-]*)://")
_HELD_OUT = frozenset(("val", "valid", "validation", "test"))  # words in the name of an archive
_COUNTING_THREADS = 8  # they wait for the disk


@dataclass(frozen=True)
class ShardUrl:
    """A shard behind a URL or a command that the user typed. What a folder or a file names is never one."""

    url: str

    def __str__(self) -> str:
        return self.url


Shard = Path | ShardUrl


def find_shards(data: str, findings: Findings | None = None) -> tuple[Shard, ...]:
    """The shards that `data` names, sorted: the *.tar of a folder, a path or URL, or a pattern "data-{000..146}.tar".

    Empty where it is something else, for instance a folder of photos. What is there under exactly this name is a file
    or a folder, also where its name looks like a URL or a pattern: a shell that expands `*.tar` types the names of
    whoever filled the folder. Whether a shard exists shows when it is read.

    Args:
        data: as the user typed it, never read from a file.
        findings: takes the archives of a folder that are not trained on.

    Raises:
        ConvMAEError: the pattern cannot be expanded or names too many, a URL is of another kind, webdataset is
            missing, or a folder holds archives and photos side by side.
    """
    if os.path.isdir(data):
        return _shards_in(Path(data), Findings() if findings is None else findings)
    is_shard = data.endswith(".tar")
    if os.path.isfile(data):
        return (Path(data).absolute(),) if is_shard else ()
    if not (_URL.match(data) or "{" in data or is_shard):
        return ()
    return tuple(sorted({_as_typed(name) for name in _expanded(data)}, key=str))


def _shards_in(root: Path, findings: Findings) -> tuple[Shard, ...]:
    """The archives of `root/train` where that exists, else of `root`; none where there are folders of photos beside.

    Archives that are named for validation or tests are left out, unless there are no others.
    """
    own = split_folder(root, "train")
    folder = own if own.is_dir() else root
    archives = sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))
    held_out = (*names_of_split("val"), *names_of_split("test"))
    folders = [entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    if not archives or any(holds_files(entry, IMAGE_SUFFIXES) for entry in folders if entry.name not in held_out):
        return ()
    loose = sorted(entry.name for entry in folder.iterdir() if entry.suffix.lower() in IMAGE_SUFFIXES)
    if loose:
        raise ConvMAEError(
            f"expected photos or shards in {folder}, found {counted(len(archives), 'archive')} ({archives[0].name}) "
            f"and {counted(len(loose), 'photo')} ({loose[0]}) side by side; name the shards by a pattern such as "
            f"'{folder}/data-{{000..146}}.tar', or move one of the two away"
        )
    others = [path for path in archives if not _HELD_OUT & set(re.split("[^a-z]+", path.stem.lower()))]
    for path in archives if others else ():
        if path not in others:
            findings.pass_over("archives that are named for validation or tests", path.relative_to(root))
    if folder != root:
        note_unused(root, root, findings, used=(folder.name,))
    else:
        for entry in sorted(folder.iterdir()):
            if entry in folders:
                findings.pass_over("folders beside the shards", entry.name)
            elif entry not in archives:
                findings.leave_out_file(entry, root, frozenset())
    return tuple(path.absolute() for path in others or archives)


def _expanded(pattern: str) -> list[str]:
    """What webdataset makes of a pattern: braces as in a shell, `${name}` from the environment's WDS_name, `::`."""
    check_count(pattern)
    try:
        from webdataset.shardlists import expand_urls
    except ImportError:
        raise missing_extra("a set of shards", "webdataset", "train") from None
    try:
        names: list[str] = expand_urls(pattern)
    except (ValueError, AssertionError) as error:  # an unset ${variable} is an assertion there
        raise ConvMAEError(f'expected a pattern such as "data-{{000..146}}.tar"; got {pattern!r} ({error})') from None
    return names


def _as_typed(name: str) -> Shard:
    url = _URL.match(name)
    if url is None:
        return Path(name).absolute()
    if url[1] or url[2] in SCHEMES:
        return ShardUrl(name)
    raise ConvMAEError(
        f"expected shards in files, behind URLs of {', '.join(SCHEMES)}, or behind a command such as "
        f"'pipe:aws s3 cp s3://bucket/0.tar -'; got {name!r}"
    )


def read_shard(shard: Shard, *, headers_only: bool = False, findings: Findings | None = None) -> Iterator[bytes | str]:
    """The encoded photos of a shard in order; never raises because of what is in it.

    A photo is a file with one of `EXTENSIONS` after the first dot of its name (`7.seg.png` is none), the first of its
    key where there are several. In place of one that cannot be read comes a str that says why, and another where the
    shard itself is missing or ends.

    Args:
        shard: one of `find_shards`.
        headers_only: gives b"" for each photo, which is fast where the shard is a file.
        findings: takes the pictures that are no photos by this rule.
    """
    try:
        with _open_shard(shard) as archive:
            key = None
            for member in members(archive):
                previous, key = key, _photo_key(member) or key
                kind = FURTHER if _photo_key(member) is not None and key == previous else _left_out(member)
                if findings is not None and kind is not None:
                    findings.pass_over(kind, member.name)
                if key != previous:
                    yield b"" if headers_only else read_member(archive, member)
    except MemoryError:
        raise
    except Exception as error:  # tarfile raises anything on damaged headers, and so do pipes
        yield printable(f"{shard}: {error}")


@contextmanager
def _open_shard(shard: Shard) -> Iterator[tarfile.TarFile]:
    if isinstance(shard, Path):
        with open_regular(shard) as file, open_tar(file) as archive:
            yield archive
        return
    from webdataset.gopen import gopen

    stream = gopen(shard.url)
    try:
        with open_tar(stream, seekable=False) as archive:
            yield archive
    finally:
        with suppress(OSError):  # the command minds that nobody reads on
            stream.close()


def _photo_key(member: tarfile.TarInfo) -> str | None:
    folder, _, name = member.name.rpartition("/")
    stem, _, extension = name.partition(".")
    is_photo = member.isreg() and stem and extension.lower() in EXTENSIONS
    return f"{folder}/{stem}" if is_photo else None


def _left_out(member: tarfile.TarInfo) -> str | None:
    """Why a picture is none of the photos, in words; None for photos and what is no picture."""
    if member.islnk() or member.issym():
        return "links inside of shards (store what they lead to)"
    _, _, name = member.name.rpartition("/")
    stem, _, extension = name.lower().partition(".")
    ending = extension.rpartition(".")[2]
    if member.isreg() and ending in ("tar", "tgz", "zip"):
        return "archives inside of shards (unpack them)"
    if not (member.isreg() and stem) or extension in EXTENSIONS:
        return None
    if ending in EXTENSIONS:
        return "pictures whose names have further dots, as webdataset names what belongs to a photo"
    if f".{ending}" in IMAGE_SUFFIXES | UNREAD_PHOTOS:
        return f"pictures in shards that end in .{ending} (convert them to JPEG or PNG)"
    return None


class Shards:
    """The shards of a data set, and how many samples each gives: counted when first needed, then remembered."""

    def __init__(self, names: Sequence[Shard]) -> None:
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

    def count(self, console: Console, findings: Findings | None = None) -> int:
        """Samples of all shards, unreadable ones included. For URLs this reads all the data once.

        Args:
            console: where it says how far it is.
            findings: takes the shards that are damaged or missing, or hold no photo.

        Raises:
            ConvMAEError: there is no photo in any of them.
        """
        total = len(self.names)
        findings = Findings() if findings is None else findings
        photos, errors = 0, []
        with ThreadPoolExecutor(_COUNTING_THREADS) as pool:
            counts = pool.map(self._count, range(total))
            hidden = not console.is_terminal
            tracked = track(counts, "counting photos", total=total, console=console, transient=True, disable=hidden)
            for name, (found, error, left_out) in zip(self.names, tracked, strict=True):
                photos += found
                findings.pass_over_also(left_out)
                if error is not None:
                    errors.append(error)
                    findings.doubt("shards that are damaged or missing", error)
                elif not found:
                    findings.doubt("shards without a photo", name)
        problem = f"{len(errors)} damaged or missing, the first: {errors[0]}" if errors else ""
        if not photos:
            others = "; ".join(f"{kind}: {finding}" for kind, finding in findings.passed_over.items())
            raise ConvMAEError(f"expected photos in {total} shards, found none; {problem or others or NO_PHOTOS}")
        console.print(
            f"{counted(photos, 'photo')} in {counted(total, 'shard')}" + (f" ({problem})" if problem else ""),
            markup=False,
        )
        return sum(self._samples.values())

    def _count(self, shard: int) -> tuple[int, str | None, Findings]:
        """Photos of one shard, what is wrong with it, and what is left out of it."""
        left_out = Findings()
        photos, error = 0, None
        for item in read_shard(self.names[shard], headers_only=True, findings=left_out):
            if isinstance(item, bytes):
                photos += 1
            else:
                error = item
        self._samples[shard] = photos + (error is not None)
        return photos, error, left_out
