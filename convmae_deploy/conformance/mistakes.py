"""What programs do to a photo that they should not: each mistake made on purpose, to be known by what comes out.

A mistake belongs to one of three steps: how a file is decoded, how the picture is shaped, how its levels become
numbers. One of each step can be made at once.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convmae_deploy.backends.base import FloatArray, InputArray
from convmae_deploy.bundle.preprocessing import AnyPreprocessing, Letterbox, Preprocessing
from convmae_deploy.media.images import decode_image
from convmae_deploy.tasks.base import Predictor
from convmae_deploy.tasks.letterbox import fitted_size
from convmae_deploy.tasks.preprocess import FILTERS

Decode = Callable[[bytes], Image.Image]  # a file -> RGB
Shape = Callable[[type[Predictor], Image.Image, Any], FloatArray]  # RGB and preprocessing -> levels (3, H, W), 0 to 255
Scale = Callable[[NDArray[Any], Any], NDArray[Any]]  # levels (3, H, W) -> what the graph is given


class Mistakes(NamedTuple):
    """What is done wrong in each step, in words; "" is nothing."""

    decoding: str = ""
    shaping: str = ""
    scaling: str = ""

    @property
    def number(self) -> int:
        """How many there are."""
        return sum(map(bool, self))

    def words(self) -> str:
        """All of them."""
        return "; ".join(filter(None, self)) or "nothing"


def every_mistake(spec: AnyPreprocessing, most: int) -> Iterator[Mistakes]:
    """Those that can be made with a preprocessing, up to so many at once, few first."""
    found = [Mistakes(*names) for names in product(("", *DECODING), ("", *shaping_mistakes(spec)), ("", *SCALING))]
    yield from sorted((one for one in found if 1 <= one.number <= most), key=lambda one: one.number)


class Maker:
    """Makes of one file what a program gives to the graph, right or with mistakes.

    Args:
        task: whose preprocessing it is.
        spec: its numbers.
        content: of the file.
    """

    def __init__(self, task: type[Predictor], spec: AnyPreprocessing, content: bytes) -> None:
        self.task, self.spec, self.content = task, spec, content
        self._images: dict[str, Image.Image] = {}  # many mistakes share them, and the levels
        self._levels: dict[tuple[str, str], FloatArray] = {}

    def input(self, mistakes: Mistakes) -> FloatArray:
        """(3, H, W)."""
        decoding, shaping = mistakes.decoding, mistakes.shaping
        image = self._image(decoding)
        if image is self._image(""):  # the mistake cannot be made with this file
            decoding = ""
        if (decoding, shaping) not in self._levels:
            shape = shaping_mistakes(self.spec)[shaping] if shaping else _levels
            self._levels[decoding, shaping] = shape(self.task, image, self.spec)
        scale = SCALING[mistakes.scaling] if mistakes.scaling else _normalised
        return np.asarray(scale(self._levels[decoding, shaping], self.spec), np.float32)

    def _image(self, decoding: str) -> Image.Image:
        if decoding not in self._images:
            image = (DECODING[decoding] if decoding else _decode)(self.content)
            right = self._image("") if decoding else image
            self._images[decoding] = right if image == right else image
        return self._images[decoding]


def levels_of(image: FloatArray, spec: AnyPreprocessing) -> FloatArray:
    """The levels, from 0 to 255, of what the graph is given, (3, H, W)."""
    mean, std = scaling_of(spec)
    return np.asarray((image * std + mean) * 255, np.float32)


def scaling_of(spec: AnyPreprocessing) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation, (3, 1, 1), that make the graph's input of levels / 255: levels again, or not."""
    if spec.dtype == "uint8":
        return _column((0.0, 0.0, 0.0)), _column((1 / 255, 1 / 255, 1 / 255))
    return _column(spec.mean), _column(spec.std)


def as_taken(image: FloatArray, spec: AnyPreprocessing) -> InputArray:
    """An input in the type that the graph takes; levels that are none become the nearest."""
    return image.round().clip(0, 255).astype(np.uint8) if spec.dtype == "uint8" else image


def _decode(content: bytes) -> Image.Image:
    return decode_image(content).image


