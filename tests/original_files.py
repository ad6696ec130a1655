"""Files in the authors' layout, built from the recorded tensors of tests/fixtures/reference."""

import argparse
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convmae_deploy.checkpoints.original_keys import POINTWISE_KEY
from convmae_deploy.models.convmae import ConvMAEConfig
from convmae_deploy.models.segmenter import ConvMAESegmenter

REFERENCE = Path(__file__).parent / "fixtures" / "reference"
CONFIG = ConvMAEConfig(embed_dims=(32, 48, 96), depths=(1, 1, 2), mlp_ratios=(2, 4, 3), num_heads=4)
DECODER_WIDTH = 32


@cache
def recorded(name: str) -> dict[str, NDArray[Any]]:
    """The arrays of `<name>.npz`; not to be written to."""
    with np.load(REFERENCE / f"{name}.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


def recorded_tensor(name: str, key: str) -> Tensor:
    """One recorded array; half-precision inputs as float32, which holds them exactly."""
    tensor = torch.from_numpy(recorded(name)[key].copy())
    return tensor.float() if tensor.dtype == torch.float16 else tensor


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference / largest absolute expected value."""
    assert found.shape == expected.shape
    return ((found.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


def encoder_only_state() -> dict[str, Tensor]:
    """Encoder and `norm`, as in the pretrained file that the authors published."""
    return {name: recorded_tensor("encoder", name) for name in recorded("encoder")}


def encoder_state() -> dict[str, Tensor]:
    """The encoder alone."""
    return {name: value for name, value in encoder_only_state().items() if not name.startswith("norm.")}


def classifier_state() -> dict[str, Tensor]:
    """A finetuned classifier with ten classes."""
    own = [name for name in recorded("classifier") if name.startswith("weights/")]
    return encoder_state() | {name.removeprefix("weights/"): recorded_tensor("classifier", name) for name in own}


def probe_state(pooling: str) -> dict[str, Tensor]:
    """A linear probe, `pooling` "globalpool" or "firsttoken"."""
    own = [name for name in recorded("linear_probes") if name.startswith(f"{pooling}/head.")]
    state = {name.removeprefix(f"{pooling}/"): recorded_tensor("linear_probes", name) for name in own}
    state["head.0.num_batches_tracked"] = torch.tensor(2)
    if pooling == "firsttoken":
        return encoder_only_state() | state
    return encoder_state() | state | {"fc_norm.weight": torch.ones(96), "fc_norm.bias": torch.zeros(96)}


def pretraining_state(decoder_width: int = DECODER_WIDTH) -> dict[str, Tensor]:
    """A full pretraining model; the decoder's values are arbitrary."""
    width, stage1, stage2, stage3 = decoder_width, *CONFIG.embed_dims
    shapes: dict[str, tuple[int, ...]] = {
        "mask_token": (1, 1, width),
        "decoder_pos_embed": (1, 196, width),
        "stage1_output_decode.weight": (stage3, stage1, 4, 4),
        "stage1_output_decode.bias": (stage3,),
        "stage2_output_decode.weight": (stage3, stage2, 2, 2),
        "stage2_output_decode.bias": (stage3,),
        "decoder_embed.weight": (width, stage3),
        "decoder_embed.bias": (width,),
        "decoder_norm.weight": (width,),
        "decoder_norm.bias": (width,),
        "decoder_pred.weight": (768, width),
        "decoder_pred.bias": (768,),
    }
    for layer, shape in {
        "norm1": (width,),
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "norm2": (width,),
        "mlp.fc1": (2 * width, width),
        "mlp.fc2": (width, 2 * width),
    }.items():
        shapes[f"decoder_blocks.0.{layer}.weight"] = shape
        shapes[f"decoder_blocks.0.{layer}.bias"] = shape[:1]
    generator = torch.Generator().manual_seed(0)
    decoder = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return encoder_only_state() | decoder


def segmentation_state(model: ConvMAESegmenter) -> dict[str, Tensor]:
    """A segmenter of ours under the names and with the shapes of the authors' segmentation files."""
    state = {}
    for name, value in model.state_dict().items():
        name = re.sub(r"^encoder\.", "backbone.", name)
        name = re.sub(r"^downsample\.", "backbone.fpn.", name)
        if name.endswith(".position.table"):
            name = name.replace(".position.table", ".relative_position_bias_table")
            tokens = model.encoder.pos_embed.shape[1]
            index = torch.zeros(tokens, tokens, dtype=torch.int64)  # its values are not read
            state[name.replace("bias_table", "index")] = index
        name = re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name)
        pointwise = POINTWISE_KEY.fullmatch(name.removeprefix("backbone."))
        state[name] = value[:, :, None, None] if pointwise else value
    return state


def training_checkpoint(state: dict[str, Tensor]) -> dict[str, Any]:
    """The five entries that the authors' training scripts save."""
    return {
        "model": state,
        "optimizer": {"state": {}, "param_groups": [{"lr": 1.2e-3}]},
        "epoch": 7,
        "scaler": {"scale": 65536.0},
        "args": argparse.Namespace(model="convmae_convvit_base_patch16", mask_ratio=0.75),
    }


def write_pth(path: Path, content: object) -> Path:
    """`torch.save` that returns the path."""
    torch.save(content, path)
    return path
