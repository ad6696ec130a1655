"""`python -m export.to_triton BUNDLE --out model_repository/`: a bundle as a model of the Triton Inference Server.

Nothing is run and no Triton is needed. The folder `model_repository/NAME` that appears is all that its server takes:

    config.pbtxt    the model's tensors, batching and instances; `parameters` hold the preprocessing as JSON
    1/model.onnx    the bundle's graph, a hard link where the file system allows it; or 1/model.plan, a TensorRT engine
    labels.txt      a class a line
    README.md       what a client must do before and after, with this model's numbers
    LICENSE-WEIGHTS the licence of the weights, where the bundle has one

Triton resizes and normalises nothing by itself: clients send what the manifest describes. The tests read config.pbtxt
with the protobuf definition of the model configuration; no Triton server has loaded it here.

With `--photos` there are also NAME-prepare, a model of Triton's Python backend, and NAME-photos, the ensemble of the
two, which takes photos as files. Triton runs each model once on zeros before it is ready (`model_warmup`).

With `--file model.fp16.engine` it is an engine that `python -m export.to_tensorrt` built on a GPU like the server's,
with the version of TensorRT that the server has. All of its profiles are offered, and the sizes that they were built
for are the preferred batches.
"""

import json
import logging
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from convmae_deploy.bundle.manifest import LICENCE_NAME, NAME_PATTERN, Manifest
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import atomic_directory, check_is_new, link_or_copy
from convmae_deploy.printing import printable
from convmae_deploy.program import failures_in_words, run_program
from convmae_deploy.tasks import load_bundle, task_of
from convmae_deploy.tasks.base import LOGITS
from convmae_deploy.terminal import Terminal
from export import failures
from export.triton.pbtxt import DATA_TYPES, block, dims, entry, parameter_blocks, quoted, tensor_fields
from export.triton.photos import (
    MODEL,
    MODEL_NAME,
    PHOTOS,
    PREPARE,
    check_takes_photos,
    ensemble_config,
    photos_readme,
    prepare_config,
)
from export.triton.readme import readme
from export.triton.source import TritonSource, find_source

CONFIG_NAME = "config.pbtxt"
LABELS_NAME = "labels.txt"
README_NAME = "README.md"
VERSION = "1"  # folder of the graph
KINDS = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "gpu": "KIND_GPU"}

logger = logging.getLogger("convmae_deploy")


@dataclass(frozen=True, kw_only=True)
class TritonConfig:
    """Writes a bundle as a model of a Triton model repository."""

    bundle: Annotated[Path, tyro.conf.Positional]  # folder that python -m export wrote
    out: Path  # the repository; made when missing, else the model is added to it
    name: str | None = None  # the model's in Triton; default: the bundle's
    file: str | None = None  # a graph of the bundle, or an engine in its folder; default: its first graph
    device: Literal["auto", "cpu", "gpu"] = "auto"  # auto: every GPU of the server, or its CPU where it has none
    instances: int = 1  # copies of the model on each device, which run at the same time
    threads: int | None = None  # CPU threads of one instance; default: as many as there are cores
    max_queue_ms: float = 2.0  # how long a request may wait for others to join its batch
    # batches that are run without waiting; default: an engine's sizes, else none but the largest, as Triton advises
    preferred_batches: tuple[int, ...] = ()
    photos: bool = False  # also write NAME-photos, which takes photos as files; Triton's Python needs convmae_deploy

    def __post_init__(self) -> None:
        for flag, value in (("--instances", self.instances), ("--threads", self.threads)):
            if value is not None and value < 1:
                raise ConvMAEError(f"{flag} must be at least 1; got {value}")
        if not 0 <= self.max_queue_ms <= 60_000:
            raise ConvMAEError(f"--max-queue-ms must be between 0 and 60000; got {self.max_queue_ms:g}")
        if self.name is not None and not re.fullmatch(NAME_PATTERN, self.name):
            raise ConvMAEError(
                "--name must be 1 to 64 letters, digits, '.', '_' or '-' and start with a letter or digit; "
                f"got {self.name!r}"
            )


