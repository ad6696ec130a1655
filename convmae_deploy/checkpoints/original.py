"""Import of the authors' files (MIT, the Alpha-VL/ConvMAE repository) into our checkpoint format.

A file is read without running anything in it: only tensors, plain containers and the `argparse.Namespace` of the
authors' training scripts are allowed.
"""

import argparse
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convmae_deploy.checkpoints.native import NORM_PREFIX, CheckpointKind, CheckpointRecord, save_checkpoint
from convmae_deploy.checkpoints.original_keys import ANCHOR, SourceKind, convert_keys
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import sha256_of
from convmae_deploy.models.classifier import build_classifier
from convmae_deploy.models.convmae import MODELS, ConvMAEConfig, build_convmae, resize_position_embedding
from convmae_deploy.models.pretraining import PretrainingConfig, build_pretraining
from convmae_deploy.runtime.manifest import Licence, standard_preprocessing

WRAPPERS = ("model", "state_dict", "module")
LICENCE = Licence(name="MIT (authors' repository); trained on ImageNet-1K, research use")
KERNELS = (4, 2, 2)  # and strides of patch_embed1, 2, 3
AUTHORS_DECODER = 512, 16  # width and attention heads
CHECKPOINT_KINDS: dict[SourceKind, CheckpointKind] = {
    "pretraining": "pretraining",
    "encoder": "encoder",
    "classifier": "classifier",
    "linear probe": "classifier",
}


