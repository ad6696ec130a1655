"""An ensemble that takes photos as files: Triton's Python backend decodes and prepares them, then the graph runs.

Beside the model NAME there are NAME-prepare, whose model.py is this package's own code at work, and NAME-photos, the
ensemble of the two. The tests run model.py with a stand-in for Triton's module; no Triton server has loaded them here.
"""

from pathlib import Path

from convmae_deploy.bundle.manifest import Manifest
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks import task_of
from export.triton.pbtxt import block, dims, entry, parameter_blocks, quoted, tensor_fields
from export.triton.source import TritonSource

ENCODED = "encoded"  # as our own server calls the input for files
PREPARE, PHOTOS = "-prepare", "-photos"  # what the names of the two models end in
MODEL_NAME = "model.py"  # what the Python backend looks for
MODEL = Path(__file__).with_name("prepare_model.py")


def check_takes_photos(manifest: Manifest) -> None:
    """Raises ConvMAEError where a photo is not one row of the graph's input."""
    task = task_of(manifest)
    if task.MEDIUM != "photo" or task.ONE_BY_ONE:
        raise ConvMAEError(
            f"--photos is for models that run a photo at once; a {manifest.task} model makes several rows of each "
            "file, so leave it out and prepare them in the client, or serve with python -m serving"
        )


def prepare_config(name: str, manifest: Manifest, source: TritonSource, instances: int) -> str:
    """The configuration of the first step, NAME-prepare."""
    lines = [
        f"name: {quoted(name + PREPARE)}",
        'backend: "python"',
        f"max_batch_size: {source.max_batch}",
        *block("input", _files()),
        *block("output", tensor_fields(manifest.input.name, manifest.input.dtype, manifest.input.shape)),
        *block("instance_group", [f"count: {instances}", "kind: KIND_CPU"]),
        *parameter_blocks({"task": manifest.task, "preprocessing": manifest.preprocessing.model_dump_json()}),
    ]
    return "\n".join(lines) + "\n"


def ensemble_config(name: str, manifest: Manifest, source: TritonSource) -> str:
    """The configuration of NAME-photos."""
    image = manifest.input.name
    lines = [
        f"name: {quoted(name + PHOTOS)}",
        'platform: "ensemble"',
        f"max_batch_size: {source.max_batch}",
        *block("input", _files()),
    ]
    for output, described in manifest.outputs.items():
        lines += block("output", tensor_fields(output, described.dtype, described.shape, reshaped=False))
    steps = (
        (name + PREPARE, [entry("input_map", ENCODED, quoted(ENCODED)), entry("output_map", image, quoted(image))]),
        (
            name,
            [
                entry("input_map", image, quoted(image)),
                *(entry("output_map", output, quoted(output)) for output in manifest.outputs),
            ],
        ),
    )
    scheduling = [
        line
        for model, maps in steps
        for line in block("step", [f"model_name: {quoted(model)}", "model_version: -1", *maps])
    ]
    return "\n".join([*lines, *block("ensemble_scheduling", scheduling)]) + "\n"


def photos_readme(name: str) -> str:
    """What stands beside the ensemble."""
    return f"""# {name}{PHOTOS}

Takes photos as files: `{ENCODED}`, BYTES (B, 1). `{name}{PREPARE}` decodes and prepares them as the bundle says, with
the code of convmae_deploy, which the server's Python needs: `pip install` its wheel there, or in an environment that
the parameter EXECUTION_ENV_PATH of the Python backend names. `{name}` runs the graph, and takes prepared numbers.

    convmae conform BUNDLE http://HOST:8000/v2/models/{name}{PHOTOS}

holds it against the bundle's conformance kit. No Triton server has run this at its maker's: that command is the proof.
"""


def _files() -> list[str]:
    return [f"name: {quoted(ENCODED)}", "data_type: TYPE_STRING", f"dims: {dims([1])}"]
