"""The parameters of each route, wherever they are written: query string, form fields, or JSON."""

from typing import Annotated, Any, Final, Literal, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from convmae_deploy.tasks.postprocess import ScoreFunction
from serving.errors import ApiError

MAX_QUERY_FIELDS: Final = 32
MAX_TOP_K: Final = 10_000
MAX_VIEWS: Final = 100  # of one kind; how many there may be in all is a setting
MAX_STRIDE: Final = 1000  # frames


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a number is expected")
    return value


def _split_levels(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


Share = Annotated[float, BeforeValidator(_no_boolean), Field(ge=0, le=1, allow_inf_nan=False)]
TopK = Annotated[int, BeforeValidator(_no_boolean), Field(ge=1, le=MAX_TOP_K)]
Views = Annotated[int, BeforeValidator(_no_boolean), Field(ge=1, le=MAX_VIEWS)]


class Parameters(BaseModel):
    """What every route understands."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = None  # name of a loaded bundle; None: the task's default


class Common(Parameters):
    """What every route that takes images understands."""

    orientation: Literal["apply", "ignore"] = "apply"  # of the EXIF orientation; ignore: as timm's loader does
    strict: bool = False  # refuse animated and multi-page files instead of taking the first frame


class ClassifyParameters(Common):
    """Parameters of /v1/classify."""

    top_k: TopK = 5
    function_to_apply: ScoreFunction = "softmax"


class VideoParameters(Parameters):
    """Parameters of /v1/classify-video; the last two are Hugging Face's."""

    top_k: TopK = 5
    function_to_apply: ScoreFunction = "softmax"
    temporal_views: Views = 1  # clips spread over the video
    spatial_views: Views = 1  # crops along the longer side of the frames
    frame_sampling_rate: Annotated[int, BeforeValidator(_no_boolean), Field(ge=1, le=MAX_STRIDE)] | None = None
    num_frames: Annotated[int, BeforeValidator(_no_boolean)] | None = None  # only that of the model


class DetectParameters(Common):
    """Parameters of /v1/detect."""

    threshold: Share = 0.5  # the smallest score of an object
    masks: Literal["none", "rle", "png"] = "none"


class SegmentParameters(Common):
    """Parameters of /v1/segment."""

    threshold: Share = 0.0  # the smallest score of a segment
    masks: Literal["png", "rle"] = "png"
    subtask: Literal["semantic"] = "semantic"  # Hugging Face's name of what this is


class FeaturesParameters(Common):
    """Parameters of /v1/features."""

    levels: Annotated[tuple[str, ...], BeforeValidator(_split_levels), Field(min_length=1)] = ("pooled",)
    dtype: Literal["f32", "f16"] = "f32"


class EmbeddingsParameters(Common):
    """Parameters of /v1/embeddings."""

    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None  # accepted because OpenAI's clients may send it; not used


P = TypeVar("P", bound=Parameters)


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
    try:
        pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS)
    except ValueError:
        raise ApiError(422, "invalid_parameter", f"expected at most {MAX_QUERY_FIELDS} query parameters") from None
    for name, value in [*pairs, *((name, value) for name, value in others.items() if value is not None)]:
        if name in values:
            raise ApiError(422, "invalid_parameter", f"{name!r} is given twice; give it once", field=name)
        values[name] = value
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _explain(kind, error) from None


def _explain(kind: type[Parameters], error: ValidationError) -> ApiError:
    problem = error.errors(include_url=False)[0]
    name = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        known = ", ".join(kind.model_fields)
        return ApiError(422, "unknown_parameter", f"expected one of {known}, got {name!r}; remove it", field=name)
    reason = problem["msg"][:1].lower() + problem["msg"][1:]
    given = repr(problem["input"])[:60]
    return ApiError(422, "invalid_parameter", f"{name}: {reason}, got {given}; correct it", field=name)
