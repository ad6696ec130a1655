"""The routes, as a Starlette application without any of BentoML."""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as StarletteRoute
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from convmae_deploy.bundle.manifest import Manifest
from convmae_deploy.tasks.base import Predictor
from serving.api import openapi
from serving.api.bentoml_schema import bentoml_schema
from serving.api.inference import Done, Inference
from serving.api.job import Received
from serving.api.media import Medium
from serving.api.models import Models, Predictors, describe_model, find_any, list_models
from serving.api.open_inference import OpenInference, check_version, model_metadata, server_metadata
from serving.api.repository import Repository, check_request
from serving.api.routes import (
    ENDPOINTS,
    MODEL_ROUTES,
    AnyModelRoute,
    InferenceRoute,
    Route,
)
from serving.errors import ApiError, busy
from serving.http.connection_limits import Connections
from serving.http.cors import Cors, cors_options
from serving.http.draining import Drain
from serving.http.guard import EXCHANGE, Exchange, Guard, Observer
from serving.http.proxies import RootPath, TrustedProxies, root_path
from serving.metrics import Metrics
from serving.model_metrics import model_families
from serving.page.files import PAGE, SAMPLES, PageFiles
from serving.settings import Settings
from serving.work.pool import Ticket, WorkPool
from serving.work.runs import Timings

Handler = Callable[[Request], Awaitable[Response]]

logger = logging.getLogger("convmae_serving")


