"""The schema of a bundle's `manifest.json`: what the files are, how to feed them, what comes out, and what was proven.

A bundle is a folder of `manifest.json`, one or more graphs (`model.onnx`, ...) and the licence of the weights. `export`
writes it; the runtime, the server and the `convmae` command read it. The manifest is the only contract between them.

A bundle may come from anywhere, so every number and every list has a bound: far beyond any model, and small enough
that what is made by it fits into memory.
"""

import hashlib
import math
import re
from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from convmae_deploy.bundle.numerics import ExportCost, NumericsReport, Quantisation, Record
from convmae_deploy.errors import ConvMAEError

SCHEMA_VERSION: Literal[1] = 1
MANIFEST_NAME = "manifest.json"
KIT_NAME = "conformance.zip"  # photos and what is right for them, see convmae_deploy/conformance
LICENCE_NAME = "LICENSE-WEIGHTS"  # what the text of the licence is called in what this project writes
STRIDE = 32  # pixels that each side of an input is a multiple of
SEGMENTER_STRIDE = 4  # input pixels per cell of a segmenter's logits
TASK_PATTERN = r"^[a-z][a-z-]{0,63}$"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
SIZE_PATTERN = r"^([0-9]{1,5})x([0-9]{1,5})$"  # (height, width) as users write it
MAX_SIDE = 4096  # pixels of an input, and of what a photo is resized to cover
MAX_LONG_SIDE = 4 * MAX_SIDE  # pixels of a segmenter's resized photo
SIDE_STEP = 32  # pixels: where a graph takes inputs of any size, their sides are multiples of this
MAX_FRAMES = 1024
MAX_BATCH = 4096
MAX_CLASSES = 100_000
MAX_ENTRIES = 2**28  # in an input or an output, for one image
MAX_BYTES = 2**36  # all hashed files together
UPRIGHT = "Turn the decoded photo upright (EXIF) and convert it to RGB."
MAX_OVERLAP = 8  # windows of a segmenter that show the same pixel, along each axis

InputType = Literal["float32", "uint8"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "int8-fp16"]  # int8-fp16: int8 layers, and what is between them
INT8: tuple[Precision, ...] = ("int8", "int8-fp16")  # whose gate is the metric of the task
Interpolation = Literal["bicubic", "bilinear"]
Side = Annotated[int, Field(gt=0, le=MAX_SIDE)]
Size = tuple[Side, Side]
Mean = Annotated[float, Field(ge=-1000, le=1000)]
Deviation = Annotated[float, Field(ge=1e-6, le=1e6)]
Word = Annotated[str, Field(max_length=200)]
ClassName = Annotated[str, Field(max_length=1000)]
CategoryId = Annotated[int, Field(ge=-(2**53), le=2**53)]
Text = Annotated[str, Field(max_length=10_000)]
Shape = Annotated[tuple[Annotated[int, Field(gt=0, le=MAX_ENTRIES)], ...], Field(max_length=8)]


class _Normalised(Record):
    """Values are scaled to [0, 1], then normalised by `mean` and `std`; with `dtype` uint8 the graph does both."""

    INPUT_NAME: ClassVar[str] = "image"  # what the graph's input is called

    mean: tuple[Mean, Mean, Mean] = (0.485, 0.456, 0.406)  # RGB, of values in [0, 1]
    std: tuple[Deviation, Deviation, Deviation] = (0.229, 0.224, 0.225)
    dtype: InputType = "float32"  # of the graph's input: normalised values, or levels 0 to 255, channels first too

    @property
    @abstractmethod
    def input_size(self) -> Size:
        """(height, width) in pixels of the graph's input."""

    @property
    def input_axes(self) -> tuple[int, ...]:
        """(height, width) of the graph's input, of clips (frames, height, width)."""
        return self.input_size

    @abstractmethod
    def with_input_size(self, size: Size) -> Self:
        """The same for a graph's input of (height, width) pixels: crop and overlap keep their share."""

    @property
    @abstractmethod
    def geometry(self) -> str:
        """What becomes of a photo's pixels, or of a video's, before they are normalised, in a line."""

    @abstractmethod
    def shaping_steps(self) -> list[str]:
        """The same for whoever has to do it, a sentence each, from a decoded photo or video."""

    def steps(self) -> list[str]:
        """From a decoded photo or video to the graph's input, a sentence each."""
        channels = (
            f"by 255, subtract the mean ({_numbers(self.mean)}) and divide by the standard deviation "
            f"({_numbers(self.std)}) of the channels R, G, B"
        )
        if self.dtype == "uint8":
            last = "Give the levels 0 to 255 as they are, channels first."
            return [*self.shaping_steps(), f"{last} The graph itself does the rest: divide them {channels}."]
        return [*self.shaping_steps(), f"Divide the levels {channels}; channels come first."]

    @property
    def nearest_levels(self) -> tuple[int, int, int]:
        """The levels of R, G, B that come nearest to 0 once they are normalised."""
        red, green, blue = (round(min(max(255 * mean, 0), 255)) for mean in self.mean)
        return red, green, blue


