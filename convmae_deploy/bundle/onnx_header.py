"""The operator-set version of an ONNX file, for whoever asks for nothing else."""

from pathlib import Path

from convmae_deploy.bundle.graphs.onnx_file import read_graph
from convmae_deploy.bundle.graphs.protobuf import FormatProblem


def read_opset(path: Path) -> int | None:
    """Version of the default operator set that the model at `path` imports; None when the file is no ONNX model."""
    try:
        return read_graph(path).opset
    except FormatProblem:
        return None