def _levels(task: type[Predictor], image: Image.Image, spec: AnyPreprocessing) -> FloatArray:
    return levels_of(task.pixels(image, spec), spec)


def _normalised(levels: NDArray[Any], spec: AnyPreprocessing) -> NDArray[Any]:
    mean, std = scaling_of(spec)
    return (levels / 255 - mean) / std


def _column(values: tuple[float, ...]) -> FloatArray:
    return np.array(values, np.float32)[:, None, None]


def _as_stored(content: bytes) -> Image.Image:
    return decode_image(content, apply_orientation=False).image


def _inverted_inks(content: bytes) -> Image.Image:
    image = _opened(content)
    return image.point(lambda level: 255 - level).convert("RGB") if image.mode == "CMYK" else _decode(content)


def _without_black(content: bytes) -> Image.Image:
    image = _opened(content)
    if image.mode != "CMYK":
        return _decode(content)
    return Image.merge("RGB", image.point(lambda level: 255 - level).split()[:3])


def _cut_off(content: bytes) -> Image.Image:
    image = _opened(content)
    if image.mode != "CMYK":
        return _decode(content)
    light = 255 - np.asarray(image, np.int32)
    black = light[..., 3:]
    return Image.fromarray((black - ((255 - light[..., :3]) * black >> 8)).astype(np.uint8))


def _blended(ground: str, content: bytes) -> Image.Image:
    image = _opened(content)
    if image.mode != "RGBA":
        return _decode(content)
    return Image.alpha_composite(Image.new("RGBA", image.size, ground), image).convert("RGB")


def _opened(content: bytes) -> Image.Image:
    """As Pillow has it; only of files that `decode_image` has judged."""
    _decode(content)
    return Image.open(io.BytesIO(content))


DECODING: Mapping[str, Decode] = {
    "the EXIF orientation is ignored": _as_stored,
    "CMYK is read as if it were not inverted": _inverted_inks,
    "the black of CMYK is left out": _without_black,
    "CMYK becomes RGB with products that are cut off, as OpenCV does it": _cut_off,
    "transparency is blended onto white": partial(_blended, "white"),
    "transparency is blended onto black": partial(_blended, "black"),
}


class _Resizing:
    """A picture that is resized in another way than Pillow's by whoever resizes it."""

    def __init__(self, image: Image.Image, how: Callable[[Image.Image, tuple[int, int], Any], Image.Image]) -> None:
        self.size, self.width, self.height = image.size, image.width, image.height
        self._image, self._how = image, how

    def resize(self, size: tuple[int, int], resample: Any) -> Image.Image:
        return self._how(self._image, size, resample)


def _sampled(image: Image.Image, size: tuple[int, int], resample: Any) -> Image.Image:
    """Without antialiasing: the nearest pixels of each point are all that counts."""
    matrix = (image.width / size[0], 0, 0, 0, image.height / size[1], 0)
    return image.transform(size, Image.Transform.AFFINE, matrix, resample)


def _filtered(other: Image.Resampling, image: Image.Image, size: tuple[int, int], resample: Any) -> Image.Image:
    return image.resize(size, other)


def _resized(how: Any, task: type[Predictor], image: Image.Image, spec: AnyPreprocessing) -> FloatArray:
    return _levels(task, cast(Image.Image, _Resizing(image, how)), spec)


def _squashed(task: type[Predictor], image: Image.Image, spec: AnyPreprocessing) -> FloatArray:
    height, width = spec.input_size
    return _of(image.resize((width, height), FILTERS[spec.interpolation]))


def _covering_the_crop(task: type[Predictor], image: Image.Image, spec: Preprocessing) -> FloatArray:
    return _levels(task, image, spec.model_copy(update={"resize": spec.crop}))


def _cropped_at_the_corner(task: type[Predictor], image: Image.Image, spec: Preprocessing) -> FloatArray:
    whole: list[Image.Image] = []

    def keep(own: Image.Image, size: tuple[int, int], resample: Any) -> Image.Image:
        whole.append(own.resize(size, resample))
        return whole[0]

    _resized(keep, task, image, spec)
    return _of(whole[0].crop((0, 0, spec.crop[1], spec.crop[0])))


