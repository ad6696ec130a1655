"""A video in its request's thread: from the file to clips, held to limits and to the request's time all the way."""

import dataclasses
import time
from collections.abc import Generator, Mapping
from typing import Final

from convmae_deploy.bundle.preprocessing import ClipPreprocessing
from convmae_deploy.media.video_errors import VideoError, VideoErrorCode
from convmae_deploy.media.video_limits import VideoLimits
from convmae_deploy.tasks.base import Prepared
from convmae_deploy.tasks.video import VideoFeatures, views_of
from serving.api.job import Job
from serving.api.uploads import Upload
from serving.errors import ApiError
from serving.settings import Settings
from serving.work.memory import DecodingMemory
from serving.work.video_process import DecodedVideo, video_processes

STATUS_OF_VIDEO_ERROR: Final[Mapping[VideoErrorCode, int]] = {
    "empty_body": 400,
    "not_a_video": 400,
    "video_corrupt": 400,
    "video_truncated": 400,
    "no_frames": 400,
    "video_too_large": 413,
    "video_too_long": 413,
    "decoding_too_large": 413,
    # Files in order, of another kind than this route takes.
    "still_image": 415,
    "no_video_stream": 415,
    "unsupported_format": 415,
    "aspect_ratio": 422,
    # Neither 408 nor 503, which clients take as a reason to send the same file again.
    "decoding_too_slow": 422,
}
GRACE_SECONDS: Final = 1.0  # beyond a request's time, so that the client hears of that and not of its video


class Videos:
    """Decodes the videos of requests.

    Args:
        settings: limits.
        memory: that videos share with photos.
    """

    def __init__(self, settings: Settings, memory: DecodingMemory) -> None:
        self._limits = VideoLimits(
            max_bytes=max(settings.max_video_body_bytes, settings.max_json_body_bytes),  # the guard has counted them
            max_seconds=settings.max_video_seconds,
            max_frames=settings.max_video_frames,
            max_pixels=settings.max_video_pixels,
            max_aspect=settings.max_video_aspect,
            decoding_seconds=settings.video_decoding_seconds,
        )
        self._bytes = min(settings.max_video_decoding_bytes, memory.most)  # that decoding one may take
        self._memory = memory

    def prepare(self, job: Job) -> Generator[Prepared]:
        """Decodes each video; the job's headers say how many frames and seconds it has.

        It ends at once when nobody waits for it any more.

        Raises:
            ApiError: the video cannot be used; the code says why.
            ClientGone: nobody waits for it.
        """
        assert isinstance(job.predictor, VideoFeatures)  # the route's medium says so
        sampling = job.predictor.sampling_of(job.options)
        for upload in job.parsed.uploads:
            with job.received.timings.phase("decode"):
                decoded = self._decode(upload, sampling, job)
            job.headers |= {"X-Video-Frames": str(decoded.frames), "X-Video-Seconds": f"{decoded.seconds:.3f}"}
            yield Prepared(rows=decoded.clips, size=sampling.crop)

    def _decode(self, upload: Upload, sampling: ClipPreprocessing, job: Job) -> DecodedVideo:
        ticket = job.received.ticket
        with self._memory.share(ticket) as take:
            take(self._bytes)
            left = max(0.0, job.received.deadline - time.monotonic()) + GRACE_SECONDS
            limits = dataclasses.replace(self._limits, decoding_seconds=min(self._limits.decoding_seconds, left))
            try:
                return video_processes().decode(
                    upload.data, sampling, views_of(job.options), limits, memory=self._bytes, job=ticket
                )
            except VideoError as error:
                message = str(error)
                if error.code == "still_image" and job.stills is not None:
                    message += f", or send this picture to {job.stills}"
                raise ApiError(STATUS_OF_VIDEO_ERROR[error.code], error.code, message, field=upload.field) from None
