"""Whether the weights of a graph are where its bundle says, and are numbers."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convmae_deploy.bundle.graphs.onnx_file import BFLOAT16, DOUBLE, FLOAT, FLOAT16, Weight, map_file
from convmae_deploy.bundle.graphs.protobuf import FormatProblem
from convmae_deploy.bundle.loading import file_inside
from convmae_deploy.bundle.manifest import StoredFile
from convmae_deploy.files import shortened

_CHUNK = 2**20  # values that are looked at together
# Of 16 bits: the largest pattern, without its sign, that is no NaN.
_INFINITY = {FLOAT16: 0x7C00, BFLOAT16: 0x7F80}


def check_weights(weights: Iterable[Weight], folder: Path, listed: Mapping[str, StoredFile]) -> None:
    """Refuses weights in files that nothing vouches for, and weights that are NaN.

    Args:
        weights: of a graph.
        folder: of the bundle.
        listed: the files of weights that the manifest lists for this graph, whose hashes were checked.

    Raises:
        FormatProblem: with the name of the weight.
        BundleError: a listed name leads out of the folder.
    """
    files = {name: map_file(file_inside(folder, name)) for name in listed}
    for weight in weights:
        data = weight.data
        if weight.external is not None:
            name, first, size = weight.external.file, weight.external.offset, weight.external.length
            if name not in files:
                raise FormatProblem(
                    f"its weight {shortened(weight.name)} is in the file {shortened(name)}, which the manifest does "
                    "not list for it"
                )
            if first + size > len(files[name]):
                raise FormatProblem(f"its weight {shortened(weight.name)} ends behind the end of {shortened(name)}")
            data = files[name][first : first + size]
        if data is not None and holds_nan(weight.type, data):
            raise FormatProblem(f"its weight {shortened(weight.name)} holds NaN, which is no number")


def holds_nan(kind: int, data: memoryview) -> bool:
    """Whether values of a type, little-endian, are not all numbers; infinity is one."""
    return any(chunk.any() for chunk in _nan_of(kind, data))


def _nan_of(kind: int, data: memoryview) -> Iterator[NDArray[np.bool_]]:
    if kind in (FLOAT, DOUBLE):
        values = np.frombuffer(data, "<f4" if kind == FLOAT else "<f8")
        yield from (np.isnan(values[start : start + _CHUNK]) for start in range(0, len(values), _CHUNK))
    elif kind in _INFINITY:
        bits = np.frombuffer(data, "<u2")
        yield from ((bits[start : start + _CHUNK] & 0x7FFF) > _INFINITY[kind] for start in range(0, len(bits), _CHUNK))
