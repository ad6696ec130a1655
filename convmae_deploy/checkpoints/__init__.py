"""Checkpoints: our own format, and the import of the authors' files."""

from convmae_deploy.checkpoints.initial import load_initial_encoder
from convmae_deploy.checkpoints.native import (
    CheckpointRecord,
    find_checkpoint,
    load_classifier,
    load_encoder_state,
    read_checkpoint,
    save_checkpoint,
)
from convmae_deploy.checkpoints.original import ImportReport, import_original

__all__ = [
    "CheckpointRecord",
    "ImportReport",
    "find_checkpoint",
    "import_original",
    "load_classifier",
    "load_encoder_state",
    "load_initial_encoder",
    "read_checkpoint",
    "save_checkpoint",
]
