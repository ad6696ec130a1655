"""Files by their path or by the URI of an object store, which fsspec reads and writes."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from convmae_deploy.errors import ConvMAEError, missing_extra
from convmae_deploy.files import open_regular, read_regular, shortened

# Scheme -> the package with which fsspec opens it. No others: what a list names must lead nowhere else.
SCHEMES = {
    **{"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"},
    **{"az": "adlfs", "abfs": "adlfs", "abfss": "adlfs"},
    "hf": "huggingface_hub",
}
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# What a store answers, in its words or by HTTP's numbers, where it is about one object and not about all: none of that
# name, or not for this user. Keys that have expired, a bucket that is not there and the like would be met again.
_ABOUT_ONE = {"NoSuchKey", "NoSuchVersion", "AccessDenied", "InvalidObjectState", "404", "403"}
_EMPTY = {"InvalidRange", "416"}  # an object without a byte has no first one
_BLOCK_BYTES = 8 * 1024 * 1024  # read at once of a file that is read from front to back


class StoreError(ConvMAEError):
    """A store that does not answer as it should, for a reason that is not the file's: the work cannot go on."""


def is_remote(name: str) -> bool:
    """Whether a name is the URI of an object store; `file://` and plain paths are not."""
    return _scheme(name) not in (None, "file")


def local_path(name: str) -> Path:
    """The path that a plain name or a `file://` URI means."""
    if _scheme(name) != "file":
        return Path(name)
    parts = urlsplit(name)
    if parts.netloc not in ("", "localhost"):
        raise ConvMAEError(f"expected file:///path, of this machine; got {shortened(name)}")
    return Path(url2pathname(parts.path))


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
    path = str(store._strip_protocol(uri))
    if not path.strip("/"):
        raise ConvMAEError(f"expected the name of a bucket after {scheme}://; got {shortened(uri)}")
    return store, path


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
    if "/" not in path.strip("/"):
        raise ConvMAEError("it is the name of a bucket; expected that of an object in it")
    with _explained(name):
        content = _first_bytes(store, path, limit + 1)
    if len(content) > limit:
        raise ConvMAEError(f"the file has more than {limit} bytes, which are not read; choose a smaller one")
    return content


def _first_bytes(store: Any, path: str, count: int) -> bytes:
    try:
        content: bytes = store.cat_file(path, start=0, end=count)
    except Exception as error:  # each store has exceptions of its own
        if _code(error) in _EMPTY:
            return b""
        raise
    return content


def list_files(uri: str) -> Iterator[str]:
    """The URIs of all files below a folder, its own by name before those of its subfolders; none where it is missing.

    Not by fsspec's `walk`, which leaves out in silence the folders that it cannot list.

    Raises:
        StoreError: a folder cannot be listed.
    """
    store, path = open_store(uri)
    waiting = [path.rstrip("/")]
    while waiting:
        folder = waiting.pop()
        try:
            entries = sorted((str(entry["name"]), entry["type"]) for entry in store.ls(folder, detail=True))
        except FileNotFoundError as error:
            if folder != path.rstrip("/") or _code(error) == "NoSuchBucket":
                raise unreachable(f"{uri} ({folder})", error) from error
            return
        except Exception as error:  # each store has exceptions of its own
            raise unreachable(f"{uri} ({folder})", error) from error
        below = [name.rstrip("/") for name, kind in entries if kind == "directory"]
        waiting += [name for name in reversed(below) if name != folder]
        for name, kind in entries:
            if kind != "directory" and not name.endswith("/") and name.rstrip("/") != folder:
                yield str(store.unstrip_protocol(name))


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


def cannot_be_read(error: Exception) -> ConvMAEError:
    """The sentence for a file that the system, or a store, does not give."""
    reason = str(getattr(error, "strerror", None) or " ".join(str(error).split()))[:300]
    return ConvMAEError(f"the file cannot be read ({reason}); check its path and permissions")


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
    except ConvMAEError:
        raise
    except Exception as error:  # each store has exceptions of its own
        code = _code(error)
        of_the_file = isinstance(error, FileNotFoundError | IsADirectoryError) if code is None else code in _ABOUT_ONE
        if of_the_file or type(error).__name__ == "ParamValidationError":  # a name that no object can have
            raise cannot_be_read(error) from error
        raise unreachable(name, error) from error


def _code(error: BaseException | None) -> str | None:
    """What a store answered, in a word; None where the exception does not say."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict) and isinstance(response.get("Error"), dict):
            return str(response["Error"].get("Code"))
        error = error.__cause__
    return None


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
