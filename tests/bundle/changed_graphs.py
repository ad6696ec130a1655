"""The tiny classifier's bundle with other last layers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from convmae_deploy.files import sha256_of
from tests.bundle_factory import CHANNELS, make_bundle

Change = Callable[[onnx.GraphProto], None]


def changed(path: Path, change: Change, **save: Any) -> Path:
    """The tiny bundle with another graph."""
    make_bundle(path)
    model = onnx.load(path / "model.onnx")
    change(model.graph)
    _sort(model.graph)
    onnx.save(model, path / "model.onnx", **save)
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    described = manifest["files"]["model.onnx"]
    for name, entry in [("model.onnx", described)] + [(name, {}) for name in save.get("location", "").split()]:
        entry |= {"sha256": sha256_of(path / name), "bytes": (path / name).stat().st_size}
        if name != "model.onnx":
            described["weights"] = {name: entry}
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return path


def replace_nodes(
    graph: onnx.GraphProto, operators: tuple[str, ...], nodes: list[onnx.NodeProto], **weights: Any
) -> None:
    """Puts nodes in the place of those of some operators, at the end."""
    for node in [node for node in graph.node if node.op_type in operators]:
        graph.node.remove(node)
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())


def pool_one_cell(graph: onnx.GraphProto) -> None:
    """The first cell in the place of the mean over all, as a probe of the authors takes it."""
    nodes = [
        helper.make_node("Reshape", ["e3", "flat"], ["tokens"]),
        helper.make_node("Gather", ["tokens", "first"], ["pooled"], axis=2),
    ]
    places = {"flat": np.array([0, CHANNELS[2], -1]), "first": np.array(0)}
    replace_nodes(graph, ("GlobalAveragePool", "Flatten"), nodes, **places)


def with_token_pooling(path: Path) -> Path:
    """A bundle whose head stands on the first cell."""
    return changed(path, pool_one_cell)


def _sort(graph: onnx.GraphProto) -> None:
    """Puts each node behind those that make its inputs."""
    maker = {output: node for node in graph.node for output in node.output}
    done: list[onnx.NodeProto] = []

    def visit(node: onnx.NodeProto) -> None:
        for source in node.input:
            if source in maker and maker[source] not in done:
                visit(maker[source])
        if node not in done:
            done.append(node)

    for node in list(graph.node):
        visit(node)
    del graph.node[:]
    graph.node.extend(done)
