"""The schema of a bundle's `manifest.json`: what the files are, how to feed them, what comes out, and what was proven.

A bundle is a folder of `manifest.json`, one or more graphs (`model.onnx`, ...) and the licence of the weights. `export`
writes it; the runtime, the server and the `convmae` command read it. The manifest is the only contract between them.

A bundle may come from anywhere, so every number and every list has a bound: far beyond any model, and small enough
that what is made by it fits into memory.
"""

import hashlib
import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from convmae_deploy.bundle.numerics import ExportCost, NumericsReport, Quantisation, Record
from convmae_deploy.bundle.preprocessing import MAX_FRAMES, AnyPreprocessing, InputType, Side, Size, side_by_side
from convmae_deploy.errors import ConvMAEError

SCHEMA_VERSION: Literal[1] = 1
MANIFEST_NAME = "manifest.json"
KIT_NAME = "conformance.zip"  # photos and what is right for them, see convmae_deploy/conformance
LICENCE_NAME = "LICENSE-WEIGHTS"  # what the text of the licence is called in what this project writes
STRIDE = 32  # pixels that each side of an input is a multiple of
SEGMENTER_STRIDE = 4  # input pixels per cell of a segmenter's logits
TASK_PATTERN = r"^[a-z][a-z-]{0,63}$"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
SIDE_STEP = 32  # pixels: where a graph takes inputs of any size, their sides are multiples of this
MAX_BATCH = 4096
MAX_CLASSES = 100_000
MAX_ENTRIES = 2**28  # in an input or an output, for one image
MAX_BYTES = 2**36  # all hashed files together

Precision = Literal["fp32", "fp16", "bf16", "int8", "int8-fp16"]  # int8-fp16: int8 layers, and what is between them
INT8: tuple[Precision, ...] = ("int8", "int8-fp16")  # whose gate is the metric of the task
Word = Annotated[str, Field(max_length=200)]
ClassName = Annotated[str, Field(max_length=1000)]
CategoryId = Annotated[int, Field(ge=-(2**53), le=2**53)]
Text = Annotated[str, Field(max_length=10_000)]
Shape = Annotated[tuple[Annotated[int, Field(gt=0, le=MAX_ENTRIES)], ...], Field(max_length=8)]


class SideRange(Record):
    """The heights and widths that a graph takes, in pixels: every multiple of 32 of the range, each for itself."""

    smallest: Side = SIDE_STEP
    largest: Side

    def takes(self, size: tuple[int, ...]) -> bool:
        """Whether both sides are of the range."""
        return all(side % SIDE_STEP == 0 and self.smallest <= side <= self.largest for side in size)

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.smallest > self.largest or not self.takes((self.smallest, self.largest)):
            raise ValueError(
                f"sides must go from one multiple of {SIDE_STEP} to another; got {self.smallest} to {self.largest}"
            )
        return self


class InputSpec(Record):
    """The graph's one input: (B, 3, H, W) or (B, 3, T, H, W), B between `min_batch` and `max_batch`."""

    name: Word = "image"  # see `INPUT_NAME`
    dtype: InputType = "float32"  # that of the preprocessing
    shape: Shape  # without the batch axis: (3, H, W); video (3, T, H, W)
    sides: SideRange | None = None  # None: the graph takes the height and width of `shape` alone
    min_batch: int = Field(default=1, ge=1, le=MAX_BATCH)
    max_batch: int = Field(ge=1, le=MAX_BATCH)  # of inputs as large as `shape` says; see `Manifest.at`

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether the graph takes inputs of a shape, given without the batch axis."""
        if self.sides is None:
            return shape == self.shape
        return len(shape) == len(self.shape) and shape[0] == self.shape[0] and self.sides.takes(shape[1:])

    @property
    def in_words(self) -> str:
        """The shapes that it takes."""
        if self.sides is None:
            return f"(B, {', '.join(map(str, self.shape))})"
        return (
            f"(B, {self.shape[0]}, H, W) with H and W multiples of {SIDE_STEP} from {self.sides.smallest} to "
            f"{self.sides.largest}"
        )

    @property
    def row_bytes(self) -> int:
        """Of one image or clip."""
        return math.prod(self.shape) * (1 if self.dtype == "uint8" else 4)

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.min_batch > self.max_batch:
            raise ValueError(f"min_batch {self.min_batch} must be at most max_batch {self.max_batch}")
        if self.sides is not None and not (len(self.shape) == 3 and self.sides.takes(self.shape[1:])):
            raise ValueError(f"shape {self.shape} must be (3, H, W) with sides of the range {self.sides}")
        if math.prod(self.shape) > MAX_ENTRIES:
            raise ValueError(f"shape {self.shape} has more than {MAX_ENTRIES} entries")
        return self


class OutputSpec(Record):
    """One output of the graph, (B, *shape)."""

    shape: Shape  # without the batch axis: (classes,), (C,) or (C, H / stride, W / stride)
    dtype: Literal["float32", "int64"] = "float32"
    stride: Side | None = None  # input pixels per cell of a feature map; None for vectors
    # Videos: frames per slot of the time axis, which is a map's second and a vector's first; None: there is none.
    time_stride: Annotated[int, Field(gt=0, le=MAX_FRAMES)] | None = None

    def at(self, size: tuple[int, ...]) -> Self:
        """The same output of an input of (height, width) pixels."""
        if self.stride is None:
            return self
        return self.model_copy(update={"shape": (*self.shape[:-2], *(side // self.stride for side in size))})

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if math.prod(self.shape) > MAX_ENTRIES:
            raise ValueError(f"shape {self.shape} has more than {MAX_ENTRIES} entries")
        return self


class StoredFile(Record):
    """A file of the bundle, known by its content."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(gt=0, le=MAX_BYTES)


