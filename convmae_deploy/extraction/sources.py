"""What a user names as input: folders, files, lists, tar and Parquet files, here or in an object store.

The rows of a job are in this order: first the files that are named one by one or found in folders, in the order of the
sources, in folders by name and before their subfolders; then the contents of tar and Parquet files, in the order of
the sources too. Nothing is held in memory but the names of one folder and of one shard.
"""

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from convmae_deploy.braces import check_count
from convmae_deploy.errors import ConvMAEError, missing_extra
from convmae_deploy.extraction import stores
from convmae_deploy.extraction.pieces import (
    Names,
    Piece,
    TarMembers,
    count_members,
    is_taken,
    parquet_pieces,
)
from convmae_deploy.files import shortened
from convmae_deploy.folders import PassedOver, files_below, is_hidden

_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2")
_MAX_NAME_BYTES = 64 * 1024  # of one line of a list
_CHUNK_BYTES = 1024 * 1024
_COUNTING_THREADS = 8  # they wait for the disk


class SourceError(ConvMAEError):
    """Sources that make no job."""


@dataclass(kw_only=True)
class Plan:
    """A job's input in pieces, the first ones names, and what stands for all of it."""

    shard_rows: int
    names: "_Spool"
    containers: list[Piece] = field(default_factory=list)
    passed_over: PassedOver = field(default_factory=PassedOver)

    @property
    def shards(self) -> int:
        """How many pieces there are; each makes one shard."""
        return -(-self.names.count // self.shard_rows) + len(self.containers)

    @property
    def is_remote(self) -> bool:
        """Whether reading waits for an object store."""
        return self.names.is_remote or any(piece.is_remote for piece in self.containers)

    def piece(self, shard: int) -> Piece:
        """What a shard is made of."""
        of_names = -(-self.names.count // self.shard_rows)
        return Names(self.names.chunk(shard)) if shard < of_names else self.containers[shard - of_names]

    def rows(self, shards: Iterable[int]) -> int | None:
        """How many files the pieces of shards hold; None where that is not known yet."""
        of_names = -(-self.names.count // self.shard_rows)
        counts = [
            min(self.shard_rows, self.names.count - shard * self.shard_rows)
            if shard < of_names
            else self.containers[shard - of_names].rows
            for shard in shards
        ]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    def digest(self) -> str:
        """SHA-256 of all names and of how they are cut, in hexadecimal."""
        digest = self.names.hash.copy()
        for piece in self.containers:
            digest.update(repr(piece).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def close(self) -> None:
        """Removes what was kept on the disk."""
        self.names.close()


def make_plan(
    sources: Sequence[str], suffixes: Sequence[str], kind: str, *, shard_rows: int, column: str | None = None
) -> Plan:
    """Goes through the sources: folders are searched, lists read, archives on a disk counted.

    A tar file is cut into pieces of `shard_rows` as well, but one in an object store, which would have to be read twice
    for that, is one piece.

    Args:
        sources: as the user typed them: files and folders, `@list.txt` and `-` (names in a file or on standard input,
            one a line or with zero bytes between them), `*.tar`, `*.parquet`, patterns such as `{000..999}.tar`, and
            URIs of all of these.
        suffixes: of the files to take from folders and archives, in lower case with their dot.
        kind: what these are called, for messages.
        shard_rows: rows of a piece, at most.
        column: of Parquet files; None: the one that is called as such columns are.

    Raises:
        ConvMAEError: a source cannot be read, or there is no photo or video in it.
    """
    typed = [name for source in sources for name in (_expanded(source) if source[:1] not in ("@", "-") else [source])]
    if not any(
        name[:1] in ("@", "-") or stores.is_remote(name) or os.path.lexists(stores.local_path(name)) for name in typed
    ):
        raise SourceError(
            f"there is nothing at {shortened(sources[0])}; check the path (of patterns {{000..146}} and {{a,b}} are "
            "understood, * is the shell's)"
        )
    planner = _Planner(suffixes=suffixes, kind=kind, shard_rows=shard_rows, column=column)
    try:
        for source in sources:
            planner.add(source)
        planner.count_tars()
    except BaseException:
        planner.plan.close()
        raise
    if not planner.plan.shards:
        planner.plan.close()
        passed = f", passed over {planner.plan.passed_over}" if planner.plan.passed_over else ""
        raise SourceError(
            f"expected {kind} in {' '.join(map(shortened, sources))}, found none{passed}; check the paths"
        )
    return planner.plan


class _Planner:
    def __init__(self, *, suffixes: Sequence[str], kind: str, shard_rows: int, column: str | None) -> None:
        self.plan = Plan(shard_rows=shard_rows, names=_Spool(shard_rows))
        self._suffixes, self._kind, self._column = tuple(sorted(suffixes)), kind, column
        self._tars: dict[int, str] = {}  # place in the containers -> a local one, not counted yet

    def add(self, source: str) -> None:
        """One source as typed: a list, a pattern, or something else by its name.

        What is there under exactly this name is a file or a folder: a shell that expands `*` types the names of whoever
        filled the folder.
        """
        if not stores.is_remote(source) and os.path.lexists(stores.local_path(source)):
            self._add_path(source)
        elif source == "-":
            self._add_list(sys.stdin.buffer, "standard input")
        elif source.startswith("@"):
            try:
                with stores.opened(source[1:]) as file:
                    self._add_list(file, source[1:])
            except (SourceError, stores.StoreError):
                raise
            except ConvMAEError as error:
                raise SourceError(f"{shortened(source)}: {error}") from error
        else:
            for name in _expanded(source):
                self._add_path(name)

    def _add_path(self, name: str) -> None:
        before = self.plan.shards, self.plan.names.count
        if not stores.is_remote(name):
            path = str(stores.local_path(name))
            if not os.path.isdir(path):
                self._add_file(path)  # whether it exists shows when it is read: a missing file is one bad file
                return
            for file in files_below(Path(path)):
                if is_hidden(file, Path(path)):
                    self.plan.passed_over.add(str(file), "hidden")
                else:
                    self._add_found(str(file))
        elif not self._add_remote(name):
            return
        if (self.plan.shards, self.plan.names.count) == before:
            passed = f", passed over {self.plan.passed_over}" if self.plan.passed_over else ""
            raise SourceError(
                f"expected {self._kind} ({' '.join(self._suffixes)}) in the folder {shortened(name)}, found "
                f"none{passed}; check the path"
            )

    def _add_remote(self, uri: str) -> bool:
        """The files that a URI means; whether it was a folder."""
        store, path = stores.open_store(uri)
        try:
            is_file = not uri.endswith("/") and (self._is_container(uri) or store.isfile(path))
        except Exception as error:  # each store has exceptions of its own
            raise stores.unreachable(uri, error) from error
        if is_file:
            self._add_file(uri)
            return False
        for name in stores.list_files(uri):
            self._add_found(name)
        return True

    def _add_found(self, name: str) -> None:
        """A file of a folder: taken where it is a photo or holds some."""
        hidden = PurePosixPath(name).name.startswith(".")
        if not hidden and self._is_container(name):
            try:
                self._add_container(name, content_only=True)
            except stores.StoreError:
                raise
            except ConvMAEError:  # a table of something else beside the photos, perhaps of their names
                self.plan.passed_over.add(name)
        elif not hidden and is_taken(name, self._suffixes) and (stores.is_remote(name) or _may_be_read(name)):
            self.plan.names.add(name)
        else:
            self.plan.passed_over.add(name)

    def _add_file(self, name: str) -> None:
        """A file that is named itself: it may have any name."""
        if self._is_container(name):
            self._add_container(name)
        else:
            self.plan.names.add(name)

    @staticmethod
    def _is_container(name: str) -> bool:
        return name.lower().endswith((".tar", ".parquet", *_COMPRESSED))

    def _add_container(self, name: str, *, content_only: bool = False) -> None:
        containers, rows = self.plan.containers, self.plan.shard_rows
        if name.lower().endswith(".parquet"):
            containers += parquet_pieces(name, rows, self._column, content_only=content_only)
            return
        if not stores.is_remote(name):
            _check_tar(name)
            self._tars[len(containers)] = name
        containers.append(TarMembers(tar=name, suffixes=self._suffixes))

    def count_tars(self) -> None:
        """Cuts local tar files into pieces."""
        rows, kinds = self.plan.shard_rows, [PassedOver() for _ in self._tars]
        with ThreadPoolExecutor(_COUNTING_THREADS) as pool:
            counts = dict(zip(self._tars, pool.map(self._count, self._tars.values(), kinds), strict=True))
        self.plan.passed_over.merge(kinds)
        pieces: list[Piece] = []
        for place, piece in enumerate(self.plan.containers):
            if not isinstance(piece, TarMembers) or place not in counts:
                pieces.append(piece)
                continue
            pieces += [
                TarMembers(tar=piece.tar, suffixes=piece.suffixes, start=start, stop=min(start + rows, counts[place]))
                for start in range(0, counts[place], rows)
            ]
        self.plan.containers = pieces

    def _count(self, tar: str, passed_over: PassedOver) -> int:
        return count_members(tar, self._suffixes, passed_over)

    def _add_list(self, file: IO[bytes], title: str) -> None:
        for line in _lines(file, title):
            name = os.fsdecode(line)
            if stores.is_remote(name):
                stores.open_store(name)  # refuses other schemes before the work begins
            self._add_file(name)


class _Spool:
    """Names in a temporary file, and where every shard of them begins."""

    def __init__(self, rows: int) -> None:
        self.count, self.is_remote, self.hash = 0, False, hashlib.sha256()
        self._rows, self._starts = rows, [0]
        self._file: Any = tempfile.TemporaryFile(prefix="convmae-")  # noqa: SIM115  # closed by `close`

    def add(self, name: str) -> None:
        content = os.fsencode(name)
        if b"\0" in content:
            raise SourceError(f"a name must not hold zero bytes; got {shortened(name)}")
        if self.count and self.count % self._rows == 0:
            self._starts.append(self._file.tell())
        line = content + b"\0"
        self._file.write(line)
        self.hash.update(line)
        self.count += 1
        self.is_remote = self.is_remote or stores.is_remote(name)

    def chunk(self, shard: int) -> tuple[str, ...]:
        end = self._starts[shard + 1] if shard + 1 < len(self._starts) else None
        self._file.flush()
        self._file.seek(self._starts[shard])
        content: bytes = self._file.read(-1 if end is None else end - self._starts[shard])
        self._file.seek(0, os.SEEK_END)
        return tuple(os.fsdecode(name) for name in content.split(b"\0")[:-1])

    def close(self) -> None:
        self._file.close()


def _may_be_read(name: str) -> bool:
    """Whether it is a file, or a link that leads nowhere, which is a bad file and not one to pass over in silence."""
    return os.path.isfile(name) or (os.path.islink(name) and not os.path.exists(name))


def _check_tar(name: str) -> None:
    """Refuses an archive that cannot be read at all: a job without it would be another one when it is there.

    Raises:
        SourceError: it is missing, or compressed.
    """
    try:
        with stores.opened(name) as file:
            begin = file.read(4)
    except ConvMAEError as error:
        raise SourceError(f"{shortened(name)}: {error}") from error
    if name.lower().endswith(_COMPRESSED) or begin[:2] == b"\x1f\x8b" or begin == b"\x28\xb5\x2f\xfd":
        raise SourceError(f"{shortened(name)} is compressed, and is read as it is; unpack it to a .tar first")


def _lines(file: IO[bytes], title: str) -> Iterator[bytes]:
    """The names in a list, which stand on a line each or have zero bytes between them; empty ones are left out."""
    rest, separator = b"", b""
    while chunk := file.read(_CHUNK_BYTES):
        if not separator:
            if chunk.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise SourceError(f"expected a list in UTF-8; {shortened(title)} is in UTF-16, save it again as UTF-8")
            chunk = chunk.removeprefix(b"\xef\xbb\xbf")  # as editors of Windows begin a file
        separator = separator or (b"\0" if b"\0" in chunk else b"\n")
        *lines, rest = (rest + chunk).split(separator)
        if len(rest) > _MAX_NAME_BYTES:
            raise SourceError(
                f"expected names of files in {shortened(title)}, one a line; found a line of more than "
                f"{_MAX_NAME_BYTES} bytes, so it is no list"
            )
        yield from (line for line in map(_stripped, lines) if line)
    if _stripped(rest):
        yield _stripped(rest)


def _stripped(line: bytes) -> bytes:
    return line.rstrip(b"\r\n")


def _expanded(source: str) -> list[str]:
    """The names that braces stand for, as in a shell."""
    if "{" not in source:
        return [source]
    check_count(source)
    try:
        import braceexpand
    except ImportError:
        raise missing_extra(f"the pattern {shortened(source)}", "braceexpand", "pipelines") from None
    try:
        return list(braceexpand.braceexpand(source))
    except ValueError as error:  # of unbalanced braces too
        raise SourceError(f'expected a pattern such as "{{000..146}}.tar"; got {shortened(source)} ({error})') from None
