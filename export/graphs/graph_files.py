"""Graphs in files: in the oldest form that their operators allow, and packed only when they are valid."""

from collections.abc import Collection
from pathlib import Path

import onnx

from convmae_deploy.errors import ConvMAEError
from export.graphs.to_onnx import without_outputs

MAX_REASON = 300  # characters of what the checker says, which may repeat a node with all that is in it


def write_graph(model: onnx.ModelProto, path: Path, *, leave_out: Collection[str] = ()) -> None:
    """Writes a graph; its IR version becomes the lowest that has its operators, as older runtimes refuse newer ones.

    Args:
        model: the graph.
        path: the file.
        leave_out: outputs that the file is not to give.
    """
    written = without_outputs(model, leave_out)
    written.ir_version = onnx.helper.find_min_ir_version_for(list(written.opset_import))
    onnx.save(written, path)


def check_valid(path: Path) -> None:
    """Holds a file against the standard, the types and shapes of every node included.

    Raises:
        ConvMAEError: it is no valid ONNX.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = " ".join(str(error).split())[:MAX_REASON]
        raise ConvMAEError(
            f"{path.name} is not valid ONNX ({reason}); choose another --precision or --opset, and report this"
        ) from None
