"""The parameters of each route, wherever they are written: query string, form fields, or JSON."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Final, Literal, TypeVar
from urllib.parse import parse_qsl

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from convmae_deploy.bundle.preprocessing import SIZE_PATTERN, parse_size
from convmae_deploy.errors import ConvMAEError
from convmae_deploy.tasks.base import PredictOptions, Predictor
from convmae_deploy.tasks.explanation import MEANING
from convmae_deploy.tasks.features import FeaturePredictor
from convmae_deploy.tasks.postprocess import ScoreFunction
from serving.errors import ApiError

MAX_QUERY_FIELDS: Final = 32
MAX_TOP_K: Final = 1_000_000  # no model knows so many classes
MAX_VIEWS: Final = 100  # for each kind; how many there may be in all is a setting
MAX_STRIDE: Final = 1000  # frames
MAX_COMPONENTS: Final = 16


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a number is expected")
    return value


def _split_levels(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


Number = BeforeValidator(_no_boolean)  # JSON's true is none
Levels = Annotated[
    tuple[str, ...],
    BeforeValidator(_split_levels),
    Field(
        min_length=1,
        description="Which features, separated by commas: the four levels `e1` to `e4` (strides 4, 8, 16, 32) and "
        "`pooled`.",
    ),
    AfterValidator(lambda levels: tuple(dict.fromkeys(levels))),
    WithJsonSchema({"type": "string", "example": "e3,pooled"}),
]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), Number]
TopK = Annotated[
    int, Field(ge=1, le=MAX_TOP_K, description="How many classes to name; all when there are fewer."), Number
]
Views = Annotated[int, Field(ge=1, le=MAX_VIEWS), Number]
Function = Annotated[ScoreFunction, Field(description="From logits to scores.")]
Indices = Annotated[
    bool,
    Field(description="Name `index` of each class too, its place among the model's labels, which may repeat."),
]


class Parameters(BaseModel):
    """What every route understands."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(
        default=None, description="Name of a loaded model, see /v1/models; without it the default of this route."
    )

    def options(self, predictor: Predictor) -> PredictOptions:
        """What is asked of the model's task: the parameters that are options of it, by the same names."""
        return PredictOptions(**{name: getattr(self, name, None) for name in predictor.OPTIONS})

    def model_of(self, predictor: Predictor) -> Predictor:
        """The model as it is asked for: on inputs of another size, where a route knows them.

        Raises:
            ApiError: 422, it does not take that size.
        """
        return predictor

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

    orientation: Literal["apply", "ignore"] = Field(
        default="apply",
        description="Whether photos are turned upright by their EXIF orientation; `ignore` gives what timm's loader "
        "gives.",
    )
    strict: bool = Field(
        default=False,
        description="Refuse files of several frames or pages (422) instead of taking the first frame.",
    )


class ClipParameters(Parameters):
    """What every route that takes videos understands; the last two are Hugging Face's."""

    temporal_views: Views = Field(default=1, description="Clips spread over the video, whose scores are averaged.")
    spatial_views: Views = Field(
        default=1, description="Crops along the longer side of the frames, whose scores are averaged."
    )
    frame_sampling_rate: Annotated[int, Field(ge=1, le=MAX_STRIDE), Number] | None = Field(
        default=None,
        description="From one frame of a clip to the next, in frames; without it, as the model was trained.",
    )
    num_frames: Annotated[int, Number] | None = Field(
        default=None, description="Frames of a clip, which the model decides: only its own number is accepted."
    )

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
    function_to_apply: Function = "softmax"
    indices: Indices = False
    explain: Literal["map"] | None = Field(
        default=None,
        description="In place of the classes, how much each cell of the photo adds to the logit of one: "
        f"{MEANING}. With `Accept: image/png` it is a picture over the photo.",
    )
    explain_label: str | None = Field(
        default=None, description="Of which class, by its name or its index; without it of the likeliest."
    )

    def options(self, predictor: Predictor) -> PredictOptions:
        """See `Parameters.options`; an explanation has words of its own for the class."""
        classes = None if self.explain_label is None else (self.explain_label,)
        return replace(super().options(predictor), explain=None if self.explain is None else classes or ())

    def check(self, predictor: Predictor, max_views: int) -> None:
        """See `Parameters.check`: the model knows the class and can be explained."""
        if self.explain_label is not None and self.explain is None:
            message = "explain_label says of which class an explanation is; ask for one with explain=map"
            raise ApiError(422, "invalid_parameter", message, field="explain_label")
        check_options(self, predictor, "explain_label" if self.explain_label is not None else "explain")


class VideoParameters(ClipParameters):
    """Parameters of /v1/classify-video."""

    top_k: TopK = 5
    function_to_apply: Function = "softmax"
    indices: Indices = False


class DetectParameters(PhotoParameters):
    """Parameters of /v1/detect."""

    threshold: Share = Field(default=0.5, description="The smallest score of an object.")
    masks: Literal["none", "rle", "png"] = Field(
        default="none",
        description="What `mask` of each object holds: nothing, COCO's compressed run lengths, or a PNG (0 and 255) in "
        "base64; both of the upright photo's size.",
    )


