"""Checkpoints: our own format, and the import of the authors' files."""

from convmae_deploy.checkpoints.initial import load_initial_encoder, load_pretraining_norm
from convmae_deploy.checkpoints.loading import load_classifier, load_encoder_state, load_pretraining
from convmae_deploy.checkpoints.native import CheckpointRecord, find_checkpoint, read_checkpoint, save_checkpoint
from convmae_deploy.checkpoints.original import import_original

__all__ = [
    "CheckpointRecord",
    "find_checkpoint",
    "import_original",
    "load_classifier",
    "load_encoder_state",
    "load_initial_encoder",
    "load_pretraining",
    "load_pretraining_norm",
    "read_checkpoint",
    "save_checkpoint",
]
