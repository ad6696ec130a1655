"""Parts of a job's input: each is read on its own, in order, and makes one shard of the output."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Protocol

from convmae_deploy.errors import ConvMAEError, missing_extra
from convmae_deploy.extraction import stores
from convmae_deploy.files import shortened
from convmae_deploy.folders import PassedOver
from convmae_deploy.media.photo_files import MAX_PHOTO_BYTES
from convmae_deploy.media.tar_files import members, open_tar, read_member
from convmae_deploy.printing import printable

# Names under which columns of photos and videos are found, the first one wins, unless the user names one.
COLUMNS = ("image", "video", "bytes", "jpg", "path", "file", "file_name", "uri", "url")
MAX_PIECES = 1_000_000  # of a Parquet file
_ROWS_AT_ONCE = 8  # of a Parquet file: equal contents are stored once and may be large


@dataclass(frozen=True, kw_only=True)
class Item:
    """One photo or video of the input."""

    name: str  # what its row says
    content: str | bytes | ConvMAEError  # where it is (a path or a URI), what is in it, or why it cannot be read


class Readable(Protocol):
    """Photos or videos in an order."""

    def items(self) -> Iterator[Item]:
        """Reads them from front to back.

        Raises:
            StoreError: a store does not answer.
        """


class Piece(Readable, Protocol):
    """A part of the input; small, and it can be sent to another process."""

    @property
    def rows(self) -> int | None:
        """How many photos or videos it has; None: that shows when it is read."""

    @property
    def is_remote(self) -> bool:
        """Whether it is read from an object store."""

    @property
    def passed_over(self) -> PassedOver:
        """What was found in it, while it was read, that is no photo or video."""


@dataclass(frozen=True)
class Names:
    """Photos or videos by their paths or URIs."""

    names: tuple[str, ...]

    @property
    def rows(self) -> int:
        return len(self.names)

    @property
    def is_remote(self) -> bool:
        return any(map(stores.is_remote, self.names))

    @property
    def passed_over(self) -> PassedOver:
        return PassedOver()

    def items(self) -> Iterator[Item]:
        return (Item(name=name, content=name) for name in self.names)


@dataclass(frozen=True, kw_only=True)
class TarMembers:
    """The photos or videos in a tar file, or some of them; their names are `archive.tar/member.jpg`."""

    tar: str  # a path or a URI
    suffixes: tuple[str, ...]  # of the members to take
    start: int = 0
    stop: int | None = None  # None: to the end; nobody has counted it yet
    passed_over: PassedOver = field(default_factory=PassedOver, compare=False, repr=False)

    @property
    def rows(self) -> int | None:
        return None if self.stop is None else self.stop - self.start

    @property
    def is_remote(self) -> bool:
        return stores.is_remote(self.tar)

    def items(self) -> Iterator[Item]:
        """See `Piece.items`; where the archive is damaged, the last item has its name and says why."""
        index = 0
        try:
            with stores.opened(self.tar) as file, open_tar(file) as archive:
                for member in members(archive):
                    if not (member.isreg() and is_taken(member.name, self.suffixes)):
                        if member.isreg() and self.stop is None:
                            self.passed_over.add(f"{self.tar}/{member.name}")
                        continue
                    index += 1
                    if index > self.start:
                        content = read_member(archive, member)
                        error = ConvMAEError(content) if isinstance(content, str) else content
                        yield Item(name=f"{self.tar}/{member.name}", content=error)
                    if index == self.stop:
                        return
        except (MemoryError, stores.StoreError):
            raise
        except ConvMAEError as error:
            yield Item(name=self.tar, content=error)
        except Exception as error:  # tarfile raises anything on damaged headers
            yield Item(name=self.tar, content=ConvMAEError(f"the archive cannot be read on ({printable(error)})"))


@dataclass(frozen=True, kw_only=True)
class ParquetRows:
    """Rows of a Parquet file, whose column holds photos or videos, or says where they are.

    The row N of bytes is called `file.parquet/N`, from 0 on; a path or a URI has its own name.
    """

    file: str  # a path or a URI
    column: str
    start: int
    stop: int
    content_only: bool = False  # whether paths in it lead nowhere: nobody asked for what a table in a folder names

    @property
    def rows(self) -> int:
        return self.stop - self.start

    @property
    def is_remote(self) -> bool:
        return stores.is_remote(self.file)

    @property
    def passed_over(self) -> PassedOver:
        return PassedOver()

    def items(self) -> Iterator[Item]:
        """See `Piece.items`."""
        row, reason = self.start, "it ends before this row"
        try:
            for value in _values(self.file, self.column, self.start, self.stop):
                yield self._item(value, f"{self.file}/{row}")
                row += 1
        except (MemoryError, stores.StoreError):
            raise
        except Exception as error:  # pyarrow's and zstd's, on damaged files
            reason = str(error) if isinstance(error, ConvMAEError) else f"it cannot be read on ({printable(error)})"
        for lost in range(row, self.stop):
            yield Item(name=f"{self.file}/{lost}", content=ConvMAEError(reason))

    def _item(self, value: Any, name: str) -> Item:
        try:
            plain = value.as_py()
        except ValueError as error:  # text that is not UTF-8
            return Item(name=name, content=ConvMAEError(f"the row cannot be read ({printable(error)})"))
        if self.content_only and isinstance(plain, dict) and plain.get("bytes") is None:
            reason = "the row holds no content; where it is a path, name the table itself to have it followed"
            return Item(name=name, content=ConvMAEError(reason))
        return item_of(plain, name)


def is_taken(name: str, suffixes: Sequence[str]) -> bool:
    """Whether a name in a folder or an archive is that of a photo or a video, by its suffix; hidden ones are not."""
    path = PurePosixPath(name)
    return path.suffix.lower() in suffixes and not path.name.startswith(".")


def parquet_pieces(file: str, rows: int, column: str | None, *, content_only: bool = False) -> list[ParquetRows]:
    """The rows of a Parquet file in pieces.

    Args:
        file: a path or a URI.
        rows: of a piece, at most.
        column: with the photos or videos; None: the one that is called as such columns are.
        content_only: whether only a column of photos or videos will do, and none of paths.

    Raises:
        ConvMAEError: it cannot be read, or has no such column.
    """
    parquet = import_parquet("a source in Parquet")
    try:
        with stores.opened(file) as stream:
            found = parquet.ParquetFile(stream)
            groups = [found.metadata.row_group(group).num_rows for group in range(found.metadata.num_row_groups)]
            count, schema = found.metadata.num_rows, found.schema_arrow
    except ConvMAEError as error:
        raise type(error)(f"{shortened(file)}: {error}") from error
    except Exception as error:  # pyarrow's, on damaged files
        raise ConvMAEError(f"{shortened(file)} is no Parquet file that can be read ({printable(error)})") from error
    if min(groups, default=0) < 0 or sum(groups) != count or count > rows * MAX_PIECES:
        raise ConvMAEError(f"{shortened(file)} says that it has {count} rows, which cannot be; check where it is from")
    usable = [name for name in schema.names if _is_usable(schema.field(name).type, content_only)]
    wanted = next((name for name in COLUMNS if name in usable), None) if column is None else column
    if wanted is None or wanted not in usable:
        asked = f"a column {shortened(column)}" if column else f"a column called {', '.join(COLUMNS)}"
        names = ", ".join(map(shortened, usable)) or "none"
        raise ConvMAEError(
            f"expected {asked} of bytes, paths or images in {shortened(file)}; found of these types {names}, give its "
            "name with --column"
        )
    return [
        ParquetRows(file=file, column=wanted, start=start, stop=min(start + rows, count), content_only=content_only)
        for start in range(0, count, rows)
    ]


def import_parquet(what: str) -> Any:
    """pyarrow's reader and writer.

    Raises:
        ConvMAEError: it is not installed.
    """
    try:
        from pyarrow import parquet
    except ImportError:
        raise missing_extra(what, "pyarrow", "parquet") from None
    return parquet


def _is_usable(kind: Any, content_only: bool) -> bool:
    """Whether a column of a type can hold photos: bytes, text, or the struct of both of Hugging Face's datasets."""
    from pyarrow import types

    if types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    if types.is_string(kind) or types.is_large_string(kind):
        return not content_only
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _values(file: str, column: str, start: int, stop: int) -> Iterator[Any]:
    """The values of rows, a few at a time: row groups before the first one are not read."""
    parquet = import_parquet("a source in Parquet")
    with stores.opened(file) as stream:
        reader = parquet.ParquetFile(stream, buffer_size=2**20, pre_buffer=False)
        end = 0
        for group in range(reader.metadata.num_row_groups):
            begin, end = end, end + reader.metadata.row_group(group).num_rows
            if end <= start or begin >= stop:
                continue
            row = begin
            for batch in reader.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[column], use_threads=False):
                for value in batch.column(0):
                    if start <= row < stop:
                        yield value
                    row += 1


def item_of(value: Any, name: str) -> Item:
    """The photo or video in a cell of a table: its content, or where it is.

    Args:
        value: of the cell.
        name: what to call it where it is a content.
    """
    if isinstance(value, dict):  # as Hugging Face's datasets write images and videos
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, str):
        return Item(name=value, content=value)
    if not isinstance(value, bytes):
        return Item(name=name, content=ConvMAEError("the row is empty; expected the content of a file, or its path"))
    if len(value) > MAX_PHOTO_BYTES:
        return Item(name=name, content=ConvMAEError(f"{len(value)} bytes are too many, at most {MAX_PHOTO_BYTES}"))
    return Item(name=name, content=value)


def count_members(tar: str, suffixes: Sequence[str], passed_over: "PassedOver") -> int:
    """The photos or videos in a local tar file, by its headers alone; up to where it is damaged."""
    count = 0
    try:
        with stores.opened(tar) as file, open_tar(file) as archive:
            for member in members(archive):
                if not member.isreg():
                    continue
                if is_taken(member.name, suffixes):
                    count += 1
                else:
                    passed_over.add(f"{tar}/{member.name}")
    except MemoryError:
        raise
    except Exception:  # said when it is read
        return count + 1
    return count
