"""The models of responses in JSON, for the description of the interface and for tests; what is sent is made elsewhere.

An answer is written from plain lists and dictionaries, as making and checking objects costs more than the rest of it.
`tests/serving/clients/test_description.py` holds real answers against these.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

Document = dict[str, Any]


class ResponseModel(BaseModel):
    """Holds these fields and no others."""

    model_config = ConfigDict(extra="forbid")


class OpenResponseModel(BaseModel):
    """Holds these fields and may hold more."""

    model_config = ConfigDict(extra="allow")


class Problem(ResponseModel):
    """What went wrong."""

    code: str = Field(description="What programs compare.", examples=["image_truncated"])
    message: str = Field(description="One sentence for people.")
    field: str | None = Field(description="The part of the request that is at fault.", examples=["inputs[2]"])
    request_id: str


class Error(ResponseModel):
    """Every error of a route that does not belong to another protocol."""

    error: Problem


class Prediction(ResponseModel):
    """One class."""

    label: str
    score: float
    index: int | None = Field(default=None, description="Only with `indices`.")


class Explanation(ResponseModel):
    """How much each cell of a photo adds to the logit of one class."""

    label: str
    index: int
    logit: float = Field(description="The sum of all contributions and the bias.")
    bias: float
    difference: float = Field(description="Of the logit from what the weights make of the cells; part of the bias.")
    contributions: list[list[float]] = Field(description="(rows, columns) of the crop that the model sees.")
    meaning: str
    note: str | None = Field(default=None, description="Where the difference is more than float32 leaves.")


class RunLengths(ResponseModel):
    """A mask in COCO's compressed run lengths."""

    size: list[int] = Field(min_length=2, max_length=2, description="(height, width) in pixels.")
    counts: str


class Box(ResponseModel):
    """Edges in pixels of the upright photo."""

    xmin: float
    ymin: float
    xmax: float
    ymax: float


class Detection(ResponseModel):
    """One object."""

    label: str
    score: float
    box: Box
    mask: RunLengths | str | None = Field(
        default=None, description="Run lengths, or a PNG (0 and 255) in base64, as `masks` says."
    )


class Segment(ResponseModel):
    """The pixels of one class."""

    label: str
    score: float
    mask: RunLengths | str = Field(description="A PNG (0 and 255) in base64, or run lengths, as `masks` says.")


class Features(ResponseModel):
    """Arrays as lists of lists, each with an axis of files first."""

    model: str
    dtype: str = Field(description="f32 or f16, as asked for.")  # no list: generators would give it two types
    features: dict[str, list[Any]]


class Arrays(RootModel[list[Any]]):
    """One array alone, as lists of lists."""


class Embedding(ResponseModel):
    """The pooled vector of one file."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="Numbers, or little-endian float32 in base64.")


class Usage(ResponseModel):
    """Nothing is counted; OpenAI's clients want the fields."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(ResponseModel):
    """OpenAI's shape."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    fingerprint: str = Field(description="Which vectors these may be compared with.")
    usage: Usage


class Licence(OpenResponseModel):
    """Of a model's weights."""

    name: str


class ModelSummary(ResponseModel):
    """One model in the list of them."""

    id: str
    name: str
    ready: bool
    object: Literal["model"]
    task: str
    variant: str
    default: bool = Field(description="Whether the routes of its task take it where a request names none.")
    licence: Licence


class Model(ModelSummary):
    """All that a client needs to use a model, and what was proven about it."""

    labels: list[str]
    input: Document
    preprocessing: Document
    outputs: dict[str, Document]
    file: Document
    numerics: Document | None
    backend: Document
    tools: dict[str, str]
    provenance: dict[str, Any]


class ModelList(ResponseModel):
    """The models that are loaded."""

    object: Literal["list"]
    data: list[ModelSummary]
    models: list[str]


class Predictions(ResponseModel):
    """KServe's first protocol and Vertex AI's: what the route of the model's task gives for each instance."""

    predictions: list[Any]


class Alive(ResponseModel):
    """The process answers."""

    status: Literal["alive"]


class Ready(ResponseModel):
    """The models run."""

    status: Literal["ready"]
    ready: Literal[True]  # as the Open Inference Protocol says it
    models: list[str]


class ServerLive(ResponseModel):
    """The process answers, in the Open Inference Protocol."""

    live: Literal[True]


class ModelReady(OpenResponseModel):
    """A model runs, in the Open Inference Protocol."""

    name: str
    ready: Literal[True]


class ProtocolError(OpenResponseModel):
    """An error in the Open Inference Protocol; beside it what our own errors hold."""

    error: str
    code: str
    request_id: str


class ServerMetadata(ResponseModel):
    """The server in the Open Inference Protocol."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(OpenResponseModel):
    """An input or an output; -1 stands for any number of files."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(OpenResponseModel):
    """A model in the Open Inference Protocol."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class InferredTensor(ResponseModel):
    """An output of a model: its numbers in `data`, or bytes after the JSON."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] | None = None
    data: list[Any] | None = None


class Inferred(ResponseModel):
    """An inference in the Open Inference Protocol."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[InferredTensor]


class RepositoryModel(ResponseModel):
    """A model that is loaded or could be."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str