class Api:
    """The endpoints and what they share; each of `ENDPOINTS` is a method here.

    Args:
        settings: limits.
        models: may be filled after construction, before the first request.
    """

    def __init__(self, settings: Settings, models: Models) -> None:
        self.settings = settings
        self.models = models
        self.inference = Inference(settings, models)
        self.open_inference = OpenInference(self.inference)
        self.repository = Repository(settings, models, self.inference.forget)
        self.pool = WorkPool(settings.threads, settings.max_queue_seconds, self.inference.device_wait)
        self.metrics = Metrics()
        self.connections = Connections(
            settings.max_connections,
            settings.keep_alive_seconds,
            settings.max_unread_bytes,
            settings.min_bytes_per_second,
        )
        self._page = PageFiles(PAGE, *SAMPLES, frame_ancestors=settings.frame_ancestors)
        self.guard: Guard | None = None  # set when the application is made
        self.drain: Drain | None = None  # set when the server runs in a process of its own
        self._probe_pending = False
        self._described: tuple[list[tuple[str, Manifest]], dict[str, Any]] | None = None  # models, and the interface
        self._register_metrics()

    def _register_metrics(self) -> None:
        self.metrics.gauge("convmae_pending_jobs", "Jobs queued or running.", lambda: self.pool.pending)
        self.metrics.families(lambda: model_families(self.models))
        self.metrics.gauge("convmae_connections", "Open connections.", lambda: self.connections.count)
        self.metrics.gauge("convmae_ready", "1 when /readyz answers 200.", lambda: float(self.not_ready() is None))

    async def list_models(self, request: Request) -> Response:
        return JSONResponse(list_models(self.models))

    async def describe_model(self, request: Request) -> Response:
        predictor = find_any(self.models, request.path_params["name"])
        return JSONResponse(describe_model(self.models, predictor, predictor.runtime.file))

    async def live(self, request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def ready(self, request: Request) -> Response:
        reason = self.not_ready()
        if reason is not None:
            if self.models:
                self._probe()
            raise ApiError(503, "not_ready", reason, headers={"Retry-After": "1"})
        return JSONResponse({"status": "ready", "ready": True, "models": list(self.models)})

    healthz = health = ping = server_ready = ready

    async def server_live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def server_metadata(self, request: Request) -> Response:
        return JSONResponse(server_metadata(openapi.release()))

    async def model_metadata(self, request: Request) -> Response:
        return JSONResponse(model_metadata(self._named(request)))

    async def model_ready(self, request: Request) -> Response:
        predictor = self._named(request)
        if (fault := self.inference.fault_of(predictor)) is not None:
            raise ApiError(503, "not_ready", fault)
        return JSONResponse({"name": predictor.manifest.name, "ready": True})

    model_metadata_version, model_ready_version = model_metadata, model_ready

    async def repository_index(self, request: Request) -> Response:
        return JSONResponse(self.repository.index())

    async def load_model(self, request: Request) -> Response:
        return await self._change(self.repository.load, request)

    async def unload_model(self, request: Request) -> Response:
        return await self._change(self.repository.unload, request)

    async def _change(self, change: Callable[[str], None], request: Request) -> Response:
        assert self.guard is not None
        check_request(await self.guard.read_body(request.scope))
        await in_thread(partial(change, request.path_params["name"]))
        return JSONResponse({})

    async def metrics_page(self, request: Request) -> Response:
        """GET /metrics, in Prometheus' text format, or OpenMetrics on request."""
        page, content_type = self.metrics.page(request.headers.get("accept", ""))
        return Response(page, headers={"Content-Type": content_type})

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json."""
        models = [(name, model.manifest) for name, model in self.models.items()]
        if self._described is None or self._described[0] != models:
            # Kept, as it takes long to make, and whoever asks for it needs no key.
            self._described = models, openapi.document(self.settings, self.models)
        servers = {"servers": [{"url": root_path(request.scope) or "/"}]}
        return JSONResponse(self._described[1] | servers)

    async def bentoml_schema(self, request: Request) -> Response:
        return JSONResponse(bentoml_schema())

    async def page_file(self, request: Request, name: str | None = None) -> Response:
        """GET /, /docs, and /page/{asset}."""
        return self._page.response(name or request.path_params["asset"], root_path(request.scope))

    def _named(self, request: Request) -> Predictor:
        if "version" in request.path_params:
            check_version(request.path_params["version"])
        return find_any(self.models, request.path_params["name"])

    def not_ready(self) -> str | None:
        """Why requests should go elsewhere, or None."""
        if self.guard is not None and self.guard.draining:
            return "the server is shutting down; send requests to another one"
        if not self.models:
            return "no model is loaded, or none yet; try again in a moment"
        return self.inference.fault()

    def medium_of(self, scope: Scope) -> Medium:
        """What a request carries, as far as it can be known before its body is read."""
        route, name = ROUTE_PATHS.find(scope["path"])
        if route is None:
            return self.inference.media["photo"]
        return self.inference.medium_of(route, name, scope["query_string"])

    async def infer(self, route: Route, request: Request) -> Response:
        """POST to one of `MODEL_ROUTES`: reads the body, then does everything else in one job of the pool."""
        assert self.guard is not None
        exchange: Exchange = request.scope[EXCHANGE]
        medium, name = exchange.limits, request.path_params.get("name")
        assert isinstance(medium, Medium)  # the guard has it from `medium_of`
        if "version" in request.path_params:
            check_version(request.path_params["version"])
        route.find(self.models, name)  # before a body is read for nothing
        if not self.connections.has_room():
            raise busy("clients have not read the answers yet that they asked for", 1)
        self.pool.admit()
        body = await self.guard.read_body(request.scope)
        timings = Timings()
        exchange.phases, exchange.intervals = timings.seconds, timings.intervals
        timings.seconds["queue"] = 0.0
        submitted = time.perf_counter()
        deadline = time.monotonic() + medium.seconds

        def work(ticket: Ticket) -> Done:
            received = Received(
                body=body,
                model=name,
                query=request.scope["query_string"],
                content_type=exchange.headers.get(b"content-type", b"").decode("latin-1"),
                accept=exchange.headers.get(b"accept", b"").decode("latin-1"),
                head_length=_text(exchange.headers.get(b"inference-header-content-length")),
                ticket=ticket,
                timings=timings,
                deadline=deadline,
            )
            if isinstance(route, InferenceRoute | AnyModelRoute):
                return self.inference.do(route, received)
            return self.open_inference.do(route, received)

        try:
            outcome = await self.pool.run(work, medium.seconds, exchange.disconnected, medium.name)
        except TimeoutError:
            message = f"no answer within {medium.seconds:g} s; try again, or {medium.advice}"
            raise ApiError(504, "timeout", message) from None
        except ApiError as error:
            if error.code == "inference_failed":
                self.metrics.count("convmae_inference_failures_total")
                logger.error("%s: the model failed", exchange.title, exc_info=error.__cause__)
            raise
        done = outcome.value
        self.metrics.count(f"convmae_{done.medium.name}s_total", done.files)
        exchange.model = done.model
        timings.add("queue", submitted, outcome.queue_seconds)
        self.metrics.observe_phases(timings.seconds)
        done.response.raw_headers.append((b"server-timing", timings.header().encode()))
        return done.response

    def _probe(self) -> None:
        """Tries the models once in the background, so that a server without traffic can become ready again."""
        if self._probe_pending:
            return
        self._probe_pending = True

        def probe(ticket: Ticket) -> None:
            try:
                self.inference.try_again()
            finally:
                self._probe_pending = False

        try:
            self.pool.submit(probe)
        except ApiError:
            self._probe_pending = False


class Endpoint:
    """An endpoint as an ASGI application, without Starlette's wrapper: like the guard, that handles exceptions.

    Args:
        path: the template of its route, for the metrics.
        handle: what answers.
    """

    def __init__(self, path: str, handle: Handler) -> None:
        self.path = path
        self.handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self.handle(Request(scope, receive, send))
        await response(scope, receive, send)


class RoutePaths:
    """Finds the route that runs models for a path, and the model that the path names, before anything is routed.

    Args:
        routes: their paths may hold names in braces.
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        self._fixed = {route.path: route for route in routes if "{" not in route.path}
        self._patterns = [(compile_path(route.path)[0], route) for route in routes if "{" in route.path]

    def find(self, path: str) -> tuple[Route | None, str | None]:
        """The route, None where there is none, and the model's name, None where the path holds none."""
        fixed = self._fixed.get(path)
        if fixed is not None:
            return fixed, None
        for pattern, route in self._patterns:
            match = pattern.match(path)
            if match is not None:
                return route, match["name"]
        return None, None


ROUTE_PATHS: Final = RoutePaths(MODEL_ROUTES)


async def in_thread(work: Callable[[], None]) -> None:
    """Does what may take long in a thread of its own, for which the end of the server does not wait."""
    future: Future[None] = Future()

    def run() -> None:
        future.set_running_or_notify_cancel()
        try:
            work()
            future.set_result(None)
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="convmae-change", daemon=True).start()
    await asyncio.wrap_future(future)


