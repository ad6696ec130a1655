"""Prometheus metrics of one application, with labels from closed sets only.

Written out by hand rather than with prometheus_client: under `bentoml serve` that library keeps its numbers in files
that several processes share, and its registry is global, so two applications in one process would clash.
"""

import bisect
from collections.abc import Callable, Iterable, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

Labels = tuple[tuple[str, str], ...]


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

    def lines(self, name: str, label: tuple[str, str]) -> list[str]:
        """Its lines on the page, with the label that tells it from others of that name."""
        lines, total = [], 0
        for edge, count in zip((*map(str, self._edges), "+Inf"), self._counts, strict=True):
            total += count
            lines.append(f"{name}_bucket{_braces((label, ('le', edge)))} {total}")
        lines.append(f"{name}_sum{_braces((label,))} {self._sum:.6f}")
        lines.append(f"{name}_count{_braces((label,))} {total}")
        return lines


class Metrics:
    """Counters, histograms and gauges. Changed by the event loop's thread only, so it needs no locks."""

    def __init__(self) -> None:
        self._requests: dict[tuple[str, str, int], int] = {}  # by route, method and status
        self._seconds: dict[str, Histogram] = {}  # by route
        self._histograms: dict[str, tuple[str, Callable[[], Iterable[tuple[str, Histogram]]]]] = {}
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self._counters: dict[str, tuple[str, int]] = {
            "convmae_images_total": ("Photos run through a model.", 0),
            "convmae_videos_total": ("Videos run through a model.", 0),
            "convmae_inference_failures_total": ("Requests whose model run failed.", 0),
            "convmae_wrong_keys_total": ("Requests with a wrong API key.", 0),
        }

    def gauge(self, name: str, description: str, read: Callable[[], float]) -> None:
        """Registers a gauge that is read when the page is asked for."""
        self._gauges[name] = (description, read)

    def histograms(self, name: str, description: str, read: Callable[[], Iterable[tuple[str, Histogram]]]) -> None:
        """Registers histograms, each with its model's name, that are read when the page is asked for."""
        self._histograms[name] = (description, read)

    def count(self, name: str, amount: int = 1) -> None:
        """Adds to one of the plain counters."""
        description, value = self._counters[name]
        self._counters[name] = (description, value + amount)

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """Counts one answered request.

        Args:
            route: the route's template, or a fixed word when no route matched: never the path itself.
            method: HTTP method; an unknown one is counted as OTHER.
            status: HTTP status of the answer.
            seconds: from the request's first byte seen by the application to the end of the answer.
        """
        key = (route, method if method in METHODS else "OTHER", status)
        self._requests[key] = self._requests.get(key, 0) + 1
        self._seconds.setdefault(route, Histogram(SECONDS_BUCKETS)).observe(seconds)

    def render(self) -> str:
        """The page in Prometheus' text format."""
        lines = _head("convmae_requests_total", "Answered requests.", "counter")
        for (route, method, status), value in self._requests.items():
            labels = _braces((("route", route), ("method", method), ("status", str(status))))
            lines.append(f"convmae_requests_total{labels} {value}")
        lines += _head("convmae_request_seconds", "Time to answer a request.", "histogram")
        for route, histogram in self._seconds.items():
            lines += histogram.lines("convmae_request_seconds", ("route", route))
        for name, (description, read_all) in self._histograms.items():
            lines += _head(name, description, "histogram")
            for model, histogram in read_all():
                lines += histogram.lines(name, ("model", model))
        for name, (description, value) in self._counters.items():
            lines += [*_head(name, description, "counter"), f"{name} {value}"]
        for name, (description, read) in self._gauges.items():
            lines += [*_head(name, description, "gauge"), f"{name} {read():g}"]
        return "\n".join(lines) + "\n"


def _head(name: str, description: str, kind: str) -> list[str]:
    return [f"# HELP {name} {description}", f"# TYPE {name} {kind}"]


def _braces(labels: Labels) -> str:
    return "{" + ",".join(f'{key}="{value}"' for key, value in labels) + "}"
