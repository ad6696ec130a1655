"""What model the authors' tensors make, inferred from their names and shapes."""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.convmae import MODELS, ConvMAEConfig, DenseConfig
from convmae_deploy.models.pretraining import PretrainingConfig
from convmae_deploy.models.segmenter import SegmenterConfig, authors_dense

KERNELS = (4, 2, 2)  # and strides of patch_embed1, 2, 3
AUTHORS_DECODER = 512, 16  # width and attention heads


def infer_config(
    encoder: Mapping[str, Tensor], *, variant: str | None, num_heads: int | None, image_size: tuple[int, int] | None
) -> tuple[str, ConvMAEConfig]:
    """Name of the variant ("custom" for none) and configuration of an encoder's tensors (our shapes, no prefix).

    Raises:
        ConvMAEError: the shapes are not those of a ConvMAE encoder, or the number of heads cannot be known.
    """
    projections = [shape_of(encoder, f"patch_embed{stage}.proj.weight", 4) for stage in (1, 2, 3)]
    kernels = tuple(shape[2:] for shape in projections)
    if kernels != tuple((side, side) for side in KERNELS):
        raise ConvMAEError(f"the patch embeddings must have kernels of 4, 2 and 2 pixels; found {kernels}")
    dims = tuple(shape[0] for shape in projections)
    depths = tuple(depth_of(encoder, f"blocks{stage}") for stage in (1, 2, 3))
    hidden = [shape_of(encoder, f"blocks{stage}.0.mlp.fc1.weight", 2)[0] for stage in (1, 2, 3)]
    ratios = tuple(width / dim for width, dim in zip(hidden, dims, strict=True))
    kernel_size = shape_of(encoder, "blocks1.0.attn.weight", 4)[2]
    matching = [
        name
        for name, variant_of in ((name, build()) for name, build in MODELS.items())
        if (variant_of.embed_dims, variant_of.depths, variant_of.mlp_ratios, variant_of.kernel_size)
        == (dims, depths, ratios, kernel_size)
    ]
    heads = choose_heads(dims[2], matching, variant, num_heads)
    side, _ = file_grid(encoder)
    if image_size is None and side % 2:
        raise ConvMAEError(
            f"the position embedding is for {16 * side} x {16 * side} pixels, no multiple of 32; "
            "choose another size with --image-size"
        )
    # "custom" when the heads are not those of the variant with these dimensions
    name = next((name for name in matching if MODELS[name]().num_heads == heads), "custom")
    config = ConvMAEConfig(
        embed_dims=(dims[0], dims[1], dims[2]),
        depths=(depths[0], depths[1], depths[2]),
        mlp_ratios=(ratios[0], ratios[1], ratios[2]),
        num_heads=heads,
        image_size=image_size or (16 * side, 16 * side),
        kernel_size=kernel_size,
    )
    return name, config


def file_grid(encoder: Mapping[str, Tensor]) -> tuple[int, int]:
    """(H, W) in tokens that the position embedding of an encoder's tensors is for.

    Raises:
        ConvMAEError: the grid is not square.
    """
    tokens = shape_of(encoder, "pos_embed", 3)[1]
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ConvMAEError(f"the position embedding must be for a square grid; found {tokens} tokens")
    return side, side


