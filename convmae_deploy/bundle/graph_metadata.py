"""What a graph says of itself: its model's description in the file, for whoever has the `.onnx` without its bundle.

ONNX keeps pairs of texts in a model (`metadata_props`), which every runtime shows and none acts on. One, `convmae`,
holds the description as JSON. The others say the most of it by the keys that exports of ultralytics made common, in
their form: Python literals, `names` as a dictionary by index (github.com/ultralytics/ultralytics, engine/exporter.py).
Their words for tasks are not taken over, as who acts on those expects outputs that are others.

What is read back is data of a stranger: bounded, parsed as JSON, never run, and no reason to believe anything.
"""

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from convmae_deploy.bundle.graphs.onnx_file import ModelHeader, read_header
from convmae_deploy.bundle.graphs.protobuf import FormatProblem
from convmae_deploy.bundle.loading import BundleError, in_words, strict_json
from convmae_deploy.bundle.manifest import STRIDE, Description, Precision

KEY = "convmae"


@dataclass(frozen=True)
class GraphMetadata:
    """What stands in an ONNX file besides its graph."""

    header: ModelHeader
    description: Description | None  # None: there is none of ours

    @property
    def others(self) -> dict[str, str]:
        """The pairs that are not the description."""
        return {key: value for key, value in self.header.metadata.items() if key != KEY}


def metadata_of(description: Description, precision: Precision) -> dict[str, str]:
    """The pairs of a graph's file.

    Args:
        description: of the model; of a manifest, what is no list of files.
        precision: of the graph.
    """
    height, width = description.preprocessing.input_size
    return {
        KEY: description.model_dump_json(include=set(Description.model_fields)),
        "description": f"ConvMAE {description.variant}, {description.task}: {description.name}",
        "task": description.task,
        "precision": precision,
        "license": description.licence.name,
        "names": str(dict(enumerate(description.classes))),
        "imgsz": str([height, width]),
        "channels": "3",
        "stride": str(STRIDE),
        "batch": str(description.input.max_batch),
    }


def read_metadata(path: Path) -> GraphMetadata:
    """What a file says of itself; its graph is not looked at, and nothing of it is run.

    Raises:
        BundleError: it is no ONNX file, or its description is none that this release reads.
    """
    try:
        header = read_header(path)
        text = header.metadata.get(KEY)
        fields = None if text is None else strict_json(text.encode("utf-8"))
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    except FormatProblem as problem:
        raise BundleError(f"{path} must be an ONNX model, but {problem}; check the path") from None
    except (ValueError, RecursionError) as error:
        raise BundleError(
            f"the metadata {KEY!r} of {path} must be JSON, but it is not ({error}); export it again"
        ) from None
    if text is None:
        return GraphMetadata(header, None)
    try:
        return GraphMetadata(header, Description.model_validate(fields))
    except ValidationError as error:
        raise BundleError(
            f"the metadata {KEY!r} of {path} is no description that this release reads: {in_words(error)}; install a "
            "newer convmae_deploy, or export it again"
        ) from None
