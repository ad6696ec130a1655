"""The routes: for each its path, what it does in words, and for those that run models what they read and write.

The application, the description of the interface, BentoML's description and the limits on bodies all read these tables.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import BaseModel

from convmae_deploy.tasks import TASKS
from convmae_deploy.tasks.base import MediumName, Predictor
from convmae_deploy.tasks.classification import Classifier
from convmae_deploy.tasks.detection import Detector
from convmae_deploy.tasks.segmentation import Segmenter
from convmae_deploy.tasks.video import VideoClassifier
from serving.api import response_models
from serving.api.models import Predictors, find_any, find_features, find_model
from serving.api.parameters import (
    ClassifyParameters,
    DetectParameters,
    EmbeddingsParameters,
    FeaturesParameters,
    Parameters,
    SegmentParameters,
    VideoParameters,
)
from serving.api.responses import (
    FEATURE_TYPES,
    JSON,
    PICTURE_TYPES,
    ClassWriter,
    EmbeddingWriter,
    FeatureWriter,
    ObjectWriter,
    PhotoClassWriter,
    SegmentWriter,
    Writer,
)
from serving.api.uploads import Parse, parse_embeddings, parse_files, parse_flat, parse_instances
from serving.errors import ApiError

NAME: Final = "{name}"  # of a model, in a path
INFERENCE: Final = "Inference"
PROTOCOLS: Final = "Other protocols"
INFORMATION: Final = "Information"
REPOSITORY: Final = "Repository"

Body = Literal["files", "embeddings", "instances", "tensors"]  # what a request holds; see `openapi.BODIES`


@dataclass(frozen=True, kw_only=True)
class Route:
    """A route that runs models, whichever it is."""

    path: str
    name: str
    summary: str
    description: str
    body: Body = "files"
    response_model: type[BaseModel] | None = None  # in JSON; None: it depends on the model
    lists: bool = False  # whether that is an entry of a list, of lists for a list of files
    other_response_model: type[BaseModel] | None = None  # in JSON, in place of it where a request asks so
    media_types: tuple[str, ...] = (JSON,)  # of answers
    tag: str = PROTOCOLS
    parameters: type[Parameters] = Parameters  # that are described; those of the model's own route are understood

    def find(self, predictors: Predictors, name: str | None) -> Predictor:
        """The model of that name, or the route's default.

        Raises:
            ApiError: 404, no such model, or none for this route.
        """
        return find_any(predictors, name)

    def medium(self, predictors: Predictors, name: object) -> MediumName:
        """What a request carries that names this model, or none; photos where there is no such model."""
        try:
            return self.find(predictors, name if isinstance(name, str) else None).MEDIUM
        except ApiError:
            return "photo"

    @property
    def medium_name(self) -> MediumName:
        """What its requests carry; photos where the model decides."""
        return "photo"


@dataclass(frozen=True, kw_only=True)
class InferenceRoute(Route):
    """A route of ours: for models of one task, or for whatever gives features."""

    task: str | None  # what its models are for; None: whatever gives features
    parameters: type[Parameters]
    writer: type[Writer]
    parse: Parse = parse_files
    stills: str | None = None  # for a route for videos: where a picture could go instead
    tag: str = INFERENCE

    def find(self, predictors: Predictors, name: str | None) -> Predictor:
        return find_features(predictors, name) if self.task is None else find_model(predictors, name, self.task)

    def medium(self, predictors: Predictors, name: object) -> MediumName:
        return super().medium(predictors, name) if self.task is None else self.medium_name

    @property
    def medium_name(self) -> MediumName:
        """What its requests carry; photos where the model decides."""
        return "photo" if self.task is None else TASKS[self.task].MEDIUM


@dataclass(frozen=True, kw_only=True)
class AnyModelRoute(Route):
    """A route for every model: what the route of the model's task understands and gives, read and wrapped otherwise."""

    parse: Parse = parse_files
    envelope: str | None = None  # the field that holds the answer


