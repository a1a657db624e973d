"""Order events of the same orders as the exports, and lines that are bad on purpose.

An order with one event says what the export says. One with more goes through what comes before its
status (pending, completed, returned), spread over what is left of its day, so that its last event
agrees with the export.
"""

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np

from retail_assets.samples.event_files import EventFileWriter
from retail_assets.samples.files import StagedFiles
from retail_assets.samples.local_time import (
    DAY_SECONDS,
    Integers,
    Truths,
    clock_texts,
    offset_suffix,
    utc_offsets,
)
from retail_assets.samples.orders import (
    CANCELLED,
    COMPLETED,
    PENDING,
    REFUNDED,
    RETURNED,
    STATUSES,
    DayOrders,
)
from retail_assets.samples.reference import REGIONS, Reference, pounds

# one event in so many
DELAYED_EVERY = 23
WITHOUT_ID_EVERY = 31
EXTRAS_EVERY = 11

_LIFE = {
    PENDING: (PENDING,),
    COMPLETED: (PENDING, COMPLETED),
    CANCELLED: (PENDING, CANCELLED),
    RETURNED: (PENDING, COMPLETED, RETURNED),
    REFUNDED: (PENDING, COMPLETED, RETURNED, REFUNDED),
}

# kind: the fields that are spoiled, in turn. "\udcf4" is written as the byte F4, which is not UTF-8
# there.
_SPOILED_FIELDS: dict[str, tuple[tuple[str, object], ...]] = {
    "wrong_type": (
        ("order_value_gbp", "a lot"),
        ("customer_id", {"number": 7}),
        ("order_value_gbp", True),
        ("region", ["London"]),
    ),
    "value_nan": (("order_value_gbp", math.nan), ("order_value_gbp", math.inf)),
    "value_zero": (("order_value_gbp", 0),),
    "value_negative": (("order_value_gbp", -12.5),),
    "blank_order_id": (("order_id", ""), ("order_id", "   ")),
    "blank_customer_id": (("customer_id", ""), ("customer_id", "   ")),
    "timestamp_absurd": (
        ("event_timestamp", "1066-10-14T09:00:00+00:00"),
        ("event_timestamp", "9999-12-31T23:59:59+00:00"),
        ("event_timestamp", "the day before yesterday"),
    ),
    "not_utf8": (("region", "C\udcf4te d'Azur"),),
}
_MISSING_FIELDS = {
    f"missing_{name}": name for name in ("order_id", "customer_id", "order_value_gbp", "region")
}
_NOT_OBJECTS = ("[1, 2, 3]", "42", '"order"', "null")
BAD_EVENT_KINDS = ("not_json", "not_an_object", *_MISSING_FIELDS, *_SPOILED_FIELDS)
VALID, DUPLICATE, _FIRST_BAD = 0, 1, 2
EVENT_KINDS = ("valid", "duplicate", *BAD_EVENT_KINDS)


@dataclass(frozen=True)
class EventPlan:
    """How many event lines one day has.

    Every order has `rounds`, those from `extra_from` on one more. The rest are duplicates, and bad
    ones, whose kinds go on from the place `first_bad` in the history's rotation.
    """

    rounds: int
    extra_from: int
    duplicates: int
    first_bad: int
    bad: int


@dataclass
class EventCounts:
    """Counts of all event files so far: lines by kind, late and unidentified ones of the valid."""

    by_kind: Counter[str] = field(default_factory=Counter)
    late: int = 0
    without_id: int = 0


@dataclass(frozen=True)
class DayEvents:
    """Event lines of a day, an entry of every array each.

    The order's index, which of the order's events it is (from 0), its status, when it happened and
    when it was received (seconds since 1970), its kind as an index of EVENT_KINDS, and the turn of
    the bad ones.
    """

    order: Integers
    step: Integers
    status: Integers
    instant: Integers
    received: Integers
    kind: Integers
    turn: Integers

    def __len__(self) -> int:
        return len(self.order)


