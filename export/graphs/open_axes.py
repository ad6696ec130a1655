"""Which axes of a graph stay open: the batch unless it is fixed, the height and width where a bundle is for all sizes.

The tracer turns what it takes for a constant into one, in silence: a size of 1, and a size at which the model takes
another way, such as the one that its position embedding is stored for. So it is shown none of these, and asked
afterwards.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import onnx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from convmae_deploy.bundle.manifest import SIDE_STEP, InputSpec
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convmae import ConvMAE

BATCH, SIDES = "batch", ("height", "width")  # what open axes are called


def example_shape(entry: InputSpec, fixed_batch: bool) -> tuple[int, ...]:
    """(B, 3, ...) of what the tracer is shown."""
    batch = entry.max_batch if fixed_batch else 2
    if entry.sides is None:
        return (batch, *entry.shape)
    least, most = entry.sides.smallest // SIDE_STEP, entry.sides.largest // SIDE_STEP
    height, width = min(least + 2, most), min(least + 4, most)  # different, and none of them a step
    return batch, entry.shape[0], SIDE_STEP * height, SIDE_STEP * width


def open_axes(entry: InputSpec, fixed_batch: bool) -> dict[int, object]:
    """Axis of the input -> what `torch.export` calls it."""
    axes: dict[int, object] = {}
    if not fixed_batch:
        axes[0] = Dim(BATCH, min=1, max=max(2, entry.max_batch))  # it refuses a range of one
    if entry.sides is not None:
        steps = entry.sides.smallest // SIDE_STEP, entry.sides.largest // SIDE_STEP
        axes |= {2 + place: SIDE_STEP * Dim(name, min=steps[0], max=steps[1]) for place, name in enumerate(SIDES)}
    return axes


@contextmanager
def resized_positions(wrapper: nn.Module) -> Iterator[None]:
    """Lets encoders resize their position embedding for every grid, the one that it is stored for too.

    Raises:
        ConvMAEError: an encoder has positions that belong to one size.
    """
    encoders = [module for module in wrapper.modules() if isinstance(module, ConvMAE)]
    for encoder in encoders:
        if encoder.needs_positions:
            raise ConvMAEError(
                "the model has windows or relative positions, which belong to one size; export it without "
                "--dynamic-size, for one size with --image-size"
            )
        encoder.position_embedding = partial(_resized, encoder)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for encoder in encoders:
            del encoder.position_embedding


def _resized(encoder: ConvMAE, grid_size: tuple[int, int]) -> Tensor:
    """As `ConvMAE.position_embedding`: a bicubic resize to the same grid changes nothing."""
    dtype = encoder.pos_embed.dtype
    map_bdhw = encoder.pos_embed.float().reshape(1, *encoder.grid_size, -1).permute(0, 3, 1, 2)  # (1, D, H, W)
    resized = F.interpolate(map_bdhw, size=grid_size, mode="bicubic", align_corners=False)
    return resized.flatten(2).transpose(1, 2).to(dtype)


def check_sides(program: ExportedProgram, entry: InputSpec) -> None:
    """Raises RuntimeError unless the traced program takes all sides that it was to take."""
    if entry.sides is None:
        return
    (name,) = program.graph_signature.user_inputs
    value = next(node.meta["val"] for node in program.graph.nodes if node.name == name)
    for side in value.shape[2:]:
        range_ = None if isinstance(side, int) else program.range_constraints.get(side.node.expr)
        if range_ is None or (range_.lower, range_.upper) != (entry.sides.smallest, entry.sides.largest):
            raise RuntimeError(f"the tracer made {range_ or side} of sides from {entry.sides}")


def name_axes(graph: onnx.GraphProto, entry: InputSpec) -> None:
    """Calls open sides of inputs and outputs what they are: `height`, `height_4` for a quarter, not `8*s39`."""
    if entry.sides is None:
        return
    for value in (*graph.input, *graph.output):
        for name, axis in zip(SIDES, value.type.tensor_type.shape.dim[2:], strict=False):
            term = re.fullmatch(r"(?:([0-9]+)\*)?[a-z]\w*", axis.dim_param)
            if term is not None:
                stride = SIDE_STEP // int(term[1] or 1)
                axis.dim_param = name if stride == 1 else f"{name}_{stride}"
