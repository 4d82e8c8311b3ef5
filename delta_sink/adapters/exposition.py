"""Figures as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from delta_sink import telemetry as declared
from delta_sink.adapters.logs import Histogram, Series, Snapshot

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def with_gauges(
    figures: Snapshot, gauges: Iterable[tuple[str, float, Mapping[str, str]]]
) -> Snapshot:
    """Return the figures with gauges that were worked out just now."""
    found: dict[Series, float] = dict(figures.gauges)
    for name, value, tags in gauges:
        declared.check_metric(name, "gauge", tags)
        found[(name, tuple(sorted(tags.items())))] = value
    return Snapshot(figures.counters, found, figures.histograms)


class Exposition:
    """Writes figures of one sink as text; with the process's own CPU, memory and files."""

    def __init__(self, sink: str) -> None:
        self._sink = sink
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)

    def text(self, figures: Snapshot) -> bytes:
        """Return the text of a scrape: every declared metric that has a figure."""
        registry = CollectorRegistry()
        registry.register(_Figures(figures, self._sink))
        return generate_latest(registry) + generate_latest(self._process)


class _Figures:
    def __init__(self, figures: Snapshot, sink: str) -> None:
        self._figures = figures
        self._sink = sink

    def collect(self) -> Iterator[Metric]:
        """Yield a family for each metric that has a figure, in the order of the declarations."""
        for metric in declared.METRICS.values():
            names = ["sink", *metric.tags]
            if metric.kind == "counter":
                counter = CounterMetricFamily(metric.name, metric.sentence, labels=names)
                for labels, value in self._of(metric, self._figures.counters):
                    counter.add_metric(labels, value)
                yield from _if_filled(counter)
            elif metric.kind == "gauge":
                gauge = GaugeMetricFamily(metric.name, metric.sentence, labels=names)
                for labels, value in self._of(metric, self._figures.gauges):
                    gauge.add_metric(labels, value)
                yield from _if_filled(gauge)
            else:
                family = HistogramMetricFamily(metric.name, metric.sentence, labels=names)
                for labels, found in self._histograms(metric):
                    family.add_metric(labels, _cumulative(found), found.sum)
                yield from _if_filled(family)

    def _of(
        self, metric: declared.Metric, figures: Mapping[Series, float]
    ) -> Iterator[tuple[list[str], float]]:
        for (name, tags), value in figures.items():
            if name == metric.name:
                yield self._labels(metric, dict(tags)), value

    def _histograms(self, metric: declared.Metric) -> Iterator[tuple[list[str], Histogram]]:
        for (name, tags), found in self._figures.histograms.items():
            if name == metric.name:
                yield self._labels(metric, dict(tags)), found

    def _labels(self, metric: declared.Metric, tags: Mapping[str, object]) -> list[str]:
        return [self._sink, *(str(tags[name]) for name in metric.tags)]


def _if_filled(family: Metric) -> Iterator[Metric]:
    if family.samples:
        yield family


def _cumulative(found: Histogram) -> list[tuple[str, float]]:
    bounds = [*(repr(bound) for bound in found.buckets), "+Inf"]
    return list(zip(bounds, accumulate(found.counts), strict=True))
