"""A realistic retail history as files, some of it bad on purpose.

The same arguments give the same files. A day is drawn and written before the next one is, a large
day in blocks, so memory does not grow with the history.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np

from retail_assets.samples.event_files import window_hours
from retail_assets.samples.events import (
    BAD_EVENT_KINDS,
    EVENT_KINDS,
    EventPlan,
    OrderEvents,
    events_of,
)
from retail_assets.samples.exports import BAD_ROW_KINDS, CORRECTION_KINDS, ExportWriter, ExtraRows
from retail_assets.samples.files import StagedFiles
from retail_assets.samples.local_time import Integers, business_zone
from retail_assets.samples.orders import DaySize, draw_orders
from retail_assets.samples.reference import Reference, draw_reference, write_reference

BAD_SHARE = 0.01
CORRECTION_SHARE = 0.01
DUPLICATE_SHARE = 0.01
# from so many days of so many orders on, every kind of bad row occurs;
# from so many events on, every kind of bad event
EVERY_KIND_DAYS = 14
EVERY_KIND_ORDERS_PER_DAY = 20
EVERY_KIND_EVENTS = 200

# Monday to Sunday
WEEKDAY_FACTORS = (0.85, 0.85, 0.9, 0.95, 1.15, 1.3, 1.0)
GROWTH_PER_YEAR = 0.15
DAY_NOISE = 0.05


@dataclass(frozen=True)
class GenerateSummary:
    """The files that were written.

    `orders` are good orders, each counted once; `export_rows` all data rows of the exports: good
    orders, corrections (an order exported again) and bad rows. `events_by_kind` counts every event
    line once; `late_events` (received in a later file than their time's) and `events_without_id`
    are valid ones.
    """

    files_written: int
    files_unchanged: int
    orders: int
    late_orders: int
    export_rows: int
    corrections: dict[str, int]
    bad_rows: dict[str, int]
    events: int
    events_by_kind: dict[str, int]
    late_events: int
    events_without_id: int


@dataclass(frozen=True)
class _Plan:
    """Counts a day, an entry of every array each; how many events an order has as in EventPlan."""

    orders: Integers
    bad_rows: Integers
    corrections: Integers
    event_rounds: int
    extra_event_from: int
    duplicate_events: Integers
    bad_events: Integers

    def event_plan(self, index: int) -> EventPlan:
        return EventPlan(
            rounds=self.event_rounds,
            extra_from=self.extra_event_from,
            duplicates=int(self.duplicate_events[index]),
            first_bad=int(self.bad_events[:index].sum()),
            bad=int(self.bad_events[index]),
        )


def generate(
    data_dir: Path,
    *,
    days: int,
    orders_per_day: int,
    events: int,
    start: date,
    seed: int,
    timezone: str = "Europe/London",
) -> GenerateSummary:
    """Write `reference/`, `exports/` and `events/` under `data_dir`.

    There are `days * orders_per_day` good orders in all, more at weekends and towards the end, and
    exactly `events` event lines: of the latest orders if there are fewer events than orders,
    several an order if there are more. Bad rows and corrections come on top of the good orders,
    about one in a hundred each. With at least 14 days of 20 orders every kind of bad row occurs,
    and with at least 200 events every kind of bad event.

    Raises ValueError for arguments out of range, and FileExistsError, before anything is in place,
    if a file exists with other content.
    """
    zone = _checked(
        start, timezone, days=days, orders_per_day=orders_per_day, events=events, seed=seed
    )
    plan = _plan(days, orders_per_day, events, start, seed)
    reference = draw_reference(min(max(5 * orders_per_day, 50), 50_000), start, seed)
    with StagedFiles() as staged:
        write_reference(staged, data_dir, reference.product_rows, reference.customer_rows)
        exports = ExportWriter(staged, data_dir, reference, days, seed)
        order_events = OrderEvents(
            staged, data_dir, reference, window_hours(_events_a_day(plan, events)), seed
        )
        _write_days(plan, reference, exports, order_events, start=start, seed=seed, zone=zone)
    counts, by_kind = exports.counts, order_events.counts.by_kind
    return GenerateSummary(
        files_written=len(staged.written),
        files_unchanged=len(staged.unchanged),
        orders=counts.orders,
        late_orders=counts.late_orders,
        export_rows=counts.rows,
        corrections={kind: counts.corrections[kind] for kind in CORRECTION_KINDS},
        bad_rows={kind: counts.bad_rows[kind] for kind in BAD_ROW_KINDS},
        events=sum(by_kind.values()),
        events_by_kind={kind: by_kind[kind] for kind in EVENT_KINDS},
        late_events=order_events.counts.late,
        events_without_id=order_events.counts.without_id,
    )


def _write_days(
    plan: _Plan,
    reference: Reference,
    exports: ExportWriter,
    order_events: OrderEvents,
    *,
    start: date,
    seed: int,
    zone: ZoneInfo,
) -> None:
    first = first_bad = first_correction = 0
    for index, (good, bad, corrections) in enumerate(
        zip(plan.orders.tolist(), plan.bad_rows.tolist(), plan.corrections.tolist(), strict=True)
    ):
        size = DaySize(index, first, good, bad)
        orders = draw_orders(start + timedelta(days=index), size, reference, seed, zone)
        exports.write(index, orders, ExtraRows(first_bad, bad, first_correction, corrections))
        order_events.write(index, orders, plan.event_plan(index), zone)
        first, first_bad, first_correction = (
            first + good,
            first_bad + bad,
            first_correction + corrections,
        )


def _checked(
    start: date, timezone: str, *, days: int, orders_per_day: int, events: int, seed: int
) -> ZoneInfo:
    least = {"days": (days, 1), "orders_per_day": (orders_per_day, 1), "events": (events, 0)}
    for name, (value, lowest) in {**least, "seed": (seed, 0)}.items():
        if value < lowest:
            raise ValueError(f"{name} must be at least {lowest}, not {value}")
    if start.year < 1970 or (date(9000, 1, 1) - start).days < days:
        raise ValueError(f"{days} days from {start} do not all lie between 1970 and 9000")
    return business_zone(timezone)


def _plan(days: int, orders_per_day: int, events: int, start: date, seed: int) -> _Plan:
    total = days * orders_per_day
    orders = apportion(total, _day_weights(days, start, seed))
    every_kind = days >= EVERY_KIND_DAYS and orders_per_day >= EVERY_KIND_ORDERS_PER_DAY
    bad_rows = max(round(total * BAD_SHARE), len(BAD_ROW_KINDS) if every_kind else 0)
    # none on the last day, because a correction comes in a later export
    correctable = orders * (np.arange(days) < days - 1)
    corrections = max(
        round(total * CORRECTION_SHARE), 2 * len(CORRECTION_KINDS) if every_kind else 0
    )
    bad_events = max(
        round(events * BAD_SHARE), len(BAD_EVENT_KINDS) if events >= EVERY_KIND_EVENTS else 0
    )
    duplicates = round(events * DUPLICATE_SHARE)
    rounds, rest = divmod(events - bad_events - duplicates, total)
    valid = EventPlan(rounds, total - rest, 0, 0, 0)
    firsts = np.cumsum(orders) - orders
    valid_events = [
        events_of(good, first, valid)
        for good, first in zip(orders.tolist(), firsts.tolist(), strict=True)
    ]
    return _Plan(
        orders=orders,
        bad_rows=apportion(bad_rows, orders),
        corrections=apportion(corrections, correctable),
        event_rounds=rounds,
        extra_event_from=total - rest,
        duplicate_events=apportion(duplicates, valid_events),
        bad_events=apportion(bad_events, valid_events),
    )


def apportion(total: int, weights: Sequence[float] | Integers) -> Integers:
    """Whole numbers that sum to `total`, in proportion to the weights; all zero if those are."""
    shares = np.cumsum(np.asarray(weights, dtype=np.float64))
    if shares[-1] <= 0:
        return np.zeros(len(shares), dtype=np.int64)
    reached = np.floor(shares / shares[-1] * total + 0.5).astype(np.int64)
    parts: Integers = np.diff(reached, prepend=np.int64(0))
    return parts


def _day_weights(days: int, start: date, seed: int) -> Integers:
    rng = np.random.default_rng([seed, 4])
    index = np.arange(days)
    weekday = np.array(WEEKDAY_FACTORS)[(start.weekday() + index) % 7]
    noise = 1 + DAY_NOISE * (2 * rng.random(days) - 1)
    # a whole number each, so that equal weights stay equal whatever the platform's rounding
    return np.rint(1_000 * weekday * (1 + GROWTH_PER_YEAR * index / 365) * noise).astype(np.int64)


def _events_a_day(plan: _Plan, events: int) -> float:
    """Events of an average day that has any."""
    if plan.event_rounds:
        return events / len(plan.orders)
    with_events = int((np.cumsum(plan.orders) > plan.extra_event_from).sum())
    return events / max(with_events, 1)
