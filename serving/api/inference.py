"""What is done for a request once its body is there, in one of the pool's threads: the same for every route.

Read the body and the parameters, choose the model, prepare the files, run, interpret, write. What a file is and how it
is decoded follows from the model's medium; what is asked and what is written from the route; the rest from the task.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

from starlette.responses import Response

from convmae_deploy.tasks.base import MediumName, Prepared
from serving.api.job import Job, Received
from serving.api.media import Medium, media_of
from serving.api.models import Predictors, batching_backends, warm_up
from serving.api.parameters import model_in_query, read_parameters
from serving.api.photos import Photos
from serving.api.routes import InferenceRoute
from serving.api.videos import Videos
from serving.settings import Settings
from serving.work.memory import DecodingMemory
from serving.work.runs import Health, counted, run_for


class Done(NamedTuple):
    """A response, and what it was for."""

    response: Response
    medium: Medium
    files: int


class Inference:
    """The work of all routes.

    Args:
        settings: limits.
        predictors: the models by name. May be filled after construction, before the first request.
    """

    def __init__(self, settings: Settings, predictors: Predictors) -> None:
        self.settings = settings
        self.predictors = predictors
        self.media = media_of(settings)
        self.memory = DecodingMemory(settings.max_decoding_bytes)
        self.prepare: dict[MediumName, Callable[[Job], Generator[Prepared]]] = {
            "photo": Photos(settings, self.memory).prepare,
            "video": Videos(settings, self.memory).prepare,
        }
        self._health: dict[str, Health] = {}

    def health(self, name: str) -> Health:
        """Of the model of that name."""
        return self._health.setdefault(name, Health())

    def fault(self) -> str | None:
        """Why a model or its device is of no use now, or None."""
        for backend in batching_backends(self.predictors).values():
            if (fault := backend.fault()) is not None:
                return fault
        for name in self.predictors:
            if not self.health(name).ready:
                return f"the model {name} failed several times in a row; see the server's log"
        return None

    def try_again(self) -> None:
        """Runs the models that have a fault, so that a server without traffic can become ready again."""
        backends = batching_backends(self.predictors)
        for name, predictor in self.predictors.items():
            if not self.health(name).ready or (name in backends and backends[name].lost):
                warm_up(predictor)
                self.health(name).failures_in_a_row = 0

    def device_wait(self) -> float:
        """Seconds that a request given now would probably wait for a device, whichever model it is for."""
        waits = (backend.estimated_wait() for backend in batching_backends(self.predictors).values())
        return max(waits, default=0.0)

    def medium_of(self, route: InferenceRoute, query: bytes, parameters: Mapping[str, Any] | None = None) -> Medium:
        """What a request carries, as far as its query, or later its body, says which model it is for."""
        return self.media[route.medium(self.predictors, model_in_query(query) or (parameters or {}).get("model"))]

    def do(self, route: InferenceRoute, received: Received) -> Done:
        """Everything about a request, from its body to its response."""
        timings = received.timings
        with timings.phase("decode"):
            parsed = route.parse(received.body, received.content_type, partial(self.medium_of, route, received.query))
        parameters = read_parameters(route.parameters, received.query, parsed.parameters)
        predictor = route.find(self.predictors, parameters.model)
        parameters.check(predictor, self.settings.max_video_views)
        job = Job(
            received=received,
            predictor=predictor,
            parameters=parameters,
            options=parameters.options(predictor),
            parsed=parsed,
            stills=route.stills,
            max_json_bytes=self.settings.max_json_features_bytes,
        )
        writer = route.writer(job)
        entries = []
        with closing(self._results(job)) as results:
            for result in results:
                with timings.phase("encode"):
                    entries.append(writer.entry(result))
        with timings.phase("encode"):
            body = writer.body(entries)
        headers = {"X-Model": predictor.manifest.name} | job.headers
        return Done(Response(body, media_type=writer.media_type, headers=headers), parsed.medium, len(parsed.uploads))

    def _results(self, job: Job) -> Generator[Any]:
        """The task's results for all files: together, or one after the other where one is work enough."""
        predictor, ticket = job.predictor, job.received.ticket
        health, run = self.health(predictor.manifest.name), run_for(predictor, ticket)
        with closing(self.prepare[predictor.MEDIUM](job)) as files:
            for group in _groups(files, together=not predictor.ONE_BY_ONE):
                ticket.check()
                with job.received.timings.phase("inference"), counted(predictor, health):
                    results = predictor.interpret(group, job.options, run)
                del group
                ticket.check()
                yield from results


def _groups(files: Iterable[Prepared], *, together: bool) -> Iterator[list[Prepared]]:
    if together:
        yield list(files)
    else:
        for file in files:
            yield [file]
