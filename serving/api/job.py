"""What came with a request, and what it asks for."""

from dataclasses import dataclass, field
from typing import Any

from convmae_deploy.tasks.base import PredictOptions, Predictor
from serving.api.uploads import Parsed
from serving.work.pool import Ticket
from serving.work.runs import Timings


@dataclass(frozen=True, kw_only=True)
class Received:
    """A request whose body is there, in its thread."""

    body: bytes
    model: str | None = None  # that the path names
    query: bytes = b""
    content_type: str = ""
    accept: str = ""  # the Accept header; empty where there is none
    head_length: str | None = None  # the header Inference-Header-Content-Length
    ticket: Ticket
    timings: Timings
    deadline: float  # by time.monotonic(): when the client has its response, or 504


@dataclass(kw_only=True)
class Job:
    """What is to be done for it."""

    received: Received
    predictor: Predictor
    parameters: Any  # the route's `Parameters`
    options: PredictOptions  # what they ask of the task
    parsed: Parsed
    stills: str | None  # the path of a route for pictures, where one that came as a video could go
    max_json_bytes: int  # for features
    envelope: str | None = None  # the field of a JSON object that holds the answer
    headers: dict[str, str] = field(default_factory=dict)  # the response's
