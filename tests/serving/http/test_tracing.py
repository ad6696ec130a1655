"""Spans of requests, made with OpenTelemetry's SDK and kept in memory, and where they are made at all."""

import logging
import subprocess
import sys
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.testclient import TestClient

from convmae_deploy.tasks.base import Predictor
from serving.app import create_app
from serving.http.tracing import Tracing, open_tracing
from serving.settings import Settings
from tests.serving.conftest import forget_settings
from tests.serving.sample_images import jpeg

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Traced:
    """A client of an application whose spans stay in memory."""

    def __init__(self, predictors: dict[str, Predictor]) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.application = create_app(Settings(device="cpu", threads=1), predictors, observers=[Tracing(provider)])
        self.client = TestClient(self.application, raise_server_exceptions=False)

    def spans(self) -> tuple[ReadableSpan, list[ReadableSpan]]:
        """The span of the one request so far, and those inside."""
        *inside, outer = self.exporter.get_finished_spans()
        return outer, inside


@pytest.fixture
def traced(predictors: dict[str, Predictor], monkeypatch: pytest.MonkeyPatch) -> Any:
    forget_settings(monkeypatch)
    made = Traced(predictors)
    yield made
    made.application.state.api.pool.shutdown()


def test_a_request_is_a_span_in_the_clients_trace_with_its_phases_inside(traced: Traced) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
    assert traced.client.post("/v1/classify", content=jpeg(), headers=headers).status_code == 200
    outer, inside = traced.spans()
    assert (outer.name, outer.kind, outer.status.status_code) == (
        "POST /v1/classify", SpanKind.SERVER, StatusCode.UNSET,
    )  # fmt: skip
    assert f"{outer.context.trace_id:032x}" == TRACE and outer.context.trace_state["vendor"] == "1"
    assert outer.parent is not None and f"{outer.parent.span_id:016x}" == PARENT
    assert dict(outer.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/v1/classify",
        "http.response.status_code": 200,
        "url.path": "/v1/classify",
        "url.scheme": "http",
        "convmae.model": "tiny",
    }
    assert {span.name for span in inside} == {"queue", "decode", "inference", "encode"}
    start, end = outer.start_time, outer.end_time
    assert start and end
    for span in inside:
        assert span.parent is not None and span.parent.span_id == outer.context.span_id
        assert span.start_time and span.end_time
        # two clocks: one of spans, one of phases
        assert start - 10_000_000 <= span.start_time <= span.end_time <= end + 10_000_000


def test_without_a_client_that_traces_a_request_begins_a_trace_and_errors_are_named(traced: Traced) -> None:
    assert traced.client.post("/v1/classify", content=b"none").status_code == 400
    outer, _ = traced.spans()
    assert outer.parent is None and outer.attributes is not None
    assert outer.attributes["error.type"] == "not_an_image"
    assert outer.status.status_code is StatusCode.UNSET  # it is the client's


def test_what_the_client_does_not_sample_is_not_kept(traced: Traced) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    assert traced.client.get("/v1/models", headers=headers).status_code == 200
    assert not traced.exporter.get_finished_spans()


def test_a_failure_of_the_server_is_one_of_the_span_and_its_log_entry_names_the_trace(
    traced: Traced, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("as planned")

    monkeypatch.setattr(traced.application.state.api.inference, "do", fail)
    with caplog.at_level(logging.ERROR, "convmae_serving"):
        assert traced.client.post("/v1/classify", content=jpeg()).status_code == 500
    outer, _ = traced.spans()
    assert outer.status.status_code is StatusCode.ERROR
    assert f" of trace {outer.context.trace_id:032x} failed" in caplog.text


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_SERVICE_NAME": "convmae"},
    ],
)
def test_nothing_is_opened_where_nobody_asks_for_it(variables: dict[str, str]) -> None:
    assert open_tracing(variables) is None


@pytest.mark.slow
def test_nothing_is_imported_where_nobody_asks_for_it() -> None:
    code = (
        "import sys; from serving.http.tracing import open_tracing; open_tracing({}); import serving.app; "
        "print([name for name in sys.modules if name.startswith(('opentelemetry', 'requests'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_TRACES_EXPORTER": "console"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
    ],
)
def test_what_is_not_to_be_had_is_a_sentence(variables: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "convmae_serving"):
        assert open_tracing(variables) is None
    assert "no spans are sent: expected OTEL_TRACES_EXPORTER=otlp" in caplog.text


def test_a_missing_package_is_a_sentence(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with caplog.at_level(logging.WARNING, "convmae_serving"):
        assert open_tracing({"OTEL_TRACES_EXPORTER": "otlp"}) is None
    assert "pip install '.[tracing]'" in caplog.text
