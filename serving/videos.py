"""A video's work in its thread: from the file to its classes, held to limits and to the request's time all the way."""

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from convmae_deploy.bundle.manifest import ClipPreprocessing
from convmae_deploy.media.video_errors import VideoError, VideoErrorCode
from convmae_deploy.media.video_limits import VideoLimits
from convmae_deploy.tasks.clips import ClipViews
from convmae_deploy.tasks.postprocess import Prediction
from convmae_deploy.tasks.video import VideoClassifier
from serving.errors import ApiError
from serving.inference import Array, Health, Timings, on_device, run_model
from serving.memory import DecodingMemory
from serving.parameters import VideoParameters
from serving.pool import Ticket
from serving.requests import Upload
from serving.settings import Settings
from serving.video_process import video_processes

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


@dataclass(frozen=True)
class VideoRequestLimits:
    """Limits on the video of one request."""

    video: VideoLimits
    max_views: int
    decoding_bytes: int  # that decoding it may take
    memory: DecodingMemory


def video_limits(settings: Settings, memory: DecodingMemory) -> VideoRequestLimits:
    """The limits that the settings say, and the memory that the video shares with photos and other videos."""
    video = VideoLimits(
        max_bytes=max(settings.max_video_body_bytes, settings.max_json_body_bytes),  # the guard has counted them
        max_seconds=settings.max_video_seconds,
        max_frames=settings.max_video_frames,
        max_pixels=settings.max_video_pixels,
        max_aspect=settings.max_video_aspect,
        decoding_seconds=settings.video_decoding_seconds,
    )
    decoding_bytes = min(settings.max_video_decoding_bytes, memory.most)
    return VideoRequestLimits(video, settings.max_video_views, decoding_bytes, memory)


def classify_video(
    predictor: VideoClassifier,
    upload: Upload,
    parameters: VideoParameters,
    limits: VideoRequestLimits,
    health: Health,
    ticket: Ticket,
    timings: Timings,
    deadline: float,
) -> tuple[list[Prediction], dict[str, str]]:
    """A video file to predictions: the whole work of a request, without HTTP.

    Args:
        predictor: the model.
        upload: the file.
        parameters: of the request.
        limits: on the video and its views.
        health: of the model.
        ticket: of the job.
        timings: where the time spent is noted.
        deadline: of the request, by `time.monotonic`.

    Returns:
        Predictions, best first, and the headers that say what was found in the file.

    Raises:
        ApiError: the video cannot be used, or the model does not do what the parameters ask for.
    """
    sampling = choose_sampling(predictor.sampling, parameters)
    views = choose_views(parameters, limits.max_views)
    with timings.phase("decode"):
        clips, headers = decode_video(upload, sampling, views, limits, ticket, deadline)
    # One clip is work enough for a CPU, and between two of them the work can end; on a device it can end in the queue.
    limits_of_batch, rows = predictor.manifest.input, []
    size = limits_of_batch.max_batch if on_device(predictor) else limits_of_batch.min_batch
    with timings.phase("inference"):
        for start in range(0, len(clips), size):
            ticket.check()
            rows.append(run_model(predictor, clips[start : start + size], ["logits"], health)["logits"])
        logits = np.concatenate(rows)
        predictions = predictor.rank(logits, top_k=parameters.top_k, function=parameters.function_to_apply)
    return predictions, headers


def choose_sampling(sampling: ClipPreprocessing, parameters: VideoParameters) -> ClipPreprocessing:
    """The model's sampling, with the distance of frames that the request asks for.

    Raises:
        ApiError: 422, a clip of the model has another number of frames.
    """
    if parameters.num_frames not in (None, sampling.frames):
        message = f"num_frames: a clip of this model has {sampling.frames} frames, got {parameters.num_frames}"
        raise ApiError(422, "invalid_parameter", f"{message}; leave it out", field="num_frames")
    if parameters.frame_sampling_rate is None:
        return sampling
    return sampling.model_copy(update={"stride": parameters.frame_sampling_rate})


def choose_views(parameters: VideoParameters, max_views: int) -> ClipViews:
    """How often the video is looked at.

    Raises:
        ApiError: 422, more often than allowed.
    """
    views = ClipViews(temporal=parameters.temporal_views, spatial=parameters.spatial_views)
    if views.total > max_views:
        message = (
            f"temporal_views x spatial_views: expected at most {max_views} views in all, got {views.temporal} x "
            f"{views.spatial}; ask for fewer"
        )
        raise ApiError(422, "too_many_views", message, field="temporal_views")
    return views


def decode_video(
    upload: Upload,
    sampling: ClipPreprocessing,
    views: ClipViews,
    limits: VideoRequestLimits,
    ticket: Ticket,
    deadline: float,
) -> tuple[Array, dict[str, str]]:
    """The clips (V, 3, T, H, W) of a video, and how many frames and seconds it has, as headers.

    It ends at once when nobody waits for it any more.

    Raises:
        ApiError: the video cannot be used; the code says why.
        ClientGone: nobody waits for it.
    """
    with limits.memory.share(ticket) as take:
        take(limits.decoding_bytes)
        left = max(0.0, deadline - time.monotonic()) + GRACE_SECONDS
        video = dataclasses.replace(limits.video, decoding_seconds=min(limits.video.decoding_seconds, left))
        try:
            decoded = video_processes().decode(
                upload.data, sampling, views, video, memory=limits.decoding_bytes, job=ticket
            )
        except VideoError as error:
            message = str(error)
            if error.code == "still_image":
                message += ", or send this picture to /v1/classify"
            raise ApiError(STATUS_OF_VIDEO_ERROR[error.code], error.code, message, field=upload.field) from None
    headers = {"X-Video-Frames": str(decoded.frames), "X-Video-Seconds": f"{decoded.seconds:.3f}"}
    return decoded.clips, headers
