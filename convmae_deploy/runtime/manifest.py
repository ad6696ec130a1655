"""The schema of a bundle's `manifest.json`: what the files are, how to feed them, what comes out, and what was proven.

A bundle is a folder of `manifest.json`, one or more graphs (`model.onnx`, ...) and the licence of the weights. `export`
writes it; the runtime, the server and the `convmae` command read it. The manifest is the only contract between them.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCHEMA_VERSION: Literal[1] = 1
MANIFEST_NAME = "manifest.json"
CLASSIFIER_OUTPUTS = ("logits", "pooled", "e1", "e2", "e3", "e4")
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

Task = Literal["classification", "detection", "segmentation", "video-classification"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
Size = tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Preprocessing(_Record):
    """From a decoded RGB photo to the graph's input; timm's evaluation transform, bit for bit.

    The photo is resized with Pillow's antialiased filter so that it covers `resize` (aspect ratio kept), the centre
    `crop` is cut out, values are scaled to [0, 1], then normalised per channel by `mean` and `std`.
    """

    resize: Size  # (height, width) in pixels that the resized photo covers
    crop: Size  # (height, width) in pixels of the graph's input
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # RGB, of values in [0, 1]
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.crop[0] > self.resize[0] or self.crop[1] > self.resize[1]:
            raise ValueError(f"crop {self.crop} must fit into resize {self.resize}")
        return self


def standard_preprocessing(image_size: Size) -> Preprocessing:
    """The evaluation of the paper and of timm for an input of (height, width) pixels: cover 256 for a crop of 224."""
    height, width = image_size
    return Preprocessing(resize=(height * 8 // 7, width * 8 // 7), crop=image_size)


class InputSpec(_Record):
    """The graph's one input: float32 (B, 3, H, W), B between `min_batch` and `max_batch`."""

    name: str = "image"
    shape: tuple[int, ...]  # without the batch axis: (3, H, W); video (3, T, H, W)
    min_batch: int = Field(default=1, ge=1)
    max_batch: int = Field(ge=1)


class OutputSpec(_Record):
    """One output of the graph, float32 (B, *shape)."""

    shape: tuple[int, ...]  # without the batch axis: (classes,), (C,) or (C, H / stride, W / stride)
    stride: int | None = None  # input pixels per cell of a feature map; None for vectors


class OutputNumerics(_Record):
    """The worst disagreement of one output with PyTorch over all inputs compared."""

    max_abs: float  # largest absolute difference
    max_rel: float  # largest absolute difference / largest absolute reference value
    cosine: float  # smallest cosine similarity of the flattened output of one image
    top1_agreement: float | None = None  # share of images with the same largest entry; logits only
    excess: float = 0.0  # largest absolute difference / what the tolerance allows at that entry; at most 1 passes
    worst_input: str = ""  # the input on which `excess` was seen
    passed: bool


class NumericsReport(_Record):
    """What was compared with PyTorch, on what, with which tolerance, and how it ended."""

    runtime: str  # for instance "onnxruntime 1.31.1 (CPUExecutionProvider)"
    reference: str  # for instance "torch 2.15.0 eager fp32 (cpu)"
    inputs: tuple[str, ...]  # for instance ("random batch 1", "photos batch 2", ...)
    tolerance: str  # the gate in words and numbers
    outputs: dict[str, OutputNumerics]
    passed: bool


class BundleFile(_Record):
    """One graph of the bundle."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(gt=0)
    precision: Precision
    opset: int
    numerics: NumericsReport | None = None  # None: never verified; the runtime warns


class Licence(_Record):
    """The terms of the weights (the code is MIT)."""

    name: str  # short name, for instance "ImageNet terms: non-commercial research"
    file: str | None = None  # the full text, a file of the bundle


class Manifest(_Record):
    """Everything that must be known to run a bundle."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str = Field(pattern=NAME_PATTERN)  # what `?model=` and `/v1/models/{name}` say
    task: Task
    variant: str  # "nano", "base", ...
    input: InputSpec
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    outputs: dict[str, OutputSpec]  # classification: logits, pooled, e1, e2, e3, e4
    files: dict[str, BundleFile]  # file name -> what it is; the first is the default
    tools: dict[str, str]  # package -> version at export
    licence: Licence
    provenance: dict[str, str] = Field(default_factory=dict)  # free text: checkpoint, data, command, seed, metrics

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if not self.files:
            raise ValueError("files must name at least one graph")
        if self.input.shape[0] != 3 or self.input.shape[-2:] != self.preprocessing.crop:
            raise ValueError(
                f"input shape {self.input.shape} must be (3, ..., *crop) with crop {self.preprocessing.crop}"
            )
        missing = [name for name in CLASSIFIER_OUTPUTS if name not in self.outputs]
        if self.task == "classification" and missing:
            raise ValueError(
                f"a classifier's outputs are {', '.join(CLASSIFIER_OUTPUTS)}; missing: {', '.join(missing)}"
            )
        logits = self.outputs.get("logits")
        if self.task == "classification" and (logits is None or logits.shape != (len(self.classes),)):
            raise ValueError(f"logits must have shape ({len(self.classes)},), one per class name")
        return self
