"""The metrics of a worker as Prometheus reads them."""

from typing import TYPE_CHECKING, Any

from retail_assets.worker.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

PREFIX = "retail_assets"


def metrics_text(metrics: Metrics) -> bytes:
    """All metrics in Prometheus' text format."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(_Collector(metrics))
    return bytes(generate_latest(registry))


class _Collector:
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> "Iterator[Metric]":
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        metrics: dict[str, Any] = self._metrics.snapshot()
        events = CounterMetricFamily(
            f"{PREFIX}_events",
            "Event lines ingested, by outcome.",
            labels=("source", "outcome"),
        )
        for source, totals in metrics.pop("sources").items():
            for outcome in ("accepted", "dead_lettered", "duplicate"):
                events.add_metric((source, outcome), totals[outcome])
        yield events
        for name, value in metrics.items():
            if value is None:
                continue
            if name.endswith("_total"):
                yield CounterMetricFamily(
                    f"{PREFIX}_{name.removesuffix('_total')}", _words(name), value=value
                )
            else:
                yield GaugeMetricFamily(f"{PREFIX}_{name}", _words(name), value=value)


def _words(name: str) -> str:
    return f"{name.removesuffix('_total').replace('_', ' ').capitalize()}."
