"""The parameters of each route, wherever they are written: query string, form fields, or JSON."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Final, Literal, TypeVar
from urllib.parse import parse_qsl

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.base import PredictOptions, Predictor
from convmae_deploy.tasks.features import FeaturePredictor
from convmae_deploy.tasks.postprocess import ScoreFunction
from serving.errors import ApiError

MAX_QUERY_FIELDS: Final = 32
MAX_TOP_K: Final = 10_000
MAX_VIEWS: Final = 100  # for each kind; how many there may be in all is a setting
MAX_STRIDE: Final = 1000  # frames
MAX_COMPONENTS: Final = 16


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a number is expected")
    return value


def _split_levels(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


Levels = Annotated[
    tuple[str, ...],
    BeforeValidator(_split_levels),
    Field(min_length=1),
    AfterValidator(lambda levels: tuple(dict.fromkeys(levels))),
]
Share = Annotated[float, BeforeValidator(_no_boolean), Field(ge=0, le=1, allow_inf_nan=False)]
TopK = Annotated[int, BeforeValidator(_no_boolean), Field(ge=1, le=MAX_TOP_K)]
Views = Annotated[int, BeforeValidator(_no_boolean), Field(ge=1, le=MAX_VIEWS)]


class Parameters(BaseModel):
    """What every route understands."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = None  # name of a loaded bundle; None: the route's default

    def options(self, predictor: Predictor) -> PredictOptions:
        """What is asked of the model's task: the parameters that are options of it, by the same names."""
        return PredictOptions(**{name: getattr(self, name, None) for name in predictor.OPTIONS})

    def check(self, predictor: Predictor, max_views: int) -> None:
        """Refuses what is not for this model, or too much.

        Args:
            predictor: the model.
            max_views: views of a video, in time and space together.

        Raises:
            ApiError: 422.
        """


class PhotoParameters(Parameters):
    """What every route that takes photos understands."""

    orientation: Literal["apply", "ignore"] = "apply"  # the EXIF orientation; ignore: as timm's loader does
    strict: bool = False  # refuse animated and multi-page files instead of taking the first frame


class ClipParameters(Parameters):
    """What every route that takes videos understands; the last two are Hugging Face's."""

    temporal_views: Views = 1  # clips spread over the video
    spatial_views: Views = 1  # crops along the longer side of the frames
    frame_sampling_rate: Annotated[int, BeforeValidator(_no_boolean), Field(ge=1, le=MAX_STRIDE)] | None = None
    num_frames: Annotated[int, BeforeValidator(_no_boolean)] | None = None  # only that of the model

    def check(self, predictor: Predictor, max_views: int) -> None:
        """See `Parameters.check`: a model's clips have its own number of frames, and views are limited."""
        frames = predictor.manifest.input.shape[1]
        if self.num_frames not in (None, frames):
            message = f"num_frames: a clip of this model has {frames} frames, got {self.num_frames}; leave it out"
            raise ApiError(422, "invalid_parameter", message, field="num_frames")
        if self.temporal_views * self.spatial_views > max_views:
            message = (
                f"temporal_views x spatial_views: expected at most {max_views} views in all, got "
                f"{self.temporal_views} x {self.spatial_views}; ask for fewer"
            )
            raise ApiError(422, "too_many_views", message, field="temporal_views")


class ClassifyParameters(PhotoParameters):
    """Parameters of /v1/classify."""

    top_k: TopK = 5
    function_to_apply: ScoreFunction = "softmax"


class VideoParameters(ClipParameters):
    """Parameters of /v1/classify-video."""

    top_k: TopK = 5
    function_to_apply: ScoreFunction = "softmax"


class DetectParameters(PhotoParameters):
    """Parameters of /v1/detect."""

    threshold: Share = 0.5  # the smallest score of an object
    masks: Literal["none", "rle", "png"] = "none"


class SegmentParameters(PhotoParameters):
    """Parameters of /v1/segment."""

    threshold: Share = 0.0  # the smallest score of a segment
    masks: Literal["png", "rle"] = "png"
    subtask: Literal["semantic"] = "semantic"  # Hugging Face's name of what this is


