"""Pretraining passes of the authors' code, from the folder that the environment variable CONVMAE_REFERENCE names.

With their weights they are too large for tests/fixtures; without the variable the tests that need them are skipped.
`pretrain.npz` is a pass of ConvMAE over two images, `fast_pretrain.npz` one of FastConvMAE over one image with the same
weights, `pretrain_full.pth`.
"""

import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from convmae_deploy.checkpoints.original_keys import convert_keys
from convmae_deploy.models.pretraining import ConvMAEPretraining, PretrainingConfig, build_pretraining
from tests.original_files import CONFIG, DECODER_WIDTH

DECODER = PretrainingConfig(decoder_width=DECODER_WIDTH, decoder_depth=2, decoder_heads=4, decoder_mlp_ratio=2)

REFERENCE = os.environ.get("CONVMAE_REFERENCE")

needs_recorded_passes = pytest.mark.skipif(
    REFERENCE is None, reason="CONVMAE_REFERENCE does not name the folder of the recorded passes"
)


def reference_folder() -> Path:
    """Where the recorded passes are."""
    assert REFERENCE is not None
    return Path(REFERENCE)


@cache
def recorded_pass(name: str) -> dict[str, NDArray[Any]]:
    """The arrays of `<name>.npz`; not to be written to."""
    with np.load(reference_folder() / f"{name}.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


def pass_tensor(name: str, key: str) -> Tensor:
    """One recorded array; half-precision inputs as float32, which holds them exactly."""
    tensor = torch.from_numpy(np.array(recorded_pass(name)[key]))
    return tensor.float() if tensor.dtype == torch.float16 else tensor


def pass_norms(name: str, kind: str) -> dict[str, float]:
    """The recorded norms `<kind>_norms`, by the original names of the parameters."""
    arrays = recorded_pass(name)
    return dict(zip(arrays[f"{kind}_names"].tolist(), arrays[f"{kind}_norms"].tolist(), strict=True))


def recorded_model(*, norm_pix_loss: bool = True) -> ConvMAEPretraining:
    """A model with the weights of the recorded passes."""
    original = torch.load(reference_folder() / "pretrain_full.pth", weights_only=True)["model"]
    model = build_pretraining(CONFIG, DECODER)
    model.norm_pix_loss = norm_pix_loss
    model.load_state_dict(convert_keys(original).state)
    return model


def original_names(model: ConvMAEPretraining) -> dict[str, torch.nn.Parameter]:
    """The parameters by the names that the authors' code has for them."""
    return {name.removeprefix("encoder."): parameter for name, parameter in model.named_parameters()}
