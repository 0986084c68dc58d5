"""What the service counts, in Prometheus' text form."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Telemetry:
    """Counters of one service."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "l2rm_requests", "Requests by route and status", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "l2rm_request_seconds", "Seconds a request, by route", ["route"], buckets=_SECONDS, registry=self._registry
        )
        self._queries = Counter("l2rm_queries", "Queries answered, by target", ["target"], registry=self._registry)
        self._items = Gauge("l2rm_items", "Items in the index, by kind", ["kind"], registry=self._registry)

    def observe(self, route: str, status: int, seconds: float) -> None:
        """A request is over."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def answered(self, target: str, queries: int = 1) -> None:
        """Queries have been answered."""
        self._queries.labels(target).inc(queries)

    def holds(self, kind: str, count: int) -> None:
        """The index has so many items of a kind."""
        self._items.labels(kind).set(count)

    def text(self) -> bytes:
        """All of it, for `/metrics`."""
        return generate_latest(self._registry)