def infer_pretraining(
    state: Mapping[str, Tensor], config: ConvMAEConfig, arguments: Mapping[str, Any]
) -> tuple[PretrainingConfig, dict[str, str]]:
    """What a full pretraining file has besides its encoder; and which fields it does not hold, with their source.

    Args:
        state: the file's tensors in our names.
        config: of its encoder.
        arguments: of the training script.

    Raises:
        ConvMAEError: the shapes are not those of a decoder.
    """
    width = shape_of(state, "decoder_embed.weight", 2)[0]
    heads, source = config.num_heads, "as in the encoder"
    if width == AUTHORS_DECODER[0]:
        heads, source = AUTHORS_DECODER[1], "as in the authors' code"
    recipe: dict[str, Any] = {}
    if isinstance(ratio := arguments.get("mask_ratio"), float) and 0 < ratio < 1:
        recipe["mask_ratio"] = ratio
    if isinstance(normalised := arguments.get("norm_pix_loss"), bool):
        recipe["norm_pix_loss"] = normalised
    pretraining = PretrainingConfig(
        decoder_width=width,
        decoder_depth=depth_of(state, "decoder_blocks"),
        decoder_heads=heads,
        decoder_mlp_ratio=shape_of(state, "decoder_blocks.0.mlp.fc1.weight", 2)[0] / width,
        **recipe,
    )
    missing = [name for name in ("masking", "mask_ratio", "norm_pix_loss") if name not in recipe]
    return pretraining, {"decoder_heads": source} | dict.fromkeys(missing, "as in the authors' recipe")


def infer_segmenter(state: Mapping[str, Tensor]) -> tuple[SegmenterConfig, DenseConfig, int]:
    """The heads of a segmentation file, what it changes in stage 3, and the number of classes.

    Args:
        state: the file's tensors in our names.

    Raises:
        ConvMAEError: the shapes are not those of an UperNet head.
    """
    num_classes, channels = shape_of(state, "decode_head.conv_seg.weight", 4)[:2]
    segmenter = SegmenterConfig(
        channels=channels,
        auxiliary_channels=shape_of(state, "auxiliary_head.conv_seg.weight", 4)[1],
        e4="convolution" if "downsample.0.weight" in state else "maxpool",
    )
    has_tables = any(name.endswith(".position.table") for name in state)
    has_layer_scale = any(name.endswith(".ls1.gamma") for name in state)
    if has_tables != has_layer_scale:
        raise ConvMAEError(
            "a segmentation file must have relative positions and LayerScale in stage 3, or neither; found "
            f"{'relative positions' if has_tables else 'LayerScale'} alone: check that the file is whole"
        )
    return segmenter, authors_dense() if has_tables else DenseConfig(), num_classes


def choose_heads(width: int, matching: list[str], variant: str | None, num_heads: int | None) -> int:
    """The number of heads: as told, else of the named variant, else of the one variant with the file's dimensions."""
    if variant is not None and variant not in MODELS:
        raise ConvMAEError(f"unknown variant {variant!r}; choose one of {', '.join(MODELS)}")
    if variant is not None and MODELS[variant]().embed_dims[2] != width:
        raise ConvMAEError(
            f"variant {variant} is {MODELS[variant]().embed_dims[2]} wide in stage 3 and the file {width}; "
            "name another --variant or give --num-heads"
        )
    candidates = {MODELS[name]().num_heads for name in ([variant] if variant else matching)}
    if num_heads is not None:
        if variant is not None and candidates != {num_heads}:
            raise ConvMAEError(f"variant {variant} has {candidates.pop()} heads, not {num_heads}; give one option")
        return num_heads
    if len(candidates) != 1:
        raise ConvMAEError(
            f"{len(matching) or 'no'} known variants have the file's dimensions and the file does not hold the number "
            "of attention heads; give it with --num-heads, or --variant to take that variant's"
        )
    return candidates.pop()


def shape_of(state: Mapping[str, Tensor], name: str, ndim: int) -> tuple[int, ...]:
    """Shape of a tensor that must be there with `ndim` axes, none of them empty."""
    shape = tuple(state[name].shape) if name in state else None
    if shape is None or len(shape) != ndim or 0 in shape:
        raise ConvMAEError(f"{name} must be a tensor with {ndim} axes; found {shape or 'none'}: the file is no ConvMAE")
    return shape


def depth_of(state: Mapping[str, Tensor], blocks: str) -> int:
    """Number of blocks of a stage, by the largest index; a gap is found later as missing tensors."""
    found = [int(match[1]) for name in state if (match := re.match(rf"{blocks}\.(\d{{1,3}})\.", name))]
    return max(found, default=-1) + 1