_CHOICE = (
    "A model of photos takes images, a model of videos one video, with the parameters and limits of each; without "
    "`model` the first model of photos, where there is none the first of videos."
)
ROUTES: Final = (
    InferenceRoute(
        path="/v1/classify",
        name="classify",
        summary="Classify images",
        description="The answer has Hugging Face's shape: a list of labels and scores for one image, a list of such "
        "lists for a list of images or several files. With `explain=map` it says instead how much each cell of the "
        "photo adds to one class, as numbers or as a picture.",
        task=Classifier.TASK,
        parameters=ClassifyParameters,
        writer=PhotoClassWriter,
        response_model=response_models.Prediction,
        lists=True,
        other_response_model=response_models.Explanation,
        media_types=PICTURE_TYPES,
    ),
    InferenceRoute(
        path="/v1/detect",
        name="detect",
        summary="Find objects",
        description="The answer has Hugging Face's shape: a list of labels, scores and boxes for one image, a list of "
        "such lists for several. Boxes are in pixels of the upright photo. The header `X-Converged` comes only where "
        "boxes that overlap may have been left: a 0 for each such image.",
        task=Detector.TASK,
        parameters=DetectParameters,
        writer=ObjectWriter,
        response_model=response_models.Detection,
        lists=True,
    ),
    InferenceRoute(
        path="/v1/segment",
        name="segment",
        summary="Say what each pixel is",
        description="The answer has Hugging Face's shape: a list of labels, scores and masks for one image, the "
        "largest segment first; a list of such lists for several. With `Accept: image/png` it is the labels of one "
        "image instead: a grey picture whose levels count the model's labels from 0.",
        task=Segmenter.TASK,
        parameters=SegmentParameters,
        writer=SegmentWriter,
        response_model=response_models.Segment,
        lists=True,
        media_types=PICTURE_TYPES,
    ),
    InferenceRoute(
        path="/v1/classify-video",
        name="classify_video",
        summary="Classify a video",
        description="MP4, QuickTime, WebM, Matroska, AVI, GIF, MPEG, FLV, Ogg or WMV. The answer has Hugging Face's "
        "shape: a list of labels and scores. The headers `X-Video-Frames` and `X-Video-Seconds` say what the file "
        "holds. A file that ends too early is refused, also where its beginning could be decoded.",
        task=VideoClassifier.TASK,
        parameters=VideoParameters,
        writer=ClassWriter,
        response_model=response_models.Prediction,
        lists=True,
        stills="/v1/classify",
    ),
    InferenceRoute(
        path="/v1/features",
        name="features",
        summary="Multi-scale features of images or a video",
        description=f"{_CHOICE} The Accept header, or `format`, chooses among "
        f"{', '.join(f'`{kind}`' for kind in FEATURE_TYPES)}. Every array begins with an axis of files, also for one. "
        "`application/octet-stream` is the arrays one after the other, described by the header `X-Features`. JSON only "
        "while it is small; else 406. The header `Feature-Fingerprint` says for each level which vectors it may be "
        "compared with. Where JSON with `inputs` asks for one level and for no format, the answer is that array alone, "
        "as Hugging Face's `feature_extraction` reads it.",
        task=None,
        parameters=FeaturesParameters,
        writer=FeatureWriter,
        parse=parse_flat,
        response_model=response_models.Features,
        other_response_model=response_models.Arrays,
        media_types=FEATURE_TYPES,
    ),
    InferenceRoute(
        path="/v1/embeddings",
        name="embeddings",
        summary="Pooled feature vectors of images or a video",
        description=f"{_CHOICE} Request and answer have the shape of OpenAI's embeddings, with files where that has "
        "text.",
        task=None,
        parameters=EmbeddingsParameters,
        writer=EmbeddingWriter,
        parse=parse_embeddings,
        body="embeddings",
        response_model=response_models.Embeddings,
    ),
)
ANY_MODEL_ROUTES: Final = (
    AnyModelRoute(
        path="/invocations",
        name="invocations",
        summary="The first model, as Amazon SageMaker asks",
        description="As the route of the model's task: /v1/classify for a classifier, and so on; the first model that "
        "the server was started with, or `model`.",
    ),
    AnyModelRoute(
        path=f"/v1/models/{NAME}:predict",
        name="predict",
        summary="A model, as KServe's first protocol and Vertex AI ask",
        description="Each instance is a file in base64, as a string or as the only text in an object. For each comes "
        "what the route of the model's task gives.",
        parse=parse_instances,
        body="instances",
        envelope="predictions",
        response_model=response_models.Predictions,
    ),
)
_INFER = "The Open Inference Protocol: tensors, or files in the input `encoded`, in JSON or as bytes after it."
TENSOR_ROUTES: Final = tuple(
    Route(
        path=f"/v2/models/{NAME}{version}/infer",
        name=name,
        summary="Run a model on tensors or files",
        description=f"{_INFER} Without `outputs` come all but maps and masks, which are large.",
        body="tensors",
        response_model=response_models.Inferred,
        media_types=(JSON, "application/octet-stream"),
    )
    for version, name in (("", "infer"), ("/versions/{version}", "infer_version"))
)
MODEL_ROUTES: Final[tuple[Route, ...]] = (*ROUTES, *ANY_MODEL_ROUTES, *TENSOR_ROUTES)


