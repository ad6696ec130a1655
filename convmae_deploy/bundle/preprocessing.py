"""What becomes of a photo or video before a graph: the schema of a manifest's preprocessing, and its words for people.

`convmae_deploy.tasks` carries it out.
"""

import re
from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from convmae_deploy.bundle.numerics import Record
from convmae_deploy.errors import ConvMAEError

SIZE_PATTERN = r"^([0-9]{1,5})x([0-9]{1,5})$"  # (height, width) as users write it
MAX_SIDE = 4096  # pixels of an input, and of what a photo is resized to cover
MAX_LONG_SIDE = 4 * MAX_SIDE  # pixels of a segmenter's resized photo
MAX_FRAMES = 1024
UPRIGHT = "Turn the decoded photo upright (EXIF) and convert it to RGB."
MAX_OVERLAP = 8  # windows of a segmenter that show the same pixel, along each axis

InputType = Literal["float32", "uint8"]
Interpolation = Literal["bicubic", "bilinear"]
Side = Annotated[int, Field(gt=0, le=MAX_SIDE)]
Size = tuple[Side, Side]
Mean = Annotated[float, Field(ge=-1000, le=1000)]
Deviation = Annotated[float, Field(ge=1e-6, le=1e6)]


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
        return f"resize to cover {side_by_side(self.resize)}, centre crop {side_by_side(self.crop)}"

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
        return f"resize to fit into {side_by_side(self.size)}, filled with {self.fill} right and below"

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
        return f"{size}, windows of {side_by_side(self.window)} every {side_by_side(self.stride)}"

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


def side_by_side(size: Size) -> str:
    """(height, width) for people."""
    return f"{size[0]} x {size[1]}"


def _in_words(size: Size) -> str:
    return f"{side_by_side(size)} (height x width)"


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