def _boxed(share: float, fill: int | None, task: type[Predictor], image: Image.Image, spec: Letterbox) -> FloatArray:
    """Fitted into the input with such a share of the rest before it, filled so."""
    height, width = fitted_size((image.height, image.width), spec.size)
    canvas = Image.new("RGB", (spec.size[1], spec.size[0]), (spec.fill if fill is None else fill,) * 3)
    place = int((spec.size[1] - width) * share), int((spec.size[0] - height) * share)
    canvas.paste(image.resize((width, height), FILTERS[spec.interpolation]), place)
    return _of(canvas)


def _of(image: Image.Image) -> FloatArray:
    return np.asarray(image, np.float32).transpose(2, 0, 1)


def shaping_mistakes(spec: AnyPreprocessing) -> Mapping[str, Shape]:
    """Those that can be made with a preprocessing."""
    kind = spec.interpolation
    others = {"bicubic": "bilinear", "bilinear": "bicubic"}
    found: dict[str, Shape] = {
        f"the {kind} filter has no antialiasing": partial(_resized, _sampled),
        f"the {others[kind]} filter has no antialiasing, and should be {kind}": partial(
            _resized, lambda image, size, _: _sampled(image, size, FILTERS[others[kind]])
        ),
        "the nearest pixel is taken, without a filter": partial(_resized, partial(_filtered, Image.Resampling.NEAREST)),
        f"the filter is {others[kind]}, not {kind}": partial(_resized, partial(_filtered, FILTERS[others[kind]])),
        f"the filter is Lanczos, not {kind}": partial(_resized, partial(_filtered, Image.Resampling.LANCZOS)),
        f"the filter is the mean of an area, not {kind}": partial(_resized, partial(_filtered, Image.Resampling.BOX)),
        "the photo is squashed to the input's size": _squashed,
    }
    if isinstance(spec, Preprocessing):
        if spec.resize != spec.crop:
            found[f"the photo is resized to cover the crop of {spec.crop}, not {spec.resize}"] = _covering_the_crop
        found["the crop is at the top left, not in the centre"] = _cropped_at_the_corner
    if isinstance(spec, Letterbox):
        found["the photo is in the centre, not at the top left"] = partial(_boxed, 0.5, None)
        found[f"the rest is filled with black, not {spec.fill}"] = partial(_boxed, 0.0, 0)
        found[f"the photo is in the centre and the rest black, not {spec.fill}"] = partial(_boxed, 0.5, 0)
    return found


SCALING: Mapping[str, Scale] = {
    "the channels are in the order B, G, R": lambda levels, spec: _normalised(levels[::-1], spec),
    "the channels are in the order B, G, R, with mean and standard deviation in that order too": lambda levels, spec: (
        _normalised(levels, spec)[::-1]
    ),
    "the channels come last": lambda levels, spec: np.ascontiguousarray(
        _normalised(levels, spec).transpose(1, 2, 0)
    ).reshape(levels.shape),
    "the levels are normalised, which the graph does itself": lambda levels, spec: (
        (levels / 255 - _column(spec.mean)) / _column(spec.std)
    ),
    "mean and standard deviation are applied in the order B, G, R": lambda levels, spec: (
        (levels / 255 - _column(spec.mean[::-1])) / _column(spec.std[::-1])
    ),
    "the difference from the mean is not divided by the standard deviation": lambda levels, spec: (
        levels / 255 - _column(spec.mean)
    ),
    "the levels are divided by 255 and not normalised": lambda levels, spec: levels / 255,
    "the levels are given from 0 to 255": lambda levels, spec: levels,
    "the levels are not divided by 255 before they are normalised": lambda levels, spec: (
        (levels - _column(spec.mean)) / _column(spec.std)
    ),
    "the mean is subtracted from the levels from 0 to 255, and nothing divided": lambda levels, spec: (
        levels - 255 * _column(spec.mean)
    ),
    "the levels are scaled to [-1, 1]": lambda levels, spec: levels / 127.5 - 1,
    "red alone is used": lambda levels, spec: _normalised(levels[:1].repeat(3, axis=0), spec),
    "height and width are swapped": lambda levels, spec: _normalised(levels.transpose(0, 2, 1), spec).reshape(
        levels.shape
    ),
}
