"""Our checkpoint format: a folder of `config.json` (what the model is) and `model.safetensors` (its weights).

Nothing in it can execute code. `config.json` says everything needed to rebuild the model, feed it and name its classes.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from convmae_deploy.checkpoints.resizing import resize_positions, resize_preprocessing
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import atomic_directory, existing_directory
from convmae_deploy.models.classifier import ConvMAEClassifier, GlobalPool, build_classifier
from convmae_deploy.models.convmae import ConvMAEConfig
from convmae_deploy.models.detector import ConvMAEDetector, DetectorConfig, build_detector
from convmae_deploy.models.pretraining import ConvMAEPretraining, PretrainingConfig, build_pretraining
from convmae_deploy.models.segmenter import ConvMAESegmenter, SegmenterConfig, build_segmenter
from convmae_deploy.runtime.manifest import AnyPreprocessing, Letterbox, Licence

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
ENCODER_PREFIX = "encoder."
NORM_PREFIX = "norm."  # the LayerNorm in front of the pretraining decoder; an encoder's checkpoint may hold it too

CheckpointKind = Literal["encoder", "pretraining", "classifier", "detector", "segmenter"]
WANTED = {  # kind -> what it is called, and what to do for one
    "classifier": ("classifier", "finetune it first (training.finetune)"),
    "pretraining": ("pretraining model with its decoder", "give a run of training.pretrain"),
    "detector": ("detector", "train one first (training.detect)"),
    "segmenter": ("segmenter", "train one first (training.segment)"),
}


class CheckpointRecord(BaseModel):
    """The content of `config.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    kind: CheckpointKind
    variant: str  # "nano", "base", ... or "custom"
    model: ConvMAEConfig
    pretraining: PretrainingConfig | None = None  # pretraining: the decoder and the masks; older files lack it
    detector: DetectorConfig | None = None  # detector: its pyramid and heads
    segmenter: SegmenterConfig | None = None  # segmenter: its heads and its E4
    classes: tuple[str, ...] = ()  # classifier, detector, segmenter: the name of each label
    category_ids: tuple[int, ...] = ()  # detector: the id of each class in the annotations; none: 1, 2, ...
    global_pool: GlobalPool = "avg"
    preprocessing: AnyPreprocessing | None = None  # None: not decided, as for a pretrained encoder
    licence: Licence = Licence(name="unspecified: ask whoever trained these weights")
    provenance: dict[str, str] = Field(default_factory=dict)  # data, command, seed, metrics, source file, ...


def save_checkpoint(
    directory: Path, state: dict[str, Tensor], record: CheckpointRecord, *, replace_existing: bool = False
) -> None:
    """Writes a checkpoint folder; a reader finds all of it or none.

    Args:
        directory: where to.
        state: the state dict; tensors are copied to contiguous CPU memory.
        record: what the weights are.
        replace_existing: whether a folder that is there may be replaced.
    """
    with atomic_directory(directory, replace=replace_existing) as temporary:
        write_checkpoint_files(temporary, state, record)


def write_checkpoint_files(directory: Path, state: dict[str, Tensor], record: CheckpointRecord) -> None:
    """Writes the two files into an existing folder, for callers that add files of their own before it appears."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, directory / WEIGHTS_NAME)
    (directory / CONFIG_NAME).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")


def find_checkpoint(path: Path) -> Path:
    """The checkpoint folder that `path` means: itself, or the best (else the last) one of a run folder.

    Raises:
        ConvMAEError: there is none.
    """
    for candidate in (path, path / "best", path / "last"):
        directory = existing_directory(candidate)
        if directory is not None and (directory / CONFIG_NAME).is_file():
            return directory
    raise ConvMAEError(
        f"{path} must be a run folder or a checkpoint (a folder with {CONFIG_NAME} and {WEIGHTS_NAME}); found neither"
    )


def read_checkpoint(path: Path) -> tuple[CheckpointRecord, dict[str, Tensor]]:
    """The record and the weights of a run folder or a checkpoint.

    Raises:
        ConvMAEError: a file is missing or damaged; the message names it.
    """
    directory = find_checkpoint(path)
    try:
        record = CheckpointRecord.model_validate_json((directory / CONFIG_NAME).read_bytes())
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"])) or "the file"
        raise ConvMAEError(
            f"{directory / CONFIG_NAME} is not a valid checkpoint config: {place}: {problem['msg']}"
        ) from None
    try:
        return record, load_file(directory / WEIGHTS_NAME)
    except (OSError, SafetensorError) as error:
        raise ConvMAEError(f"{directory / WEIGHTS_NAME} cannot be read ({error}); export or copy it again") from None


def load_classifier(
    path: Path, *, image_size: tuple[int, int] | None = None
) -> tuple[ConvMAEClassifier, CheckpointRecord]:
    """A classifier in evaluation mode with its record, its position embedding resized when another size is asked for.

    Args:
        path: run folder or checkpoint.
        image_size: (height, width) in pixels; None keeps the checkpoint's.

    Raises:
        ConvMAEError: not a classifier, or its tensors are not those of its config.
    """
    record, state = read_model(path, "classifier", image_size)
    model = build_classifier(record.model, num_classes=len(record.classes), global_pool=record.global_pool)
    load_exactly(model, state, path)
    return model.eval(), record


def load_pretraining(
    path: Path, *, image_size: tuple[int, int] | None = None
) -> tuple[ConvMAEPretraining, CheckpointRecord]:
    """A pretraining model in evaluation mode with its record, both position embeddings resized when asked for.

    Args:
        path: run folder or checkpoint.
        image_size: (height, width) in pixels; None keeps the checkpoint's.

    Raises:
        ConvMAEError: not a pretraining model with its decoder, or its tensors are not those of its config.
    """
    record, state = read_model(path, "pretraining", image_size)
    if record.pretraining is None:
        raise ConvMAEError(
            f"{path} must say in {CONFIG_NAME} what its decoder is (pretraining) and does not, as it was imported by "
            "an older version; import the original file again"
        )
    model = build_pretraining(record.model, record.pretraining)
    load_exactly(model, state, path)
    return model.eval(), record


def load_detector(path: Path, *, image_size: tuple[int, int] | None = None) -> tuple[ConvMAEDetector, CheckpointRecord]:
    """A detector in evaluation mode with its record, for inputs of another size when asked for.

    Args:
        path: run folder or checkpoint.
        image_size: (height, width) in pixels; None keeps the checkpoint's.

    Raises:
        ConvMAEError: not a detector, or its tensors are not those of its config.
    """
    record, state = read_model(path, "detector", image_size)
    if record.detector is None:
        raise ConvMAEError(f"{path} must say in {CONFIG_NAME} what its heads are (detector); copy it again")
    model = build_detector(record.model, record.detector, num_classes=len(record.classes))
    load_exactly(model, state, path)
    return model.eval(), record


def load_segmenter(
    path: Path, *, image_size: tuple[int, int] | None = None
) -> tuple[ConvMAESegmenter, CheckpointRecord]:
    """A segmenter in evaluation mode with its record, for windows of another size when asked for.

    Args:
        path: run folder or checkpoint.
        image_size: (height, width) in pixels of a window; None keeps the checkpoint's.

    Raises:
        ConvMAEError: not a segmenter, or its tensors are not those of its config.
    """
    record, state = read_model(path, "segmenter", image_size)
    if record.segmenter is None:
        raise ConvMAEError(f"{path} must say in {CONFIG_NAME} what its heads are (segmenter); copy it again")
    model = build_segmenter(record.model, record.segmenter, num_classes=len(record.classes))
    load_exactly(model, state, path)
    return model.eval(), record


def read_model(
    path: Path, kind: CheckpointKind, image_size: tuple[int, int] | None
) -> tuple[CheckpointRecord, dict[str, Tensor]]:
    """Record and weights of a checkpoint that must be of one kind, for the image size asked for (None: its own).

    Raises:
        ConvMAEError: it is of another kind, or damaged.
    """
    record, state = read_checkpoint(path)
    if record.kind != kind:
        wanted, remedy = WANTED[kind]
        raise ConvMAEError(f"{path} must hold a {wanted} and holds: {record.kind}; {remedy}")
    if image_size is None or image_size == record.model.image_size == record.model.input_size:
        return record, state
    return resized(record, state, image_size)


def load_encoder_state(path: Path, image_size: tuple[int, int]) -> tuple[ConvMAEConfig, dict[str, Tensor]]:
    """The config and the encoder's weights (keys without prefix) of any checkpoint of ours, resized to `image_size`."""
    record, state = read_checkpoint(path)
    record, state = resized(record, state, image_size)
    if record.kind == "encoder":
        return record.model, {name: value for name, value in state.items() if not name.startswith(NORM_PREFIX)}
    encoder = {name: value for name, value in state.items() if name.startswith(ENCODER_PREFIX)}
    return record.model, {name.removeprefix(ENCODER_PREFIX): value for name, value in encoder.items()}


def resized(
    record: CheckpointRecord, state: dict[str, Tensor], image_size: tuple[int, int]
) -> tuple[CheckpointRecord, dict[str, Tensor]]:
    """The same checkpoint for another image size: positions, model and preprocessing."""
    model = replace(record.model, image_size=image_size)
    tensors, _ = resize_positions(state, model.dense, record.model.grid_size, model.grid_size)
    preprocessing = record.preprocessing
    if preprocessing is None and record.kind == "detector":
        preprocessing = Letterbox(size=image_size)
    elif preprocessing is not None:
        preprocessing = resize_preprocessing(preprocessing, image_size)
    return record.model_copy(update={"model": model, "preprocessing": preprocessing}), tensors


def load_exactly(model: nn.Module, state: dict[str, Tensor], source: Path) -> None:
    """`load_state_dict` that raises one sentence when names or shapes differ."""
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if differing:
        name = differing[0]
        raise ConvMAEError(
            f"{source} does not fit its config: {len(differing)} tensors differ, first {name}: "
            f"expected {expected.get(name, 'none')}, found {found.get(name, 'none')}"
        )
    model.load_state_dict(state)
