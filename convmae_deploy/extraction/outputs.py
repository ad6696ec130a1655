"""Where shards are written: a folder here, or one in an object store. A file is there whole, or not at all."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.extraction import stores
from convmae_deploy.files import atomic_file, check_can_create, read_regular, shortened


class Output(Protocol):
    """A folder of results."""

    def names(self) -> set[str]:
        """Names of the files in it; none where it does not exist yet."""

    def read(self, name: str, limit: int) -> bytes:
        """The content of a file in it."""

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yields a temporary path; on success what is there becomes the file `name`, on an exception nothing does."""

    @contextmanager
    def opened(self, name: str) -> Iterator[Any]:
        """A file in it, to be read piece by piece."""

    def remove(self, name: str) -> None:
        """Removes a file of it, if it is there."""


def open_output(name: str) -> Output:
    """The folder that a path or a URI means.

    Raises:
        ConvMAEError: it is a file, cannot be made, or its store cannot be opened.
    """
    return _Store(name) if stores.is_remote(name) else _Folder(stores.local_path(name))


class _Folder:
    def __init__(self, path: Path) -> None:
        if path.exists() and not path.is_dir():
            raise ConvMAEError(f"expected a folder to write shards to; {path} is a file, choose another")
        check_can_create(path / "_job.json")
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
        self._path.mkdir(parents=True, exist_ok=True)
        for left in self._path.glob(f".{name}.*.tmp"):  # by a process that was killed
            left.unlink(missing_ok=True)
        with _full_disk(self._path):
            with atomic_file(self._path / name) as temporary:
                yield temporary
                _flush(temporary)
            _flush(self._path)

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