class OrderEvents:
    """Writes the events of one day's orders after the other."""

    def __init__(
        self, staged: StagedFiles, data_dir: Path, reference: Reference, hours: int, seed: int
    ) -> None:
        self.counts = EventCounts()
        self._files = EventFileWriter(staged, data_dir)
        self._reference = reference
        self._hours = hours
        self._seed = seed

    def write(self, day_index: int, orders: DayOrders, plan: EventPlan, zone: ZoneInfo) -> None:
        """Write the events received on the day of an export."""
        rng = np.random.default_rng([self._seed, 3, day_index])
        events = _with_duplicates_and_bad(rng, _valid_events(orders, plan), orders, plan)
        if not len(events):
            return
        clock = (events.received + utc_offsets(events.received, zone)) % DAY_SECONDS
        window = clock // 3600 // self._hours * self._hours
        offsets = utc_offsets(events.instant, zone)
        self._files.write(
            orders.export_date,
            clock,
            window,
            lambda chosen: self._lines(orders, events, offsets, chosen),
        )
        self._count(orders, events, offsets, window)

    def _count(
        self, orders: DayOrders, events: DayEvents, offsets: Integers, window: Integers
    ) -> None:
        for kind, count in enumerate(np.bincount(events.kind, minlength=len(EVENT_KINDS)).tolist()):
            self.counts.by_kind[EVENT_KINDS[kind]] += count
        valid = events.kind == VALID
        clock = (events.instant + offsets) % DAY_SECONDS
        late = (orders.days_back[events.order] > 0) | (clock < window * 3600)
        self.counts.late += int((valid & late).sum())
        self.counts.without_id += int((valid & _without_id(orders, events)).sum())

    def _lines(
        self, orders: DayOrders, events: DayEvents, offsets: Integers, chosen: Integers
    ) -> list[str]:
        index = events.order[chosen]
        times = clock_texts(events.instant[chosen] + offsets[chosen])
        suffixes = {offset: offset_suffix(offset) for offset in set(offsets[chosen].tolist())}
        lines = [
            f'{{{identity}"order_id": "{order_id}", '
            f'"customer_id": "{self._reference.customer_ids[customer]}", '
            f'"product_id": "{self._reference.product_ids[product]}", '
            f'"order_value_gbp": {pounds(pence)}, "region": "{REGIONS[region]}", '
            f'"quantity": {quantity}, "status": "{STATUSES[status]}", '
            f'"event_timestamp": "{time}{suffixes[offset]}"{_extras(position)}}}'
            for (
                identity,
                order_id,
                customer,
                product,
                pence,
                region,
                quantity,
                status,
                time,
                offset,
                position,
            ) in zip(
                _identities(orders, events, chosen),
                orders.order_ids(index),
                orders.customer[index].tolist(),
                orders.product[index].tolist(),
                orders.pence[index].tolist(),
                orders.region[index].tolist(),
                orders.quantity[index].tolist(),
                events.status[chosen].tolist(),
                times,
                offsets[chosen].tolist(),
                (orders.first + index).tolist(),
                strict=True,
            )
        ]
        for at in np.flatnonzero(events.kind[chosen] >= _FIRST_BAD).tolist():
            kind, turn = int(events.kind[chosen[at]]), int(events.turn[chosen[at]])
            lines[at] = spoiled(EVENT_KINDS[kind], lines[at], turn)
        return lines


