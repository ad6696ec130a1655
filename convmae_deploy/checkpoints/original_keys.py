"""The authors' state dicts in our names: pure functions from tensors to tensors, no files.

Their encoder has no common prefix, ours is `encoder.` in every model built on it; their 1x1 convolutions are Linears
here.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from convmae_deploy.checkpoints.original_detector import CLASS_SCORES, background_first, detector_name
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.models.classifier import GlobalPool

# kinds of checkpoints, and a classifier whose BatchNorm is folded
SourceKind = Literal["pretraining", "features", "classification", "linear probe", "detection", "segmentation"]

ANCHOR = "patch_embed1.proj.weight"  # in every file of theirs; what stands before it is the prefix of the encoder
PROBE_NORM_EPS = 1e-6  # for the BatchNorm in front of a linear probe's head
ENCODER_KEY = re.compile(r"pos_embed$|patch_embed\d|blocks\d|(?:windowed|global)_rel_pos_bias\.")
POINTWISE_KEY = re.compile(r"blocks[12]\.\d+\.(?:conv1|conv2|mlp\.fc1|mlp\.fc2)\.weight")
DECODER_KEY = re.compile(r"mask_token$|decoder_|stage[12]_output_decode\.")
DENSE_ENCODER_NAMES = {
    r"^windowed_rel_pos_bias\.relative_position_bias_table$": "window_position.table",
    r"^global_rel_pos_bias\.relative_position_bias_table$": "global_position.table",
    r"^(blocks3\.\d+\.attn)\.relative_position_bias_table$": r"\1.position.table",
    r"^(blocks3\.\d+\.attn)\.(rel_pos_[hw])$": r"\1.position.\2",
    r"^(blocks3\.\d+)\.gamma_([12])$": r"\1.ls\2.gamma",
}
OTHER_MODELS = {
    "fpn_lateral": "a Mask R-CNN detector without its heads",
    "simfp_": "a ViTDet-style detector without its heads",
    "bottom_up.": "a Mask R-CNN detector without its heads",
    "rel_pos": "a detector without its heads",
    "relative_position_": "a detector or segmenter without its heads",
    "gamma_1": "a segmenter without its heads",
}
DETECTOR_PARTS = ("fpn_lateral", "fpn_output", "simfp_", "proposal_generator.", "roi_heads.")
SEGMENTER_PARTS = ("decode_head.", "auxiliary_head.", "fpn.")  # beside the encoder; fpn makes E4
POSITION_INDEX = "relative_position_index"  # where in their table the offsets of a grid are


@dataclass(frozen=True, kw_only=True)
class ConvertedKeys:
    """A state dict in our names, and what became of every key of the original."""

    kind: SourceKind
    state: dict[str, Tensor]
    global_pool: GlobalPool = "avg"
    renamed: dict[str, str] = field(default_factory=dict)  # original name -> ours, where they differ
    reshaped: tuple[str, ...] = ()  # our names of the 1x1 convolutions that became matrices
    permuted: tuple[str, ...] = ()  # our names of a detector's class scores, whose background came last
    folded: tuple[str, ...] = ()  # original names that were computed into other tensors
    dropped: dict[str, str] = field(default_factory=dict)  # original name -> reason
    initial: dict[str, str] = field(default_factory=dict)  # our name -> the value it got and why


def convert_keys(original: Mapping[str, Tensor]) -> ConvertedKeys:
    """Names, shapes and folds of one of the authors' state dicts; values are otherwise left as they are.

    Args:
        original: encoder only, full pretraining, finetuned classifier, linear probe, detector or segmenter; with or
            without prefixes.

    Raises:
        ConvMAEError: it is the state of another kind of model, or a part that changes the outputs is not understood.
    """
    names = strip_prefixes(original)
    state = {name: original[source] for name, source in names.items()}
    kind = source_kind(state)
    if kind not in ("detection", "segmentation"):
        refuse_other_models(names)
    dropped = {names[name]: reason for name, reason in unused_keys(state, kind).items()}
    state = {name: value for name, value in state.items() if names[name] not in dropped}
    for name in ("pos_embed", "decoder_pos_embed"):
        if name in state:
            state[name] = without_class_row(state[name])
            if state[name].shape != original[names[name]].shape:
                dropped[f"{names[name]}[:, 0]"] = "the class token's row of the position embedding"
    pointwise = [name for name, value in state.items() if POINTWISE_KEY.fullmatch(name) and value.ndim == 4]
    state |= {name: squeeze_pointwise(name, state[name]) for name in pointwise}
    folded = [name for name in state if kind == "linear probe" and name.startswith("head.")]
    if kind == "linear probe":
        state = {name: value for name, value in state.items() if name not in folded} | fold_probe_head(state)
    permuted = [name for name in state if kind == "detection" and name.startswith(CLASS_SCORES)]
    state |= {name: background_first(state[name]) for name in permuted}
    ours = {name: our_name(name, kind) for name in state}
    initial = {}
    if kind in ("classification", "linear probe") and "fc_norm.weight" not in ours.values():
        width = state["head.weight"].shape[-1]
        state |= {"fc_norm.weight": torch.ones(width), "fc_norm.bias": torch.zeros(width)}
        reason = "the file has no norm in front of its head"
        initial = {"fc_norm.weight": f"ones: {reason}", "fc_norm.bias": f"zeros: {reason}"}
    return ConvertedKeys(
        kind=kind,
        state={ours.get(name, name): value for name, value in state.items()},
        global_pool="token" if kind in ("classification", "linear probe") and "norm.weight" in state else "avg",
        renamed={names[name]: ours[name] for name in ours if name in names and names[name] != ours[name]},
        reshaped=tuple(ours[name] for name in pointwise),
        permuted=tuple(ours[name] for name in permuted),
        folded=tuple(names[name] for name in folded),
        dropped=dropped,
        initial=initial,
    )


def strip_prefixes(original: Mapping[str, Tensor]) -> dict[str, str]:
    """Name without prefix -> name in the file. `module.encoder.` before the encoder means `module.` before a head."""
    anchors = [name for name in original if name == ANCHOR or name.endswith(f".{ANCHOR}")]
    if len(anchors) != 1:
        raise ConvMAEError(
            f"the file must hold one ConvMAE encoder (a tensor {ANCHOR}); found {len(anchors)}: check that it is a "
            "checkpoint of the authors' code"
        )
    parts = anchors[0].removesuffix(ANCHOR).split(".")[:-1]
    prefixes = [".".join(parts[:length]) + "." for length in range(len(parts), 0, -1)]
    names: dict[str, str] = {}
    for source in original:
        prefix = next((prefix for prefix in prefixes if source.startswith(prefix)), "")
        name = source.removeprefix(prefix)
        if name in names:
            raise ConvMAEError(f"the file holds {name} twice, as {names[name]} and {source}; keep one of them")
        names[name] = source
    return names


def refuse_other_models(names: Mapping[str, str]) -> None:
    """Raises ConvMAEError for files that cannot be imported and whose encoders compute something else."""
    for marker, model in OTHER_MODELS.items():
        source = next((source for source in names.values() if marker in source), None)
        if source is not None:
            raise ConvMAEError(
                f"the file is {model} (it holds {source}) and only pretraining, finetuning, linear-probe, "
                "detection and segmentation files can be imported; import the pretrained file that it started from"
            )


def source_kind(state: Mapping[str, Tensor]) -> SourceKind:
    """What a state dict without prefixes is, by its keys."""
    if any(name.startswith("decode_head.") for name in state):
        return "segmentation"
    if any(name.startswith("roi_heads.") for name in state):
        return "detection"
    if "head.1.weight" in state:
        return "linear probe"
    if "head.weight" in state:
        return "classification"
    return "pretraining" if "decoder_pred.weight" in state else "features"


def unused_keys(state: Mapping[str, Tensor], kind: SourceKind) -> dict[str, str]:
    """Name -> reason for the keys that our model of this kind has no place for.

    Keys of the encoder and the head are never among them: a part of those that is not understood changes the outputs,
    so it is left in and the check against the model refuses it.
    """
    unused = {}
    for name in state:
        if name == "cls_token":
            unused[name] = "this encoder has no class token; outputs differ from those of the model trained with it"
        elif name == "head.0.num_batches_tracked":
            unused[name] = "a counter of the training"
        elif name.endswith(POSITION_INDEX):
            unused[name] = "it follows from the size of the grid"
        elif name.startswith({"detection": DETECTOR_PARTS, "segmentation": SEGMENTER_PARTS}.get(kind, ())):
            continue
        elif ENCODER_KEY.match(name) or name.startswith(("head.", "fc_norm.")):
            continue
        elif DECODER_KEY.match(name):
            if kind != "pretraining":
                whole = kind != "features"
                unused[name] = "unused" if whole else "of the pretraining decoder, which is not in the file"
        elif name.startswith("norm."):  # an encoder alone keeps it: a linear probe of the first token needs it
            if kind in ("classification", "linear probe") and "fc_norm.weight" in state:
                unused[name] = "fc_norm takes its place"
        else:
            unused[name] = "unknown, and no part of the encoder or the head"
    return unused


def our_name(name: str, kind: SourceKind) -> str:
    """Our name of a key without prefix."""
    if kind == "features":
        return name
    if ENCODER_KEY.match(name):
        return f"encoder.{dense_encoder_name(name)}"
    if kind == "detection":
        return detector_name(name)
    if kind == "segmentation":
        return re.sub(r"^fpn\.", "downsample.", name)
    # LayerNorm acts on each token alone: norm and then the first token is the first token and then norm
    return re.sub(r"^norm\.", "fc_norm.", name) if kind in ("classification", "linear probe") else name


def dense_encoder_name(name: str) -> str:
    """Our name, inside the encoder, of a key that only encoders of detectors and segmenters have."""
    for pattern, ours in DENSE_ENCODER_NAMES.items():
        name = re.sub(pattern, ours, name)
    return name


def without_class_row(embedding: Tensor) -> Tensor:
    """A position embedding (1, N, D) without its first row where N is 1 + a square."""
    tokens = embedding.shape[1] if embedding.ndim == 3 else 0
    has_class_row = math.isqrt(tokens) ** 2 != tokens and math.isqrt(tokens - 1) ** 2 == tokens - 1
    return embedding[:, 1:] if has_class_row else embedding


def squeeze_pointwise(name: str, weight: Tensor) -> Tensor:
    """The weight (out, in, 1, 1) of a 1x1 convolution as that of a Linear, (out, in)."""
    if tuple(weight.shape[2:]) != (1, 1):
        raise ConvMAEError(f"{name} must be a 1x1 convolution; found a kernel of {tuple(weight.shape[2:])}")
    return weight[:, :, 0, 0]


def fold_probe_head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The one Linear that equals a linear probe's BatchNorm (no affine, eps 1e-6) and Linear in evaluation."""
    expected = ("head.0.running_mean", "head.0.running_var", "head.1.weight", "head.1.bias")
    found = sorted(name for name in state if name.startswith("head."))
    if sorted(expected) != found:
        raise ConvMAEError(f"a linear probe's head must be {', '.join(expected)}; found {', '.join(found)}")
    mean, variance, weight, bias = (state[name].double() for name in expected)
    if (mean.ndim, bias.ndim) != (1, 1) or mean.shape != variance.shape or weight.shape != (len(bias), len(mean)):
        raise ConvMAEError(
            f"the linear probe's head does not fit together: BatchNorm of {tuple(mean.shape)}, weight of "
            f"{tuple(weight.shape)}, bias of {tuple(bias.shape)}"
        )
    folded = weight / torch.sqrt(variance + PROBE_NORM_EPS)
    return {"head.weight": folded.float(), "head.bias": (bias - folded @ mean).float()}
