"""The most that the tensors of a graph take at a time, in whatever order a runtime runs its nodes.

Two tensors are never there together where all that reads the first has run before the second can be made. Tensors of
which this holds for each two that follow one another make a chain, and of a chain there is one at a time. So the
largest tensor of each chain, all added up, is a bound; for the graphs of this project it is about twice what is really
needed.
"""

from collections import defaultdict
from dataclasses import dataclass

from convmae_deploy.bundle.graphs.onnx_file import OnnxGraph

SMALL_BYTES = 2**16  # smaller tensors are counted as if they stayed for ever: less to look through


@dataclass
class _Chain:
    largest: int  # bytes
    readers: int  # who reads the last tensor, a bit for each node


class MemoryBound:
    """Counts tensors as they are made, in the order of the file."""

    def __init__(self, graph: OnnxGraph) -> None:
        self._readers: defaultdict[str, int] = defaultdict(int)  # name of a tensor -> a bit for each node
        for index, node in enumerate(graph.nodes):
            for name in node.inputs:
                self._readers[name] |= 1 << index
        for name in graph.outputs:
            self._readers[name] |= 1 << len(graph.nodes)  # whoever asked for it, after all nodes
        self._earlier: dict[str, int] = {}  # name of a tensor -> the nodes that ran once it is there, a bit for each
        self._chains: list[_Chain] = []
        self._small = 0

    @property
    def bytes(self) -> int:
        """The bound for what was added so far."""
        return self._small + sum(chain.largest for chain in self._chains)

    def add(self, index: int, inputs: tuple[str, ...], outputs: dict[str, int]) -> None:
        """Takes note of a node.

        Args:
            index: its place in the file.
            inputs: names of the tensors that it reads.
            outputs: names of those that it makes -> bytes.
        """
        before = 0
        for name in inputs:
            before |= self._earlier.get(name, 0)
        for name, size in outputs.items():
            self._earlier[name] = before | 1 << index
            if size < SMALL_BYTES:
                self._small += size
            else:
                self._put(size, self._readers[name] or 1 << index, before)

    def _put(self, size: int, readers: int, before: int) -> None:
        """Into the chain that grows least by it, of those whose last tensor is gone for sure."""
        free = [chain for chain in self._chains if not chain.readers & ~before]
        if not free:
            self._chains.append(_Chain(size, readers))
            return
        chain = min(free, key=lambda chain: (max(0, size - chain.largest), chain.largest))
        chain.largest, chain.readers = max(chain.largest, size), readers
