"""A request's work in its thread: image files to predictions or features, timed by phase."""

import dataclasses
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from convmae_deploy.bundle.manifest import Size
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.media.images import DecodedImage, ImageError, ImageLimits, decode_image
from convmae_deploy.tasks.base import Predictor
from convmae_deploy.tasks.classification import Classifier
from convmae_deploy.tasks.detection import Detector
from convmae_deploy.tasks.features import PhotoFeatures
from convmae_deploy.tasks.objects import Detection
from convmae_deploy.tasks.postprocess import Prediction
from convmae_deploy.tasks.segmentation import Segmenter
from convmae_deploy.tasks.sliding_window import Segmentation, segment_photo
from serving.batching import BatchingBackend
from serving.errors import ApiError, ClientGone
from serving.memory import DecodingMemory
from serving.parameters import ClassifyParameters, Common, DetectParameters, SegmentParameters
from serving.pool import Ticket
from serving.requests import Upload

STATUS_OF_IMAGE_ERROR: Final[Mapping[str, int]] = {
    "image_too_large": 413,
    "unsupported_format": 415,
    "aspect_ratio": 422,
}
FAILURES_UNTIL_NOT_READY: Final = 3

Array = NDArray[np.float32]
T = TypeVar("T")


class Timings:
    """Seconds spent in each phase of a request, in the order in which they were first entered."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to the phase `name`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def header(self) -> str:
        """The value of a Server-Timing header, in milliseconds."""
        return ", ".join(f"{name};dur={1000 * value:.2f}" for name, value in self.seconds.items())


@dataclass(frozen=True)
class RequestLimits:
    """Limits on the images of one request."""

    image: ImageLimits
    max_request_pixels: int
    memory: DecodingMemory


@dataclass
class Decoded:
    """The decoded images of one request: the model's input, and what is worth telling about the files."""

    batch: Array = field(default_factory=lambda: np.empty(0, dtype=np.float32))  # (B, 3, H, W)
    frames: list[int] = field(default_factory=list)
    orientations: list[int] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)  # (height, width) of each upright photo

    def add(self, image: DecodedImage) -> None:
        """Takes note of one file."""
        self.frames.append(image.frames)
        self.orientations.append(image.orientation)
        self.sizes.append((image.image.height, image.image.width))

    def headers(self) -> dict[str, str]:
        """X-Image-Frames and X-Image-Orientation, only where a file has several frames or was turned."""
        headers = {}
        if any(count > 1 for count in self.frames):
            headers["X-Image-Frames"] = ", ".join(map(str, self.frames))
        if any(value != 1 for value in self.orientations):
            headers["X-Image-Orientation"] = ", ".join(map(str, self.orientations))
        return headers


class Health:
    """Whether the model runs: not ready after three failures in a row, ready again after one success."""

    def __init__(self) -> None:
        self.failures_in_a_row = 0

    @property
    def ready(self) -> bool:
        """Whether requests are likely to be answered."""
        return self.failures_in_a_row < FAILURES_UNTIL_NOT_READY


def decode_each(
    uploads: Sequence[Upload], parameters: Common, limits: RequestLimits, ticket: Ticket
) -> Generator[DecodedImage]:
    """Decodes the images one after the other, so that only one full-size photo is in memory.

    What decoding takes is counted until the next image is asked for.

    Raises:
        ApiError: an image cannot be used; the field says which.
        ClientGone: nobody waits for the images any more.
    """
    pixels_left = limits.max_request_pixels
    for upload in uploads:
        ticket.check()
        with limits.memory.share(ticket) as take:
            image = _decode(upload, parameters, limits, pixels_left, take)
            pixels_left -= image.original_size[0] * image.original_size[1]
            yield image
            del image


def decode_uploads(
    predictor: PhotoFeatures | Detector,
    uploads: Sequence[Upload],
    parameters: Common,
    limits: RequestLimits,
    ticket: Ticket,
) -> Decoded:
    """Decodes and preprocesses the images one after the other.

    Raises:
        ApiError: an image cannot be used; the field says which. Then none of the request's images is run.
    """
    inputs: list[Array] = []
    decoded = Decoded()
    with closing(decode_each(uploads, parameters, limits, ticket)) as images:
        for image in images:
            inputs.append(predictor.preprocess(image.image))
            decoded.add(image)
            del image
    decoded.batch = np.stack(inputs)
    return decoded


@contextmanager
def counted(predictor: Predictor, health: Health, batch: Array) -> Iterator[None]:
    """Runs the model inside, and keeps count of its failures.

    Raises:
        ApiError: 500 `inference_failed`.
        ClientGone: nobody waits for the batch any more.
    """
    try:
        yield
    except ClientGone:
        raise
    except Exception as error:
        # ConvMAEError refuses what it was given; only others say that the model does not run.
        health.failures_in_a_row += not isinstance(error, ConvMAEError)
        error.add_note(f"model {predictor.manifest.name}, batch of shape {batch.shape}")
        message = "the model failed on this request; the server's log says why under this request id"
        raise ApiError(500, "inference_failed", message) from error
    health.failures_in_a_row = 0


def run_model(
    predictor: Predictor, batch: Array, outputs: Sequence[str], health: Health, ticket: Ticket | None = None
) -> dict[str, NDArray[Any]]:
    """Runs the model and keeps count of its failures.

    Args:
        predictor: the model.
        batch: its input.
        outputs: names.
        health: of the model.
        ticket: of a job that holds no more than the batch and the outputs, and may wait for a device without its core.

    Raises:
        ApiError: 500 `inference_failed`.
        ClientGone: nobody waits for the batch any more.
    """
    with counted(predictor, health, batch), _core_for_others(predictor, batch, outputs, ticket):
        return predictor.run(batch, outputs)


