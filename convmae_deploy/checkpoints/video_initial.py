"""Initial weights for a video encoder: those of another, or of an image encoder whose kernels are inflated in time."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from convmae_deploy.checkpoints.initial import load_initial_encoder
from convmae_deploy.checkpoints.loading import encoder_part
from convmae_deploy.checkpoints.native import read_checkpoint
from convmae_deploy.checkpoints.resizing import resize_video_positions
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convmae import ConvMAEConfig
from convmae_deploy.models.video import VideoConfig, build_video_convmae

# How a kernel of one place in time becomes one of several: all of it in the middle (in a cube, its second frame), or
# the same share in each. Either way stages 1 and 2 of a clip of equal frames are those of the image away from the
# clip's ends, where zeros are seen beyond the first and last slot; stage 3 gets the position embedding of videos.
Inflation = Literal["centre", "mean"]


def load_initial_video_encoder(
    path: Path, architecture: ConvMAEConfig, video: VideoConfig, inflation: Inflation
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights (keys without prefix) of a trained encoder, made to fit a video encoder, and what to tell of it.

    Args:
        path: a run folder or checkpoint of ours, of videos or of images, or a `.pth` file of the authors (images).
        architecture: what the encoder must be; its image size is the one to resize for.
        video: its frames and its kernels' depth.
        inflation: what becomes of the kernels of an image encoder.

    Raises:
        ConvMAEError: not such an encoder, or damaged.
    """
    if path.is_file() or read_checkpoint(path)[0].video is None:
        state, report = load_initial_encoder(path, architecture)
        note = f"inflated the kernels of an image model ({inflation}); the paper trains its video models from scratch"
        return inflate(state, architecture, video, inflation), [*report, note]
    record, state = read_checkpoint(path)
    assert record.video is not None
    found = replace(record.model, image_size=architecture.image_size), replace(record.video, frames=video.frames)
    if found != (architecture, video):
        raise ConvMAEError(
            f"initial weights must be an encoder of {architecture} and {video}; {path} holds {record.model} and "
            f"{record.video}"
        )
    old, new = (record.video.slots, record.model.grid_size), (video.slots, architecture.grid_size)
    report = [] if old == new else [f"position embedding: from {old} to {new} slots and tokens"]
    return resize_video_positions(encoder_part(state), old, new), report


def inflate(
    state: dict[str, Tensor], architecture: ConvMAEConfig, video: VideoConfig, inflation: Inflation
) -> dict[str, Tensor]:
    """An image encoder's tensors as those of a video encoder, which keeps its own position embedding.

    Args:
        state: keys without prefix.
        architecture: of both.
        video: of the video encoder.
        inflation: where in time a kernel goes.
    """
    fresh = build_video_convmae(architecture, video).state_dict()
    inflated = {}
    for name, value in state.items():
        wanted = fresh[name]
        if name == "pos_embed":
            inflated[name] = wanted
        elif wanted.dim() == value.dim():
            inflated[name] = value
        else:  # (out, in, k, k) to (out, in, depth, k, k)
            inflated[name] = over_time(value, wanted.shape[2], inflation)
    return inflated


def over_time(kernel: Tensor, depth: int, inflation: Inflation) -> Tensor:
    """(out, in, k, k) to (out, in, depth, k, k), whose sum over time is the kernel."""
    if inflation == "mean":
        return (kernel / depth).unsqueeze(2).repeat(1, 1, depth, 1, 1)
    inflated = torch.zeros(*kernel.shape[:2], depth, *kernel.shape[2:], dtype=kernel.dtype)
    inflated[:, :, depth // 2] = kernel
    return inflated
