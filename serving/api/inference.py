"""What is done for a request once its body is there, in one of the pool's threads: the same for every route.

Read the body and the parameters, choose the model, prepare the files, run, interpret, write. What a file is and how it
is decoded follows from the model's medium; what is asked and what is written from the route; the rest from the task.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

from starlette.responses import Response

from convmae_deploy.tasks.base import MediumName, Predictor, Prepared, Run
from serving.api.job import Job, Received
from serving.api.media import Medium, media_of
from serving.api.models import Models, batching_backends, warm_up
from serving.api.parameters import model_in_query, read_parameters
from serving.api.photos import Photos
from serving.api.routes import AnyModelRoute, InferenceRoute, Route, route_of
from serving.api.uploads import Parsed
from serving.api.videos import Videos
from serving.settings import Settings
from serving.work.batching import BatchingBackend
from serving.work.memory import DecodingMemory
from serving.work.runs import Health, counted, run_for


class Done(NamedTuple):
    """A response, and what it was for."""

    response: Response
    model: str
    medium: Medium
    files: int


class Inference:
    """The work of all routes.

    Args:
        settings: limits.
        models: may be filled after construction, before the first request.
    """

    def __init__(self, settings: Settings, models: Models) -> None:
        self.settings = settings
        self.models = models
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

    def forget(self, name: str) -> None:
        """A model of that name has come or gone: what is known of the one before says nothing of it."""
        self._health.pop(name, None)

    def fault(self) -> str | None:
        """Why a model or its device is of no use now, or None."""
        return next((fault for model in self.models.values() if (fault := self.fault_of(model)) is not None), None)

    def fault_of(self, predictor: Predictor) -> str | None:
        """Why a model or its device is of no use now, or None."""
        name, backend = predictor.manifest.name, predictor.backend
        if isinstance(backend, BatchingBackend) and (fault := backend.fault()) is not None:
            return fault
        if not self.health(name).ready:
            return f"the model {name} failed several times in a row; see the server's log"
        return None

    def try_again(self) -> None:
        """Runs the models that have a fault, so that a server without traffic can become ready again."""
        backends = batching_backends(self.models)
        for name, predictor in self.models.items():
            if not self.health(name).ready or (name in backends and backends[name].lost):
                warm_up(predictor)
                self.health(name).failures_in_a_row = 0

    def device_wait(self) -> float:
        """Seconds that a request given now would probably wait for a device, whichever model it is for."""
        backends = (predictor.backend for predictor in self.models.values())
        return max((one.estimated_wait() for one in backends if isinstance(one, BatchingBackend)), default=0.0)

    def medium_of(
        self, route: Route, model: str | None, query: bytes, parameters: Mapping[str, Any] | None = None
    ) -> Medium:
        """What a request carries, as far as its path, its query, or later its body, says which model it is for."""
        name = model or model_in_query(query) or (parameters or {}).get("model")
        return self.media[route.medium(self.models, name)]

    def _model_name(self, received: Received, parsed: Parsed) -> str | None:
        """The model that a request names; what is no name is refused with its parameters."""
        in_body = parsed.parameters.get("model")
        return received.model or (in_body if isinstance(in_body, str) else None) or model_in_query(received.query)

    def do(self, route: InferenceRoute | AnyModelRoute, received: Received) -> Done:
        """Everything about a request, from its body to its response."""
        timings = received.timings
        with timings.phase("decode"):
            medium_of = partial(self.medium_of, route, received.model, received.query)
            parsed = route.parse(received.body, received.content_type, medium_of)
        name = self._model_name(received, parsed)
        with self.models.use(lambda models: route.find(models, name)) as predictor:
            own = route if isinstance(route, InferenceRoute) else route_of(predictor)
            envelope = None if isinstance(route, InferenceRoute) else route.envelope
            job = self.job(own, received, parsed, predictor, envelope)
            writer = own.writer(job)
            entries = []
            with closing(self.results(job)) as results:
                for result in results:
                    with timings.phase("encode"):
                        entries.append(writer.entry(result))
        with timings.phase("encode"):
            body = writer.body(entries)
        headers = {"X-Model": predictor.manifest.name} | job.headers
        response = Response(body, media_type=writer.media_type, headers=headers)
        return Done(response, predictor.manifest.name, parsed.medium, len(parsed.uploads))

    def job(
        self,
        route: InferenceRoute,
        received: Received,
        parsed: Parsed,
        predictor: Predictor,
        envelope: str | None = None,
    ) -> Job:
        """What is to be done for a request.

        Raises:
            ApiError: 422, a parameter is unknown, out of range, or not for this model.
        """
        parameters = read_parameters(route.parameters, received.query, parsed.parameters, received.model)
        parameters.check(predictor, self.settings.max_video_views)
        predictor = parameters.model_of(predictor)
        return Job(
            received=received,
            predictor=predictor,
            parameters=parameters,
            options=parameters.options(predictor),
            parsed=parsed,
            stills=route.stills,
            max_json_bytes=self.settings.max_json_features_bytes,
            envelope=envelope,
        )

    def results(self, job: Job, run: Run | None = None) -> Generator[Any]:
        """The task's results for all files: together, or one after the other where one is work enough.

        Args:
            job: what is to be done.
            run: runs the graph; None: as the job's ticket says.
        """
        predictor, ticket = job.predictor, job.received.ticket
        health, run = self.health(predictor.manifest.name), run or run_for(predictor, ticket)
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
