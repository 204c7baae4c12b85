"""Counters and histograms in Prometheus' text format."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


class Histogram:
    """How often a value was at most so large."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str) -> Iterator[str]:
        """The samples."""
        total = 0
        for bound, count in zip((*self._bounds, None), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{"+Inf" if bound is None else f"{bound:g}"}"}} {total}'
        yield f"{name}_sum {self._sum:.6f}"
        yield f"{name}_count {total}"


class Metrics:
    """What a server counts. Touched by the event loop's thread only."""

    def __init__(self) -> None:
        self.sessions = 0  # open now
        self.sessions_total = 0
        self.requests: Counter[str] = Counter()  # by outcome
        self.refused: Counter[str] = Counter()  # connections, by reason
        self.received_bytes = 0
        self.request_seconds = Histogram(_SECONDS)
        self.queue_seconds = Histogram(_SECONDS)
        self.inference_seconds = Histogram(_SECONDS)
        self.batch_size = Histogram(_SIZES)

    def text(self, *, queued: int) -> str:
        """All of them."""
        return "\n".join([*self._lines(queued), ""])

    def _lines(self, queued: int) -> Iterator[str]:
        yield from _family("sessions", "gauge", "sessions that are open", self.sessions)
        yield from _family("queued_requests", "gauge", "requests that wait for the policy", queued)
        yield from _family("sessions_total", "counter", "sessions so far", self.sessions_total)
        yield from _family("received_bytes_total", "counter", "bytes of messages", self.received_bytes)
        yield from _family("requests_total", "counter", "requests by outcome", self.requests, "outcome")
        yield from _family("refused_connections_total", "counter", "connections refused", self.refused, "reason")
        for name, about in (
            ("request_seconds", "from a message to its answer"),
            ("queue_seconds", "wait for the policy"),
            ("inference_seconds", "the policy itself, for a batch"),
            ("batch_size", "requests answered at once"),
        ):
            yield f"# HELP rlspec_serve_{name} {about}"
            yield f"# TYPE rlspec_serve_{name} histogram"
            histogram: Histogram = getattr(self, name)
            yield from histogram.lines(f"rlspec_serve_{name}")


def _family(name: str, kind: str, about: str, value: int | Counter[str], label: str = "") -> Iterator[str]:
    yield f"# HELP rlspec_serve_{name} {about}"
    yield f"# TYPE rlspec_serve_{name} {kind}"
    if isinstance(value, int):
        yield f"rlspec_serve_{name} {value}"
    else:
        yield from (f'rlspec_serve_{name}{{{label}="{key}"}} {count}' for key, count in sorted(value.items()))
