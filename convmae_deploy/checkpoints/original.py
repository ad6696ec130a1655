"""Import of the authors' files (MIT, the Alpha-VL/ConvMAE repository) into our checkpoint format.

See `pth_file` for what is read of a file, and what is not.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convmae_deploy.bundle.manifest import Licence
from convmae_deploy.bundle.preprocessing import standard_preprocessing, standard_windows
from convmae_deploy.checkpoints.coco_classes import COCO_CATEGORY_IDS, COCO_CLASSES
from convmae_deploy.checkpoints.loading import KINDS
from convmae_deploy.checkpoints.native import NORM_PREFIX, CheckpointRecord, save_checkpoint
from convmae_deploy.checkpoints.original_configs import (
    file_grid,
    infer_config,
    infer_pretraining,
    infer_segmenter,
    shape_of,
)
from convmae_deploy.checkpoints.original_detector import infer_detector
from convmae_deploy.checkpoints.original_keys import ANCHOR, ConvertedKeys, SourceKind, convert_keys
from convmae_deploy.checkpoints.pth_file import check_plain, load_without_code
from convmae_deploy.checkpoints.resizing import resize_positions
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.files import sha256_of
from convmae_deploy.printing import printable

WRAPPERS = ("model", "state_dict", "module")
LICENCE = Licence(name="MIT (authors' repository); trained on ImageNet-1K, research use")
DETECTOR_LICENCES = {
    "fpn": Licence(name="MIT (authors' repository); trained on ImageNet-1K and COCO, research use"),
    "simple": Licence(name="Apache-2.0 (authors' repository); trained on ImageNet-1K and COCO, research use"),
}
SEGMENTER_LICENCE = Licence(name="MIT (authors' repository); trained on ImageNet-1K and ADE20K, research use")
AUTHORS_SHORT_SIDE = 512  # pixels of photos in their evaluation of segmenters
AUTHORS_LONG_SIDE = 2048  # pixels, at most


@dataclass(frozen=True, kw_only=True)
class OriginalFile:
    """The content of one of the authors' files."""

    wrapper: str  # the entry the weights stood under; "" for a bare state dict
    tensors: dict[str, Tensor]  # the state dict
    not_tensors: tuple[str, ...]  # names in the state dict that are no tensors
    left_behind: tuple[str, ...]  # the file's other entries, for instance the optimiser's state
    arguments: dict[str, Any]  # flags of the training script that wrote it; empty where the file holds none
    classes: tuple[str, ...]  # names that mmsegmentation wrote into its file; empty where there are none


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What an import found and what became of it."""

    source: Path
    out: Path
    file: OriginalFile
    keys: ConvertedKeys
    record: CheckpointRecord  # what was written
    assumed: dict[str, str]  # field of the record's `pretraining` that the file does not hold -> where it is from
    cast: dict[str, int]  # dtype of the file -> number of tensors converted from it to float32
    resized: dict[str, str]  # name in the checkpoint -> from which grid to which

    @property
    def kept(self) -> int:
        """How many of the tensors written come from the file."""
        return len(self.keys.state) - len(self.keys.initial)

    @property
    def dropped(self) -> dict[str, str]:
        """Name in the file -> why it has no place in the checkpoint."""
        return dict.fromkeys(self.file.not_tensors, "not a tensor") | self.keys.dropped

    def lines(self) -> list[str]:
        """The report in words, one fact a line."""
        keys, config, classes = self.keys, self.record.model, self.record.classes
        place = f'under "{self.file.wrapper}"' if self.file.wrapper else "unwrapped"
        lines = [
            f"{self.source} is a {keys.kind} file, weights {place}",
            f"variant {self.record.variant}: channels {dashed(config.embed_dims)}, blocks {dashed(config.depths)}, "
            f"MLP ratios {dashed(config.mlp_ratios)}, {config.num_heads} heads, kernels of {config.kernel_size}",
            f"image {config.image_size[0]} x {config.image_size[1]}",
            f"kept {self.kept} tensors, {len(keys.renamed)} of them under a new name",
        ]
        if keys.reshaped:
            lines.append(f"reshaped {len(keys.reshaped)} weights of 1x1 convolutions to matrices")
        lines += [f"cast {count} tensors from {dtype} to float32" for dtype, count in self.cast.items()]
        if keys.permuted:
            lines.append(f"moved the background in front of the classes: {', '.join(keys.permuted)}")
        if keys.folded:
            lines.append(f"folded the probe's BatchNorm into its Linear: {', '.join(keys.folded)}")
        lines += [f"resized {name}: {change}" for name, change in self.resized.items()]
        lines += [f"dropped {name}: {reason}" for name, reason in self.dropped.items()]
        lines += [f"left at its initial value {name}: {value}" for name, value in keys.initial.items()]
        if self.file.left_behind:
            lines.append(f"left behind: {', '.join(self.file.left_behind)}")
        if self.record.pretraining is not None:
            decoder = self.record.pretraining
            lines.append("kept the decoder and the fusion layers under their own names")
            lines.append(
                f"decoder {decoder.decoder_width} wide, {decoder.decoder_depth} blocks, "
                f"MLP ratio {decoder.decoder_mlp_ratio:g}, {decoder.decoder_heads} heads"
            )
            lines += [
                f"assumed {name} {getattr(decoder, name)}, {source}: the file does not hold it"
                for name, source in self.assumed.items()
            ]
        if classes and classes == self.file.classes:
            lines.append(f"classes named as in the file: {', '.join(classes)}")
        elif classes:
            lines.append(f"classes named {classes[0]} to {classes[-1]}: the file has no names")
        return [*lines, f"licence of the weights: {self.record.licence.name}", f"wrote {self.out}"]


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
        source: full pretraining, encoder-only, finetuned, linear-probe, detection or segmentation file.
        out: folder to write; must not exist.
        variant: name in MODELS whose number of heads to take; None looks for the variant with the file's dimensions.
        image_size: (height, width) in pixels to resize the position embedding for; None keeps the file's.
        num_heads: attention heads of stage 3, for dimensions that no variant has: a file does not hold this number.

    Raises:
        ConvMAEError: the file is not one of these, is damaged or would run code, or its heads cannot be known.
    """
    file = read_original(source)
    try:
        keys = convert_keys(file.tensors)
        encoder = {name.removeprefix("encoder."): value for name, value in keys.state.items()}
        name, config = infer_config(encoder, variant=variant, num_heads=num_heads, image_size=image_size)
        record = CheckpointRecord(
            kind="classification" if keys.kind == "linear probe" else keys.kind,
            variant=name,
            model=config,
            global_pool=keys.global_pool,
            licence=LICENCE,
            provenance={"source": source.name, "sha256": sha256_of(source), "format": f"authors' {keys.kind} file"},
        )
        record, assumed = completed(record, keys, file)
        tensors, changes = resize_positions(keys.state, record.model.dense, file_grid(encoder), config.grid_size)
        check_tensors(keys.kind, tensors, record)
    except ConvMAEError as error:
        raise ConvMAEError(f"{source}: {error}") from None
    # clones: tensors of a file may share memory, which safetensors refuses
    save_checkpoint(out, {name: in_float32(value).clone() for name, value in tensors.items()}, record)
    dtypes = [str(value.dtype).removeprefix("torch.") for value in tensors.values() if value.is_floating_point()]
    return ImportReport(
        source=source,
        out=out,
        file=file,
        keys=keys,
        record=record,
        assumed=assumed,
        cast={dtype: dtypes.count(dtype) for dtype in sorted(set(dtypes)) if dtype != "float32"},
        resized=changes,
    )


