"""What stands beside a model in a Triton repository: how clients prepare its input and read its outputs."""

from convmae_deploy.bundle.manifest import (
    AnyPreprocessing,
    ClipPreprocessing,
    Letterbox,
    Manifest,
    OutputSpec,
    Preprocessing,
    Size,
    SlidingWindow,
)
from convmae_deploy.printing import printable
from convmae_deploy.tasks import task_of
from export.triton.source import TritonSource


def readme(name: str, manifest: Manifest, source: TritonSource) -> str:
    """The text of a model's README.

    Args:
        name: of the model in Triton.
        manifest: of the bundle.
        source: what Triton runs.
    """
    spec = manifest.input
    steps = preprocessing_steps(manifest.preprocessing)
    steps.append(
        f"Send it as `{spec.name}`, FP32, shape ({shape_in_words(spec.shape)}), B from 1 to {source.max_batch}."
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
        + python_function(manifest.preprocessing),
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


def preprocessing_steps(spec: AnyPreprocessing) -> list[str]:
    """From a decoded picture or video to the tensor, a sentence each."""
    resizing = f"with Pillow's antialiased {spec.interpolation} filter (`Image.resize`), aspect ratio kept"
    upright = "Turn the decoded photo upright (EXIF) and convert it to RGB."
    normalising = (
        f"Divide the levels by 255, subtract the mean ({numbers(spec.mean)}) and divide by the standard deviation "
        f"({numbers(spec.std)}) of the channels R, G, B; channels come first."
    )
    if isinstance(spec, ClipPreprocessing):
        chosen = (
            f"Take {spec.frames} RGB frames {spec.stride} apart, the clip in the middle of the video; where the video "
            "is too short, its last frame again and again."
            if spec.stride is not None
            else f"Cut the video into {spec.frames} equal parts and take the RGB frame in the middle of each."
        )
        cover = f"Resize each frame {resizing}, so that it covers {side_by_side(spec.resize)} pixels, and cut out"
        return [chosen, f"{cover} the centre, {side_by_side(spec.crop)}.", normalising]
    if isinstance(spec, Letterbox):
        fit = f"Resize it {resizing}, so that it just fits into {side_by_side(spec.size)} pixels, and put it into"
        return [
            upright,
            f"{fit} the top left corner of a picture of that size whose levels are {spec.fill}.",
            normalising,
        ]
    if isinstance(spec, SlidingWindow):
        return [upright, *window_steps(spec, resizing), normalising]
    assert isinstance(spec, Preprocessing)
    cover = f"Resize it {resizing}, so that it covers {side_by_side(spec.resize)} pixels, and cut out the centre,"
    return [upright, f"{cover} {side_by_side(spec.crop)}.", normalising]


def window_steps(spec: SlidingWindow, resizing: str) -> list[str]:
    """The steps that only a segmenter's photo takes."""
    steps = []
    if spec.short_side is not None:
        limit = "" if spec.long_side is None else f", less where the long one would be over {spec.long_side}"
        steps.append(f"Resize it {resizing}, to a short side of {spec.short_side} pixels{limit}.")
    return [
        *steps,
        f"Cut it into windows of {side_by_side(spec.window)} pixels, one every {side_by_side(spec.stride)} pixels, the "
        "last ones ending with the photo. A photo smaller than a window is padded right and below; the padding is 0 "
        "after the next step.",
    ]


def python_function(spec: AnyPreprocessing) -> str:
    """Where this project has the steps as a function."""
    functions = {
        Preprocessing: "preprocess.preprocess(photo, spec)` does it for one RGB photo.",
        ClipPreprocessing: "clips.read_clips(path, spec)` does it for one video file.",
        Letterbox: "letterbox.letterbox(photo, spec)` does it for one RGB photo.",
        SlidingWindow: "sliding_window.segment_photo(photo, spec, run)` does all of it and what follows for one RGB "
        "photo; `run` is to send windows and return their logits.",
    }
    return f"`convmae_deploy.tasks.{functions[type(spec)]}"


def output_row(name: str, described: OutputSpec, manifest: Manifest) -> str:
    """A line of the table."""
    note = task_of(manifest).OUTPUT_WORDS.get(name, "")
    if not note and described.stride is not None:
        note = f"feature map, {described.stride} pixels a cell"
    kind = {"float32": "FP32", "int64": "INT64"}[described.dtype]
    return f"| `{name}` | {kind} | ({shape_in_words(described.shape or (1,))}) | {note} |"


def shape_in_words(shape: tuple[int, ...]) -> str:
    """With the batch axis."""
    return ", ".join(map(str, ("B", *shape)))


def side_by_side(size: Size) -> str:
    """(height, width) as people write it."""
    return f"{size[0]} x {size[1]} (height x width)"


def numbers(values: tuple[float, ...]) -> str:
    """For people."""
    return ", ".join(f"{value:g}" for value in values)
