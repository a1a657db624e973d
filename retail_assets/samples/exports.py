"""Order exports: the file styles a shop's database produces, and rows that are bad on purpose."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

import numpy as np

from retail_assets.samples.files import StagedFiles, export_path, write_lines
from retail_assets.samples.orders import (
    COMPLETED,
    LATE_DAYS,
    PENDING,
    RETURNED,
    STATUSES,
    DayOrders,
    Row,
    export_columns,
    export_rows,
)
from retail_assets.samples.reference import Reference, pounds

REQUIRED_COLUMNS = (
    "order_id",
    "customer_id",
    "product_id",
    "region",
    "status",
    "order_value_gbp",
    "order_timestamp",
)

# kind: the field that is spoiled, and the texts that take turns in it. "\udcf4" is written as the
# byte F4.
SPOILED_FIELDS: dict[str, tuple[str, tuple[str, ...]]] = {
    **{f"blank_{name}": (name, ("", "   ")) for name in REQUIRED_COLUMNS},
    "not_utf8": ("region", ("C\udcf4te d'Azur",)),
    "value_not_a_number": ("order_value_gbp", ("twelve", "£12.50", "NaN", "1,234.50", "inf")),
    "value_zero": ("order_value_gbp", ("0.00", "0")),
    "value_out_of_range": ("order_value_gbp", ("10000000000.00", "99999999999.99")),
    "timestamp_unreadable": (
        "order_timestamp",
        ("yesterday", "2024-13-45T10:00:00", "2023-02-29T10:00:00"),
    ),
    "status_unknown": ("status", ("shipped", "complete", "n/a")),
}
DUPLICATE_KINDS = ("duplicate_identical", "duplicate_changed")
BAD_ROW_KINDS = (
    "too_few_fields",
    "too_many_fields",
    *SPOILED_FIELDS,
    "value_more_than_two_decimals",
    "value_negative",
    "order_from_future",
    "order_too_late",
    *DUPLICATE_KINDS,
)
CORRECTION_KINDS = ("returned", "value", "completed")

# what the extra columns hold, in turn
_EXTRA_TEXTS = {
    "payment_method": ("card", "card", "cash", "voucher"),
    "customer_note": (
        "",
        "",
        "Ring twice, then wait",
        "Leave with neighbour\nat no. 12",
        'Gift for Zoë: "fragile"',
        "Smörgåsbord 🎁",
        "配達は午後にお願いします",
    ),
}
# lines built at once, which bounds the memory a large day takes
BLOCK_LINES = 50_000


@dataclass(frozen=True)
class Style:
    """How one day's file is written."""

    columns: tuple[str, ...] = REQUIRED_COLUMNS
    newline: str = "\n"
    byte_order_mark: bool = False
    compressed: bool = False

    def line(self, cells: list[str]) -> str:
        """The cells as a line of the file."""
        return f"{','.join(map(_quoted, cells))}{self.newline}"


@dataclass(frozen=True)
class ExtraRows:
    """How many rows of a day are bad or corrections, and where their kinds' rotation stands."""

    first_bad: int
    bad: int
    first_correction: int
    corrections: int


@dataclass
class ExportCounts:
    """Counts of all exports so far; an order is counted once, however often it was exported."""

    orders: int = 0
    rows: int = 0
    late_orders: int = 0
    corrections: Counter[str] = field(default_factory=Counter)
    bad_rows: Counter[str] = field(default_factory=Counter)


# the position in the file (the good line it stands before) and the text of a row that is bad or a
# correction
Inserted = list[tuple[int, str]]


