"""Our checkpoint format: a folder of `config.json` (what the model is) and `model.safetensors` (its weights).

Nothing in it can execute code. `config.json` says everything needed to rebuild the model, feed it and name its classes.
A checkpoint may come from anywhere: what its config claims is held against the tensors that are there before any memory
is taken for it.
"""

import json
import shutil
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from convmae_deploy.bundle.manifest import MAX_CLASSES, CategoryId, ClassName, Licence, Text, Word
from convmae_deploy.bundle.preprocessing import AnyPreprocessing
from convmae_deploy.checkpoints.pth_file import is_plain
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import atomic_directory, existing_directory, numbered_errors, open_regular, read_json
from convmae_deploy.models.classifier import GlobalPool
from convmae_deploy.models.convmae import ConvMAEConfig
from convmae_deploy.models.detector import DetectorConfig
from convmae_deploy.models.pretraining import PretrainingConfig
from convmae_deploy.models.segmenter import SegmenterConfig
from convmae_deploy.models.video import VideoConfig
from convmae_deploy.models.video_pretraining import VideoPretrainingConfig

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
ENCODER_PREFIX = "encoder."
NORM_PREFIX = "norm."  # the LayerNorm in front of the pretraining decoder; an encoder's checkpoint may hold it too
MODEL_PARTS = ("model", "pretraining", "detector", "segmenter", "video", "video_pretraining")  # fields of the config
# what timm's own config.json has besides, in a folder that `convmae to-hub` wrote; it says nothing to this reader
TIMM_KEYS = frozenset(
    {"architecture", "num_classes", "num_features", "label_names", "label_descriptions", "model_args", "pretrained_cfg"}
)
MAX_CONFIG_BYTES = 16 * 2**20
MAX_NUMBER = 65_536  # largest number in a model's config: widths, pixels, frames
MAX_DEPTH = 200  # blocks; six times those of the deepest model here

# The task that a model was trained for; "features" of an encoder alone. Pretraining models are served for no task.
CheckpointKind = Literal[
    "classification",
    "detection",
    "segmentation",
    "video-classification",
    "features",
    "pretraining",
    "video-pretraining",
]
EARLIER_KINDS: dict[str, CheckpointKind] = {  # what kinds were called in configs of before
    "classifier": "classification",
    "detector": "detection",
    "segmenter": "segmentation",
    "video_classifier": "video-classification",
    "encoder": "features",
    "video_pretraining": "video-pretraining",
}


def _kind_of_today(kind: object) -> object:
    return EARLIER_KINDS.get(kind, kind) if isinstance(kind, str) else kind


class CheckpointRecord(BaseModel):
    """The content of `config.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    kind: Annotated[CheckpointKind, BeforeValidator(_kind_of_today)]
    variant: Word  # "nano", "base", ... or "custom"
    model: ConvMAEConfig
    pretraining: PretrainingConfig | None = None  # pretraining: the decoder and the masks; older files lack it
    detector: DetectorConfig | None = None  # detection: its pyramid and heads
    segmenter: SegmenterConfig | None = None  # segmentation: its heads and its E4
    video: VideoConfig | None = None  # video models: what they have besides the image model's
    video_pretraining: VideoPretrainingConfig | None = None  # video pretraining: the decoder and the masks
    classes: tuple[ClassName, ...] = Field(
        default=(), max_length=MAX_CLASSES
    )  # all but pretraining: the name of each label
    category_ids: tuple[CategoryId, ...] = ()  # detection: the id of each class in the annotations; none: 1, 2, ...
    global_pool: GlobalPool = "avg"
    preprocessing: AnyPreprocessing | None = None  # None: not decided, as for a pretrained encoder
    licence: Licence = Licence(name="unspecified: ask whoever trained these weights")
    provenance: dict[Word, Text] = Field(
        default_factory=dict, max_length=100
    )  # data, command, seed, metrics, source file, ...


def save_checkpoint(directory: Path, state: dict[str, Tensor], record: CheckpointRecord) -> None:
    """Writes a checkpoint folder; a reader finds all of it or none.

    Args:
        directory: where to; must not exist.
        state: the state dict; tensors are copied to contiguous CPU memory.
        record: what the weights are.
    """
    with atomic_directory(directory) as temporary:
        write_checkpoint_files(temporary, state, record)


def write_checkpoint_files(directory: Path, state: dict[str, Tensor], record: CheckpointRecord) -> None:
    """Writes the two files into an existing folder, for callers that add files of their own before it appears.

    Raises:
        OSError: the disk is full, or refuses for another reason.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with numbered_errors(directory / WEIGHTS_NAME):
        save_file(tensors, directory / WEIGHTS_NAME)
    (directory / CONFIG_NAME).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    shutil.copymode(directory / CONFIG_NAME, directory / WEIGHTS_NAME)  # safetensors lets its owner alone read it