def completed(
    record: CheckpointRecord, keys: ConvertedKeys, file: OriginalFile
) -> tuple[CheckpointRecord, dict[str, str]]:
    """The record with what stands on the encoder; and what of it the file does not hold, with its source."""
    if keys.kind == "pretraining":
        pretraining, assumed = infer_pretraining(keys.state, record.model, file.arguments)
        return record.model_copy(update={"pretraining": pretraining}), assumed
    if keys.kind == "detection":
        grid_size = file_grid({"pos_embed": keys.state["encoder.pos_embed"]})
        detector, dense, num_classes = infer_detector(keys.state, grid_size)
        numbered = tuple(f"class {index}" for index in range(num_classes))
        is_coco = num_classes == len(COCO_CLASSES)
        changed = {
            "model": replace(record.model, dense=dense),
            "detector": detector,
            "classes": COCO_CLASSES if is_coco else numbered,
            "category_ids": COCO_CATEGORY_IDS if is_coco else (),
            "licence": DETECTOR_LICENCES[detector.pyramid],
        }
        return record.model_copy(update=changed), {}
    if keys.kind == "segmentation":
        segmenter, dense, num_classes = infer_segmenter(keys.state)
        numbered = tuple(f"class {index}" for index in range(num_classes))
        changed = {
            "model": replace(record.model, dense=dense),
            "segmenter": segmenter,
            "preprocessing": standard_windows(record.model.image_size, AUTHORS_SHORT_SIDE, AUTHORS_LONG_SIDE),
            "licence": SEGMENTER_LICENCE,
            "classes": file.classes if len(file.classes) == num_classes else numbered,
        }
        return record.model_copy(update=changed), {}
    if record.kind == "classification":
        num_classes = shape_of(keys.state, "head.weight", 2)[0]
        changed = {
            "classes": tuple(map(str, range(num_classes))),
            "preprocessing": standard_preprocessing(record.model.image_size),
        }
        return record.model_copy(update=changed), {}
    return record, {}