class ExportWriter:
    """Writes one export a day, and remembers which orders a later one corrects."""

    def __init__(
        self, staged: StagedFiles, data_dir: Path, reference: Reference, days: int, seed: int
    ) -> None:
        self.counts = ExportCounts()
        self._staged = staged
        self._data_dir = data_dir
        self._reference = reference
        self._days = days
        self._seed = seed
        self._due: dict[int, list[tuple[str, Row]]] = {}

    def write(self, day_index: int, orders: DayOrders, extra: ExtraRows) -> None:
        """Write a day's export: good orders, and among them bad rows and corrections now due."""
        rng = np.random.default_rng([self._seed, 2, day_index])
        style = style_of(day_index)
        inserted = self._bad_rows(rng, orders, extra, style)
        inserted += self._corrections(rng, orders, self._due.pop(day_index, []), style)
        inserted.sort(key=lambda item: item[0])
        self._plan_corrections(rng, day_index, orders, extra)
        with self._staged.open(
            export_path(self._data_dir, orders.export_date, compressed=style.compressed)
        ) as handle:
            write_lines(
                handle, ["\ufeff" if style.byte_order_mark else "", style.line(list(style.columns))]
            )
            for begin in range(0, orders.good, BLOCK_LINES):
                end = min(begin + BLOCK_LINES, orders.good)
                lines = self._good_lines(orders, begin, end, style)
                here = [(at - begin, text) for at, text in inserted if begin <= at < end]
                write_lines(handle, _merged(lines, here))
            write_lines(handle, [text for at, text in inserted if at == orders.good])
        self.counts.orders += orders.good
        self.counts.rows += orders.good + len(inserted)
        self.counts.late_orders += int((orders.days_back[: orders.good] > 0).sum())

    def _good_lines(self, orders: DayOrders, begin: int, end: int, style: Style) -> list[str]:
        columns = export_columns(orders, self._reference, np.arange(begin, end))
        for name in set(style.columns) - set(REQUIRED_COLUMNS):
            texts = [_quoted(text) for text in _EXTRA_TEXTS[name]]
            columns[name] = [texts[index % len(texts)] for index in range(begin, end)]
        # a good order's required fields hold nothing that needs quotes
        cells = zip(*(columns[name] for name in style.columns), strict=True)
        return [f"{line}{style.newline}" for line in map(",".join, cells)]

    def _bad_rows(
        self, rng: np.random.Generator, orders: DayOrders, extra: ExtraRows, style: Style
    ) -> Inserted:
        numbers = range(extra.first_bad, extra.first_bad + extra.bad)
        kinds = [BAD_ROW_KINDS[number % len(BAD_ROW_KINDS)] for number in numbers]
        # a duplicate repeats a good order further down, any other bad row is an order of its own
        sources = [
            int(rng.integers(0, orders.good)) if kind in DUPLICATE_KINDS else orders.good + place
            for place, kind in enumerate(kinds)
        ]
        inserted: Inserted = []
        rows = export_rows(orders, self._reference, sources)
        for number, kind, source, row in zip(numbers, kinds, sources, rows, strict=True):
            first = source + 1 if kind in DUPLICATE_KINDS else 0
            at = int(rng.integers(first, orders.good + 1))
            bad = spoiled(kind, row, number // len(BAD_ROW_KINDS), orders.export_date)
            cells = _cells(bad, source, style)
            if kind == "too_few_fields":
                cells = cells[:-2]
            elif kind == "too_many_fields":
                cells.append("surplus")
            inserted.append((at, style.line(cells)))
        self.counts.bad_rows.update(kinds)
        return inserted

    def _corrections(
        self, rng: np.random.Generator, orders: DayOrders, due: list[tuple[str, Row]], style: Style
    ) -> Inserted:
        self.counts.corrections.update(kind for kind, _ in due)
        return [
            (int(rng.integers(0, orders.good + 1)), style.line(_cells(row, 0, style)))
            for _, row in due
        ]

    def _plan_corrections(
        self, rng: np.random.Generator, day_index: int, orders: DayOrders, extra: ExtraRows
    ) -> None:
        """Choose orders that a later export corrects, while they are not too late for it."""
        furthest = min(LATE_DAYS, self._days - 1 - day_index)
        if furthest < 1:
            return
        on_time = orders.days_back[: orders.good] == 0
        chosen: dict[int, str] = {}
        for number in range(extra.first_correction, extra.first_correction + extra.corrections):
            kind = CORRECTION_KINDS[number % len(CORRECTION_KINDS)]
            before = PENDING if kind == "completed" else COMPLETED
            candidates = np.flatnonzero(on_time & (orders.status[: orders.good] == before))
            if len(candidates):
                chosen.setdefault(int(rng.choice(candidates)), kind)
        rows = export_rows(orders, self._reference, list(chosen))
        for (index, kind), row in zip(chosen.items(), rows, strict=True):
            due = day_index + int(rng.integers(1, furthest + 1))
            corrected = _corrected(kind, row, int(orders.pence[index]))
            self._due.setdefault(due, []).append((kind, corrected))


def style_of(day_index: int) -> Style:
    """The file style of a day; every style occurs within any fourteen days."""
    day = day_index % 14
    columns: tuple[str, ...] = REQUIRED_COLUMNS
    if day in (2, 9):
        columns = (*columns, "payment_method")
    elif day in (4, 11):
        columns = (*columns[:4], "customer_note", *columns[4:])
    elif day == 6:
        columns = ("order_timestamp", "order_value_gbp", *columns[:5], "payment_method")
    elif day == 8:
        columns = tuple(reversed(columns))
    return Style(
        columns=columns,
        newline="\r\n" if day == 5 else "\n",
        byte_order_mark=day in (7, 11),
        compressed=day in (3, 10),
    )


def spoiled(kind: str, row: Row, turn: int, export_date: date) -> Row:
    """A good row made bad in one way; `turn` chooses among the texts that are bad in the same way.

    A wrong number of fields and an identical duplicate are no matter of one field: the row stays as
    it is.
    """
    if kind in SPOILED_FIELDS:
        name, texts = SPOILED_FIELDS[kind]
        return {**row, name: texts[turn % len(texts)]}
    value = row["order_value_gbp"]
    future = export_date + timedelta(days=1 + turn % 3)
    too_late = export_date - timedelta(days=LATE_DAYS + 1 + turn % 30)
    changes = {
        "duplicate_changed": {"order_value_gbp": f"1{value}"},
        "value_more_than_two_decimals": {"order_value_gbp": f"{value}{1 + turn % 9}"},
        "value_negative": {"order_value_gbp": f"-{value}"},
        "order_from_future": {"order_timestamp": f"{future}T12:00:00"},
        "order_too_late": {"order_timestamp": f"{too_late}T12:00:00"},
    }
    return {**row, **changes.get(kind, {})}


def _corrected(kind: str, row: Row, pence: int) -> Row:
    if kind == "value":
        # half the goods came back: never zero, the cheapest product costs 50 pence
        return {**row, "order_value_gbp": pounds(pence // 2)}
    return {**row, "status": STATUSES[RETURNED if kind == "returned" else COMPLETED]}


def _cells(row: Row, index: int, style: Style) -> list[str]:
    return [
        row[name] if name in row else _EXTRA_TEXTS[name][index % len(_EXTRA_TEXTS[name])]
        for name in style.columns
    ]


def _merged(lines: list[str], inserted: Inserted) -> list[str]:
    merged: list[str] = []
    done = 0
    for at, text in inserted:
        merged += lines[done:at]
        merged.append(text)
        done = at
    return merged + lines[done:]


def _quoted(text: str) -> str:
    return (
        f'"{text.replace(chr(34), chr(34) * 2)}"'
        if any(mark in text for mark in ',"\r\n')
        else text
    )
