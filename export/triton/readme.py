"""What stands beside a model in a Triton repository: how clients prepare its input and read its outputs."""

from convmae_deploy.bundle.manifest import Manifest, OutputSpec
from convmae_deploy.printing import printable
from convmae_deploy.tasks import task_of
from export.triton.source import TritonSource

DATA_TYPES = {"float32": "FP32", "int64": "INT64", "uint8": "UINT8"}  # as clients write them


def readme(name: str, manifest: Manifest, source: TritonSource) -> str:
    """The text of a model's README.

    Args:
        name: of the model in Triton.
        manifest: of the bundle.
        source: what Triton runs.
    """
    spec = manifest.input
    steps = manifest.preprocessing.steps()
    steps.append(
        f"Send it as `{spec.name}`, {DATA_TYPES[spec.dtype]}, shape ({shape_in_words(spec.shape)}), "
        f"B from 1 to {source.max_batch}."
    )
    if spec.sides is not None and source.engine is None:
        steps.append(
            f"The graph takes every shape {spec.in_words}, all photos of a request alike; of larger ones send fewer at "
            "once. What maps then have for each of their cells stays, so that their last two axes grow too."
        )
    classes = f"{len(manifest.classes)} classes (`labels.txt`)" if manifest.classes else "no classes"
    lines = [
        f"# {name}",
        "",
        f"ConvMAE, {printable(manifest.variant)}, {manifest.task}, {classes}. "
        f"Weights: {printable(manifest.licence.name)}. {verified(source)}",
        "",
        "    tritonserver --model-repository=THE_FOLDER_ABOVE_THIS_ONE",
        "",
        "## Before the request",
        "",
        "Triton changes no pixels; the client does this:",
        "",
        *(f"{number}. {step}" for number, step in enumerate(steps, start=1)),
        "",
        "The same numbers are the parameter `preprocessing` of the model's configuration "
        f"(`/v2/models/{name}/config`), as JSON. In Python, where `spec` is "
        f"`convmae_deploy.bundle.manifest.{type(manifest.preprocessing).__name__}.model_validate_json(parameter)`, "
        f"`convmae_deploy.tasks.{task_of(manifest).PREPROCESSED_BY}",
        "",
        "## The outputs",
        "",
        "| name | type | shape | |",
        "|---|---|---|---|",
        *(output_row(output, described, manifest) for output, described in manifest.outputs.items()),
        "",
        task_of(manifest).CLIENT_STEPS,
        "",
    ]
    return "\n".join(lines)


def verified(source: TritonSource) -> str:
    """What the bundle says of the graph's numbers, and what an engine needs."""
    numerics, precision = source.description.numerics, source.description.precision
    if numerics is None:
        graph = "The graph was never verified against PyTorch."
    else:
        outcome = "was verified" if numerics.passed else "FAILED its verification"
        graph = f"The graph ({precision}) {outcome} against {numerics.reference}, run by {numerics.runtime}."
    engine = source.engine
    if engine is None:
        return graph
    gpus = " or ".join(engine.compute_capabilities) + (" or more" if engine.newer_gpus else "")
    version = f"version {engine.tensorrt_version}"
    if engine.version_compatible:
        version += " or later of the same major version, started with --backend-config=tensorrt,version-compatible=true"
    return (
        f"{graph} What runs is a TensorRT engine built from it ({engine.graph}): it needs a GPU of compute capability "
        f"{gpus} and a Triton with TensorRT of {version}."
    )


def output_row(name: str, described: OutputSpec, manifest: Manifest) -> str:
    """A line of the table."""
    note = task_of(manifest).OUTPUT_WORDS.get(name, "")
    if not note and described.stride is not None:
        note = f"feature map, {described.stride} pixels a cell"
    return f"| `{name}` | {DATA_TYPES[described.dtype]} | ({shape_in_words(described.shape or (1,))}) | {note} |"


def shape_in_words(shape: tuple[int, ...]) -> str:
    """With the batch axis."""
    return ", ".join(map(str, ("B", *shape)))