@dataclass(frozen=True, kw_only=True)
class OriginalFile:
    """The content of one of the authors' files."""

    wrapper: str  # the entry the weights stood under; "" for a bare state dict
    tensors: dict[str, Tensor]  # the state dict
    not_tensors: tuple[str, ...]  # names in the state dict that are no tensors
    left_behind: tuple[str, ...]  # the file's other entries, for instance the optimiser's state
    arguments: dict[str, Any]  # of the training script that wrote it; empty where the file does not tell


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What an import found and what became of it."""

    source: Path
    out: Path
    source_kind: SourceKind
    wrapper: str  # the entry the weights stood under; "" for a bare state dict
    left_behind: tuple[str, ...]  # the file's other entries, for instance the optimiser's state
    variant: str
    config: ConvMAEConfig
    pretraining: PretrainingConfig | None  # None unless a pretraining model was written
    assumed: dict[str, str]  # field of `pretraining` that the file does not hold -> where its value is from
    num_classes: int  # 0 unless a classifier was written
    kept: int  # tensors written that come from the file
    renamed: int  # of those, how many under another name
    reshaped: int  # of those, how many 1x1 convolutions became matrices
    cast: dict[str, int]  # dtype of the file -> number of tensors converted from it to float32
    folded: tuple[str, ...]  # names in the file computed into other tensors
    dropped: dict[str, str]  # name in the file -> reason
    initial: dict[str, str]  # name in the checkpoint -> the value it was given and why
    resized: dict[str, str]  # name in the checkpoint -> from which grid to which

    def lines(self) -> list[str]:
        """The report in words, one fact a line."""
        config = self.config
        place = f'under "{self.wrapper}"' if self.wrapper else "unwrapped"
        article = "an" if self.source_kind == "encoder" else "a"
        lines = [
            f"{self.source} is {article} {self.source_kind} file, weights {place}",
            f"variant {self.variant}: channels {dashed(config.embed_dims)}, blocks {dashed(config.depths)}, "
            f"MLP ratios {dashed(config.mlp_ratios)}, {config.num_heads} heads, kernels of {config.kernel_size}",
            f"image {config.image_size[0]} x {config.image_size[1]}",
            f"kept {self.kept} tensors, {self.renamed} of them under a new name",
        ]
        if self.reshaped:
            lines.append(f"reshaped {self.reshaped} weights of 1x1 convolutions to matrices")
        lines += [f"cast {count} tensors from {dtype} to float32" for dtype, count in self.cast.items()]
        if self.folded:
            lines.append(f"folded the probe's BatchNorm into its Linear: {', '.join(self.folded)}")
        lines += [f"resized {name}: {change}" for name, change in self.resized.items()]
        lines += [f"dropped {name}: {reason}" for name, reason in self.dropped.items()]
        lines += [f"left at its initial value {name}: {value}" for name, value in self.initial.items()]
        if self.left_behind:
            lines.append(f"left behind: {', '.join(self.left_behind)}")
        if self.pretraining is not None:
            decoder = self.pretraining
            lines.append("kept the decoder and the fusion layers under their own names")
            lines.append(
                f"decoder {decoder.decoder_width} wide, {decoder.decoder_depth} blocks, "
                f"MLP ratio {decoder.decoder_mlp_ratio:g}, {decoder.decoder_heads} heads"
            )
            lines += [
                f"assumed {name} {getattr(decoder, name)}, {source}: the file does not hold it"
                for name, source in self.assumed.items()
            ]
        if self.num_classes:
            lines.append(f"classes named 0 to {self.num_classes - 1}: the file has no names")
        return [*lines, f"licence of the weights: {LICENCE.name}", f"wrote {self.out}"]


def import_original(
    source: Path,
    out: Path,
    *,
    variant: str | None = None,
    image_size: tuple[int, int] | None = None,
    num_heads: int | None = None,
) -> ImportReport:
    """Reads one of the authors' files and writes a checkpoint of ours.

    Args:
        source: full pretraining, encoder-only, finetuned or linear-probe file.
        out: folder to write; must not exist.
        variant: name in MODELS whose number of heads to take; None looks for the variant with the file's dimensions.
        image_size: (height, width) in pixels to resize the position embedding for; None keeps the file's.
        num_heads: attention heads of stage 3, for dimensions that no variant has: a file does not hold this number.

    Raises:
        ConvMAEError: the file is not one of these, is damaged or would run code, or its heads cannot be known.
    """
    file = read_original(source)
    keys = convert_keys(file.tensors)
    encoder = {name.removeprefix("encoder."): value for name, value in keys.state.items()}
    name, config = infer_config(encoder, variant=variant, num_heads=num_heads, image_size=image_size)
    tensors, changes = resize_embeddings(keys.state, config)
    pretraining, assumed = (
        infer_pretraining(tensors, config, file.arguments) if keys.kind == "pretraining" else (None, {})
    )
    num_classes = shape_of(tensors, "head.weight", 2)[0] if CHECKPOINT_KINDS[keys.kind] == "classifier" else 0
    record = CheckpointRecord(
        kind=CHECKPOINT_KINDS[keys.kind],
        variant=name,
        model=config,
        pretraining=pretraining,
        classes=tuple(map(str, range(num_classes))),
        global_pool=keys.global_pool,
        preprocessing=standard_preprocessing(config.image_size) if num_classes else None,
        licence=LICENCE,
        provenance={"source": source.name, "sha256": sha256_of(source), "format": f"authors' {keys.kind} file"},
    )
    check_tensors(keys.kind, tensors, record)
    # clones: tensors of a file may share memory, which safetensors refuses
    save_checkpoint(out, {name: value.float().clone() for name, value in tensors.items()}, record)
    dtypes = [str(value.dtype).removeprefix("torch.") for value in tensors.values()]
    return ImportReport(
        source=source,
        out=out,
        source_kind=keys.kind,
        wrapper=file.wrapper,
        left_behind=file.left_behind,
        variant=name,
        config=config,
        pretraining=pretraining,
        assumed=assumed,
        num_classes=num_classes,
        kept=len(tensors) - len(keys.initial),
        renamed=len(keys.renamed),
        reshaped=len(keys.reshaped),
        cast={dtype: dtypes.count(dtype) for dtype in sorted(set(dtypes)) if dtype != "float32"},
        folded=keys.folded,
        dropped=dict.fromkeys(file.not_tensors, "not a tensor") | keys.dropped,
        initial=keys.initial,
        resized=changes,
    )


def read_original(source: Path) -> OriginalFile:
    """The state dict of a file, wherever it stands, and what else there is.

    Raises:
        ConvMAEError: not a file, damaged, needs code to be read, or holds no ConvMAE encoder.
    """
    content = load_without_code(source)
    path: list[str] = []
    left_behind: list[str] = []
    arguments: dict[str, Any] = {}
    for _ in range(len(WRAPPERS) + 1):  # bounded: a crafted file can contain itself
        if isinstance(content, Mapping) and any(str(name).endswith(ANCHOR) for name in content):
            state = {printable(name): value for name, value in content.items()}
            return OriginalFile(
                wrapper=".".join(path),
                tensors={name: value for name, value in state.items() if isinstance(value, Tensor)},
                not_tensors=tuple(name for name, value in state.items() if not isinstance(value, Tensor)),
                left_behind=tuple(left_behind),
                arguments=arguments,
            )
        inside = content if isinstance(content, Mapping) else {}
        wrapper = next((name for name in WRAPPERS if isinstance(inside.get(name), Mapping)), None)
        if wrapper is None:
            break
        left_behind += [printable(name) for name in inside if name != wrapper]
        if isinstance(inside.get("args"), argparse.Namespace):
            arguments = dict(vars(inside["args"]))
        path.append(wrapper)
        content = inside[wrapper]
    raise ConvMAEError(
        f"{source} holds no ConvMAE weights: expected a tensor {ANCHOR}, bare or under {', '.join(WRAPPERS)}; "
        "give a checkpoint of the authors' code"
    )


def printable(name: object) -> str:
    """A name from a file for a report: control characters, which could forge lines or drive a terminal, are escaped."""
    text = str(name)
    return text if text.isprintable() else ascii(text)


def load_without_code(source: Path) -> Any:
    """The content of a .pth file, built from an allow-list of types; nothing in the file runs."""
    if not source.is_file():
        found = "a folder" if source.is_dir() else "nothing there"
        raise ConvMAEError(f"{source} must be one of the authors' .pth files; found {found}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise whatever the unpickler meets first, of many types
        forbidden = re.search(r"GLOBAL (\S+) (?:was not an allowed global|whose module)", str(error))
        if forbidden:
            raise ConvMAEError(
                f"{source} would have to run {forbidden[1]} to be read, and nothing in a checkpoint may run; save its "
                "weights alone, as a state dict"
            ) from None
        raise ConvMAEError(
            f"{source} is not a readable PyTorch checkpoint ({type(error).__name__}); check that it is one and whole"
        ) from None


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
    tokens = shape_of(encoder, "pos_embed", 3)[1]
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ConvMAEError(f"the position embedding must be for a square grid; found {tokens} tokens")
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


def resize_embeddings(state: Mapping[str, Tensor], config: ConvMAEConfig) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state with its position embeddings (encoder's, decoder's) for the config's grid; and what was resized how."""
    new = config.grid_size
    tensors, changes = dict(state), {}
    for name in ("pos_embed", "encoder.pos_embed", "decoder_pos_embed"):
        side = math.isqrt(shape_of(state, name, 3)[1]) if name in state else 0
        if side and (side, side) != new:
            if side * side != state[name].shape[1]:
                raise ConvMAEError(f"{name} must be for a square grid; found {state[name].shape[1]} tokens")
            tensors[name] = resize_position_embedding(state[name], (side, side), new)
            changes[name] = f"{side} x {side} to {new[0]} x {new[1]}, bicubic"
    return tensors, changes


