"""The worker's counts and measures, for its heartbeat, `status` and Prometheus alike."""

import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from retail_assets.lake.lock import lock_totals

WINDOW_SECONDS = 60.0
"""Rates and latencies are of the last minute."""

MAX_SAMPLES = 10_000


@dataclass(frozen=True)
class Batch:
    """The outcome of a micro-batch; `seconds` is from when its oldest event was offered to visible.

    `seconds` is None where nobody knows when the events were offered.
    """

    source: str
    lines: int
    accepted: int
    dead_lettered: int
    seconds: float | None

    @property
    def duplicate(self) -> int:
        """Lines whose event is there from elsewhere."""
        return self.lines - self.accepted - self.dead_lettered


@dataclass
class Totals:
    """Counts of a source since the worker started."""

    lines: int = 0
    accepted: int = 0
    dead_lettered: int = 0
    duplicate: int = 0


@dataclass
class Metrics:
    """Counts since the start, and the latencies of the last minute; for several threads."""

    sources: dict[str, Totals] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)
    _recent: deque[tuple[float, Batch]] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, batch: Batch) -> None:
        """Count a batch that is visible now."""
        with self._lock:
            totals = self.sources.setdefault(batch.source, Totals())
            totals.lines += batch.lines
            totals.accepted += batch.accepted
            totals.dead_lettered += batch.dead_lettered
            totals.duplicate += batch.duplicate
            self._recent.append((time.monotonic(), batch))

    def problem(self, where: str, text: str | None) -> None:
        """Note what is wrong somewhere, or that nothing is any more."""
        with self._lock:
            if text is None:
                self.problems.pop(where, None)
            else:
                self.problems[where] = text

    def gauge(self, metrics: Mapping[str, float]) -> None:
        """Set metrics that go up and down."""
        with self._lock:
            self.gauges |= metrics

    def snapshot(self) -> dict[str, Any]:
        """All metrics by name; latencies in milliseconds, rates per second."""
        since = time.monotonic() - WINDOW_SECONDS
        with self._lock:
            recent = [batch for when, batch in self._recent if when >= since]
            totals = {name: vars(found).copy() for name, found in self.sources.items()}
            gauges = dict(sorted(self.gauges.items()))
        waited = [(batch.seconds, batch.lines) for batch in recent if batch.seconds is not None]
        lines = sum(batch.lines for batch in recent)
        dead = sum(batch.dead_lettered for batch in recent)
        return {
            "events_per_second": round(lines / WINDOW_SECONDS, 2),
            "dead_letter_rate": round(dead / lines, 6) if lines else 0.0,
            **{
                f"latency_p{share}_ms": value
                for share, value in zip((50, 95, 99), _percentiles(waited), strict=True)
            },
            "sources": totals,
            **lock_totals(),
            **gauges,
        }


def _percentiles(waited: list[tuple[float, int]]) -> list[float | None]:
    """The median and the 95th and 99th percentile in ms, of batches weighted by their events."""
    waited = sorted(waited)
    events = sum(count for _, count in waited)
    if not events:
        return [None, None, None]
    until = list(accumulate(count for _, count in waited))
    return [
        round(waited[bisect_left(until, share * events)][0] * 1000, 1)
        for share in (0.5, 0.95, 0.99)
    ]
