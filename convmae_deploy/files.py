"""Reading files within bounds, and writing files and folders so that a reader never finds half of one.

What stands in a file is data. A name that was read from one goes through `path_inside`, and a file that such a name or
a folder gave is read by `open_regular` and `read_regular`: a pipe, a device or a file of any size ends in an error.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import unicodedata
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from io import BufferedReader
from pathlib import Path, PureWindowsPath
from typing import Any

from convmae_deploy.errors import ConvMAEError

MAX_JSON_BYTES = 64 * 1024 * 1024  # for descriptions; annotations of a data set have a bound of their own
RUN_RECORD = "run.json"  # what a training program leaves in the folder of each run
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # a scheme, longer than the letter of a drive, as `Path` leaves it
_PREVIOUS = "previous"  # in a working folder of `atomic_directory`: the folder that is being replaced


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields an empty temporary file beside `path`; on success it becomes `path`, on an exception it is removed.

    What killed processes left of writing `path` is removed first.
    """
    _check_is_local(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left(path)
    with _held(path, Path.touch) as temporary:
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yields a temporary folder; on success it becomes `path`, on an exception it is removed.

    It lies in a working folder beside `path` that has a random name and that only its owner may enter: whoever else may
    write there can neither foresee it nor put anything into it. What killed processes left of writing `path` is removed
    first, unless it is the only copy of the folder that they were replacing.

    Args:
        path: the folder to create.
        replace: whether an existing folder at `path` may be replaced. The old one is moved into the working folder
            first and removed last; `existing_directory` finds it should the process die between the two renames.

    Raises:
        ConvMAEError: `path` exists and `replace` is False.
    """
    _check_is_local(path)
    if os.path.lexists(path) and not replace:
        raise ConvMAEError(f"{path} exists already; remove it or choose another output folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left(path)
    with _held(path, partial(Path.mkdir, mode=0o700)) as working:
        temporary, previous = working / path.name, working / _PREVIOUS
        try:
            temporary.mkdir()
            yield temporary
            if os.path.lexists(path):
                os.replace(path, previous)
            try:
                os.replace(temporary, path)
            except BaseException:
                if os.path.lexists(previous):
                    os.replace(previous, path)
                raise
        finally:
            if os.path.lexists(path) or not os.path.lexists(previous):  # else it is all that is left
                shutil.rmtree(working, ignore_errors=True)
    _remove_left(path)  # what was the only copy before is not needed any more


@contextmanager
def numbered_errors(path: Path) -> Iterator[None]:
    """Makes an OSError of what a library in Rust, as safetensors is, says of a disk: the error's number is in its text.

    Args:
        path: what is written, for the sentence.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # no common base, and nothing of theirs is imported here
        refused = re.search(r"\(os error (\d+)\)", str(error))
        if refused is None:
            raise
        number = int(refused[1])
        raise OSError(number, os.strerror(number), str(path)) from None


@contextmanager
def _held(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A new working file or folder for `path`, locked until the end of the block or of the process."""
    while True:
        working = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        make(working)
        try:
            descriptor = os.open(working, os.O_RDONLY)
        except FileNotFoundError:  # another process took it for left over before it was locked
            continue
        with suppress(OSError):  # some file systems have no locks: there nothing is taken for left over
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # who takes it for left over holds it until it is gone
        if os.path.exists(working):
            break
        os.close(descriptor)
    try:
        yield working
    finally:
        os.close(descriptor)


def _remove_left(path: Path) -> None:
    """Removes working files and folders for `path` whose process is gone, which nobody holds locked."""
    for working in _workings(path):
        with suppress(OSError):  # it is locked, or its file system has no locks; or it goes away meanwhile
            descriptor = os.open(working, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not working.is_dir():
                    working.unlink()
                    continue
                inside = set(os.listdir(working))
                needed = _PREVIOUS in inside and not os.path.lexists(path)
                if inside and inside <= {path.name, _PREVIOUS} and not needed:
                    shutil.rmtree(working, ignore_errors=True)
            finally:
                os.close(descriptor)


def link_or_copy(source: Path, target: Path) -> None:
    """One file under two names where the file system can, as graphs are large; else a copy."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def existing_directory(path: Path) -> Path | None:
    """The folder last completed at `path` by `atomic_directory`, also after a crash between its renames; else None."""
    if path.is_dir():
        return path
    return next(iter(_abandoned(path)), None)


def _abandoned(path: Path) -> list[Path]:
    """Folders that a process moved aside from `path` before it died, the newest first."""
    return [working / _PREVIOUS for working in _workings(path) if (working / _PREVIOUS).is_dir()]


def _workings(path: Path) -> list[Path]:
    """Working files and folders for `path`, the newest first.

    Only files of this user, and folders of this user which nobody else may enter, were made by the functions above.
    """
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.tmp")
    found = []
    with suppress(OSError):  # no such folder, or it changes while it is read
        for working in (path.with_name(name) for name in os.listdir(path.parent) if pattern.fullmatch(name)):
            status = working.lstat()
            is_private = stat.S_ISDIR(status.st_mode) and not status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
            if status.st_uid == os.geteuid() and (is_private or stat.S_ISREG(status.st_mode)):
                found.append((status.st_mtime_ns, working))
    return [working for _, working in sorted(found, reverse=True)]


def check_is_new(path: Path, flags: str = "--out") -> None:
    """As `check_can_create`; also raises where there is something at `path`, which the flags choose."""
    if path.exists():
        raise ConvMAEError(f"{path} exists already; remove it or choose another {flags}")
    check_can_create(path)


def _check_is_local(path: Path) -> None:
    """Raises ConvMAEError where `path` was made of an address such as s3://bucket/folder, or begins with a ~."""
    if path.parts[:1] == ("~",):
        raise ConvMAEError(f"expected a path to write to, got {path}, whose ~ the shell did not replace; write it out")
    if _ADDRESS.match(str(path)):
        address = str(path).replace(":/", "://", 1)
        raise ConvMAEError(
            f"expected a path on this machine to write to, got {address}; write it here and copy it there"
        )


def check_can_create(path: Path) -> None:
    """Raises ConvMAEError unless something can be made at `path`: before long work, not after it."""
    _check_is_local(path)
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConvMAEError(f"{path} cannot be made: {parent} is not a folder that can be written to; choose another")


def path_inside(folder: Path, name: str) -> Path:
    """The file below `folder` that a name means which was read from a file: it never leads elsewhere.

    By the rules of POSIX and of Windows alike, so that data are judged alike wherever they are read. Links that lie in
    the folder are its owner's and may lead anywhere.

    Raises:
        ConvMAEError: the name is empty, absolute, climbs with "..", or holds control characters.
    """
    parts = re.split(r"[/\\]", name)
    if not parts[0] or ".." in parts or PureWindowsPath(name).drive or _CONTROL_CHARACTERS.search(name):
        raise ConvMAEError(f"a file must be named by its path inside {folder}, without '..'; found {shortened(name)}")
    return folder / name


def as_spelt(folder: Path, name: str) -> Path:
    """The file that a name means which `path_inside` allows, as it is spelt in `folder`; else `folder / name`.

    Systems differ in the form that they give to letters with accents, and tools in the case of a file's ending.
    """
    path = folder / name
    if os.path.isfile(path):
        return path
    spellings = (path.with_suffix(ending) for ending in (path.suffix.lower(), path.suffix.upper()))
    for spelling in (path, *spellings):
        for form in ("NFC", "NFD"):
            found = folder / unicodedata.normalize(form, str(spelling.relative_to(folder)))
            if os.path.isfile(found):
                return found
    return path


def shortened(text: str, length: int = 100) -> str:
    """A text from a file for a sentence, in quotes: what could drive a terminal is escaped, what is long is cut."""
    return repr(text) if len(text) <= length else f"{text[:length]!r} ... ({len(text)} characters)"


def open_regular(path: Path) -> BufferedReader:
    """Opens a file to read it; never waits for a pipe or touches a device.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    try:
        _check_regular(os.stat(path))
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))
    except ValueError:  # a zero byte, or half of a surrogate pair
        raise OSError(errno.EINVAL, "its name cannot be one of a file") from None
    try:
        _check_regular(os.fstat(file.fileno()))  # the name may mean another file by now
    except OSError:
        file.close()
        raise
    return file


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, a device or a socket"
        raise OSError(errno.EINVAL, f"it is {kind}, not a file")


def read_regular(path: Path, limit: int) -> bytes:
    """The content of a regular file.

    Args:
        path: the file.
        limit: how many bytes it may have; a larger one is not read.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"it has {size} bytes, at most {limit} are read")
        return file.read(size)


def read_text(path: Path, limit: int = MAX_JSON_BYTES) -> str:
    """The text of a regular file in UTF-8, without a byte order mark.

    Raises:
        ConvMAEError: it cannot be read, is larger than `limit` bytes, or is no such text.
    """
    try:
        return read_regular(path, limit).decode("utf-8-sig")
    except OSError as error:
        raise ConvMAEError(f"{path} cannot be read ({error.strerror}); check its path and permissions") from None
    except UnicodeDecodeError as error:
        raise ConvMAEError(f"{path} must be text in UTF-8; byte {error.start} is not, save it again as such") from None


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> Any:
    """The content of a JSON file.

    Raises:
        ConvMAEError: it cannot be read, is larger than `limit` bytes, or is no JSON: `NaN` and nesting without end
            are none either.
    """
    text = read_text(path, limit)
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise ConvMAEError(f"{path} is not valid JSON ({reason}); mend it") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
