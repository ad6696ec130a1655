"""The last layers of a classifier, read from its graph: the mean over all cells, a norm, a linear head.

Whatever file of a bundle is run, on whatever runtime, its first graph is read: the others were made of the same
weights, and an engine does not say its own.

Shapes: D channels of a cell, K classes.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from convmae_deploy.bundle.graphs.onnx_file import (
    BFLOAT16,
    FLOAT,
    FLOAT16,
    Node,
    OnnxGraph,
    Weight,
    map_file,
    read_graph,
)
from convmae_deploy.bundle.graphs.protobuf import FormatProblem
from convmae_deploy.bundle.loading import Bundle, BundleError, file_inside

MEANS: Final = ("ReduceMean", "GlobalAveragePool")
_SAME_VALUES: Final = ("Cast", "Identity")
_SAME_ORDER: Final = (*_SAME_VALUES, "Reshape", "Flatten", "Squeeze", "Unsqueeze")  # of values
_DTYPES: Final[dict[int, str]] = {FLOAT: "<f4", FLOAT16: "<f2"}


class OtherHead(Exception):
    """The graph ends in other layers; the message is a clause that says in which."""


@dataclass(frozen=True)
class Norm:
    """A LayerNorm over the channels."""

    scale: NDArray[np.float64]  # (D,)
    shift: NDArray[np.float64]  # (D,)
    epsilon: float  # added to the variance


@dataclass(frozen=True)
class PooledHead:
    """What makes logits of the mean over all cells."""

    norm: Norm | None
    weight: NDArray[np.float64]  # (K, D)
    bias: NDArray[np.float64]  # (K,)


def read_pooled_head(bundle: Bundle, cells: str, logits: str) -> PooledHead:
    """The head of a classifier that takes the mean over its cells.

    Args:
        bundle: whose first graph is read.
        cells: the output that is averaged.
        logits: the output that the head gives.

    Raises:
        OtherHead: the graph makes the logits in another way.
        BundleError: the graph cannot be read.
    """
    path, description = bundle.graph()
    try:
        graph = read_graph(path)
        return _Walk(graph, bundle.path, tuple(description.weights)).head(cells, logits)
    except FormatProblem as problem:
        raise BundleError(f"convmae_deploy cannot read {path}: {problem}; export it again") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}); check its permissions") from error


class _Walk:
    """From the logits back to the cells."""

    def __init__(self, graph: OnnxGraph, folder: Path, listed: tuple[str, ...]) -> None:
        self._weights, self._folder, self._listed = graph.weights, folder, listed
        self._makers = {output: node for node in graph.nodes for output in node.outputs}

    def head(self, cells: str, logits: str) -> PooledHead:
        """See `read_pooled_head`."""
        hidden, weight, bias = self._linear(logits)
        norm, name = None, self._source(hidden)
        maker = self._makers.get(name)
        if maker is not None and maker.operator == "LayerNormalization":
            scale, shift = (self._values(name) for name in (*maker.inputs[1:3], "")[:2])
            epsilon = maker.attributes.get("epsilon", 1e-5)
            assert isinstance(epsilon, float) and scale is not None
            norm = Norm(scale, np.zeros_like(scale) if shift is None else shift, epsilon)
            name = maker.inputs[0]
        mean = self._makers.get(self._source(name, _SAME_ORDER))
        if mean is None or mean.operator not in MEANS:
            found = "nothing" if mean is None else mean.operator
            raise OtherHead(f"its head stands on {found}, not on the mean over all cells of {cells}")
        if self._source(mean.inputs[0], _SAME_ORDER) != self._source(cells):
            raise OtherHead(f"its head stands on the mean of something else than {cells}")
        return PooledHead(norm, weight, np.zeros(len(weight)) if bias is None else bias)

    def _linear(self, logits: str) -> tuple[str, NDArray[np.float64], NDArray[np.float64] | None]:
        """Input, weight (K, D) and bias (K,) of the layer that gives the logits."""
        maker = self._makers.get(self._source(logits))
        bias = None
        if maker is not None and maker.operator == "Add":
            biases = [name for name in maker.inputs if self._source(name) in self._weights]
            others = [name for name in maker.inputs if name not in biases]
            if len(biases) == len(others) == 1:
                bias, maker = self._values(biases[0]), self._makers.get(self._source(others[0]))
        if maker is None or maker.operator not in ("Gemm", "MatMul"):
            raise OtherHead("its logits are not made by a linear layer")
        weight = self._values(maker.inputs[1])
        if weight is None or weight.ndim != 2:
            raise OtherHead("the weights of its last layer are not in the graph as numbers")
        if maker.operator == "Gemm":
            _check_plain(maker)
            bias = self._values(maker.inputs[2]) if len(maker.inputs) > 2 else bias
        transposed = maker.operator == "Gemm" and maker.attributes.get("transB", 0)
        return maker.inputs[0], weight if transposed else weight.T, None if bias is None else bias.reshape(-1)

    def _source(self, name: str, through: tuple[str, ...] = _SAME_VALUES) -> str:
        """The first tensor with the same values: what an operation of `through` was given."""
        while (maker := self._makers.get(name)) is not None and maker.operator in through:
            name = maker.inputs[0]
        return name

    def _values(self, name: str) -> NDArray[np.float64] | None:
        """Those of a weight; None where it is none, or of a type that is not known here."""
        weight = self._weights.get(self._source(name))
        if weight is None or weight.type not in (*_DTYPES, BFLOAT16):
            return None
        data = weight.data if weight.external is None else self._outside(weight)
        if data is None:
            return None
        if weight.type == BFLOAT16:  # the upper half of a float32
            numbers: NDArray[Any] = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
        else:
            numbers = np.frombuffer(data, _DTYPES[weight.type])
        return numbers[: math.prod(weight.shape)].reshape(weight.shape).astype(np.float64)

    def _outside(self, weight: Weight) -> memoryview | None:
        """The bytes of a weight in a file of its own, of those that the manifest lists."""
        place = weight.external
        if place is None or place.file not in self._listed:
            return None
        content = map_file(file_inside(self._folder, place.file))
        return content[place.offset : place.offset + place.length]


def _check_plain(gemm: Node) -> None:
    factors = gemm.attributes.get("alpha", 1.0), gemm.attributes.get("beta", 1.0), gemm.attributes.get("transA", 0)
    if factors != (1.0, 1.0, 0):
        raise OtherHead("its last layer is scaled")