class BundleFile(StoredFile):
    """One graph of the bundle."""

    precision: Precision
    opset: int
    # file name -> what it is, of weights that the graph keeps outside of itself; a graph may use no other file
    weights: dict[Word, StoredFile] = Field(default_factory=dict, max_length=1000)
    numerics: NumericsReport | None = None  # None: never verified; the runtime warns
    cost: ExportCost | None = None  # None: not measured
    quantisation: Quantisation | None = None  # of INT8 alone

    @property
    def digest(self) -> str:
        """Of all that the graph is, its weights in other files too: of one file, that file's SHA-256."""
        if not self.weights:
            return self.sha256
        parts = (self.sha256, *(f"{name} {file.sha256}" for name, file in sorted(self.weights.items())))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def all_bytes(self) -> int:
        """Of the graph and its weights in other files."""
        return self.bytes + sum(file.bytes for file in self.weights.values())


class Licence(Record):
    """The terms of the weights (the code is MIT)."""

    name: Text  # short name, for instance "ImageNet terms: non-commercial research"
    file: Word | None = None  # the full text, a file of the bundle


class Description(Record):
    """What a model is, and all that must be known to feed its graphs, each of which carries it too."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str = Field(pattern=NAME_PATTERN)  # what `?model=` and `/v1/models/{name}` say
    task: str = Field(pattern=TASK_PATTERN)  # one of `convmae_deploy.tasks.TASKS`
    variant: Word  # "nano", "base", ...
    input: InputSpec
    preprocessing: AnyPreprocessing  # of the kind that the task needs
    classes: tuple[ClassName, ...] = Field(max_length=MAX_CLASSES)
    category_ids: tuple[CategoryId, ...] = ()  # detection: the id of each class in the dataset's file; none: 1, 2, ...
    outputs: dict[Word, OutputSpec] = Field(max_length=100)  # see the task's `expected_outputs`
    tools: dict[Word, Word] = Field(max_length=100)  # package -> version at export
    licence: Licence
    # free text: checkpoint, data, command, seed, metrics
    provenance: dict[Word, Text] = Field(default_factory=dict, max_length=100)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.category_ids and len(self.category_ids) != len(self.classes):
            raise ValueError(f"category_ids must be one for each of {len(self.classes)} classes, or none")
        expected = (3, *self.preprocessing.input_axes)
        if self.input.shape != expected:
            raise ValueError(f"input shape {self.input.shape} must be {expected}, as the preprocessing makes it")
        if self.input.sides is not None:
            for name, output in self.outputs.items():
                if output.stride is not None and output.shape != output.at(expected[1:]).shape:
                    raise ValueError(f"output {name} must have a cell for every {output.stride} pixels of {expected}")
        if self.input.dtype != self.preprocessing.dtype:
            raise ValueError(
                f"input dtype {self.input.dtype} must be {self.preprocessing.dtype}, as the preprocessing is"
            )
        return self

    def open_shape(self, tensor: InputSpec | OutputSpec) -> tuple[int, ...]:
        """The shape of the input or an output without the batch axis; -1 stands for a side that is open."""
        maps = isinstance(tensor, InputSpec) or tensor.stride is not None
        return (*tensor.shape[:-2], -1, -1) if self.input.sides is not None and maps else tensor.shape

    def at(self, size: Size) -> Self:
        """The same bundle for inputs of (height, width) pixels: what photos become, what goes in and what comes out.

        Photos are resized as much larger or smaller as the input is. The largest batch is that of as many pixels.

        Raises:
            ConvMAEError: the graph does not take that size.
        """
        entry, found = self.input, self.preprocessing.input_size
        if size == found:
            return self
        if not entry.takes((*entry.shape[:-2], *size)):
            taken = f"{side_by_side(found)} alone"
            if entry.sides is not None:
                taken = f"multiples of {SIDE_STEP} from {entry.sides.smallest} to {entry.sides.largest}"
            elif len(entry.shape) == 3:
                taken += "; export it with dynamic sizes to have others"
            raise ConvMAEError(f"{self.name} takes heights and widths of {taken}; got {side_by_side(size)}")
        rows = max(entry.min_batch, min(entry.max_batch, entry.max_batch * math.prod(found) // math.prod(size)))
        return self.model_copy(
            update={
                "input": entry.model_copy(update={"shape": (*entry.shape[:-2], *size), "max_batch": rows}),
                "preprocessing": self.preprocessing.with_input_size(size),
                "outputs": {name: output.at(size) for name, output in self.outputs.items()},
            }
        )


class Manifest(Description):
    """Everything that must be known to run a bundle."""

    files: dict[Word, BundleFile] = Field(max_length=100)  # file name -> what it is; the first is the default
    conformance: StoredFile | None = None  # `KIT_NAME`; None: there is none, as of models of videos

    @model_validator(mode="after")
    def _has_files(self) -> Self:
        if not self.files:
            raise ValueError("files must name at least one graph")
        if sum(part.bytes for file in self.files.values() for part in (file, *file.weights.values())) > MAX_BYTES:
            raise ValueError(f"files must have at most {MAX_BYTES} bytes together")
        return self
