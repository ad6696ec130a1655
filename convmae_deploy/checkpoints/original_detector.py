"""The authors' detectors (detectron2) in our names, and what their tensors say of the model."""

import math
import re
from collections.abc import Mapping

from torch import Tensor

from convmae_deploy.checkpoints.original_configs import depth_of, shape_of
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convmae import PATCH_SIZE, DenseConfig
from convmae_deploy.models.detector import DetectorConfig, base_fpn, base_simple
from convmae_deploy.models.roi_heads import CONVOLUTIONS

FPN_PARTS = {"lateral": "inner_blocks", "output": "layer_blocks"}
CLASS_SCORES = "roi_heads.box_predictor.cls_score."
WINDOW_TABLE, GLOBAL_TABLE = "encoder.window_position.table", "encoder.global_position.table"
DETECTOR_NAMES = {
    r"^proposal_generator\.rpn_head\.conv\.conv(\d+)\.": r"rpn.head.conv.\1.0.",
    r"^proposal_generator\.rpn_head\.objectness_logits\.": "rpn.head.cls_logits.",
    r"^proposal_generator\.rpn_head\.anchor_deltas\.": "rpn.head.bbox_pred.",
    r"^roi_heads\.box_head\.fc1\.": f"roi_heads.box_head.{CONVOLUTIONS + 1}.",  # behind a Flatten
    r"^roi_heads\.mask_head\.deconv\.": "roi_heads.mask_predictor.conv5_mask.",
    r"^roi_heads\.mask_head\.predictor\.": "roi_heads.mask_predictor.mask_fcn_logits.",
    r"^simfp_(\d\.\d)\.norm\.": r"pyramid.p\1.1.",
    r"^simfp_(2\.[45]|3\.[12]|4\.[01]|5\.[12])\.": r"pyramid.p\1.0.",  # convolutions that have a norm
    r"^simfp_(\d\.\d)\.": r"pyramid.p\1.",
}
FPN_NAME = re.compile(r"fpn_(lateral|output)(\d)\.(norm\.)?(.+)")
CONVOLUTION_NAME = re.compile(r"roi_heads\.(box_head|mask_head)\.(?:conv|mask_fcn)(\d+)\.(norm\.)?(.+)")


def detector_name(name: str) -> str:
    """Our name of a key, without prefix, of what stands on the encoder."""
    if match := FPN_NAME.fullmatch(name):
        part, level, norm, rest = match.groups()
        return f"pyramid.{FPN_PARTS[part]}.{int(level) - 2}.{1 if norm else 0}.{rest}"
    if match := CONVOLUTION_NAME.fullmatch(name):
        head, number, norm, rest = match.groups()
        return f"roi_heads.{head}.{int(number) - 1}.{1 if norm else 0}.{rest}"
    for pattern, ours in DETECTOR_NAMES.items():
        if re.search(pattern, name):
            return re.sub(pattern, ours, name)
    return name


def background_first(scores: Tensor) -> Tensor:
    """Weight (K + 1, width) or bias (K + 1,) of the class scores with the background, their last row, as the first."""
    return scores.roll(1, dims=0)


def infer_detector(state: Mapping[str, Tensor], grid_size: tuple[int, int]) -> tuple[DetectorConfig, DenseConfig, int]:
    """The pyramid and the heads of a detection file, what it changes in the encoder, and the number of classes.

    Args:
        state: the file's tensors in our names.
        grid_size: (H, W) in tokens that its position embedding is for.

    Raises:
        ConvMAEError: the shapes are not those of one of the authors' detectors.
    """
    is_simple = any(name.startswith("pyramid.p2.") for name in state)
    detector = DetectorConfig(
        pyramid="simple" if is_simple else "fpn",
        channels=shape_of(state, "rpn.head.cls_logits.weight", 4)[1],
        fc_width=shape_of(state, f"{CLASS_SCORES}weight", 2)[1],
        norm="batch" if any(name.endswith(".running_mean") for name in state) else "layer",
        rpn_convolutions=depth_of(state, r"rpn\.head\.conv"),
    )
    num_classes = shape_of(state, f"{CLASS_SCORES}weight", 2)[0] - 1
    return detector, decomposed_dense(state) if is_simple else shared_dense(state, grid_size), num_classes


def shared_dense(state: Mapping[str, Tensor], grid_size: tuple[int, int]) -> DenseConfig:
    """Of the DET folder: two tables, shared. Which blocks are global is not in the file: those of the authors' code."""
    relative = 2 * (grid_side(shape_of(state, GLOBAL_TABLE, 2)[0], GLOBAL_TABLE),)
    return DenseConfig(
        relative_position="shared",
        relative_size=None if relative == grid_size else (PATCH_SIZE * relative[0], PATCH_SIZE * relative[1]),
        window_size=grid_side(shape_of(state, WINDOW_TABLE, 2)[0], WINDOW_TABLE),
        global_blocks=base_fpn()[0].dense.global_blocks,
    )


def decomposed_dense(state: Mapping[str, Tensor]) -> DenseConfig:
    """Of Official-ConvMAE-Det: vectors of every block, whose number says whether it is global."""
    blocks = range(depth_of(state, r"encoder\.blocks3"))
    names = [f"encoder.blocks3.{block}.attn.position.rel_pos_" for block in blocks]
    sides = [tuple((shape_of(state, f"{name}{axis}", 2)[0] + 1) // 2 for axis in "hw") for name in names]
    window, relative = min(sides), max(sides)
    if len(set(sides)) != 2 or window[0] != window[1]:
        raise ConvMAEError(
            "a ViTDet-style file must have relative positions for square windows in some blocks and for the whole "
            f"image in the others; found sides of {sorted(set(sides))} tokens"
        )
    return DenseConfig(
        relative_position="decomposed",
        relative_size=(PATCH_SIZE * relative[0], PATCH_SIZE * relative[1]),
        window_size=window[0],
        global_blocks=tuple(block for block in blocks if sides[block] == relative),
        conv_norm_eps=base_simple()[0].dense.conv_norm_eps,
    )


def grid_side(rows: int, name: str) -> int:
    """Side in tokens of the square grid whose offsets make `rows` rows of a table.

    Raises:
        ConvMAEError: there is no such grid.
    """
    offsets = math.isqrt(rows)
    if offsets**2 != rows or offsets % 2 == 0:
        raise ConvMAEError(f"{name} must have a row for every offset in a square grid; found {rows} rows")
    return (offsets + 1) // 2