class AnyMediumParameters(PhotoParameters, ClipParameters):
    """What routes understand that take photos or videos, as the model does; what is for the other medium is refused."""

    def check(self, predictor: Predictor, max_views: int) -> None:
        for name in sorted(self.model_fields_set & (_OF_CLIPS if predictor.MEDIUM == "photo" else _OF_PHOTOS)):
            message = f"{name} says nothing to {predictor.manifest.name}, a model of {predictor.MEDIUM}s; leave it out"
            raise ApiError(422, "unknown_parameter", message, field=name)
        if predictor.MEDIUM == "video":
            super().check(predictor, max_views)


_OF_PHOTOS = PhotoParameters.model_fields.keys() - Parameters.model_fields.keys()
_OF_CLIPS = ClipParameters.model_fields.keys() - Parameters.model_fields.keys()


class FeaturesParameters(AnyMediumParameters):
    """Parameters of /v1/features."""

    levels: Levels = ("pooled",)
    dtype: Literal["f32", "f16"] = "f32"
    # Principal components of each map in place of its channels, with their shares of the variance.
    components: Annotated[int, BeforeValidator(_no_boolean), Field(ge=1, le=MAX_COMPONENTS)] | None = None

    def check(self, predictor: Predictor, max_views: int) -> None:
        """See `Parameters.check`: the model has the levels, and several views have only pooled ones together."""
        super().check(predictor, max_views)
        check_levels(predictor, self.levels)
        try:
            predictor.check_options(self.options(predictor))
        except ConvMAEError as error:
            raise ApiError(422, "invalid_parameter", str(error), field="levels") from None


class EmbeddingsParameters(AnyMediumParameters):
    """Parameters of /v1/embeddings."""

    encoding_format: Literal["float", "base64"] = "float"
    levels: ClassVar[tuple[str, ...]] = ("pooled",)
    user: str | None = None  # accepted because OpenAI's clients may send it; not used

    def check(self, predictor: Predictor, max_views: int) -> None:
        """See `Parameters.check`: the model has a pooled vector."""
        super().check(predictor, max_views)
        check_levels(predictor, self.levels, field="model")


def check_levels(predictor: Predictor, levels: Sequence[str], field: str = "levels") -> None:
    """Refuses features that the model does not have.

    Raises:
        ApiError: 422.
    """
    assert isinstance(predictor, FeaturePredictor)  # the route has chosen it
    for level in levels:
        if level not in predictor.levels:
            message = f"{field}: expected some of {', '.join(predictor.levels)}, got {level[:40]!r}; correct it"
            raise ApiError(422, "unknown_level", message, field=field)


P = TypeVar("P", bound=Parameters)


def model_in_query(query: bytes) -> str | None:
    """The model that a query string names, None where it names none or cannot be read."""
    try:
        return dict(_pairs(query)).get("model")
    except ApiError:
        return None


def read_parameters(kind: type[P], query: bytes, others: dict[str, Any]) -> P:
    """Validates the parameters of a request.

    Args:
        kind: the route's parameters.
        query: the query string.
        others: parameters from the body; None counts as not given. They may not repeat those of the query.

    Raises:
        ApiError: 422, unknown, repeated or not allowed.
    """
    values: dict[str, Any] = {}
    for name, value in [*_pairs(query), *((name, value) for name, value in others.items() if value is not None)]:
        if name in values:
            raise ApiError(422, "invalid_parameter", f"{name!r} is given twice; give it once", field=name)
        values[name] = value
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _explain(kind, error) from None


def _pairs(query: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS)
    except ValueError:
        raise ApiError(422, "invalid_parameter", f"expected at most {MAX_QUERY_FIELDS} query parameters") from None


def _explain(kind: type[Parameters], error: ValidationError) -> ApiError:
    problem = error.errors(include_url=False)[0]
    name = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        known = ", ".join(kind.model_fields)
        return ApiError(422, "unknown_parameter", f"expected one of {known}, got {name!r}; remove it", field=name)
    reason = problem["msg"][:1].lower() + problem["msg"][1:]
    given = repr(problem["input"])[:60]
    return ApiError(422, "invalid_parameter", f"{name}: {reason}, got {given}; correct it", field=name)
