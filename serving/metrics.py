"""Metrics of one application in Prometheus' formats, with labels from closed sets only.

prometheus_client writes the page; the numbers are kept here, in plain dictionaries, and handed to it when the page is
asked for. Its own counters would take their values' class from the environment of the process: under `bentoml serve`,
which sets PROMETHEUS_MULTIPROC_DIR, they are files that a later process with the same id goes on with. They also take
locks, which one thread needs not.
"""

import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
COUNTERS: Final = {
    "convmae_images_total": "Photos run through a model.",
    "convmae_videos_total": "Videos run through a model.",
    "convmae_inference_failures_total": "Requests whose model run failed.",
    "convmae_wrong_keys_total": "Requests with a wrong API key.",
}

ReadFamilies = Callable[[], Iterable[Metric]]


class Histogram:
    """How often values lay in each bucket. One thread observes, another one may read meanwhile.

    Args:
        edges: upper ends of the buckets, ascending; beyond the last there is one more.
    """

    def __init__(self, edges: Sequence[float]) -> None:
        self._edges = edges
        self._counts = [0] * (len(edges) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Counts one value."""
        self._counts[bisect.bisect_left(self._edges, value)] += 1
        self._sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """The upper end of each bucket, and how many values lay in it or below."""
        found: list[tuple[str, float]] = []
        total = 0
        for edge, count in zip((*map(str, map(float, self._edges)), "+Inf"), self._counts, strict=True):
            total += count
            found.append((edge, total))
        return found

    @property
    def sum(self) -> float:
        """Of all values."""
        return self._sum


def histogram_family(
    name: str, description: str, label: str, histograms: Iterable[tuple[str, Histogram]]
) -> HistogramMetricFamily:
    """Histograms of one name, each with the value of the label that tells it from the others."""
    family = HistogramMetricFamily(name, description, labels=[label])
    for value, histogram in histograms:
        family.add_metric([value], histogram.buckets(), histogram.sum)
    return family


class Metrics(Collector):
    """What happened to requests. Changed by the event loop's thread only, so it needs no locks."""

    def __init__(self) -> None:
        self._requests: dict[tuple[str, str, int], int] = {}  # by route, method and status
        self._errors: dict[str, int] = {}  # by code
        self._seconds: dict[str, Histogram] = {}  # by route
        self._phases: dict[str, Histogram] = {}  # by name
        self._counters = dict.fromkeys(COUNTERS, 0)
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self._families: list[ReadFamilies] = []
        self._registry = CollectorRegistry()  # not the global one: several applications in a process would clash
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def gauge(self, name: str, description: str, read: Callable[[], float]) -> None:
        """Registers a gauge that is read when the page is asked for."""
        self._gauges[name] = (description, read)

    def families(self, read: ReadFamilies) -> None:
        """Registers families of metrics, such as those of the models held now, read when the page is asked for."""
        self._families.append(read)

    def count(self, name: str, amount: int = 1) -> None:
        """Adds to one of the plain counters."""
        self._counters[name] += amount

    def observe(self, route: str, method: str, status: int, seconds: float, code: str | None = None) -> None:
        """Counts one answered request.

        Args:
            route: the route's template, or a fixed word when no route matched: never the path itself.
            method: HTTP method; an unknown one is counted as OTHER.
            status: HTTP status of the answer.
            seconds: from the request's first byte seen by the application to the end of the answer.
            code: of the error that it was answered with.
        """
        key = (route, method if method in METHODS else "OTHER", status)
        self._requests[key] = self._requests.get(key, 0) + 1
        if (histogram := self._seconds.get(route)) is None:
            histogram = self._seconds[route] = Histogram(SECONDS_BUCKETS)
        histogram.observe(seconds)
        if code is not None:
            self._errors[code] = self._errors.get(code, 0) + 1

    def observe_phases(self, seconds: Mapping[str, float]) -> None:
        """Counts what the phases of one request took, by their names."""
        for name, value in seconds.items():
            if (histogram := self._phases.get(name)) is None:
                histogram = self._phases[name] = Histogram(SECONDS_BUCKETS)
            histogram.observe(value)

    def collect(self) -> Iterator[Metric]:
        """All families, for prometheus_client."""
        requests = CounterMetricFamily(
            "convmae_requests_total", "Answered requests.", labels=["route", "method", "status"]
        )
        for (route, method, status), value in self._requests.items():
            requests.add_metric([route, method, str(status)], value)
        yield requests
        errors = CounterMetricFamily("convmae_errors_total", "Requests answered with an error.", labels=["code"])
        for code, value in self._errors.items():
            errors.add_metric([code], value)
        yield errors
        seconds = self._seconds.items()
        yield histogram_family("convmae_request_seconds", "Time to answer a request.", "route", seconds)
        phases = self._phases.items()
        yield histogram_family("convmae_phase_seconds", "Time of a request in each phase of its work.", "phase", phases)
        for read_families in self._families:
            yield from read_families()
        for name, value in self._counters.items():
            yield CounterMetricFamily(name, COUNTERS[name], value)
        for name, (description, read) in self._gauges.items():
            yield GaugeMetricFamily(name, description, read())

    def page(self, accept: str = "") -> tuple[bytes, str]:
        """The page and its content type: Prometheus' text format, or OpenMetrics where `accept` asks for it."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type