def write_model(config: TritonConfig) -> Path:
    """Adds the bundle to the repository and returns the model's folder.

    Raises:
        ConvMAEError: the bundle is damaged or none that Triton's batches fit, or the model is there already.
    """
    bundle = load_bundle(config.bundle)
    manifest, source = bundle.manifest, find_source(bundle, config.file)
    name = config.name or manifest.name
    names = [name, *((name + PREPARE, name + PHOTOS) if config.photos else ())]
    for each in names:
        check_is_new(config.out / each, "--name or --out")
    if config.photos:
        check_takes_photos(manifest)
    check_preferred(config.preferred_batches, source.max_batch)
    check_device(config, source)
    numerics = source.description.numerics
    if source.path.name != bundle.default_file and (numerics is None or not numerics.passed):
        logger.warning("%s of bundle %s was not verified against PyTorch", source.path.name, config.bundle)
    with new_model_folders(config.out, names) as (folder, *further):
        (folder / VERSION).mkdir()
        link_or_copy(source.path, folder / VERSION / source.name)
        for weights in source.description.weights if source.engine is None else ():
            if weights == source.name:
                raise ConvMAEError(f"a file of weights must not be called {weights}; export the bundle again")
            link_or_copy(source.path.with_name(weights), folder / VERSION / weights)
        files = {
            CONFIG_NAME: model_config(config, manifest, source),
            LABELS_NAME: "".join(f"{one_line(label)}\n" for label in manifest.classes),
            README_NAME: readme(name, manifest, source),
        }
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8")
        if manifest.licence.file is not None:  # under a name of ours, lest it takes the place of another file
            shutil.copyfile(config.bundle / manifest.licence.file, folder / LICENCE_NAME)
        if further:
            write_ensemble(config, further, manifest, source)
    return config.out / name


def write_ensemble(config: TritonConfig, folders: Sequence[Path], manifest: Manifest, source: TritonSource) -> None:
    """The two models, each in its folder, that make one of the graph which takes files."""
    prepare, photos = folders
    name = config.name or manifest.name
    for folder in folders:
        (folder / VERSION).mkdir()  # Triton wants one, empty too
    shutil.copyfile(MODEL, prepare / VERSION / MODEL_NAME)
    (prepare / CONFIG_NAME).write_text(prepare_config(name, manifest, source, config.instances), encoding="utf-8")
    (photos / CONFIG_NAME).write_text(ensemble_config(name, manifest, source), encoding="utf-8")
    (photos / README_NAME).write_text(photos_readme(name), encoding="utf-8")


def check_preferred(sizes: Sequence[int], largest: int) -> None:
    """Raises ConvMAEError unless all sizes are batches of the model."""
    for size in sizes:
        if not 1 <= size <= largest:
            raise ConvMAEError(f"--preferred-batches must be between 1 and the model's largest, {largest}; got {size}")


def check_device(config: TritonConfig, source: TritonSource) -> None:
    """Raises ConvMAEError where what is to run does not run there."""
    if source.engine is not None and config.device == "cpu":
        raise ConvMAEError(f"{source.path.name} is a TensorRT engine, which runs on a GPU; use --device gpu or auto")
    if source.engine is not None and config.threads is not None:
        raise ConvMAEError(f"--threads is for graphs, and {source.path.name} runs on a GPU; leave it out")
    if source.engine is None and source.description.precision == "bf16":
        raise ConvMAEError(
            f"{source.path.name} is bf16, of which Triton's ONNX Runtime has no convolutions on any device; choose "
            f"another --file, or give it an engine: python -m export.to_tensorrt {config.bundle} --precision bf16"
        )


@contextmanager
def new_model_folders(repository: Path, names: Sequence[str]) -> Iterator[list[Path]]:
    """Yields empty folders that become `repository` / each name on success; on an exception nothing is left."""
    with ExitStack() as stack:
        if repository.exists():
            yield [stack.enter_context(atomic_directory(repository / name)) for name in names]
        else:
            directory = stack.enter_context(atomic_directory(repository))
            for name in names:
                (directory / name).mkdir()
            yield [directory / name for name in names]


