"""onnx's reference evaluator, with operators in place of those that fall short of the standard or never end."""

from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch.nn.functional import grid_sample

TORCH_MODES = {"linear": "bilinear", "bilinear": "bilinear", "nearest": "nearest", "cubic": "bicubic"}


class GatherElements(OpRun):
    """Onnx's own stops where the axis has more than 64 entries."""

    op_domain = ""

    def _run(self, data: NDArray[Any], indices: NDArray[Any], axis: int) -> tuple[NDArray[Any]]:
        """Entries of `data` along `axis`; `indices` may be smaller than `data` along the other axes."""
        axis %= data.ndim
        kept = tuple(slice(None) if place == axis else slice(size) for place, size in enumerate(indices.shape))
        return (np.take_along_axis(data[kept], indices, axis),)


class GridSample(OpRun):
    """Onnx's own goes from pixel to pixel in Python, and takes minutes for the smallest detector."""

    op_domain = ""

    def _run(
        self, X: NDArray[Any], grid: NDArray[Any], align_corners: int, mode: str, padding_mode: str
    ) -> tuple[NDArray[Any]]:
        """Maps (B, C, H, W) at the places of a grid (B, h, w, 2); gives (B, C, h, w) in the maps' type."""
        maps, places = (torch.from_numpy(np.asarray(array, np.float32)) for array in (X, grid))
        found = grid_sample(maps, places, TORCH_MODES[mode], padding_mode, bool(align_corners))
        return (found.numpy().astype(X.dtype),)


def reference_evaluator(model: onnx.ModelProto) -> ReferenceEvaluator:
    """A model that onnx computes in NumPy."""
    return ReferenceEvaluator(model, new_ops=[GatherElements, GridSample])