def find_checkpoint(path: Path) -> Path:
    """The checkpoint folder that `path` means: itself, or the best (else the last) one of a run folder.

    Raises:
        ConvMAEError: there is none.
    """
    for candidate in (path, path / "best", path / "last"):
        directory = existing_directory(candidate)
        if directory is not None and (directory / CONFIG_NAME).is_file():
            return directory
    found = "a file, which convmae import turns into one if it is the authors'" if path.is_file() else "neither"
    raise ConvMAEError(
        f"{path} must be a run folder or a checkpoint (a folder with {CONFIG_NAME} and {WEIGHTS_NAME}); found {found}"
    )


def read_checkpoint(path: Path) -> tuple[CheckpointRecord, dict[str, Tensor]]:
    """The record and the weights of a run folder or a checkpoint.

    Raises:
        ConvMAEError: a file is missing or damaged, or a weight is no number; the message names it.
    """
    directory = find_checkpoint(path)
    record = _read_record(directory / CONFIG_NAME)
    weights = directory / WEIGHTS_NAME
    try:
        open_regular(weights).close()  # a pipe would be waited for
        state = load_file(weights)
    except (OSError, RuntimeError, OverflowError, SafetensorError) as error:
        reason = str(error).partition("\n")[0][:300]
        raise ConvMAEError(f"{weights} cannot be read ({reason}); export or copy it again") from None
    for name, value in state.items():
        if not is_plain(value):
            raise ConvMAEError(f"{weights} must hold plain numbers; found {name} of {value.dtype}: copy it again")
        if not value.isfinite().all():
            what = "NaN" if value.isnan().any() else "infinity"
            raise ConvMAEError(
                f"the checkpoint holds {what} in {name} of {weights}; take an earlier checkpoint, or train again "
                "with a lower learning rate"
            )
    return record, state


def _read_record(path: Path) -> CheckpointRecord:
    fields = read_json(path, MAX_CONFIG_BYTES)
    if isinstance(fields, dict):
        fields = {name: value for name, value in fields.items() if name not in TIMM_KEYS}
    try:
        for part in MODEL_PARTS:
            place = _impossible(fields.get(part) if isinstance(fields, dict) else None, part)
            if place is not None:
                raise ConvMAEError(f"{path} is not a valid checkpoint config: {place} is beyond that of any model")
        return CheckpointRecord.model_validate_json(json.dumps(fields))
    except (ArithmeticError, RecursionError):
        raise ConvMAEError(f"{path} is not a valid checkpoint config: its numbers do not fit together") from None
    except pydantic.ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, problem["loc"])) or "the file"
        raise ConvMAEError(f"{path} is not a valid checkpoint config: {place[:200]}: {problem['msg'][:300]}") from None


def _impossible(value: object, place: str) -> str | None:
    """Where in a part of a config there is a number that no model has; None: nowhere."""
    if isinstance(value, int | float):
        largest = MAX_DEPTH if "depth" in place or "convolutions" in place else MAX_NUMBER
        return None if abs(value) <= largest else place  # NaN is not
    inside: list[tuple[object, str]] = []
    if isinstance(value, dict):
        inside = [(entry, f"{place}.{name}"[:200]) for name, entry in value.items()]
    elif isinstance(value, list):
        inside = [(entry, place) for entry in value]
    return next((found for found in (_impossible(*entry) for entry in inside) if found is not None), None)