def route_of(predictor: Predictor) -> InferenceRoute:
    """The route of a model's task."""
    found = (route for route in ROUTES if route.task == predictor.TASK)
    return next(found, next(route for route in ROUTES if route.task is None))


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A route that runs no model; `Api` has a method of its name."""

    path: str
    name: str
    summary: str
    method: str = "GET"
    response_model: Any = None  # in JSON; None: any object
    lists: bool = False  # whether that is an entry of a list
    statuses: tuple[int, ...] = ()  # that it may answer with, beside 200 and those of every route
    tag: str = INFORMATION


def _metadata(version: str) -> tuple[Endpoint, Endpoint]:
    path, suffix = f"/v2/models/{NAME}{version and '/versions/{version}'}", version and "_version"
    return (
        Endpoint(
            path=path,
            name=f"model_metadata{suffix}",
            summary="Inputs and outputs of a model",
            response_model=response_models.ModelMetadata,
            statuses=(404,),
            tag=PROTOCOLS,
        ),
        Endpoint(
            path=f"{path}/ready",
            name=f"model_ready{suffix}",
            summary="Whether a model runs",
            response_model=response_models.ModelReady,
            statuses=(404,),
            tag=PROTOCOLS,
        ),
    )


ENDPOINTS: Final = (
    Endpoint(
        path="/v1/models", name="list_models", summary="The loaded models", response_model=response_models.ModelList
    ),
    Endpoint(
        path=f"/v1/models/{NAME}",
        name="describe_model",
        summary="Everything about one model",
        response_model=response_models.Model,
        statuses=(404,),
    ),
    Endpoint(path="/livez", name="live", summary="Whether the process answers", response_model=response_models.Alive),
    *(
        Endpoint(path=path, name=name, summary=summary, response_model=response_models.Ready, tag=tag)
        for path, name, summary, tag in (
            ("/readyz", "ready", "Whether requests should be sent here", INFORMATION),
            ("/healthz", "healthz", "As /readyz, for BentoML and others", PROTOCOLS),
            ("/health", "health", "As /readyz, for Hugging Face's endpoints and others", PROTOCOLS),
            ("/ping", "ping", "As /readyz, for Amazon SageMaker", PROTOCOLS),
            ("/v2/health/ready", "server_ready", "As /readyz, for the Open Inference Protocol", PROTOCOLS),
        )
    ),
    Endpoint(
        path="/v2/health/live",
        name="server_live",
        summary="As /livez, for the Open Inference Protocol",
        response_model=response_models.ServerLive,
        tag=PROTOCOLS,
    ),
    Endpoint(
        path="/v2",
        name="server_metadata",
        summary="The server",
        response_model=response_models.ServerMetadata,
        tag=PROTOCOLS,
    ),
    *_metadata(""),
    *_metadata("version"),
    Endpoint(path="/schema.json", name="bentoml_schema", summary="What BentoML's clients ask for", tag=PROTOCOLS),
    Endpoint(
        path="/v2/repository/index",
        name="repository_index",
        summary="Models that are loaded or could be",
        method="POST",
        response_model=response_models.RepositoryModel,
        lists=True,
        tag=REPOSITORY,
    ),
    Endpoint(
        path=f"/v2/repository/models/{NAME}/load",
        name="load_model",
        summary="Load a model, or load it anew: it is opened, checked and run before the old one leaves",
        method="POST",
        statuses=(404, 422),
        tag=REPOSITORY,
    ),
    Endpoint(
        path=f"/v2/repository/models/{NAME}/unload",
        name="unload_model",
        summary="Let a model go once its last request has ended",
        method="POST",
        statuses=(404,),
        tag=REPOSITORY,
    ),
)
