"""Weights of a checkpoint for images of another size.

Shapes: N = H * W tokens of a grid, D width, h heads, d = D / h; R offsets between the tokens of a grid or of one axis.
"""

import math
import re
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convmae import DenseConfig, relative_grid
from convmae_deploy.models.positions import resize_position_embedding
from convmae_deploy.models.video import resize_space_time_embedding

POSITION_EMBEDDINGS = ("pos_embed", "encoder.pos_embed", "decoder_pos_embed")
# relative positions over the whole grid; those of windows do not depend on the image
RELATIVE_POSITION = re.compile(
    r"(?:encoder\.)?(?:global_position|blocks3\.(?P<block>\d+)\.attn\.position)\.(?P<form>table|rel_pos_h|rel_pos_w)"
)


def resize_positions(
    state: Mapping[str, Tensor], dense: DenseConfig, old: tuple[int, int], new: tuple[int, int]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A state dict with its position embeddings and relative positions for another grid; and what was resized how.

    Args:
        state: in our names, with the prefix of the encoder or without.
        dense: of the encoder.
        old: (H, W) in tokens that the tensors are for.
        new: that they are to be for.

    Raises:
        ConvMAEError: a tensor is not for the old grid.
    """
    tensors, changes = dict(state), {}
    for name in POSITION_EMBEDDINGS:
        if name in state and old != new:
            if state[name].shape[:-1] != (1, math.prod(old)):
                raise ConvMAEError(
                    f"{name} must be for the {math.prod(old)} tokens of its config; found the shape "
                    f"{tuple(state[name].shape)}: export or copy the checkpoint again"
                )
            tensors[name] = resize_position_embedding(state[name], old, new)
            changes[name] = f"{old[0]} x {old[1]} to {new[0]} x {new[1]}, bicubic"
    old, new = relative_grid(old, dense), relative_grid(new, dense)
    for name, value in state.items():
        match = RELATIVE_POSITION.fullmatch(name)
        if match is None or old == new or is_windowed(match["block"], dense):
            continue
        tensors[name] = resize_relative_position(name, value, match["form"], old, new)
        changes[name] = f"from {old[0]} x {old[1]} to {new[0]} x {new[1]} tokens"
    return tensors, changes


def resize_video_positions(
    state: Mapping[str, Tensor], old: tuple[int, tuple[int, int]], new: tuple[int, tuple[int, int]]
) -> dict[str, Tensor]:
    """A video model's state dict with its position embeddings for clips of another length or size.

    Args:
        state: with the prefix of the encoder or without.
        old: (T, (H, W)) in slots and tokens that the tensors are for.
        new: that they are to be for.

    Raises:
        ConvMAEError: a tensor is not for the old ones.
    """
    tensors = dict(state)
    positions = old[0] * math.prod(old[1])
    for name in POSITION_EMBEDDINGS:
        if name in state and old != new:
            if state[name].shape[:-1] != (1, positions):
                raise ConvMAEError(
                    f"{name} must be for the {positions} tokens of its config; found the shape "
                    f"{tuple(state[name].shape)}: copy the checkpoint again"
                )
            tensors[name] = resize_space_time_embedding(state[name], old, new).flatten(1, 2)
    return tensors


def is_windowed(block: str | None, dense: DenseConfig) -> bool:
    """Whether a block of stage 3 (its number; None: what the global blocks share) attends within windows."""
    return block is not None and dense.window_size is not None and int(block) not in dense.global_blocks


def resize_relative_position(name: str, value: Tensor, form: str, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """A table (R, h) bicubically over both axes, or the vectors (R, d) of one axis linearly.

    Raises:
        ConvMAEError: it is not for the old grid.
    """
    sides = {"table": (0, 1), "rel_pos_h": (0,), "rel_pos_w": (1,)}[form]
    old_offsets, new_offsets = (tuple(2 * grid[axis] - 1 for axis in sides) for grid in (old, new))
    if value.ndim != 2 or len(value) != math.prod(old_offsets):
        raise ConvMAEError(
            f"{name} must have {math.prod(old_offsets)} rows, for {old[0]} x {old[1]} tokens; found the shape "
            f"{tuple(value.shape)}: export or copy the checkpoint again"
        )
    if form == "table":
        return resize_position_embedding(
            value[None], (old_offsets[0], old_offsets[1]), (new_offsets[0], new_offsets[1])
        )[0]
    resized = F.interpolate(value.float().t()[None], size=new_offsets[0], mode="linear", align_corners=False)
    return resized[0].t().to(value.dtype)
