"""Initial weights for a program, from our checkpoints or straight from the authors' files."""

import re
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from convmae_deploy.checkpoints.loading import load_encoder_state, load_pretraining
from convmae_deploy.checkpoints.native import NORM_PREFIX, CheckpointRecord, read_checkpoint
from convmae_deploy.checkpoints.original import import_original, read_original
from convmae_deploy.checkpoints.original_keys import convert_keys
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convmae import MODELS, ConvMAEConfig, DenseConfig
from convmae_deploy.models.pretraining import ConvMAEPretraining
from convmae_deploy.models.vit import VITS, build_encoder

# parameters that only encoders of detectors and segmenters have
DENSE_PART = re.compile(r"(?:\.table|\.rel_pos_[hw]|\.ls[12]\.gamma)$")


def load_initial_encoder(path: Path, architecture: ConvMAEConfig) -> tuple[dict[str, Tensor], list[str]]:
    """The weights (keys without prefix) of a trained encoder, made to fit, and what there is to tell of it.

    What `DenseConfig` adds to the encoder is taken where both have it, and else starts without effect.

    Args:
        path: a run folder or checkpoint of ours, or a `.pth` file of the authors.
        architecture: what the encoder must be; its image size is the one to resize for, and its number of heads is
            taken on trust for a `.pth` file, which does not hold that number.

    Raises:
        ConvMAEError: not such an encoder, or damaged.
    """
    report: list[str] = []
    if not path.is_file():
        found, state = load_encoder_state(path, architecture.image_size)
    else:
        with TemporaryDirectory() as directory:
            imported = Path(directory) / "imported"
            report = import_original(path, imported, num_heads=architecture.num_heads).lines()[:-1]  # not where to
            found, state = load_encoder_state(imported, architecture.image_size)
    if replace(found, dense=architecture.dense) != architecture:
        raise ConvMAEError(
            f"initial weights must be an encoder of {_named(architecture)}; {path} holds {_named(found)}"
        )
    fitted, changes = fit_dense_parts(state, architecture)
    return fitted, report + changes


def _named(architecture: ConvMAEConfig) -> str:
    """The variant that an encoder is, else its numbers."""
    plain = replace(architecture, dense=DenseConfig(), image_size=(224, 224))
    variants = (MODELS | VITS).items()
    names = [name for name, build in variants if replace(build(), image_size=plain.image_size) == plain]
    return f"the variant {names[0]}" if names else str(plain)


def fit_dense_parts(state: dict[str, Tensor], architecture: ConvMAEConfig) -> tuple[dict[str, Tensor], list[str]]:
    """An encoder's tensors with the relative positions and LayerScale of the architecture; and what was changed.

    Those that the tensors lack, or have for another grid, start without effect: tables at 0, LayerScale at 1.
    """
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in build_encoder(architecture).state_dict().items()}
    wanted = [name for name in shapes if DENSE_PART.search(name)]
    fresh = [name for name in wanted if name not in state or state[name].shape != shapes[name]]
    dropped = [name for name in state if DENSE_PART.search(name) and (name not in wanted or name in fresh)]
    fitted = {name: value for name, value in state.items() if name not in dropped}
    fitted |= {name: torch.full(shapes[name], float(name.endswith(".gamma"))) for name in fresh}
    notes = []
    if fresh:
        notes.append(f"started without effect: {len(fresh)} relative positions and LayerScales (first {fresh[0]})")
    if dropped:
        notes.append(f"left behind: {len(dropped)} relative positions and LayerScales (first {dropped[0]})")
    return fitted, notes


def load_initial_pretraining(
    path: Path, *, image_size: tuple[int, int] | None = None
) -> tuple[ConvMAEPretraining, CheckpointRecord, list[str]]:
    """A pretraining model in evaluation mode, its record, and what there is to tell of the import.

    Args:
        path: a run folder or checkpoint of ours, or a full pretraining `.pth` file of the authors.
        image_size: (height, width) in pixels to resize position embeddings for; None keeps those of the file.

    Raises:
        ConvMAEError: not a pretraining model with its decoder, or damaged.
    """
    if not path.is_file():
        return *load_pretraining(path, image_size=image_size), []
    with TemporaryDirectory() as directory:
        imported = Path(directory) / "imported"
        report = import_original(path, imported, image_size=image_size)
        if report.keys.kind != "pretraining":
            raise ConvMAEError(
                f"{path} must hold a pretraining model with its decoder and holds: {report.keys.kind}; give the "
                "checkpoint that a pretraining run of the authors' code wrote"
            )
        return *load_pretraining(imported), report.lines()[:-1]  # not where to


def load_pretraining_norm(path: Path) -> dict[str, Tensor] | None:
    """The LayerNorm in front of the pretraining decoder, which a linear probe of the first token keeps.

    Args:
        path: a run folder or checkpoint of ours, or a `.pth` file of the authors; pretraining or encoder alone.

    Returns:
        `weight` and `bias`, each (D,) float32; None where there is none, as in a classifier.

    Raises:
        ConvMAEError: no checkpoint, or damaged.
    """
    state = convert_keys(read_original(path).tensors).state if path.is_file() else read_checkpoint(path)[1]
    norm = {
        name.removeprefix(NORM_PREFIX): value.float() for name, value in state.items() if name.startswith(NORM_PREFIX)
    }
    shapes = {name: tuple(value.shape) for name, value in norm.items()}
    width = next((tuple(value.shape) for name, value in state.items() if name.endswith("patch_embed4.bias")), None)
    if norm and shapes != {"weight": width, "bias": width}:
        raise ConvMAEError(f"{path} must hold norm.weight and norm.bias of {width}; found {shapes}: copy it again")
    return norm or None