def on_device(predictor: Predictor) -> bool:
    """Whether the model's runs are put together with those of other requests, away from this machine's cores."""
    return isinstance(predictor.backend, BatchingBackend)


def _core_for_others(
    predictor: Predictor, batch: Array, outputs: Sequence[str], ticket: Ticket | None
) -> AbstractContextManager[None]:
    if ticket is None or not on_device(predictor):
        return nullcontext()
    specs = (predictor.manifest.outputs[name] for name in outputs)
    return ticket.away(
        batch.nbytes + len(batch) * sum(math.prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in specs)
    )


def classify_uploads(
    predictor: Classifier,
    uploads: Sequence[Upload],
    parameters: ClassifyParameters,
    limits: RequestLimits,
    health: Health,
    ticket: Ticket,
    timings: Timings,
) -> tuple[list[list[Prediction]], Decoded]:
    """Image files to predictions: the whole work of a classification request, without HTTP.

    Returns:
        Predictions of each image, best first, and what was decoded.
    """
    with timings.phase("decode"):
        decoded = decode_uploads(predictor, uploads, parameters, limits, ticket)
    ticket.check()
    with timings.phase("inference"):
        logits = run_model(predictor, decoded.batch, ["logits"], health, ticket)["logits"]
        predictions = predictor.rank(logits, top_k=parameters.top_k, function=parameters.function_to_apply)
    return predictions, decoded


def detect_uploads(
    predictor: Detector,
    uploads: Sequence[Upload],
    parameters: DetectParameters,
    limits: RequestLimits,
    health: Health,
    ticket: Ticket,
    timings: Timings,
) -> tuple[list[list[Detection]], list[bool], Decoded]:
    """Image files to objects: the whole work of a detection request, without HTTP.

    Returns:
        Objects of each image, best first; whether suppression came to its end for each; and what was decoded.
    """
    with timings.phase("decode"):
        decoded = decode_uploads(predictor, uploads, parameters, limits, ticket)
    ticket.check()
    with timings.phase("inference"), counted(predictor, health, decoded.batch):
        with _core_for_others(predictor, decoded.batch, predictor.OUTPUTS, ticket):
            outputs = predictor.run(decoded.batch, predictor.OUTPUTS)
        objects = predictor.find(outputs, decoded.sizes, threshold=parameters.threshold)
    return objects, [bool(flag) for flag in outputs["converged"]], decoded


def segment_uploads(
    predictor: Segmenter,
    uploads: Sequence[Upload],
    parameters: SegmentParameters,
    limits: RequestLimits,
    health: Health,
    ticket: Ticket,
    timings: Timings,
    encode: Callable[[Segmentation], T],
) -> tuple[list[T], Decoded]:
    """Image files to segmentations, each of which is encoded before the next image is decoded.

    A large photo has many windows: between them the work ends when nobody waits for it any more.

    Returns:
        What `encode` makes of each segmentation, and what was decoded, without a batch.
    """
    decoded = Decoded()
    answers: list[T] = []

    def run(windows: Array) -> Array:
        size = predictor.manifest.input.max_batch
        logits = []
        for start in range(0, len(windows), size):
            ticket.check()
            chunk = windows[start : start + size]
            logits.append(run_model(predictor, chunk, ["logits"], health)["logits"])
        return np.concatenate(logits)

    with closing(decode_each(uploads, parameters, limits, ticket)) as images:
        while True:
            with timings.phase("decode"):
                image = next(images, None)
            if image is None:
                return answers, decoded
            decoded.add(image)
            with timings.phase("inference"):
                found = segment_photo(image.image, predictor.windows, run)
            del image
            ticket.check()
            with timings.phase("encode"):
                answers.append(encode(found))


def _decode(
    upload: Upload, parameters: Common, limits: RequestLimits, pixels_left: int, take: Callable[[int], None]
) -> DecodedImage:
    """Decodes one image.

    Args:
        upload: its file.
        parameters: of the request.
        limits: on the images of the request.
        pixels_left: that the request may still have.
        take: waits for so many bytes of memory.
    """

    def reserve(size: int) -> None:
        if size > limits.memory.most:
            raise ImageError(
                "image_too_large",
                f"decoding the image takes up to {size} bytes of memory, {limits.memory.most} are there; "
                "send a smaller one",
            )
        take(size)

    budget = min(limits.image.max_pixels, pixels_left)
    image_limits = dataclasses.replace(limits.image, max_pixels=max(1, budget))
    try:
        image = decode_image(
            upload.data,
            limits=image_limits,
            apply_orientation=parameters.orientation == "apply",
            reserve=reserve,
        )
    except ImageError as error:
        status = STATUS_OF_IMAGE_ERROR.get(error.code, 400)
        message = str(error)
        if status == 413 and budget < limits.image.max_pixels:
            message = (
                f"expected at most {limits.max_request_pixels} pixels in one request, "
                f"this image has too many after those before it ({error}); send several requests"
            )
        raise ApiError(status, error.code, message, field=upload.field) from None
    if parameters.strict and image.frames > 1:
        message = f"expected a single picture because of strict=1, got a file of {image.frames} frames; send one frame"
        raise ApiError(422, "several_frames", message, field=upload.field)
    return image
