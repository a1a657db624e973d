"""What the worker counts and measures, and how Prometheus reads it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from retail_assets.lake.lock import lock_totals, write_lock
from retail_assets.worker import metrics as stream_figures
from retail_assets.worker.metrics import Batch, Metrics
from retail_assets.worker.prometheus import metrics_text


def batch(
    source: str = "kafka", lines: int = 1, seconds: float | None = None, **counts: int
) -> Batch:
    """A batch whose events were all accepted, if nothing else is said."""
    accepted, dead = counts.get("accepted", lines), counts.get("dead_lettered", 0)
    return Batch(source, lines, accepted, dead, seconds)


def test_latencies_are_of_events_not_of_batches() -> None:
    metrics = Metrics()
    metrics.add(batch(lines=2, seconds=0.9))
    metrics.add(batch(lines=97, seconds=0.1))
    metrics.add(batch(lines=1, seconds=5.0))
    # Nobody knows how long these have waited.
    metrics.add(batch("files", lines=1000))
    found = metrics.snapshot()
    assert [found[f"latency_p{share}_ms"] for share in (50, 95, 99)] == [100, 100, 900]
    assert found["events_per_second"] == round(1100 / 60, 2)


def test_without_events_there_are_no_latencies_and_no_rates() -> None:
    assert Metrics().snapshot() == lock_totals() | {
        "events_per_second": 0,
        "dead_letter_rate": 0,
        "latency_p50_ms": None,
        "latency_p95_ms": None,
        "latency_p99_ms": None,
        "sources": {},
    }


def test_how_long_the_write_lock_was_waited_for_and_held_is_counted(tmp_path: Path) -> None:
    catalog, before = str(tmp_path / "catalog.sqlite"), lock_totals()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with write_lock(catalog):
            held.set()
            done.wait(10)

    with ThreadPoolExecutor(1) as threads:
        holding = threads.submit(hold)
        assert held.wait(10)
        threading.Timer(0.2, done.set).start()
        with write_lock(catalog):
            pass
        holding.result()
    after = {name: value - before[name] for name, value in lock_totals().items()}
    assert after["lock_acquired_total"] == 2
    assert after["lock_wait_seconds_total"] >= 0.15
    assert after["lock_hold_seconds_total"] >= 0.15


def test_totals_are_since_the_start_and_rates_of_the_last_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(stream_figures.time, "monotonic", lambda: clock[0])
    metrics = Metrics()
    metrics.add(batch(lines=10, accepted=3, dead_lettered=5, seconds=1))
    assert metrics.snapshot()["dead_letter_rate"] == 0.5
    clock[0] += 61
    metrics.add(batch(lines=4, accepted=2, dead_lettered=1, seconds=2))
    found = metrics.snapshot()
    assert found["dead_letter_rate"] == 0.25
    assert found["latency_p50_ms"] == 2000
    assert found["sources"] == {
        "kafka": {"lines": 14, "accepted": 5, "dead_lettered": 6, "duplicate": 3}
    }


def test_prometheus_reads_the_same_metrics() -> None:
    metrics = Metrics()
    metrics.add(batch(lines=10, accepted=3, dead_lettered=5, seconds=0.25))
    metrics.gauge({"inbox_events": 7, "requests_total": 3})
    lines = metrics_text(metrics).decode().splitlines()
    assert {line for line in lines if line[:1] != "#" and "_lock_" not in line} == {
        'retail_assets_events_total{outcome="accepted",source="kafka"} 3.0',
        'retail_assets_events_total{outcome="dead_lettered",source="kafka"} 5.0',
        'retail_assets_events_total{outcome="duplicate",source="kafka"} 2.0',
        "retail_assets_events_per_second 0.17",
        "retail_assets_dead_letter_rate 0.5",
        "retail_assets_latency_p50_ms 250.0",
        "retail_assets_latency_p95_ms 250.0",
        "retail_assets_latency_p99_ms 250.0",
        "retail_assets_inbox_events 7.0",
        "retail_assets_requests_total 3.0",
    }