def model_config(config: TritonConfig, manifest: Manifest, source: TritonSource) -> str:
    """The content of config.pbtxt: a ModelConfig message in protobuf's text format."""
    spec = manifest.input
    lines = [
        f"name: {quoted(config.name or manifest.name)}",
        f"backend: {quoted(source.backend)}",
        f"platform: {quoted(source.platform)}",
        f"max_batch_size: {source.max_batch}",
        *block("input", tensor_fields(spec.name, spec.dtype, source.shape(manifest, spec))),
    ]
    for output, described in manifest.outputs.items():
        fields = tensor_fields(output, described.dtype, source.shape(manifest, described))
        if output == LOGITS and "top_k" in task_of(manifest).OPTIONS:
            fields.append(f"label_filename: {quoted(LABELS_NAME)}")
        lines += block("output", fields)
    lines += block("instance_group", instance_fields(config, source))
    if source.max_batch > 1:
        batching = [f"preferred_batch_size: {size}" for size in preferred_batches(config, source)]
        lines += block("dynamic_batching", [*batching, f"max_queue_delay_microseconds: {delay(config.max_queue_ms)}"])
    for size in warm_up_batches(config, source):
        lines += block("model_warmup", warm_up_fields(size, manifest))
    lines += parameter_blocks(parameters(config, manifest))
    return "\n".join(lines) + "\n"


def instance_fields(config: TritonConfig, source: TritonSource) -> list[str]:
    """How many instances run where; those of an engine take all of its profiles, or Triton would use the first."""
    if source.engine is None:
        return [f"count: {config.instances}", f"kind: {KINDS[config.device]}"]
    profiles = [f"profile: {quoted(str(place))}" for place in range(len(source.engine.batch_sizes))]
    return [f"count: {config.instances}", f"kind: {KINDS['gpu']}", *profiles]


def warm_up_batches(config: TritonConfig, source: TritonSource) -> list[int]:
    """Batches that Triton runs before the model is ready: one, and those that it is to make."""
    return sorted({1, *preferred_batches(config, source)})


def warm_up_fields(size: int, manifest: Manifest) -> list[str]:
    """A request of zeros."""
    spec = manifest.input
    value = f"{{ data_type: {DATA_TYPES[spec.dtype]} dims: {dims(spec.shape)} zero_data: true }}"
    return [f"name: {quoted(f'batch of {size}')}", f"batch_size: {size}", entry("inputs", spec.name, value)]


def preferred_batches(config: TritonConfig, source: TritonSource) -> list[int]:
    """Batches that Triton is to make where it can, by size."""
    own = [size for size in source.engine.batch_sizes if size > 1] if source.engine is not None else []
    return sorted(set(config.preferred_batches or own))


def parameters(config: TritonConfig, manifest: Manifest) -> dict[str, str]:
    """What clients can ask the server for, and the backend's threads."""
    values = {
        "task": manifest.task,
        "variant": manifest.variant,
        "preprocessing": manifest.preprocessing.model_dump_json(),
        "licence": manifest.licence.name,
    }
    if manifest.category_ids:
        values["category_ids"] = json.dumps(manifest.category_ids)
    if config.threads is not None:
        values["intra_op_thread_count"] = str(config.threads)
    return values


def one_line(text: str) -> str:
    """A text of the manifest without line breaks, as the label file has one a line; what cannot be shown is escaped."""
    return printable(" ".join(text.split()))


def delay(milliseconds: float) -> int:
    """In whole microseconds."""
    return round(milliseconds * 1000)


@failures_in_words(failures.in_words)
def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    config = tyro.cli(TritonConfig, args=given, prog="python -m export.to_triton", description=TritonConfig.__doc__)
    folder = write_model(config)
    console = Terminal()
    console.print(f"Written: {folder}; what clients must send is in {folder / README_NAME}", highlight=False)


if __name__ == "__main__":
    run_program(main)
