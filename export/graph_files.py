"""Graphs in files: in the oldest form that their operators allow, and packed only when they are valid.

Weights beyond what one file holds are in a second one, NAME.onnx.data. In memory such a graph is an outline: each
weight says by an absolute path where its values are, so that it is copied, cut and looked at like any other graph,
whatever its size. In a file it says the name alone, which is all that the standard allows.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import onnx
from onnx.external_data_helper import uses_external_data

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import link_or_copy

NO_METADATA: Mapping[str, str] = {}
MAX_REASON = 300  # characters of what the checker says, which may repeat a node with all that is in it


def read_model(path: Path) -> onnx.ModelProto:
    """The graph of a file; values in a second file stay there."""
    model = onnx.load(path, load_external_data=False)
    for entry in _locations(model):
        entry.value = str(path.resolve().with_name(entry.value))
    return model


def write_graph(
    model: onnx.ModelProto,
    path: Path,
    *,
    leave_out: Collection[str] = (),
    metadata: Mapping[str, str] = NO_METADATA,
) -> None:
    """Writes a graph, whose IR version becomes the lowest that has its operators, as older runtimes refuse newer ones.

    Args:
        model: the graph.
        path: the file; values that are in a file elsewhere are put beside it.
        leave_out: outputs that the file is not to give.
        metadata: what it says of itself.
    """
    written = without_outputs(model, leave_out)
    written.ir_version = onnx.helper.find_min_ir_version_for(list(written.opset_import))
    for file in files_of_weights(model):
        if file.parent != path.parent.resolve():
            link_or_copy(file, path.with_name(file.name))
    for entry in _locations(written):
        entry.value = Path(entry.value).name
    onnx.helper.set_model_props(written, dict(metadata))
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


def without_outputs(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """A copy of a graph that does not give the outputs of these names."""
    fewer = onnx.ModelProto()
    fewer.CopyFrom(model)
    del fewer.graph.output[:]
    fewer.graph.output.extend(output for output in model.graph.output if output.name not in names)
    return fewer


def files_of_weights(model: onnx.ModelProto) -> list[Path]:
    """The files besides its own that a graph has values in, each once."""
    return list(dict.fromkeys(Path(entry.value) for entry in _locations(model)))


def _locations(model: onnx.ModelProto) -> Iterator[onnx.StringStringEntryProto]:
    """What says in which file the values of a weight are."""
    for tensor in model.graph.initializer:
        if uses_external_data(tensor):
            yield from (entry for entry in tensor.external_data if entry.key == "location")
