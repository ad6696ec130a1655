"""A server with an access log and with tracing, as a user starts it."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.serving.running_server import read_response, run_server
from tests.serving.sample_images import jpeg

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector(HTTPServer):
    """Takes spans over OTLP/HTTP."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, bytes]] = []
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        self.server.requests.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
def test_a_request_is_in_the_log_and_at_the_collector_once_the_server_has_ended(
    bundle: Path, collector: Collector, tmp_path: Path
) -> None:
    settings = {
        "CONVMAE_BUNDLE": str(bundle),
        "CONVMAE_ACCESS_LOG": "json",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
    }
    with run_server(tmp_path, settings) as server:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-Id": "mine"}
        answer = server.request("/v1/classify?top_k=1", jpeg(), headers)
        assert answer.status == 200 and answer.headers["x-request-id"] == "mine"
        with server.connect() as connection:
            connection.sendall(b"hello\r\n\r\n")
            assert read_response(connection).code == "invalid_http"
        assert server.stop() in (0, -15)
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    (line,) = [line for line in lines if line["error"] == "invalid_http"]
    assert (line["status"], line["client"], line["route"]) == (400, "127.0.0.1", "unmatched")
    (line,) = [line for line in lines if line["request_id"] == "mine"]
    assert (line["trace_id"], line["route"], line["status"], line["model"]) == (TRACE, "/v1/classify", 200, "tiny")
    assert line["client"] == "127.0.0.1" and line["sent_bytes"] == len(answer.body)
    assert line["received_bytes"] == len(jpeg()) and set(line["phases"]) == {"queue", "decode", "inference", "encode"}
    spans = []
    for path, body in collector.requests:
        assert path == "/v1/traces"
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            names = {entry.key: entry.value.string_value for entry in resource.resource.attributes}
            assert names["service.name"] == "convmae"
            spans += [span for scope in resource.scope_spans for span in scope.spans]
    ours = [span for span in spans if span.trace_id.hex() == TRACE]
    assert sorted({span.name for span in ours}) == ["POST /v1/classify", "decode", "encode", "inference", "queue"]
