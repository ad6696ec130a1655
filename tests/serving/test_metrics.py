"""Metrics in Prometheus' text format and in OpenMetrics."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from serving.metrics import Metrics

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def samples(metrics: Metrics, accept: str = "") -> dict[tuple[str, ...], float]:
    """The page's values, by name and the values of their labels, which are sorted by their names."""
    page, content_type = metrics.page(accept)
    parse = parse_openmetrics if content_type.startswith("application/openmetrics-text") else parse_text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in parse(page.decode())
        for sample in family.samples
    }


def test_requests_are_counted_by_route_method_and_status() -> None:
    metrics = Metrics()
    metrics.observe("/v1/classify", "POST", 200, 0.003)
    metrics.observe("/v1/classify", "POST", 200, 0.2)
    metrics.observe("/v1/classify", "POST", 400, 99.0)
    page = metrics.page()[0].decode()
    assert 'convmae_requests_total{method="POST",route="/v1/classify",status="200"} 2.0\n' in page
    assert 'convmae_requests_total{method="POST",route="/v1/classify",status="400"} 1.0\n' in page


def test_errors_are_counted_by_their_code() -> None:
    metrics = Metrics()
    for code in (None, "not_an_image", "empty_body", "not_an_image"):
        metrics.observe("/v1/classify", "POST", 400 if code else 200, 0.1, code)
    found = samples(metrics)
    assert found["convmae_errors_total", "not_an_image"] == 2
    assert found["convmae_errors_total", "empty_body"] == 1


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_buckets_are_cumulative_and_end_with_all(accept: str) -> None:
    metrics = Metrics()
    for seconds in (0.001, 0.0011, 99.0):
        metrics.observe("/", "GET", 200, seconds)
        metrics.observe_phases({"decode": seconds})
    found = samples(metrics, accept)
    for name, label in (("convmae_request_seconds", "/"), ("convmae_phase_seconds", "decode")):
        counts = [found[f"{name}_bucket", edge, label] for edge in ("0.001", "0.0025", "10.0", "+Inf")]
        assert counts == [1, 2, 2, 3]
        assert found[f"{name}_count", label] == 3
        assert found[f"{name}_sum", label] == pytest.approx(99.0021)


def test_invented_methods_share_one_label() -> None:
    metrics = Metrics()
    for index in range(1000):
        metrics.observe("unmatched", f"METHOD{index}", 405, 0.001)
    counted = {key: value for key, value in samples(metrics).items() if key[0] == "convmae_requests_total"}
    assert counted == {("convmae_requests_total", "OTHER", "unmatched", "405"): 1000}


def test_counters_gauges_and_families_are_read_when_asked() -> None:
    metrics = Metrics()
    value = 1.0
    metrics.gauge("convmae_ready", "Ready.", lambda: value)
    metrics.families(lambda: [GaugeMetricFamily("convmae_held", "Held.", value)])
    metrics.count("convmae_images_total", 3)
    value = 0.0
    found = samples(metrics)
    assert (found["convmae_ready",], found["convmae_held",], found["convmae_images_total",]) == (0, 0, 3)


def test_both_formats_hold_the_same_values_and_say_which_they_are() -> None:
    metrics = Metrics()
    metrics.observe("/", "GET", 404, 0.2, "not_found")
    text, openmetrics = metrics.page(), metrics.page(OPENMETRICS)
    assert text[1] == "text/plain; version=0.0.4; charset=utf-8"
    assert openmetrics[1].startswith("application/openmetrics-text; version=1.0.0")
    assert openmetrics[0].endswith(b"# EOF\n")

    def ours(found: dict[tuple[str, ...], float]) -> dict[tuple[str, ...], float]:
        return {key: value for key, value in found.items() if key[0].startswith("convmae_")}

    assert ours(samples(metrics)) == ours(samples(metrics, OPENMETRICS))


def test_the_process_is_measured() -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("the process is measured on Linux alone")
    found = samples(Metrics())
    assert found["process_resident_memory_bytes",] > 1_000_000
    assert math.isfinite(found["process_cpu_seconds_total",])


def test_two_applications_in_a_process_share_no_number_and_none_is_in_the_global_registry() -> None:
    first, second = Metrics(), Metrics()
    first.count("convmae_images_total")
    assert samples(second)["convmae_images_total",] == 0
    assert not [family.name for family in REGISTRY.collect() if family.name.startswith("convmae_")]


def test_numbers_stay_in_the_process_where_others_are_told_to_share_theirs(tmp_path: Path) -> None:
    code = (
        "from serving.metrics import Metrics; metrics = Metrics(); metrics.count('convmae_images_total'); "
        "metrics.observe('/', 'GET', 200, 0.1); print(metrics.page()[0].decode())"
    )
    shared = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}  # as `bentoml serve` has it
    done = subprocess.run([sys.executable, "-c", code], env=shared, capture_output=True, text=True)
    assert "\nconvmae_images_total 1.0\n" in done.stdout, done.stderr
    assert not list(tmp_path.iterdir())
