"""What a server counts, for Prometheus: drawings, steps, refusals, waiting times. Knows nothing of HTTP."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_STEPS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_WAITS_S: Final = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120)
_BATCHES: Final = (1, 2, 4, 8, 16, 32, 64)
_MOST_STEPS: Final = 1000  # that wait to be counted


class Metrics:
    """The numbers of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("rf_http_requests", "Answered requests.", ["route", "status"], registry=self.registry)
        self.pictures = Counter("rf_pictures", "Finished pictures.", registry=self.registry)
        self.answers = Counter("rf_answers", "Finished answers.", registry=self.registry)
        self.cancelled = Counter("rf_cancelled", "Work that its caller gave up.", ["work"], registry=self.registry)
        self.refused = Counter("rf_refused", "Work that was refused or failed.", ["kind"], registry=self.registry)
        self.picture_seconds = Histogram(
            "rf_picture_seconds",
            "From the request to its picture, waiting included.",
            buckets=_WAITS_S,
            registry=self.registry,
        )
        self.first_preview_seconds = Histogram(
            "rf_first_preview_seconds",
            "From the request to its first preview.",
            buckets=_WAITS_S,
            registry=self.registry,
        )
        self.steps = _Steps(self.registry)

    def watch(self, stages: Mapping[str, Callable[[], float]]) -> None:
        """Tell how many requests are in a stage, by asking when somebody looks."""
        gauge = Gauge("rf_in_flight", "Requests in a stage.", ["stage"], registry=self.registry)
        for stage, count in stages.items():
            gauge.labels(stage).set_function(count)

    def on_step(self, stage: str, num_requests: int, seconds: float) -> None:
        """Count a step of the scheduler."""
        self.steps.add(stage, num_requests, seconds)

    def text(self) -> bytes:
        """All of them, as Prometheus reads it."""
        return generate_latest(self.registry)


def merged(told: Iterable[tuple[str, bytes]]) -> bytes:
    """The numbers of several processes as one text; the label `process` says whose each is."""
    families: dict[str, Metric] = {}
    for process, text in told:
        for family in text_string_to_metric_families(text.decode()):
            known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                known.add_sample(sample.name, {**sample.labels, "process": process}, sample.value)
    registry = CollectorRegistry()
    registry.register(_Told(families.values()))
    return generate_latest(registry)


class _Steps(Collector):
    """How long steps of a scheduler take, and how many requests share them.

    A worker that comes out of a graph finds nothing of Python in its caches, so that it only writes down what it did;
    it is counted when somebody looks, or when it is much.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram("rf_step_seconds", "A step of a batch.", ["stage"], buckets=_STEPS_S, registry=None)
        self._sizes = Histogram(
            "rf_batch_size", "Requests of a batch at a step.", ["stage"], buckets=_BATCHES, registry=None
        )
        self.waiting: deque[tuple[str, int, float]] = deque()
        registry.register(self)

    def add(self, stage: str, num_requests: int, seconds: float) -> None:
        """Note a step."""
        self.waiting.append((stage, num_requests, seconds))
        if len(self.waiting) > _MOST_STEPS:
            self._count()

    def collect(self) -> Iterable[Metric]:
        self._count()
        return [*self._seconds.collect(), *self._sizes.collect()]

    def _count(self) -> None:
        with suppress(IndexError):  # all are counted; several threads may do it at once
            while True:
                stage, num_requests, seconds = self.waiting.popleft()
                self._seconds.labels(stage).observe(seconds)
                self._sizes.labels(stage).observe(num_requests)


class _Told(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
