"""The BentoML service: it starts and ends our application, and nothing of BentoML's stands in front of that.

This is what `bentoml serve` and `bentoml build` load; `python -m serving` runs the same service in one process.
"""

import logging
import os
import socket
import sys
import threading
from typing import Any

import bentoml
import uvicorn.config
from bentoml._internal.utils.analytics import usage_stats
from starlette.types import ASGIApp, Receive, Scope, Send

from convmae_deploy.errors import ConvMAEError
from convmae_deploy.machine import give_back_freed_memory
from convmae_deploy.printing import printable
from serving import bentoml_settings
from serving.api.bentoml_schema import SERVICE_NAME, bentoml_schema
from serving.api.models import Models, close_predictors, open_predictors
from serving.api.openapi import document
from serving.app import Api, create_app
from serving.http.access_log import AccessLog
from serving.http.connection_limits import raise_descriptor_limit
from serving.http.draining import Drain
from serving.http.guard import Observer
from serving.http.log_limit import limit_log
from serving.http.protocol import CONNECTIONS, LimitedProtocol
from serving.http.tracing import open_tracing
from serving.settings import DEFAULT_PORT, Settings, warn_of_variables

CLOSING_SECONDS = 5.0  # that the last lines and spans may take

# The command `bentoml serve` asks whether it may report its use before it loads this file, and keeps the answer. It
# must ask again now that our package has set BENTOML_DO_NOT_TRACK.
usage_stats.do_not_track.cache_clear()

# BentoML's worker loads this file and then starts uvicorn with the protocol `auto`, and has no setting for another one.
# It also lets uvicorn believe what proxies say on a loopback address; here a setting alone says whom to believe.
os.environ["FORWARDED_ALLOW_IPS"] = ""
uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{LimitedProtocol.__module__}:{LimitedProtocol.__qualname__}"


def _settings() -> bentoml_settings.Loaded:
    try:
        return bentoml_settings.load()
    except ConvMAEError as error:
        raise SystemExit(f"error: {printable(error)}") from None


def _address(host: str) -> str:
    """An address of a host, which BentoML needs in place of its name."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise SystemExit(f"error: cannot listen on {printable(host)} (it has no address); check CONVMAE_HOST") from None
    return str(min(found)[4][0])  # IPv4 before IPv6


def _observers(settings: Settings) -> list[Observer]:
    """What keeps a record of requests, as the settings and OpenTelemetry's variables say."""
    tracing = open_tracing(os.environ)
    access_log = AccessLog(sys.stdout.fileno()) if settings.access_log == "json" else None
    return [observer for observer in (tracing, access_log) if observer is not None]


settings, cors = _settings()
predictors = Models()
observers = _observers(settings)
application = create_app(settings, predictors, observers=observers, cors=cors)
api: Api = application.state.api


class DirectService(bentoml.Service[Any]):  # type: ignore[misc]  # BentoML loads the class lazily: untyped
    """A service whose requests all go straight to our application, also those for `/livez` and `/docs.json`.

    BentoML would pass them through its context, timeout, tracing and routes first, which add nothing to an application
    of our own and take a good part of the event loop's time. It still starts and ends the service.
    """

    def schema(self) -> dict[str, Any]:
        """What BentoML's clients read, and what `bentoml build` keeps of the routes."""
        return bentoml_schema()

    @property
    def openapi_spec(self) -> dict[str, Any]:
        """The description of our interface, which `bentoml build` keeps."""
        return document(settings, predictors)

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        """Our application for requests, BentoML's for the start and the end."""
        life = super().to_asgi(is_main)

        async def direct(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                api.connections.fit(raise_descriptor_limit())
                scope["state"][CONNECTIONS] = api.connections  # for the protocol of each connection
                limit_log(logging.getLogger())
                await life(scope, receive, send)
            else:
                await application(scope, receive, send)

        return direct


class ConvMAEService:
    """The models over HTTP."""

    def __init__(self) -> None:
        give_back_freed_memory()
        if not predictors:
            predictors.put(open_predictors(settings))

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check() -> None:
        """Opens every bundle before BentoML listens: a worker that fails later would be restarted for ever."""
        warn_of_variables(os.environ)
        try:
            close_predictors(open_predictors(settings), settings.shutdown_seconds)
        except ConvMAEError as error:
            raise SystemExit(f"error: {printable(error)}") from None

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def drain_on_signals(self) -> None:
        """Puts our signal handlers before uvicorn's, which are in place by now."""
        if threading.current_thread() is threading.main_thread():  # not so in a test client
            assert api.guard is not None
            api.drain = Drain(api.guard, settings.shutdown_seconds, settings.drain_seconds)

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def stop(self) -> None:
        """Ends the threads; a job that takes longer than its request may is left behind."""

        def remaining() -> float:
            return settings.shutdown_seconds if api.drain is None else api.drain.remaining()

        api.pool.shutdown(remaining())
        predictors.close(remaining())
        for observer in observers:
            observer.close(min(CLOSING_SECONDS, remaining()))


SERVICE: Any = bentoml.service(
    name=SERVICE_NAME,
    service_class=DirectService,
    workers=1,  # one process: its threads use every core, and a second one would load every model again
    # For `bentoml serve`, which takes addresses alone and no port 0.
    http={"host": _address(settings.host), "port": settings.port or DEFAULT_PORT},
    metrics={"enabled": False},  # ours have bounded labels
)(ConvMAEService)