class _Cropped(_Normalised):
    """A picture resized with Pillow's antialiased filter so that it covers `resize`, of which `crop` is cut out."""

    resize: Size  # (height, width) in pixels that the resized picture covers
    crop: Size  # (height, width) in pixels of the graph's input
    interpolation: Interpolation = "bicubic"

    @property
    def input_size(self) -> Size:
        return self.crop

    def with_input_size(self, size: Size) -> Self:
        resize = size[0] * self.resize[0] // self.crop[0], size[1] * self.resize[1] // self.crop[1]
        if self.resize == _standard_cover(self.crop):
            resize = _standard_cover(size)  # not by way of a figure that was rounded down
        return self.model_validate(self.model_dump() | {"crop": size, "resize": resize})

    @property
    def geometry(self) -> str:
        return f"resize to cover {_side_by_side(self.resize)}, centre crop {_side_by_side(self.crop)}"

    def cropping_step(self, what: str) -> str:
        """The step that photos and frames have in common."""
        covering = f"so that it covers {_in_words(self.resize)} pixels, and cut out the centre"
        return f"Resize {what} {_resizing(self.interpolation)}, {covering}, {_in_words(self.crop)}."

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.crop[0] > self.resize[0] or self.crop[1] > self.resize[1]:
            raise ValueError(f"crop {self.crop} must fit into resize {self.resize}")
        return self


class Preprocessing(_Cropped):
    """From a decoded RGB photo to the graph's input; timm's evaluation transform, bit for bit.

    The photo is resized with Pillow's antialiased filter so that it covers `resize` (aspect ratio kept), the centre
    `crop` is cut out, values are scaled to [0, 1], then normalised per channel by `mean` and `std`.
    """

    def shaping_steps(self) -> list[str]:
        return [UPRIGHT, self.cropping_step("it")]


class ClipPreprocessing(_Cropped):
    """From a video to the graph's input: `frames` of its frames, each resized, cut and normalised as a photo is.

    Dense sampling takes frames that are `stride` apart, in frames at the video's own average rate; from a video too
    short for that it takes the last frame again and again. Segment sampling cuts the video into `frames` equal parts
    and takes one frame of each. One view is the middle one: of the dense clips, of each part, and of the picture.
    """

    INPUT_NAME = "clip"

    frames: Annotated[int, Field(gt=0, le=MAX_FRAMES)] = 16
    stride: Annotated[int, Field(gt=0, le=MAX_FRAMES)] | None = 4  # in frames; None: segment sampling

    @property
    def input_axes(self) -> tuple[int, ...]:
        return (self.frames, *self.crop)

    @property
    def geometry(self) -> str:
        each = f"one of each of {self.frames} equal parts" if self.stride is None else f"{self.stride} apart"
        return f"{self.frames} frames, {each}, {super().geometry}"

    def shaping_steps(self) -> list[str]:
        chosen = (
            f"Take {self.frames} RGB frames {self.stride} apart, the clip in the middle of the video; where the video "
            "is too short, its last frame again and again."
            if self.stride is not None
            else f"Cut the video into {self.frames} equal parts and take the RGB frame in the middle of each."
        )
        return [chosen, self.cropping_step("each frame")]


class Letterbox(_Normalised):
    """From a decoded RGB photo to a detector's input: all of the photo, aspect ratio kept, in the top left corner.

    The photo is resized with Pillow's antialiased filter so that it just fits into `size`; right of it and below there
    is `fill`.
    """

    size: Size  # (height, width) in pixels of the graph's input
    fill: Annotated[int, Field(ge=0, le=255)] = 128  # level of each channel where there is no photo
    interpolation: Interpolation = "bilinear"

    @property
    def input_size(self) -> Size:
        return self.size

    def with_input_size(self, size: Size) -> Self:
        return self.model_copy(update={"size": size})

    @property
    def geometry(self) -> str:
        return f"resize to fit into {_side_by_side(self.size)}, filled with {self.fill} right and below"

    def shaping_steps(self) -> list[str]:
        return [
            UPRIGHT,
            f"Resize it {_resizing(self.interpolation)}, so that it just fits into {_in_words(self.size)} pixels, and "
            f"put it into the top left corner of a picture of that size whose levels are {self.fill}.",
        ]


