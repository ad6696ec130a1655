"""Files by their path or by the URI of an object store, which fsspec reads and writes."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from convmae_deploy.errors import ConvMAEError, missing_extra
from convmae_deploy.files import open_regular, read_regular, shortened

# Scheme -> the package with which fsspec opens it. No others: what a list names must lead nowhere else.
SCHEMES = {
    **{"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"},
    **{"az": "adlfs", "abfs": "adlfs", "abfss": "adlfs"},
    "hf": "huggingface_hub",
}
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_BLOCK_BYTES = 8 * 1024 * 1024  # read at once of a file that is read from front to back


class StoreError(ConvMAEError):
    """A store that does not answer as it should, for a reason that is not the file's: the work cannot go on."""


def is_remote(name: str) -> bool:
    """Whether a name is the URI of an object store; `file://` and plain paths are not."""
    return _scheme(name) not in (None, "file")


def local_path(name: str) -> Path:
    """The path that a plain name or a `file://` URI means."""
    if _scheme(name) == "file":
        return Path("/" + name[len("file://") :].lstrip("/"))
    return Path(name)


def open_store(uri: str) -> tuple[Any, str]:
    """The file system of fsspec's behind a URI, and the path in it.

    Raises:
        ConvMAEError: the scheme is none of `SCHEMES`, or its package is missing.
    """
    scheme = _scheme(uri)
    if scheme not in SCHEMES or "::" in uri:
        raise ConvMAEError(
            f"expected a path, or a URI that begins with file:// or {', '.join(f'{name}://' for name in SCHEMES)}; "
            f"got {shortened(uri)}"
        )
    try:
        import fsspec
    except ImportError:
        raise missing_extra(f"{scheme}://", "fsspec", "pipelines") from None
    try:
        # Without its memory of folders, which would hold every name of every folder that was listed.
        store = fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError:
        package = SCHEMES[scheme]
        raise ConvMAEError(f"{scheme}:// needs the package {package}; run pip install {package}") from None
    except Exception as error:  # each store has exceptions of its own
        raise unreachable(uri, error) from error
    return store, store._strip_protocol(uri)


def read(name: str, limit: int) -> bytes:
    """The content of a file.

    Args:
        name: a path or a URI.
        limit: how many bytes it may have.

    Raises:
        StoreError: its store does not answer; reading other files would end in the same way.
        ConvMAEError: it cannot be read, or is larger.
    """
    if not is_remote(name):
        try:
            return read_regular(local_path(name), limit)
        except OSError as error:
            raise cannot_be_read(error) from error
    store, path = open_store(name)
    with _explained(name):
        content: bytes = store.cat_file(path, start=0, end=limit + 1)
    if len(content) > limit:
        raise ConvMAEError(f"the file has more than {limit} bytes, which are not read; choose a smaller one")
    return content


@contextmanager
def opened(name: str) -> Iterator[IO[bytes]]:
    """A file to be read piece by piece, which can seek.

    Args:
        name: a path or a URI.

    Raises:
        StoreError: as `read`, then and while it is read.
        ConvMAEError: it cannot be read.
    """
    if not is_remote(name):
        try:
            file = open_regular(local_path(name))
        except OSError as error:
            raise cannot_be_read(error) from error
        with file:
            yield file
        return
    store, path = open_store(name)
    with _explained(name):
        stream = store.open(path, "rb", block_size=_BLOCK_BYTES)
    with stream:
        yield _Explaining(stream, name)  # type: ignore[misc]  # it has what a reader needs


def cannot_be_read(error: OSError) -> ConvMAEError:
    """The sentence for a file that the system does not give."""
    return ConvMAEError(f"the file cannot be read ({error.strerror or error}); check its path and permissions")


def unreachable(name: str, error: Exception) -> StoreError:
    """The sentence for a store that does not answer as it should."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return StoreError(
        f"{shortened(name)} cannot be reached ({shortened(reason, 300)}); check the address and your rights, then run "
        "the same command again, which goes on where it ended"
    )


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Errors of a store, told apart: those of one file, and those that the next file would meet too."""
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise cannot_be_read(error) from error
    except ConvMAEError:
        raise
    except Exception as error:  # each store has exceptions of its own
        raise unreachable(name, error) from error


class _Explaining:
    """A remote file whose errors are `StoreError`s, so that nobody takes them for damage of the file."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file, self._name = file, name
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        with _explained(self._name):
            return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True
        with suppress(Exception):  # nothing was written
            self._file.close()


def _scheme(name: str) -> str | None:
    found = _URI.match(name)
    return found[1].lower() if found else None