def in_float32(tensor: Tensor) -> Tensor:
    """Weights as float32; counters as they are."""
    return tensor.float() if tensor.is_floating_point() else tensor


def read_original(source: Path) -> OriginalFile:
    """The state dict of a file, wherever it stands, and what else there is.

    Raises:
        ConvMAEError: not a file, damaged, needs code to be read, or holds no ConvMAE encoder.
    """
    content = load_without_code(source)
    path: list[str] = []
    left_behind: list[str] = []
    arguments: dict[str, Any] = {}
    classes: tuple[str, ...] = ()
    for _ in range(len(WRAPPERS) + 1):  # bounded: a crafted file can contain itself
        if isinstance(content, Mapping) and any(name_of(name).endswith(ANCHOR) for name in content):
            state = {name_of(name): value for name, value in content.items()}
            tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
            check_plain(tensors.items(), source)
            return OriginalFile(
                wrapper=".".join(path),
                tensors=tensors,
                not_tensors=tuple(name for name in state if name not in tensors),
                left_behind=tuple(left_behind),
                arguments=arguments,
                classes=classes,
            )
        inside = content if isinstance(content, Mapping) else {}
        wrapper = next((name for name in WRAPPERS if isinstance(inside.get(name), Mapping)), None)
        if wrapper is None:
            break
        left_behind += [name_of(name) for name in inside if name != wrapper]
        if isinstance(inside.get("args"), argparse.Namespace):
            arguments = dict(vars(inside["args"]))
        classes = classes or names_of_classes(inside.get("meta"))
        path.append(wrapper)
        content = inside[wrapper]
    raise ConvMAEError(
        f"{source} holds no ConvMAE weights: expected a tensor {ANCHOR}, bare or under {', '.join(WRAPPERS)}; "
        "give a checkpoint of the authors' code"
    )


def name_of(key: object) -> str:
    """A key of a file as a name for people; of one that is no text, which can be large, its type alone."""
    return printable(key) if isinstance(key, str) else f"a key of type {type(key).__name__}"


def names_of_classes(meta: object) -> tuple[str, ...]:
    """The class names in the `meta` of a file that mmcv wrote; none where they are not a list of names."""
    names = meta.get("CLASSES") if isinstance(meta, Mapping) else None
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(map(printable, names))


def check_tensors(kind: SourceKind, tensors: Mapping[str, Tensor], record: CheckpointRecord) -> None:
    """Raises ConvMAEError unless the tensors are those of the model: all of them, no others, of its shapes, finite."""
    with torch.device("meta"):  # shapes alone: no memory, no random numbers
        model = KINDS[record.kind].build(record)
        if record.kind == "features" and any(name.startswith(NORM_PREFIX) for name in tensors):
            model.norm = nn.LayerNorm(record.model.embed_dims[2])
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    problems = {
        "missing": [name for name in shapes if name not in tensors],
        "not understood": [name for name in tensors if name not in shapes],
        "of another shape": [name for name in shapes if name in tensors and shapes[name] != tuple(tensors[name].shape)],
        "not finite or not dense": [name for name, value in tensors.items() if not value.isfinite().all()],
    }
    found = [f"{len(names)} {problem} (first {names[0]})" for problem, names in problems.items() if names]
    if found:
        raise ConvMAEError(f"the file must hold exactly the tensors of a ConvMAE {kind}; found {', '.join(found)}")


def dashed(values: tuple[float, ...]) -> str:
    """Numbers of the three stages as in "256-384-768"."""
    return "-".join(f"{value:g}" for value in values)
