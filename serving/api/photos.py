"""The photos of a request in its thread: from files to what a model runs, held to limits."""

import dataclasses
from collections.abc import Callable, Generator, Mapping
from typing import Final

from convmae_deploy.media.images import DecodedImage, ImageError, ImageLimits, decode_image
from convmae_deploy.tasks.base import Prepared
from serving.api.job import Job
from serving.api.parameters import PhotoParameters
from serving.api.uploads import Upload
from serving.errors import ApiError
from serving.settings import Settings
from serving.work.memory import DecodingMemory

STATUS_OF_IMAGE_ERROR: Final[Mapping[str, int]] = {
    "image_too_large": 413,
    "unsupported_format": 415,
    "aspect_ratio": 422,
}


class Photos:
    """Decodes and prepares the photos of requests.

    Args:
        settings: limits.
        memory: that photos share with videos.
    """

    def __init__(self, settings: Settings, memory: DecodingMemory) -> None:
        self._limits = ImageLimits(
            max_pixels=settings.max_image_pixels, max_side=settings.max_image_side, max_aspect=settings.max_image_aspect
        )
        self._request_pixels = settings.max_request_pixels
        self._memory = memory

    def prepare(self, job: Job) -> Generator[Prepared]:
        """Decodes and prepares the photos one after the other, so that only one of full size is in memory.

        What decoding takes is counted until the next photo is asked for. At the end the job's headers say which files
        have several frames (X-Image-Frames), were turned (X-Image-Orientation) or were decoded at half their
        width and height (X-Image-Scale).

        Raises:
            ApiError: a photo cannot be used; the field says which.
            ClientGone: nobody waits for the photos any more.
        """
        frames, orientations, scales = [], [], []
        pixels_left = self._request_pixels
        for upload in job.parsed.uploads:
            job.received.ticket.check()
            with self._memory.share(job.received.ticket) as take:
                with job.received.timings.phase("decode"):
                    image = self._decode(upload, job, pixels_left, take)
                    prepared = job.predictor.prepare(image.image, job.options)
                    if len(job.parsed.uploads) > 1:  # of several the answer is no picture, and the copies are large
                        prepared = dataclasses.replace(prepared, photo=None)
                pixels_left -= image.image.width * image.image.height
                frames.append(image.frames)
                orientations.append(image.orientation)
                scales.append(0.5 if image.halved else 1.0)
                del image
                yield prepared
                del prepared
        if any(count > 1 for count in frames):
            job.headers["X-Image-Frames"] = ", ".join(map(str, frames))
        if any(value != 1 for value in orientations):
            job.headers["X-Image-Orientation"] = ", ".join(map(str, orientations))
        if any(scale != 1 for scale in scales):
            job.headers["X-Image-Scale"] = ", ".join(f"{scale:g}" for scale in scales)

    def _decode(self, upload: Upload, job: Job, pixels_left: int, take: Callable[[int], None]) -> DecodedImage:
        """Decodes one image.

        Args:
            upload: its file.
            job: the request.
            pixels_left: that the request may still have.
            take: waits for so many bytes of memory.
        """

        def reserve(size: int) -> None:
            if size > self._memory.most:
                raise ImageError(
                    "image_too_large",
                    f"decoding the image takes up to {size} bytes of memory, {self._memory.most} are there; "
                    "send a smaller one",
                )
            take(size)

        parameters: PhotoParameters = job.parameters
        budget = min(self._limits.max_pixels, pixels_left)
        limits = dataclasses.replace(
            self._limits,
            max_pixels=max(1, budget),
            max_bytes=self._memory.most,
            # Not because of the photos before it: what is said of a photo must not depend on others.
            halve=job.predictor.HALVES and budget == self._limits.max_pixels,
        )
        try:
            image = decode_image(
                upload.data,
                limits=limits,
                apply_orientation=parameters.orientation == "apply",
                reserve=reserve,
            )
        except ImageError as error:
            status = STATUS_OF_IMAGE_ERROR.get(error.code, 400)
            message = str(error)
            if status == 413 and budget < self._limits.max_pixels:
                message = (
                    f"expected at most {self._request_pixels} pixels in one request, "
                    f"this image has too many after those before it ({error}); send several requests"
                )
            raise ApiError(status, error.code, message, field=upload.field) from None
        if parameters.strict and image.frames > 1:
            message = (
                f"expected a single picture because of strict=1, got a file of {image.frames} frames; send one frame"
            )
            raise ApiError(422, "several_frames", message, field=upload.field)
        return image