def spoiled(kind: str, line: str, turn: int) -> str:
    """A valid event line made bad in one way; `turn` chooses among the ways that are alike."""
    if kind == "not_json":
        return line[: len(line) // 2]
    if kind == "not_an_object":
        return _NOT_OBJECTS[turn % len(_NOT_OBJECTS)]
    event = json.loads(line)
    if kind in _MISSING_FIELDS:
        del event[_MISSING_FIELDS[kind]]
    else:
        name, value = _SPOILED_FIELDS[kind][turn % len(_SPOILED_FIELDS[kind])]
        event[name] = value
    return json.dumps(event, ensure_ascii=False)


def events_of(good: int, first: int, plan: EventPlan) -> int:
    """How many valid events some orders have, the first of them at `first` in the history."""
    return good * plan.rounds + max(0, first + good - max(first, plan.extra_from))


def _valid_events(orders: DayOrders, plan: EventPlan) -> DayEvents:
    index = np.arange(orders.good, dtype=np.int64)
    times = plan.rounds + (orders.first + index >= plan.extra_from)
    order = np.repeat(index, times)
    count = len(order)
    step = np.arange(count, dtype=np.int64) - np.repeat(np.cumsum(times) - times, times)
    happened, back = orders.instant[order], orders.days_back[order] * DAY_SECONDS
    left = np.maximum(orders.end - 1 - back - happened, 0)
    instant = happened + left * step // (times[order] + 1)
    # an order that comes days late is received at its time of day; some others hours late
    delay = np.where((orders.first + order + step) % DELAYED_EVERY == 0, (2 + order % 5) * 3600, 0)
    received = np.clip(instant + back + delay, orders.start, orders.end - 1)
    status = _statuses(orders.status[order], times[order] - step)
    zeros = np.zeros(count, dtype=np.int64)
    return DayEvents(order, step, status, instant, received, zeros, zeros)


def _statuses(final: Integers, to_come: Integers) -> Integers:
    """The status of an event; `to_come` counts it and those up to the order's final one."""
    most = max(map(len, _LIFE.values()))
    before = np.full((len(STATUSES), most + 1), PENDING, dtype=np.int64)
    for status, life in _LIFE.items():
        for back in range(1, len(life) + 1):
            before[status, back] = life[-back]
    return before[final, np.minimum(to_come, most)]


def _with_duplicates_and_bad(
    rng: np.random.Generator, valid: DayEvents, orders: DayOrders, plan: EventPlan
) -> DayEvents:
    if not len(valid):
        return valid
    again = rng.integers(0, len(valid), plan.duplicates)
    templates = rng.integers(0, len(valid), plan.bad)
    rows = np.concatenate([np.arange(len(valid)), again, templates])
    number = np.arange(plan.first_bad, plan.first_bad + plan.bad, dtype=np.int64)
    kinds = len(BAD_EVENT_KINDS)
    later = np.concatenate(
        [np.zeros(len(valid), dtype=np.int64), rng.integers(1, 7_200, len(rows) - len(valid))]
    )
    none = np.zeros(len(valid) + len(again), dtype=np.int64)
    none[len(valid) :] = DUPLICATE
    return DayEvents(
        order=valid.order[rows],
        step=valid.step[rows],
        status=valid.status[rows],
        instant=valid.instant[rows],
        received=np.minimum(valid.received[rows] + later, orders.end - 1),
        kind=np.concatenate([none, _FIRST_BAD + number % kinds]),
        turn=np.concatenate([np.zeros(len(none), dtype=np.int64), number // kinds]),
    )


def _identities(orders: DayOrders, events: DayEvents, chosen: Integers) -> list[str]:
    """The beginning of the chosen lines: their event id, or nothing."""
    identities = [
        f'"event_id": "EV-{order_id}-{step + 1}", '
        for order_id, step in zip(
            orders.order_ids(events.order[chosen]), events.step[chosen].tolist(), strict=True
        )
    ]
    for at in np.flatnonzero(_without_id(orders, events)[chosen]).tolist():
        identities[at] = ""
    for at in np.flatnonzero(events.kind[chosen] >= _FIRST_BAD).tolist():
        kind, turn = EVENT_KINDS[events.kind[chosen[at]]], events.turn[chosen[at]]
        # an id of its own: a corrected line must not meet the good event of that id
        identities[at] = identities[at].replace('", ', f'-{kind}-{turn + 1}", ')
    return identities


def _without_id(orders: DayOrders, events: DayEvents) -> Truths:
    chosen: Truths = (orders.first + events.order) % WITHOUT_ID_EVERY == WITHOUT_ID_EVERY // 2
    first_and_good: Truths = (events.step == 0) & (events.kind < _FIRST_BAD)
    return np.logical_and(chosen, first_and_good)


def _extras(position: int) -> str:
    if position % EXTRAS_EVERY:
        return ""
    if position // EXTRAS_EVERY % 2:
        return ', "channel": "app", "note": "Grüße, Zoë 🎁"'
    return ', "channel": "web", "voucher": {"code": "SPRING", "percent": 10}'
