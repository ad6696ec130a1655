"""What a request asks for, once its body has been read."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from convmae_deploy.tasks.base import PredictOptions, Predictor
from serving.inference import Timings
from serving.parameters import Parameters
from serving.pool import Ticket
from serving.uploads import Upload


@dataclass
class Job:
    """One request in its thread: its model and files, and how long it may take."""

    predictor: Predictor
    uploads: Sequence[Upload]
    parameters: Parameters
    options: PredictOptions
    ticket: Ticket
    timings: Timings
    deadline: float  # by time.monotonic(): when the client has its response, or 504
    stills: str | None = None  # the path of a route for pictures, where one that came as a video could go
    headers: dict[str, str] = field(default_factory=dict)  # of the response: what was found in the files
