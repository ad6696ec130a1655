"""What is done for a request once its body is there: parameters, model, images, answer. Runs in the pool's threads."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from convmae_deploy.media.images import ImageLimits
from convmae_deploy.tasks.classification import Classifier
from convmae_deploy.tasks.detection import Detector
from convmae_deploy.tasks.features import PhotoFeatures
from convmae_deploy.tasks.masks import label_png
from convmae_deploy.tasks.segmentation import Segmenter
from convmae_deploy.tasks.sliding_window import Segmentation
from convmae_deploy.tasks.video import VideoClassifier
from serving.errors import ApiError
from serving.inference import (
    Health,
    RequestLimits,
    Timings,
    classify_uploads,
    decode_uploads,
    detect_uploads,
    run_model,
    segment_uploads,
)
from serving.memory import DecodingMemory
from serving.models import Predictors, choose, choose_features
from serving.parameters import (
    ClassifyParameters,
    DetectParameters,
    EmbeddingsParameters,
    FeaturesParameters,
    SegmentParameters,
    VideoParameters,
    read_parameters,
)
from serving.pool import Ticket
from serving.requests import Parsed
from serving.responses import (
    JSON,
    PNG,
    choose_feature_type,
    choose_segment_type,
    classification,
    detections,
    embeddings,
    encode_features,
    segments,
    to_json,
)
from serving.settings import Settings
from serving.videos import classify_video, video_limits


@dataclass(frozen=True)
class Work:
    """One request in its thread."""

    request: Request
    parsed: Parsed
    ticket: Ticket
    timings: Timings
    deadline: float  # by time.monotonic(): when the client has its answer, or 504

    @property
    def query(self) -> bytes:
        """The query string."""
        query: bytes = self.request.scope["query_string"]
        return query

    @property
    def accept(self) -> str:
        """The Accept header; empty where there is none."""
        return self.request.headers.get("accept", "")


class Jobs:
    """The work of each route.

    Args:
        settings: limits.
        predictors: the models by name. May be filled after construction, before the first request.
    """

    def __init__(self, settings: Settings, predictors: Predictors) -> None:
        self.settings = settings
        self.predictors = predictors
        memory = DecodingMemory(settings.max_decoding_bytes)
        self.limits = RequestLimits(
            image=ImageLimits(
                max_pixels=settings.max_image_pixels,
                max_side=settings.max_image_side,
                max_aspect=settings.max_image_aspect,
            ),
            max_request_pixels=settings.max_request_pixels,
            memory=memory,
        )
        self.video_limits = video_limits(settings, memory)
        self._health: dict[str, Health] = {}

    def health(self, name: str) -> Health:
        """Of the model of that name."""
        return self._health.setdefault(name, Health())

    def classify(self, work: Work) -> Response:
        """/v1/classify."""
        parsed, timings = work.parsed, work.timings
        parameters = read_parameters(ClassifyParameters, work.query, parsed.parameters)
        predictor = choose(self.predictors, parameters.model, Classifier)
        name = predictor.manifest.name
        predictions, decoded = classify_uploads(
            predictor, parsed.uploads, parameters, self.limits, self.health(name), work.ticket, timings
        )
        with timings.phase("encode"):
            body = to_json(classification(predictions, parsed.batched))
        return Response(body, media_type=JSON, headers={"X-Model": name} | decoded.headers())

    def classify_video(self, work: Work) -> Response:
        """/v1/classify-video."""
        parsed, timings = work.parsed, work.timings
        parameters = read_parameters(VideoParameters, work.query, parsed.parameters)
        predictor = choose(self.predictors, parameters.model, VideoClassifier)
        name = predictor.manifest.name
        predictions, headers = classify_video(
            predictor,
            parsed.uploads[0],
            parameters,
            self.video_limits,
            self.health(name),
            work.ticket,
            timings,
            work.deadline,
        )
        with timings.phase("encode"):
            body = to_json(classification([predictions], parsed.batched))
        return Response(body, media_type=JSON, headers={"X-Model": name} | headers)

    def detect(self, work: Work) -> Response:
        """/v1/detect."""
        parsed, timings = work.parsed, work.timings
        parameters = read_parameters(DetectParameters, work.query, parsed.parameters)
        predictor = choose(self.predictors, parameters.model, Detector)
        name = predictor.manifest.name
        objects, converged, decoded = detect_uploads(
            predictor, parsed.uploads, parameters, self.limits, self.health(name), work.ticket, timings
        )
        with timings.phase("encode"):
            body = to_json(detections(objects, parameters.masks, parsed.batched, work.ticket.check))
        headers = {"X-Model": name} | decoded.headers()
        if not all(converged):
            headers["X-Converged"] = ", ".join(str(int(flag)) for flag in converged)
        return Response(body, media_type=JSON, headers=headers)

    def segment(self, work: Work) -> Response:
        """/v1/segment."""
        parsed, timings, ticket = work.parsed, work.timings, work.ticket
        parameters = read_parameters(SegmentParameters, work.query, parsed.parameters)
        predictor = choose(self.predictors, parameters.model, Segmenter)
        name, classes = predictor.manifest.name, predictor.manifest.classes
        kind = choose_segment_type(work.accept, len(parsed.uploads))

        def encode(found: Segmentation) -> Any:
            if kind == PNG:
                return label_png(found.labels)
            return segments(found, classes, parameters.threshold, parameters.masks, ticket.check)

        answers, decoded = segment_uploads(
            predictor, parsed.uploads, parameters, self.limits, self.health(name), ticket, timings, encode
        )
        with timings.phase("encode"):
            body = answers[0] if kind == PNG else to_json(answers if parsed.batched else answers[0])
        return Response(body, media_type=kind, headers={"X-Model": name} | decoded.headers())

    def features(self, work: Work) -> Response:
        """/v1/features."""
        parsed, timings = work.parsed, work.timings
        parameters = read_parameters(FeaturesParameters, work.query, parsed.parameters)
        predictor = choose_features(self.predictors, parameters.model)
        name = predictor.manifest.name
        levels = check_levels(predictor, parameters.levels)
        shapes = (predictor.manifest.outputs[level].shape for level in levels)
        size = 4 * len(parsed.uploads) * sum(math.prod(shape) for shape in shapes)
        kind = choose_feature_type(work.accept, size, self.settings.max_json_features_bytes)
        with timings.phase("decode"):
            decoded = decode_uploads(predictor, parsed.uploads, parameters, self.limits, work.ticket)
        work.ticket.check()
        with timings.phase("inference"):
            maps = run_model(predictor, decoded.batch, levels, self.health(name), work.ticket)
        with timings.phase("encode"):
            body, extra = encode_features({level: maps[level] for level in levels}, kind, parameters.dtype, name)
        return Response(body, media_type=kind, headers={"X-Model": name} | decoded.headers() | extra)

    def embeddings(self, work: Work) -> Response:
        """/v1/embeddings."""
        parsed, timings = work.parsed, work.timings
        parameters = read_parameters(EmbeddingsParameters, work.query, parsed.parameters)
        predictor = choose_features(self.predictors, parameters.model)
        check_levels(predictor, ["pooled"], field="model")
        name = predictor.manifest.name
        with timings.phase("decode"):
            decoded = decode_uploads(predictor, parsed.uploads, parameters, self.limits, work.ticket)
        work.ticket.check()
        with timings.phase("inference"):
            vectors = run_model(predictor, decoded.batch, ["pooled"], self.health(name), work.ticket)["pooled"]
        with timings.phase("encode"):
            body = to_json(embeddings(vectors, name, parameters.encoding_format))
        return Response(body, media_type=JSON, headers={"X-Model": name} | decoded.headers())


def check_levels(predictor: PhotoFeatures, levels: Sequence[str], field: str = "levels") -> list[str]:
    """The levels asked for, each once, in the order asked for.

    Raises:
        ApiError: 422, the model has no such level.
    """
    for level in levels:
        if level not in predictor.levels:
            message = f"{field}: expected some of {', '.join(predictor.levels)}, got {level[:40]!r}; correct it"
            raise ApiError(422, "unknown_level", message, field=field)
    return list(dict.fromkeys(levels))