def _text(header: bytes | None) -> str | None:
    return None if header is None else header.decode("latin-1")


def create_app(
    settings: Settings,
    predictors: Predictors,
    cors: Mapping[str, Any] | None = None,
    observers: Sequence[Observer] = (),
) -> Starlette:
    """The whole application.

    Args:
        settings: limits, API key, threads.
        predictors: the models by name, in the order of the bundles; `Models` may be filled after this call.
        cors: what `Cors` takes, in place of what the settings say.
        observers: what keeps a record of requests, beside the metrics.
    """
    api = Api(settings, predictors if isinstance(predictors, Models) else Models(predictors))
    endpoints: list[tuple[str, str, Handler]] = [
        *(("POST", route.path, partial(api.infer, route)) for route in MODEL_ROUTES),
        *((endpoint.method, endpoint.path, getattr(api, endpoint.name)) for endpoint in ENDPOINTS),
        ("GET", "/metrics", api.metrics_page),
        ("GET", "/openapi.json", api.openapi),
        ("GET", "/docs", partial(api.page_file, name="docs.html")),
        ("GET", "/page/{asset}", api.page_file),
        ("GET", "/", partial(api.page_file, name="index.html")),
    ]
    routes = [StarletteRoute(path, Endpoint(path, handle), methods=[method]) for method, path, handle in endpoints]

    application = Starlette(routes=routes)
    application.router.redirect_slashes = False  # a redirect would lose the request's body
    application.state.api = api
    # In place of Starlette's own two layers for exceptions: the guard does what they do.
    options = cors or cors_options(settings)
    api.guard = Guard(
        application.router,
        settings,
        api.metrics,
        api.medium_of,
        observers=observers,
        cors=None if options is None else Cors(options),
    )
    outermost: ASGIApp = api.guard
    if settings.root_path or settings.trusted_proxies:
        outermost = RootPath(outermost, settings.root_path)
    if settings.trusted_proxies:
        outermost = TrustedProxies(outermost, list(settings.trusted_proxies))  # type: ignore[arg-type]
    application.middleware_stack = outermost
    return application
