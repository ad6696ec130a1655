"""Where shards are written: a folder here, or one in an object store. A file is there whole, or not at all."""

import errno
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.extraction import stores
from convmae_deploy.files import atomic_file, read_regular, shortened


class Output(Protocol):
    """A folder of results."""

    def names(self) -> set[str]:
        """Names of the files in it; none where it does not exist yet."""

    def read(self, name: str, limit: int) -> bytes:
        """The content of a file in it."""

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yields a temporary path; on success what is there becomes the file `name`, on an exception nothing does."""

    def create(self, name: str, content: bytes) -> bool:
        """Makes a small file, unless there is one of that name; whether it did. Of several at once one does."""

    def exists(self, name: str) -> bool:
        """Whether a file is in it."""

    def tidy(self) -> None:
        """Removes what processes that were killed left of files that are there now; others may be being written."""

    @contextmanager
    def opened(self, name: str) -> Iterator[Any]:
        """A file in it, to be read piece by piece."""

    def remove(self, name: str) -> None:
        """Removes a file of it, if it is there."""


def open_output(name: str) -> Output:
    """The folder that a path or a URI means.

    Raises:
        ConvMAEError: it is a file, or its store cannot be opened.
    """
    return _Store(name) if stores.is_remote(name) else _Folder(stores.local_path(name))


_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp")  # as `atomic_file` calls them


class _Folder:
    def __init__(self, path: Path) -> None:
        if path.exists() and not path.is_dir():
            raise ConvMAEError(f"expected a folder to write shards to; {path} is a file, choose another")
        self._path = path

    def names(self) -> set[str]:
        return set(os.listdir(self._path)) if self._path.is_dir() else set()

    def read(self, name: str, limit: int) -> bytes:
        try:
            return read_regular(self._path / name, limit)
        except OSError as error:
            raise ConvMAEError(f"{self._path / name}: {stores.cannot_be_read(error)}") from error

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        path = self._path / name
        with _full_disk(self._path):
            try:
                with atomic_file(path) as temporary:
                    yield temporary
                    _flush(temporary)
            except FileNotFoundError:
                if not path.exists():
                    raise  # else another process has made this file meanwhile, and removed what it took for left over
            self.tidy()
            _flush(self._path)

    def create(self, name: str, content: bytes) -> bool:
        with _full_disk(self._path):
            self._path.mkdir(parents=True, exist_ok=True)
            temporary = self._path / f".{name}.{uuid.uuid4().hex[:8]}.tmp"
            try:
                temporary.write_bytes(content)
                _flush(temporary)
                os.link(temporary, self._path / name)
            except (FileExistsError, FileNotFoundError):  # another process was first, or has even tidied up by now
                if not self.exists(name):
                    raise
                return False
            finally:
                self.tidy()
        return True

    def tidy(self) -> None:
        names = self.names()
        for name in names:
            found = _TEMPORARY.fullmatch(name)
            if found is not None and found[1] in names:
                (self._path / name).unlink(missing_ok=True)

    def exists(self, name: str) -> bool:
        return (self._path / name).exists()

    @contextmanager
    def opened(self, name: str) -> Iterator[Any]:
        with stores.opened(str(self._path / name)) as file:
            yield file

    def remove(self, name: str) -> None:
        (self._path / name).unlink(missing_ok=True)


class _Store:
    """A folder in an object store.

    A file is written here and then sent: a store publishes what a writer has sent so far also when the writer ends with
    an exception, while an upload of a whole file becomes an object at its end or not at all.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri.rstrip("/")
        self._store, self._path = stores.open_store(self._uri)

    def names(self) -> set[str]:
        try:
            found = {str(path).rsplit("/", 1)[-1] for path in self._store.ls(self._path, detail=False)}
        except FileNotFoundError:
            return set()
        except Exception as error:  # each store has exceptions of its own
            raise stores.unreachable(self._uri, error) from error
        return found - {""}  # the mark of the folder itself

    def read(self, name: str, limit: int) -> bytes:
        return stores.read(f"{self._uri}/{name}", limit)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="convmae-") as folder, _full_disk(Path(folder)):
            temporary = Path(folder, name)
            yield temporary
            try:
                self._store.put_file(str(temporary), f"{self._path}/{name}")
            except Exception as error:  # each store has exceptions of its own
                raise stores.unreachable(f"{self._uri}/{name}", error) from error

    def create(self, name: str, content: bytes) -> bool:
        if self.exists(name):
            return False
        try:
            self._store.pipe_file(f"{self._path}/{name}", content, mode="create")
        except FileExistsError:
            return False
        except Exception as error:  # each store has exceptions of its own
            raise stores.unreachable(f"{self._uri}/{name}", error) from error
        return True

    def exists(self, name: str) -> bool:
        try:
            return bool(self._store.exists(f"{self._path}/{name}"))
        except Exception as error:  # each store has exceptions of its own
            raise stores.unreachable(f"{self._uri}/{name}", error) from error

    def tidy(self) -> None:
        pass  # a writer that is killed leaves no object

    @contextmanager
    def opened(self, name: str) -> Iterator[Any]:
        with stores.opened(f"{self._uri}/{name}") as file:
            yield file

    def remove(self, name: str) -> None:
        try:
            self._store.rm_file(f"{self._path}/{name}")
        except FileNotFoundError:
            pass
        except Exception as error:  # each store has exceptions of its own
            raise stores.unreachable(f"{self._uri}/{name}", error) from error


@contextmanager
def _full_disk(folder: Path) -> Iterator[None]:
    """Makes a sentence of a disk without room, whatever noticed it."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        free = shutil.disk_usage(folder).free if folder.exists() else 0
        raise ConvMAEError(
            f"{shortened(str(folder))} cannot be written to ({error.strerror}; {free / 1e9:.1f} GB are free); make "
            "room, then run the same command again, which goes on where it ended"
        ) from error


def _flush(path: Path) -> None:
    """So that a name never survives a power cut without its content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
