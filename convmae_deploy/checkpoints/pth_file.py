"""A `.pth` file of a stranger, read without running anything in it and without taking more than the file is large.

PyTorch's own reader, given `weights_only`, makes nothing but tensors, plain containers and the types allowed here. What
it does not bound is looked at before it reads:

- A `.pth` file is a zip archive whose entries are stored as they are. Packed ones could be a thousand times as large.
- It holds a pickle, whose tuples may be nested, or hold one another again and again, until comparing two never ends.
- A tensor may claim any shape over a storage of one value; together they must not be larger than the file.
"""

import argparse
import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterable
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import open_regular

MAX_ENTRIES = 100_000  # files in the archive: a tensor each
MAX_OPERATIONS = 1_000_000  # in the pickle: some dozens a tensor
MAX_TUPLE_DEPTH, MAX_TUPLE_SIZE = 50, 100_000
# What a checkpoint may name. PyTorch allows more, some of which takes any memory: bytearray(10**12), or a set of a
# tensor that shows one value 10**9 times.
_NAMES = re.compile(
    r"torch (?:[A-Z]\w*Storage|[a-z]\w*)|torch\.storage UntypedStorage|torch\._utils _rebuild_(?:tensor_v2|parameter)"
    r"|collections OrderedDict|argparse Namespace|pathlib(?:\._local)? (?:Posix|Windows)Path"
)
_FILLED_LATER = "collections OrderedDict"  # called without arguments; what it holds follows
LEGACY_PICKLES = 5  # of a file of PyTorch before 1.6, which is no archive: numbers, the content, names of storages
LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_ARCHIVE_START = b"PK\x03\x04"
_PATHS = [f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")]
# Of the authors' training scripts: their arguments, which hold paths where the documented way to start them was taken.
# A path is text here, and means no file.
ALLOWED: list[Any] = [argparse.Namespace, *((PurePosixPath, name) for name in _PATHS)]
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_DTYPES = (*_FLOATS, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)


class _Part(NamedTuple):
    """What an operation of a pickle leaves on the stack."""

    size: int
    depth: int
    kind: str  # what was named, else the operation that made it


class _Suspicious(Exception):
    """Why a file is not read, as a clause."""


def load_without_code(source: Path) -> Any:
    """The content of a .pth file, built from an allow-list of types; nothing in the file runs.

    Raises:
        ConvMAEError: it is no such file, damaged, needs code to be read, or claims to hold more than it does.
    """
    if not source.is_file():
        found = "a folder" if source.is_dir() else "nothing there" if not os.path.lexists(source) else "no plain file"
        raise ConvMAEError(f"{source} must be a file that PyTorch wrote; found {found}")
    if source.suffix == ".safetensors":
        raise ConvMAEError(f"{source} is part of a checkpoint; give the folder that it lies in")
    try:
        _check(source)
        with torch.serialization.safe_globals(ALLOWED):
            return torch.load(source, map_location="cpu", weights_only=True)
    except _Suspicious as problem:
        raise ConvMAEError(
            f"{source} is not a checkpoint as PyTorch writes it: {problem}; save its weights again, as a state dict"
        ) from None
    except Exception as error:  # damaged bytes raise whatever the unpickler meets first, of many types
        forbidden = re.search(r"GLOBAL (\S+) (?:was not an allowed global|whose module)", str(error))
        if forbidden:
            raise ConvMAEError(
                f"{source} would have to run {forbidden[1]} to be read, and nothing in a checkpoint may run; save its "
                "weights alone, as a state dict"
            ) from None
        raise ConvMAEError(
            f"{source} is not a readable PyTorch checkpoint ({type(error).__name__}); check that it is one and whole, "
            "and no pointer of Git LFS, for which `git lfs pull` fetches it"
        ) from None


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is an array of numbers in memory, as all weights are."""
    placed = tensor.layout == torch.strided and tensor.device.type == "cpu"
    return placed and tensor.dtype in _DTYPES and not tensor.is_quantized


def check_plain(tensors: Iterable[tuple[str, Tensor]], source: Path) -> None:
    """Refuses tensors that are no array of numbers, or that show the values of a file again and again.

    Raises:
        ConvMAEError: with the name of the first such.
    """
    total, largest = 0, 2 * source.stat().st_size  # a few tensors may share their values
    for name, tensor in tensors:
        if not is_plain(tensor):
            raise ConvMAEError(
                f"{source} must hold tensors of plain numbers; found {name}, {tensor.dtype} {tensor.layout} on "
                f"{tensor.device}: save its weights again, as a state dict"
            )
        total += tensor.numel() * tensor.element_size()
        if total > largest:
            raise ConvMAEError(
                f"{source} claims more values than it has bytes for, first in {name} of the shape "
                f"{tuple(tensor.shape)}; save its weights again, as a state dict"
            )


def _check(source: Path) -> None:
    """Looks at what PyTorch does not bound.

    Raises:
        _Suspicious: it is not as PyTorch writes it.
        Exception: it is damaged; of many types.
    """
    with open_regular(source) as file:
        start = file.read(len(LEGACY_START))
        file.seek(0)
        if start.startswith(_ARCHIVE_START):
            _check_archive(file)
        elif start == LEGACY_START:
            for _ in range(LEGACY_PICKLES):
                _check_pickle(file)
        else:
            raise ValueError("no checkpoint")


def _check_archive(file: BufferedReader) -> None:
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if len(entries) > MAX_ENTRIES or len({entry.filename for entry in entries}) != len(entries):
            raise _Suspicious("it has very many files, or two of one name")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise _Suspicious("what it holds is packed")
        if sum(entry.file_size for entry in entries) > size:
            raise _Suspicious("its files overlap")
        pickles = [entry for entry in entries if PurePosixPath(entry.filename).name == "data.pkl"]
        if len(pickles) != 1:
            raise _Suspicious(f"it has {len(pickles)} files data.pkl")
        with archive.open(pickles[0]) as content:
            _check_pickle(content)


def _check_pickle(file: IO[bytes]) -> None:
    """Follows a pickle's operations without making anything, and measures its tuples.

    Raises:
        _Suspicious: it is without end, or would make something of a tensor's values one by one.
        pickle.UnpicklingError: it names what no checkpoint needs.
    """
    stack: list[_Part | None] = []  # None: a mark
    memo: dict[int, _Part | None] = {}
    for count, (operation, argument, _) in enumerate(pickletools.genops(file)):
        if count > MAX_OPERATIONS:
            raise _Suspicious("its description is without end")
        name = operation.name
        if name == "GLOBAL" and not _NAMES.fullmatch(str(argument)):
            raise pickle.UnpicklingError(f"GLOBAL {str(argument).replace(' ', '.')} was not an allowed global")
        if "PUT" in name or name == "MEMOIZE":
            memo[argument if isinstance(argument, int) else len(memo)] = stack[-1]
            continue
        if "GET" in name and isinstance(argument, int):
            stack.append(memo[argument])
            continue
        taken = _taken(stack, operation)
        called = name in ("REDUCE", "NEWOBJ") and taken[-1].kind == _FILLED_LATER and taken[0].kind != "EMPTY_TUPLE"
        if called or (name == "BUILD" and taken[0].kind == "REDUCE"):
            raise _Suspicious("it makes a container of something else than its entries")
        size, depth = 1 + sum(part.size for part in taken), 1 + max((part.depth for part in taken), default=0)
        if name.startswith("TUPLE") and (size > MAX_TUPLE_SIZE or depth > MAX_TUPLE_DEPTH):
            raise _Suspicious("its description is nested without end")
        made = _Part(size, depth, str(argument) if name == "GLOBAL" else name)
        stack += [None if kind is pickletools.markobject else made for kind in operation.stack_after]


def _taken(stack: list[_Part | None], operation: pickletools.OpcodeInfo) -> list[_Part]:
    """What an operation takes from the stack."""
    taken: list[_Part] = []
    before = list(operation.stack_before)
    if pickletools.markobject in before:
        while (part := stack.pop()) is not None:
            taken.append(part)
        before = before[: before.index(pickletools.markobject)]
    for _ in before:
        part = stack.pop()
        if part is not None:
            taken.append(part)
    return taken
