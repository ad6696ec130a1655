"""Models for torch.hub: `torch.hub.load("path/of/a/clone", "convmae_base", source="local", num_classes=10)`.

Each entry is that of `timm.create_model` and takes what it takes (features_only=True, img_size=…); its weights are
fresh. `convmae_checkpoint` opens what was trained or imported.
"""

from pathlib import Path as _Path
from typing import Any as _Any

from timm.models import model_entrypoint as _entry

import convmae_deploy.timm  # noqa: F401  # registers the models

dependencies = ["torch", "timm", "safetensors", "pydantic"]

convmae_nano = _entry("convmae_nano")
convmae_tiny = _entry("convmae_tiny")
convmae_small = _entry("convmae_small")
convmae_base = _entry("convmae_base")
convmae_base_kernel7 = _entry("convmae_base_kernel7")
convmae_base_kernel9 = _entry("convmae_base_kernel9")
convmae_base_plus = _entry("convmae_base_plus")
convmae_large = _entry("convmae_large")
convmae_huge = _entry("convmae_huge")


def convmae_checkpoint(path: str) -> _Any:
    """The classifier of a run folder, checkpoint or hub folder in evaluation mode; of other photo models the encoder.

    Args:
        path: its folder.

    Raises:
        ConvMAEError: it is of videos, or damaged.
    """
    from convmae_deploy.checkpoints.loading import load_classifier, load_feature_extractor
    from convmae_deploy.checkpoints.native import read_checkpoint

    folder = _Path(path)
    load = load_classifier if read_checkpoint(folder)[0].kind == "classification" else load_feature_extractor
    return load(folder)[0]
