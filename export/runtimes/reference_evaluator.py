"""onnx's own reference implementation as a runtime: written in NumPy, slow, and there where nothing else is."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from convmae_deploy.backends.base import (
    ComputePrecision,
    Device,
    Feeds,
    GraphSource,
    OpenGraph,
    Outputs,
    Runtime,
)
from convmae_deploy.bundle.manifest import Precision


def open_graph(source: GraphSource, *, optimised: bool = True) -> OpenGraph:
    """A graph, of which nothing is optimised. See `GraphOpener`."""
    import onnx

    from export.runtimes.evaluator import reference_evaluator  # it imports torch

    evaluator = reference_evaluator(onnx.load(source) if isinstance(source, Path) else onnx.load_from_string(source))

    def run_whole(outputs: Sequence[str], feeds: Feeds) -> Outputs:
        with np.errstate(all="ignore"):  # what overflows shows as infinity
            return dict(zip(outputs, evaluator.run(list(outputs), dict(feeds)), strict=True))

    def run(outputs: Sequence[str], feeds: Feeds) -> Outputs:
        lengths = {np.shape(values)[:1] for values in feeds.values()}
        if len(lengths) > 1:  # inputs in the middle of a graph, which are of one image
            return run_whole(outputs, feeds)
        ((batch,),) = lengths
        rows = [
            run_whole(outputs, {name: values[image : image + 1] for name, values in feeds.items()})
            for image in range(batch)  # one by one: some of its operators take no batch
        ]
        return {output: np.concatenate([row[output] for row in rows]) for output in outputs}

    return OpenGraph(tuple(evaluator.input_names), run)


def _problem(device: Device, precision: Precision) -> str | None:
    if precision != "bf16":
        return "onnx's reference evaluator is slow, and ONNX Runtime runs the file"
    return None


def _describe(precision: Precision, computes_in: ComputePrecision | None) -> str:
    import onnx

    return f"onnx {onnx.__version__} reference evaluator"


ONNX_REFERENCE = Runtime(title="ONNX reference", problem=_problem, open_graph=open_graph, describe=_describe)
