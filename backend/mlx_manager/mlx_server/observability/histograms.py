"""A Prometheus histogram that observes many values in one call, unlike prometheus_client's."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import Metric
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector


class Histogram(Collector):
    """`bounds`: the upper limits of the buckets, without the last one (+Inf)."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = labels
        self._bounds = bounds
        self._limits = [*map(str, bounds), "+Inf"]
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}

    def observe(self, labels: tuple[str, ...], values: Iterable[float]) -> None:
        counts, total = self._counts.setdefault(labels, [0] * len(self._limits)), self._sums.get(labels, 0.0)
        for value in values:
            counts[bisect_left(self._bounds, value)] += 1
            total += value
        self._sums[labels] = total

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        for labels, counts in self._counts.items():
            family.add_metric(labels, list(zip(self._limits, accumulate(counts), strict=True)), self._sums[labels])
        yield family