class SegmentParameters(PhotoParameters):
    """Parameters of /v1/segment; the last three are Hugging Face's."""

    threshold: Share = Field(
        default=0.0, description="The smallest score of a segment, the mean probability of its pixels."
    )
    masks: Literal["png", "rle"] = Field(
        default="png",
        description="What `mask` of each segment holds: a PNG (0 and 255) in base64, or COCO's compressed run lengths.",
    )
    subtask: Literal["semantic"] = Field(
        default="semantic", description="Hugging Face's name of what this is; it has no other here."
    )
    mask_threshold: Share = Field(
        default=0.5,
        description="Accepted because Hugging Face's clients send it; as there, it changes nothing where each pixel "
        "has its likeliest class.",
    )
    overlap_mask_area_threshold: Share = Field(
        default=0.8, description="As `mask_threshold`: where each pixel has one class, segments never overlap."
    )


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
    dtype: Literal["f32", "f16"] = Field(default="f32", description="Little-endian float type of the answer.")
    components: Annotated[int, Field(ge=1, le=MAX_COMPONENTS), Number] | None = Field(
        default=None,
        description="The leading principal components over the cells of each map in place of its channels, the same "
        "map always with the same signs; `e1.shares` and so on hold their shares of the map's variance.",
    )
    normalize: bool = Field(default=False, description="Divide `pooled` by its length, for cosine similarity.")
    size: Annotated[str, Field(pattern=SIZE_PATTERN)] | None = Field(
        default=None,
        description="HEIGHTxWIDTH in pixels of the model's input, so that a photo is cropped to that shape and not to "
        "a square; for models whose `input.sides` in /v1/models is not null. Without it, as the model was exported.",
    )
    format: Literal["safetensors", "npz", "octets", "json"] | None = Field(
        default=None, description="In place of the Accept header, for clients that cannot set it."
    )

    def model_of(self, predictor: Predictor) -> Predictor:
        """See `Parameters.model_of`."""
        if self.size is None:
            return predictor
        try:
            return predictor.at(parse_size(self.size))
        except ConvMAEError as error:
            raise ApiError(422, "invalid_parameter", f"size: {error}", field="size") from None

    def check(self, predictor: Predictor, max_views: int) -> None:
        """See `Parameters.check`: the model has the levels, and several views have only pooled ones together."""
        super().check(predictor, max_views)
        check_levels(predictor, self.levels)
        check_options(self, predictor, "levels")


class EmbeddingsParameters(AnyMediumParameters):
    """Parameters of /v1/embeddings."""

    encoding_format: Literal["float", "base64"] = Field(
        default="float", description="Numbers, or little-endian float32 in base64."
    )
    levels: ClassVar[tuple[str, ...]] = ("pooled",)
    user: str | None = Field(default=None, description="Accepted because OpenAI's clients may send it; not used.")

    def check(self, predictor: Predictor, max_views: int) -> None:
        """See `Parameters.check`: the model has a pooled vector."""
        super().check(predictor, max_views)
        check_levels(predictor, self.levels, field="model")


def check_options(parameters: Parameters, predictor: Predictor, field: str) -> None:
    """Refuses options that the model does not take.

    Args:
        parameters: what is asked of it.
        predictor: the model.
        field: the parameter that is at fault where it refuses.

    Raises:
        ApiError: 422.
    """
    try:
        predictor.check_options(parameters.options(predictor))
    except ConvMAEError as error:
        raise ApiError(422, "invalid_parameter", str(error), field=field) from None


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
        return dict(_pairs(query)).get("model") if query else None
    except ApiError:
        return None


def read_parameters(kind: type[P], query: bytes, others: dict[str, Any], model: str | None = None) -> P:
    """Validates the parameters of a request.

    Args:
        kind: the route's parameters.
        query: the query string.
        others: parameters from the body; None counts as not given. One that the query has too must be the same there,
            or the route's default there, which clients made by generators send unasked.
        model: that the path names; parameters must not name another one.

    Raises:
        ApiError: 422, unknown, repeated or not allowed.
    """
    values: dict[str, Any] = {}
    for name, value in _pairs(query):
        if name in values:
            raise given_twice(name)
        values[name] = value
    for name, value in others.items():
        if value is None:
            continue
        if name in values and not _gives_way(kind, name, values[name], value):
            raise given_twice(name)
        values[name] = value
    try:
        found = kind.model_validate(values)
    except ValidationError as error:
        raise _explain(kind, error) from None
    if model is not None and found.model not in (None, model):
        raise given_twice("model")
    return found


def given_twice(name: str) -> ApiError:
    """The refusal of a parameter with two values."""
    return ApiError(422, "invalid_parameter", f"{name!r} is given twice; give it once", field=name)


def _gives_way(kind: type[Parameters], name: str, in_query: str, in_body: object) -> bool:
    """Whether a parameter of the query may stand beside one of the body: it says the same, or only the default."""
    field = kind.model_fields.get(name)
    default = None if field is None else field.default
    said = {_spelled(in_body), "" if default is None else _spelled(default)}
    return _spelled(in_query) in said


def _spelled(value: object) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value).lower()


def _pairs(query: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS)
    except ValueError:
        raise ApiError(422, "invalid_parameter", f"expected at most {MAX_QUERY_FIELDS} query parameters") from None


def _explain(kind: type[Parameters], error: ValidationError) -> ApiError:
    problem = error.errors(include_url=False)[0]
    name = str(next(iter(problem["loc"]), ""))  # none where a name is no text that could be written
    if problem["type"] == "extra_forbidden":
        known = ", ".join(kind.model_fields)
        return ApiError(422, "unknown_parameter", f"expected one of {known}, got {name!r}; remove it", field=name)
    reason = problem["msg"][:1].lower() + problem["msg"][1:]
    given = repr(problem["input"])[:60]
    return ApiError(422, "invalid_parameter", f"{name}: {reason}, got {given}; correct it", field=name)
