"""Metrics in Prometheus' text format."""

from serving.metrics import Metrics


def test_requests_are_counted_by_route_method_and_status() -> None:
    metrics = Metrics()
    metrics.observe("/v1/classify", "POST", 200, 0.003)
    metrics.observe("/v1/classify", "POST", 200, 0.2)
    metrics.observe("/v1/classify", "POST", 400, 99.0)
    page = metrics.render()
    assert 'convmae_requests_total{route="/v1/classify",method="POST",status="200"} 2\n' in page
    assert 'convmae_requests_total{route="/v1/classify",method="POST",status="400"} 1\n' in page


def test_buckets_are_cumulative_and_end_with_all() -> None:
    metrics = Metrics()
    for seconds in (0.001, 0.0011, 99.0):
        metrics.observe("/", "GET", 200, seconds)
    page = metrics.render()
    assert 'convmae_request_seconds_bucket{route="/",le="0.001"} 1\n' in page
    assert 'convmae_request_seconds_bucket{route="/",le="0.0025"} 2\n' in page
    assert 'convmae_request_seconds_bucket{route="/",le="10.0"} 2\n' in page
    assert 'convmae_request_seconds_bucket{route="/",le="+Inf"} 3\n' in page
    assert 'convmae_request_seconds_count{route="/"} 3\n' in page


def test_invented_methods_share_one_label() -> None:
    metrics = Metrics()
    for index in range(1000):
        metrics.observe("unmatched", f"METHOD{index}", 405, 0.001)
    assert 'method="OTHER",status="405"} 1000' in metrics.render()
    assert metrics.render().count("convmae_requests_total{") == 1


def test_counters_and_gauges_are_read_when_asked() -> None:
    metrics = Metrics()
    value = 1.0
    metrics.gauge("convmae_ready", "Ready.", lambda: value)
    metrics.count("convmae_images_total", 3)
    value = 0.0
    assert "convmae_ready 0\n" in metrics.render()
    assert "convmae_images_total 3\n" in metrics.render()
