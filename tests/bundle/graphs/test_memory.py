"""The bound holds for every order of the nodes, and is near what is needed where graphs are like ours."""

from collections.abc import Iterator

import numpy as np
import pytest

from convmae_deploy.bundle.graphs import memory
from convmae_deploy.bundle.graphs.memory import MemoryBound
from convmae_deploy.bundle.graphs.onnx_file import Node, OnnxGraph

Edges = list[tuple[int, ...]]  # of each node, those whose tensors it reads; -1: the input


def graph_of(edges: Edges, outputs: tuple[int, ...]) -> OnnxGraph:
    def name(place: int) -> str:
        return "x" if place < 0 else f"t{place}"

    nodes = tuple(Node("", "Sum", tuple(map(name, sources)), (name(place),), {}) for place, sources in enumerate(edges))
    return OnnxGraph(20, nodes, {}, (), tuple(map(name, outputs)))


def bound(edges: Edges, sizes: list[int], outputs: tuple[int, ...]) -> int:
    graph = graph_of(edges, outputs)
    found = MemoryBound(graph)
    for place, node in enumerate(graph.nodes):
        found.add(place, node.inputs, {node.outputs[0]: sizes[place]})
    return found.bytes


def orders(edges: Edges, done: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """All in which nodes can run."""
    if len(done) == len(edges):
        yield done
    for place, sources in enumerate(edges):
        if place not in done and all(source < 0 or source in done for source in sources):
            yield from orders(edges, (*done, place))


def needed(edges: Edges, sizes: list[int], outputs: tuple[int, ...], order: tuple[int, ...]) -> int:
    """Most at a time where each tensor is let go after the last node that reads it."""
    readers = {place: {reader for reader, sources in enumerate(edges) if place in sources} for place in order}
    alive: set[int] = set()
    most = 0
    for step, place in enumerate(order):
        alive.add(place)
        most = max(most, sum(sizes[item] for item in alive))
        done = set(order[: step + 1])
        alive = {item for item in alive if item in outputs or not readers[item] <= done}
    return most


@pytest.mark.parametrize("seed", range(20))
def test_no_order_needs_more(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SMALL_BYTES", 3)
    random = np.random.default_rng(seed)
    edges: Edges = [(-1,)]
    for place in range(1, 7):
        count = int(random.integers(1, 3))
        edges.append(tuple(int(source) for source in random.integers(-1, place, size=count)))
    sizes = [int(size) for size in random.integers(1, 20, size=len(edges))]
    most = max(needed(edges, sizes, (6,), order) for order in orders(edges))
    assert most <= bound(edges, sizes, (6,)) <= sum(sizes)


def test_of_a_line_of_nodes_two_tensors_are_there_at_a_time() -> None:
    edges: Edges = [(place - 1,) for place in range(50)]
    assert bound(edges, [10**6] * 50, (49,)) == 2 * 10**6


def test_a_skip_over_a_block_is_one_more() -> None:
    edges: Edges = [(-1,)]
    for place in range(1, 61, 3):  # two nodes, then their sum with what went in
        edges += [(place - 1,), (place,), (place + 1, place - 1)]
    assert bound(edges, [10**6] * len(edges), (len(edges) - 1,)) == 3 * 10**6


def test_what_is_never_read_is_there_once() -> None:
    edges: Edges = [(-1,), (0,), (0,), (0,)]
    assert bound(edges, [10**6] * 4, (3,)) <= 4 * 10**6


def test_small_tensors_count_as_if_they_stayed() -> None:
    edges: Edges = [(place - 1,) for place in range(50)]
    assert bound(edges, [1000] * 50, (49,)) == 50_000