class SlidingWindow(_Normalised):
    """From a decoded RGB photo to a segmenter's windows, whose logits are averaged where they overlap.

    The photo is resized with Pillow's antialiased filter to `short_side`, aspect ratio kept. Windows begin every
    `stride` pixels and the last ones end with the photo; a photo smaller than a window is padded right and below with
    normalised zeros, which are cut off again.
    """

    window: Size  # (height, width) in pixels of the graph's input
    stride: Size  # (vertical, horizontal) distance of windows in pixels, at most `window`
    short_side: Side | None = None  # in pixels; None: the photo keeps its own size
    # in pixels, at most; then the short side is shorter
    long_side: Annotated[int, Field(gt=0, le=MAX_LONG_SIDE)] | None = None
    interpolation: Interpolation = "bilinear"

    @property
    def input_size(self) -> Size:
        return self.window

    def with_input_size(self, size: Size) -> Self:
        sides = zip(size, self.stride, self.window, strict=True)
        stride = tuple(side * old_stride // old_window for side, old_stride, old_window in sides)
        return self.model_copy(update={"window": size, "stride": stride})

    @property
    def geometry(self) -> str:
        size = "own size" if self.short_side is None else f"short side {self.short_side}"
        size += "" if self.long_side is None else f", long side at most {self.long_side}"
        return f"{size}, windows of {_side_by_side(self.window)} every {_side_by_side(self.stride)}"

    def shaping_steps(self) -> list[str]:
        steps = [UPRIGHT]
        if self.short_side is not None:
            limit = "" if self.long_side is None else f", less where the long one would be over {self.long_side}"
            resizing = _resizing(self.interpolation)
            steps.append(f"Resize it {resizing}, to a short side of {self.short_side} pixels{limit}.")
        padding = (
            f"has the levels {', '.join(map(str, self.nearest_levels))}, which are nearly 0 once they are normalised"
            if self.dtype == "uint8"
            else "is 0 after the next step"
        )
        return [
            *steps,
            f"Cut it into windows of {_in_words(self.window)} pixels, one every {_in_words(self.stride)} pixels, the "
            f"last ones ending with the photo. A photo smaller than a window is padded right and below; the padding "
            f"{padding}.",
        ]

    @model_validator(mode="after")
    def _windows_meet(self) -> Self:
        if self.stride[0] > self.window[0] or self.stride[1] > self.window[1]:
            raise ValueError(f"stride {self.stride} must be at most the window {self.window}, else pixels are left out")
        if MAX_OVERLAP * min(stride / side for stride, side in zip(self.stride, self.window, strict=True)) < 1:
            raise ValueError(f"stride {self.stride} must be at least 1/{MAX_OVERLAP} of the window {self.window}")
        return self


def _kind(value: Any) -> str:
    """Which preprocessing a record or an instance is, by the field that only this one has."""
    fields = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    marks = {"size": "letterbox", "window": "windows", "frames": "clip"}
    return next((kind for mark, kind in marks.items() if mark in fields), "crop")


AnyPreprocessing = Annotated[
    Annotated[Preprocessing, Tag("crop")]
    | Annotated[Letterbox, Tag("letterbox")]
    | Annotated[SlidingWindow, Tag("windows")]
    | Annotated[ClipPreprocessing, Tag("clip")],
    Discriminator(_kind),
]


def _resizing(interpolation: Interpolation) -> str:
    return f"with Pillow's antialiased {interpolation} filter (`Image.resize`), aspect ratio kept"


def _side_by_side(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


def _in_words(size: Size) -> str:
    return f"{_side_by_side(size)} (height x width)"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def parse_size(text: str) -> Size:
    """(height, width) in pixels as users write it, 384x640.

    Raises:
        ConvMAEError: it is none.
    """
    found = re.fullmatch(SIZE_PATTERN, text)
    if found is None:
        raise ConvMAEError(f"a size must be HEIGHTxWIDTH in pixels, such as 384x640; got {text[:40]!r}")
    return int(found[1]), int(found[2])


def standard_preprocessing(image_size: Size) -> Preprocessing:
    """The evaluation of the paper and of timm for an input of (height, width) pixels: cover 256 for a crop of 224.

    Inputs beyond 3584 pixels are cropped less, as no photo is resized beyond MAX_SIDE.
    """
    return Preprocessing(resize=_standard_cover(image_size), crop=image_size)


def _standard_cover(crop: Size) -> Size:
    return min(crop[0] * 8 // 7, MAX_SIDE), min(crop[1] * 8 // 7, MAX_SIDE)


def standard_clips(image_size: Size, *, frames: int = 16, stride: int | None = 4) -> ClipPreprocessing:
    """VideoMAE's evaluation: the short side of the frames becomes that of the model, and the crop is as large.

    Args:
        image_size: (height, width) in pixels of the model's input.
        frames: of a clip.
        stride: from one frame to the next (4 on Kinetics); None: segment sampling (Something-Something).
    """
    return ClipPreprocessing(resize=image_size, crop=image_size, frames=frames, stride=stride)


def standard_windows(window: Size, short_side: int | None, long_side: int | None = None) -> SlidingWindow:
    """The authors' evaluation of segmenters: a window every two thirds of its size, 341 pixels for 512.

    Args:
        window: (height, width) in pixels.
        short_side: in pixels, of the resized photo; None: the photo's own.
        long_side: in pixels, at most; None: no limit.
    """
    stride = window[0] * 2 // 3, window[1] * 2 // 3
    return SlidingWindow(window=window, stride=stride, short_side=short_side, long_side=long_side)


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
            taken = f"{_side_by_side(found)} alone"
            if entry.sides is not None:
                taken = f"multiples of {SIDE_STEP} from {entry.sides.smallest} to {entry.sides.largest}"
            elif len(entry.shape) == 3:
                taken += "; export it with --dynamic-size to have others"
            raise ConvMAEError(f"{self.name} takes heights and widths of {taken}; got {_side_by_side(size)}")
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
