"""The routes that run models: for each its path, the models behind it, what it understands, and what it writes."""

from dataclasses import dataclass
from typing import Final

from convmae_deploy.tasks import TASKS
from convmae_deploy.tasks.base import MediumName, Predictor
from convmae_deploy.tasks.classification import Classifier
from convmae_deploy.tasks.detection import Detector
from convmae_deploy.tasks.segmentation import Segmenter
from convmae_deploy.tasks.video import VideoClassifier
from serving.api.models import Predictors, find_features, find_model
from serving.api.parameters import (
    ClassifyParameters,
    DetectParameters,
    EmbeddingsParameters,
    FeaturesParameters,
    Parameters,
    SegmentParameters,
    VideoParameters,
)
from serving.api.responses import ClassWriter, EmbeddingWriter, FeatureWriter, ObjectWriter, SegmentWriter, Writer
from serving.api.uploads import Parse, parse_embeddings, parse_files
from serving.errors import ApiError


@dataclass(frozen=True, kw_only=True)
class InferenceRoute:
    """One of them."""

    path: str
    task: str | None  # what its models are for; None: whatever gives features
    parameters: type[Parameters]
    writer: type[Writer]
    parse: Parse = parse_files
    stills: str | None = None  # for a route for videos: where a picture could go instead

    def find(self, predictors: Predictors, name: str | None) -> Predictor:
        """The model of that name, or the route's default.

        Raises:
            ApiError: 404, no such model, or none for this route.
        """
        return find_features(predictors, name) if self.task is None else find_model(predictors, name, self.task)

    def medium(self, predictors: Predictors, name: object) -> MediumName:
        """What a request carries that names this model, or none; photos where there is no such model."""
        if self.task is not None:
            return TASKS[self.task].MEDIUM
        try:
            return self.find(predictors, name if isinstance(name, str) else None).MEDIUM
        except ApiError:
            return "photo"


ROUTES: Final = (
    InferenceRoute(path="/v1/classify", task=Classifier.TASK, parameters=ClassifyParameters, writer=ClassWriter),
    InferenceRoute(path="/v1/detect", task=Detector.TASK, parameters=DetectParameters, writer=ObjectWriter),
    InferenceRoute(path="/v1/segment", task=Segmenter.TASK, parameters=SegmentParameters, writer=SegmentWriter),
    InferenceRoute(
        path="/v1/classify-video",
        task=VideoClassifier.TASK,
        parameters=VideoParameters,
        writer=ClassWriter,
        stills="/v1/classify",
    ),
    InferenceRoute(path="/v1/features", task=None, parameters=FeaturesParameters, writer=FeatureWriter),
    InferenceRoute(
        path="/v1/embeddings",
        task=None,
        parameters=EmbeddingsParameters,
        writer=EmbeddingWriter,
        parse=parse_embeddings,
    ),
)