def check_tensors(kind: SourceKind, tensors: Mapping[str, Tensor], record: CheckpointRecord) -> None:
    """Raises ConvMAEError unless the tensors are those of the model: all of them, no others, of its shapes, finite."""
    model: nn.Module
    with torch.device("meta"):  # shapes alone: no memory, no random numbers
        if record.pretraining is not None:
            model = build_pretraining(record.model, record.pretraining)
        elif record.kind == "classifier":
            model = build_classifier(record.model, num_classes=len(record.classes))
        else:
            model = build_convmae(record.model)
            if any(name.startswith(NORM_PREFIX) for name in tensors):
                model.norm = nn.LayerNorm(record.model.embed_dims[2])
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    problems = {
        "missing": [name for name in shapes if name not in tensors],
        "not understood": [name for name in tensors if name not in shapes],
        "of another shape": [name for name in shapes if name in tensors and shapes[name] != tuple(tensors[name].shape)],
        "not finite or not dense": [
            name for name, value in tensors.items() if value.layout != torch.strided or not value.isfinite().all()
        ],
    }
    found = [f"{len(names)} {problem} (first {names[0]})" for problem, names in problems.items() if names]
    if found:
        raise ConvMAEError(f"the file must hold exactly the tensors of a ConvMAE {kind}; found {', '.join(found)}")


def dashed(values: tuple[float, ...]) -> str:
    """Numbers of the three stages as in "256-384-768"."""
    return "-".join(f"{value:g}" for value in values)
