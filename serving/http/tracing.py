"""Spans of requests for OpenTelemetry.

They are made and sent where the standard variables of its SDK ask for it, and only there is anything of it imported.
"""

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from serving.http.access_log import cut
from serving.http.guard import Exchange

logger = logging.getLogger("convmae_serving")

SERVICE_NAME: Final = "convmae"
ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")  # the first counts
ONLY_PROTOCOL: Final = "http/protobuf"
SERVER_ERROR: Final = 500


class Tracing:
    """Spans of requests, for one application.

    Args:
        provider: OpenTelemetry's, with what sends the spans.
    """

    def __init__(self, provider: Any) -> None:
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation import set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("convmae_serving")
        self._parents = TraceContextTextMapPropagator()
        self._server, self._error, self._within = SpanKind.SERVER, StatusCode.ERROR, set_span_in_context

    def begin(self, exchange: Exchange) -> None:
        """Starts the span of a request, in the trace that the client names, or in a new one."""
        given = ((name, exchange.headers.get(name.encode())) for name in self._parents.fields)
        parent = self._parents.extract({name: value.decode("latin-1") for name, value in given if value is not None})
        method, path = exchange.scope["method"], exchange.scope["path"]
        attributes = {"http.request.method": method, "url.path": cut(path), "url.scheme": exchange.scope["scheme"]}
        exchange.span = self._tracer.start_span(method, parent, self._server, attributes)
        exchange.trace_id = f"{exchange.span.get_span_context().trace_id:032x}"

    def end(self, exchange: Exchange, route: str, seconds: float) -> None:
        """Ends the span of a request, with one inside for each part of the work."""
        span = exchange.span
        if span.is_recording():
            self._describe(span, exchange, route)
        span.end()

    def _describe(self, span: Any, exchange: Exchange, route: str) -> None:
        inside, shift = self._within(span), time.time() - time.perf_counter()
        for name, started, seconds in exchange.intervals:
            part = self._tracer.start_span(name, inside, start_time=_nanoseconds(started + shift))
            part.end(_nanoseconds(started + shift + seconds))
        span.update_name(f"{span.name} {route}")
        span.set_attributes({"http.route": route, "http.response.status_code": exchange.status})
        if exchange.model is not None:
            span.set_attribute("convmae.model", exchange.model)
        if exchange.error_code is not None:
            span.set_attribute("error.type", exchange.error_code)
        if exchange.status >= SERVER_ERROR:
            span.set_status(self._error)

    def close(self, seconds: float) -> None:
        """Sends what has not been sent, in so many seconds at most."""
        # A collector that does not answer would hold the end up for half a minute.
        ending = threading.Thread(target=self._provider.shutdown, name="end-of-tracing", daemon=True)
        ending.start()
        ending.join(seconds)


def open_tracing(environment: Mapping[str, str]) -> Tracing | None:
    """Tracing as the environment asks for it with OpenTelemetry's own variables; None where it does not.

    What it asks for and cannot have is said in the log and left out: many systems set these variables for all that
    they run, and answers matter more than spans.
    """
    if not _asked_for(environment):
        return None
    exporter = environment.get("OTEL_TRACES_EXPORTER") or "otlp"
    protocol = next((environment[name] for name in PROTOCOLS if environment.get(name)), ONLY_PROTOCOL)
    if exporter != "otlp" or protocol != ONLY_PROTOCOL:
        logger.warning(
            "no spans are sent: expected OTEL_TRACES_EXPORTER=otlp and OTEL_EXPORTER_OTLP_PROTOCOL=%s, got %s and %s; "
            "set these, or OTEL_TRACES_EXPORTER=none",
            ONLY_PROTOCOL,
            exporter[:40],
            protocol[:40],
        )
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        logger.warning(
            "no spans are sent: OTEL_* variables ask for them and OpenTelemetry is not installed; "
            "pip install '.[tracing]', or set OTEL_TRACES_EXPORTER=none"
        )
        return None
    resource = Resource.create()  # of OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": SERVICE_NAME}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)


def _asked_for(environment: Mapping[str, str]) -> bool:
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "")
    return exporter != "none" and bool(exporter or any(environment.get(name) for name in ENDPOINTS))


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
